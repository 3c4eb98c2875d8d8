"""Embedding from Python: every accepted form of the same images gives the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.errors import DataError
from eval.encoder import PatchEncoder, load
from eval.measure.metrics import Symmetry
from eval.measure.readouts import READOUTS, embed_pixels
from models.vae import ModelConfig
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
