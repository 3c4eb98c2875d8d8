"""Patches in the staining of another site: Reinhard's normalisation, by site or by source image.

Patches that are normalised by the same statistics form a unit. The statistics are computed from the
patches of the unit in train if it has any, else from all its patches, without labels. They are
never those of a single patch, which would remove differences between tissues: a source image with
few patches uses the statistics of its site.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.transfer.datasets import Names, ProbedData
from pipeline import stain
from pipeline.pixels import to_float, to_pixels, to_tensor
from shards.codec.png import Pixels
from shards.sources.splits import SPLITS

Stain = Literal["none", "site", "source"]
Statistics = tuple[Tensor, Tensor]  # mean and standard deviation (3,) in CIELAB

MIN_PATCHES = 8  # of a source image in all splits, for statistics of its own
CHUNK = 1024  # patches at a time


class View(NamedTuple):
    """The patches of a split, normalised to the staining of the train split of `target`."""

    data: str
    split: str
    stain: Stain = "none"
    target: str = ""


class Views:
    """The pixels of views, each computed once."""

    def __init__(self, datasets: Mapping[str, ProbedData]) -> None:
        self.datasets = datasets
        self._pixels: dict[View, Pixels] = {}
        self._statistics: dict[tuple[str, Stain], dict[str, Statistics]] = {}

    def view(self, data: str, split: str, stain: Stain, target: str) -> View:
        """Describe a view; its stain is "none" where normalisation would change nothing."""
        whole = stain == "site" and len(set(self._units(data, stain, "train"))) == 1
        if stain == "none" or (whole and data == target):
            return View(data, split)
        return View(data, split, stain, target)

    def pixels(self, view: View) -> Pixels:
        """Compute the pixels (n, 32, 32, 3) of a view."""
        raw = self.datasets[view.data].rows.pixels[view.split]
        if view.stain == "none":
            return raw
        if view not in self._pixels:
            units = self._units(view.data, view.stain, view.split)
            by_unit = self._by_unit(view.data, view.stain)
            target = statistics(self.datasets[view.target].rows.pixels["train"])
            self._pixels[view] = normalised(raw, units, by_unit, target)
        return self._pixels[view]

    def _units(self, data: str, stain: Stain, split: str) -> Names:
        """Name the unit (n,) of each patch."""
        dataset = self.datasets[data]
        sites = np.array([f"site {name}" for name in dataset.column("site", split)], object)
        if stain == "site":
            return sites
        every = np.concatenate([dataset.column("source", name) for name in SPLITS])
        names, counts = np.unique(every, return_counts=True)
        many = set(names[counts >= MIN_PATCHES])
        pairs = zip(dataset.column("source", split), sites, strict=True)
        units = [f"source {source}" if source in many else site for source, site in pairs]
        return np.array(units, object)

    def _by_unit(self, data: str, stain: Stain) -> dict[str, Statistics]:
        if (data, stain) not in self._statistics:
            pixels = self.datasets[data].rows.pixels
            units = {split: self._units(data, stain, split) for split in SPLITS}
            by_unit: dict[str, Statistics] = {}
            for splits in (("train",), ("val", "test")):
                names = np.concatenate([units[split] for split in splits])
                images = np.concatenate([pixels[split] for split in splits])
                for unit in set(names) - set(by_unit):
                    by_unit[unit] = statistics(images[names == unit])
            self._statistics[data, stain] = by_unit
        return self._statistics[data, stain]


def statistics(pixels: Pixels) -> Statistics:
    """Compute the statistics of all pixels of patches (n, 32, 32, 3), n > 0, piece by piece."""
    pieces = [pixels[first : first + CHUNK] for first in range(0, len(pixels), CHUNK)]
    by_piece = [stain.statistics(_to_float(piece)) for piece in pieces]
    weights = torch.tensor([len(piece) for piece in pieces], dtype=torch.float64) / len(pixels)
    means = torch.stack([mean.double() for mean, _ in by_piece])
    squares = torch.stack([deviation.double().square() for _, deviation in by_piece])
    mean = weights @ means
    return mean.float(), (weights @ (squares + (means - mean).square())).sqrt().float()


def normalised(
    pixels: Pixels, units: Names, by_unit: Mapping[str, Statistics], target: Statistics
) -> Pixels:
    """Move patches (n, 32, 32, 3) from the statistics of their unit to those of the target."""
    moved = np.empty_like(pixels)
    for unit in set(units):
        rows = np.flatnonzero(units == unit)
        for first in range(0, len(rows), CHUNK):
            piece = rows[first : first + CHUNK]
            x = stain.normalise(_to_float(pixels[piece]), by_unit[unit], target)
            moved[piece] = to_pixels(x)
    return moved


def _to_float(pixels: Pixels) -> Tensor:
    return to_float(to_tensor(pixels))
