"""Embedding from Python: every accepted form of the same images gives the same numbers."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.errors import DataError
from eval.encoder import PatchEncoder, load
from eval.measure.metrics import Symmetry
from eval.measure.readouts import READOUTS, embed_pixels
from models.config import ModelConfig
from pipeline.normalisation import Normalisation, statistics
from tests.helpers.trained_runs import save_snapshot


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PatchEncoder:
    run = save_snapshot(tmp_path_factory.mktemp("run"), ModelConfig("refined"), group="C4")
    return load(run, "cpu")


PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("readout", READOUTS)
def test_every_form_gives_the_numbers_of_the_evaluation(
    readout: str, encoder: PatchEncoder
) -> None:
    expected = embed_pixels(encoder.model, PIXELS, [readout], Symmetry("C4"))[readout]
    assert expected.shape == (70, encoder.dimensions(readout))
    floats = PIXELS.astype(np.float32) / 255
    channels_first = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
    for images in (PIXELS, channels_first, floats, torch.from_numpy(channels_first)):
        np.testing.assert_allclose(encoder.encode(images, readout), expected, atol=1e-5)


def test_any_number_of_images(encoder: PatchEncoder) -> None:
    whole = encoder.encode(PIXELS)
    assert encoder.encode(PIXELS[:0]).shape == (0, 384)
    np.testing.assert_allclose(encoder.encode(PIXELS[:1]), whole[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS[0], r"shape \(32, 32, 3\)"),
        (PIXELS[:, :16], "shape"),
        (PIXELS.astype(np.int64), "int64"),
        (PIXELS.astype(np.float32), r"\[0, 255\], expected \[0, 1\]"),
        (np.full((1, 3, 32, 32), -0.5, np.float32), r"-0.5"),
        (np.full((1, 3, 32, 32), np.nan, np.float32), "nan"),
    ],
)
def test_wrong_images_are_refused(
    images: NDArray[np.generic], message: str, encoder: PatchEncoder
) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.encode(images)


def test_unknown_readouts_and_runs_are_named(encoder: PatchEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="orbit_aligned"):
        encoder.encode(PIXELS, "mu")
    with pytest.raises(DataError, match="finished run"):
        load(tmp_path)


def test_a_run_that_normalises_sees_images_by_unit(tmp_path: Path) -> None:
    target = statistics(PIXELS[:8])
    about = {"normalisation": asdict(Normalisation("slide", target))}
    encoder = load(save_snapshot(tmp_path, ModelConfig("refined"), **about), "cpu")
    dark = PIXELS[:20] // 2
    both, units = np.concatenate([PIXELS[:20], dark]), ["light"] * 20 + ["dark"] * 20
    untouched = both.copy()
    features = encoder.encode(both, units=units)
    assert np.array_equal(both, untouched)
    np.testing.assert_array_equal(features[20:], encoder.encode(dark))
    np.testing.assert_array_equal(features, encoder.encode(both, units=np.repeat([3, 1], 20)))
    np.testing.assert_array_equal(features[20:], encoder.encode(dark.astype(np.float32) / 255))
    apart = np.abs(encoder.embed(both[:20]) - encoder.embed(dark)).mean()
    assert np.abs(features[:20] - features[20:]).mean() < 0.3 * apart
    assert encoder.encode(both[:0]).shape == (0, 384)
    with pytest.raises(ValueError, match=r"7 images, but this run normalises .* takes 8 or more"):
        encoder.encode(both[:7])
    with pytest.raises(ValueError, match="1 images of the slide 'dark'"):
        encoder.encode(both[:21], units=units[:21])
    with pytest.raises(ValueError, match="2 units for 40 images"):
        encoder.encode(both, units=["a", "b"])
    with pytest.raises(ValueError, match="a unit is None"):
        encoder.encode(both[:8], units=[None] * 8)  # type: ignore[list-item]
