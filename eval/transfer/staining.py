"""Patches in the staining of another site: Reinhard's normalisation, by site or by source image.

Units and their statistics are those of `pipeline.units`, of all patches that are probed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from eval.config import Stain
from eval.transfer.datasets import ProbedData
from pipeline.normalisation import Normaliser, Statistics, Unit, statistics
from pipeline.units import Units, fit, units_of
from shards.codec.png import Pixels


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
        self._units: dict[tuple[str, Unit], tuple[Units, list[Statistics]]] = {}

    def view(self, data: str, split: str, stain: Stain, target: str) -> View:
        """Describe a view; its stain is "none" where normalisation would change nothing."""
        if stain == "none":
            return View(data, split)
        units, _ = self._fitted(data, stain)
        if data == target and stain == "site" and len(np.unique(units.codes["train"])) == 1:
            return View(data, split)
        return View(data, split, stain, target)

    def pixels(self, view: View) -> Pixels:
        """Compute the pixels (n, 32, 32, 3) of a view."""
        raw = self.datasets[view.data].rows.pixels[view.split]
        if view.stain == "none":
            return raw
        if view not in self._pixels:
            units, fitted = self._fitted(view.data, view.stain)
            target = statistics(self.datasets[view.target].rows.pixels["train"])
            pixels = raw.copy()
            normaliser = Normaliser(units.codes[view.split], fitted, target)
            normaliser.apply(pixels, np.arange(len(pixels)))
            self._pixels[view] = pixels
        return self._pixels[view]

    def _fitted(self, data: str, unit: Unit) -> tuple[Units, list[Statistics]]:
        if (data, unit) not in self._units:
            rows = self.datasets[data].rows
            units = units_of(rows.tables, unit)
            by_name = fit(units, units.names, lambda split, at: rows.pixels[split][at], most={})
            self._units[data, unit] = units, [by_name[name] for name in units.names]
        return self._units[data, unit]
