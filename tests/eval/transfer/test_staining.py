"""Normalisation of staining by units of patches, against the whole and against torchstain."""

import numpy as np
import pytest
import torch

from eval.transfer import staining
from pipeline import stain
from pipeline.pixels import to_float
from tests.helpers.patches import as_is, pale, stained_patches


def test_statistics_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    monkeypatch.setattr(staining, "CHUNK", 7)
    whole = stain.statistics(to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    for actual, expected in zip(staining.statistics(pixels), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


def test_units_are_moved_apart_and_never_patch_by_patch() -> None:
    rng = np.random.default_rng(0)
    light = rng.integers(100, 200, (6, 32, 32, 3), np.uint8)
    dark = (light * 0.6).astype(np.uint8)
    units = np.array(["a", "b"] * 6, object)
    mixed = np.stack([light, dark], 1).reshape(-1, 32, 32, 3)
    by_unit = {"a": staining.statistics(light), "b": staining.statistics(dark)}
    moved = staining.normalised(mixed, units, by_unit, by_unit["a"])
    assert np.abs(moved[::2].astype(int) - light).max() <= 1  # onto itself
    difference = np.abs(moved[1::2].astype(int) - light).mean()
    assert difference < 0.2 * np.abs(dark.astype(int) - light).mean()
    # a patch darker than its unit stays so: it is not normalised by itself
    light[0] = light[0] // 2
    statistics = {"a": staining.statistics(light)}
    moved = staining.normalised(light, np.array(["a"] * 6, object), statistics, by_unit["b"])
    assert moved[0].mean() < 0.8 * moved[1:].mean()


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
    by_unit = {"a": staining.statistics(source.numpy())}
    units = np.array(["a"] * len(labels), object)
    to = staining.statistics(target.numpy())
    ours = staining.normalised(source.numpy(), units, by_unit, to)
    rows = expected.reshape(source.flatten(0, 1).shape).numpy().reshape(ours.shape)
    assert np.abs(ours.astype(float) - rows).mean() < 1  # theirs truncates, ours rounds
    assert np.abs(ours.astype(float) - source.numpy()).mean() > 10
