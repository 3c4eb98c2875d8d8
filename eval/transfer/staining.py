"""Patches in the colours of another site: Reinhard's normalisation, by site or by source image.

Patches that are stained alike are a unit. Its statistics are those of its patches in train where
it has some there, else of all its patches; labels play no part. They are never of one patch, which
would lose what tells tissue apart: of a source image with few patches, those of its site are taken.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.measure.readouts import Pixels
from eval.measure.suite import SPLITS
from eval.transfer.sites import Names, Site
from pipeline import stain
from pipeline.pixels import to_float, to_pixels, to_tensor

Stain = Literal["none", "site", "source"]
Statistics = tuple[Tensor, Tensor]  # mean and standard deviation (3,) in CIELAB

FEWEST = 8  # patches of a source image in train, val and test that make statistics
PIECE = 1024  # patches at a time


class View(NamedTuple):
    """The patches of a split of a data set, in the colours of the train split of another."""

    site: str
    split: str
    stain: Stain = "none"
    target: str = ""


class Views:
    """The pixels of views, each made once."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.sites = sites
        self._pixels: dict[View, Pixels] = {}
        self._statistics: dict[tuple[str, Stain], dict[str, Statistics]] = {}

    def view(self, site: str, split: str, stain: Stain, target: str) -> View:
        """Without a stain where normalising would change nothing."""
        whole = stain == "site" and len(set(self._units(site, stain, "train"))) == 1
        if stain == "none" or (whole and site == target):
            return View(site, split)
        return View(site, split, stain, target)

    def pixels(self, view: View) -> Pixels:
        """(n, 32, 32, 3)."""
        raw = self.sites[view.site].rows.pixels[view.split]
        if view.stain == "none":
            return raw
        if view not in self._pixels:
            units = self._units(view.site, view.stain, view.split)
            by_unit = self._by_unit(view.site, view.stain)
            target = statistics(self.sites[view.target].rows.pixels["train"])
            self._pixels[view] = normalised(raw, units, by_unit, target)
        return self._pixels[view]

    def _units(self, site: str, stain: Stain, split: str) -> Names:
        """(n,) what each patch is stained with."""
        data = self.sites[site]
        own = np.array([f"site {name}" for name in data.column("site", split)], object)
        if stain == "site":
            return own
        every = np.concatenate([data.column("source", name) for name in SPLITS])
        names, counts = np.unique(every, return_counts=True)
        many = set(names[counts >= FEWEST])
        pairs = zip(data.column("source", split), own, strict=True)
        found = [f"source {source}" if source in many else unit for source, unit in pairs]
        return np.array(found, object)

    def _by_unit(self, site: str, stain: Stain) -> dict[str, Statistics]:
        if (site, stain) not in self._statistics:
            pixels = self.sites[site].rows.pixels
            units = {split: self._units(site, stain, split) for split in SPLITS}
            found: dict[str, Statistics] = {}
            for splits in (("train",), ("val", "test")):
                names = np.concatenate([units[split] for split in splits])
                images = np.concatenate([pixels[split] for split in splits])
                for unit in set(names) - set(found):
                    found[unit] = statistics(images[names == unit])
            self._statistics[site, stain] = found
        return self._statistics[site, stain]


def statistics(pixels: Pixels) -> Statistics:
    """Of all pixels of (n, 32, 32, 3) patches, n > 0."""
    pieces = [pixels[first : first + PIECE] for first in range(0, len(pixels), PIECE)]
    found = [stain.statistics(_unit(piece)) for piece in pieces]
    weights = torch.tensor([len(piece) for piece in pieces], dtype=torch.float64) / len(pixels)
    means = torch.stack([mean.double() for mean, _ in found])
    squares = torch.stack([deviation.double().square() for _, deviation in found])
    mean = weights @ means
    return mean.float(), (weights @ (squares + (means - mean).square())).sqrt().float()


def normalised(
    pixels: Pixels, units: Names, by_unit: Mapping[str, Statistics], target: Statistics
) -> Pixels:
    """(n, 32, 32, 3) with the patches of every unit moved from its statistics to the target's."""
    found = np.empty_like(pixels)
    for unit in set(units):
        rows = np.flatnonzero(units == unit)
        for first in range(0, len(rows), PIECE):
            part = rows[first : first + PIECE]
            moved = stain.normalise(_unit(pixels[part]), by_unit[unit], target)
            found[part] = to_pixels(moved)
    return found


def _unit(pixels: Pixels) -> Tensor:
    return to_float(to_tensor(pixels))
