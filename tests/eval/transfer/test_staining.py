"""Views of data sets in the staining of another, against torchstain."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from eval.config import EvalConfig
from eval.session import Session
from eval.transfer.datasets import View, Views, read_dataset
from pipeline.index import open_dataset
from pipeline.normalisation import Normaliser, statistics
from pipeline.reader import read_split
from pipeline.units import fit_dataset, normalised
from tests.helpers.patches import as_is, packed_sites, pale, stained_patches


def test_normalisation_is_that_of_torchstain() -> None:
    """An independent implementation, for one image: the patches, one below another."""
    normalizers = pytest.importorskip("torchstain.torch.normalizers.reinhard")
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 2
    source, target = (
        torch.from_numpy(
            np.stack([np.asarray(image) for image in stained_patches(labels, rng, look)])
        )
        for look in (as_is, pale)
    )
    theirs = normalizers.TorchReinhardNormalizer()
    theirs.fit(target.flatten(0, 1).permute(2, 0, 1))
    expected = theirs.normalize(source.flatten(0, 1).permute(2, 0, 1).clone())
    ours, every = source.numpy().copy(), np.arange(len(labels))
    codes = np.zeros(len(labels), np.int32)
    Normaliser(codes, [statistics(ours)], statistics(target.numpy())).apply(ours, every)
    rows = expected.reshape(source.flatten(0, 1).shape).numpy().reshape(ours.shape)
    assert np.abs(ours.astype(float) - rows).mean() < 1  # theirs truncates, ours rounds
    assert np.abs(ours.astype(float) - source.numpy()).mean() > 10


@pytest.mark.parametrize("unit", ["site", "source"])
def test_views_are_what_a_normalised_data_set_gives(
    unit: Literal["site", "source"], tmp_path: Path
) -> None:
    dataset = open_dataset(packed_sites(tmp_path))
    probed = read_dataset("all", Session(dataset, EvalConfig()), dataset.metadata.classes)
    moved = normalised(dataset, fit_dataset(dataset, unit))
    for split in ("train", "val", "test"):
        pixels = Views({"all": probed}).pixels(View("all", split, unit, "all"))
        assert np.array_equal(pixels, read_split(moved.split(split)))
