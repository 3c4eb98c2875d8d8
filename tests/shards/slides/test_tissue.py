"""Tissue is found, and glass, dust, ink and borders are not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.slides.grid import Resolution
from shards.slides.tissue import Thumbnail, Tissue, find_tissue
from tests.helpers import slides

MPP = 8.0


def tissue_of(pixels: NDArray[np.uint8]) -> Tissue:
    return find_tissue(Thumbnail(pixels, 1.0), MPP)


def test_a_piece_of_tissue_is_found_and_measured() -> None:
    pixels = slides.glass(200, 300)
    slides.paint(pixels, 50, 60, 100, 150, slides.TISSUE)
    tissue = tissue_of(pixels)
    assert tissue.mask[53:147, 63:207].all()
    outside = tissue.mask.copy()
    outside[47:153, 57:213] = False
    assert not outside.any()
    assert tissue.tissue_mm2 == pytest.approx(100 * 150 * (MPP / 1000) ** 2, rel=0.05)
    assert tissue.ink_mm2 == 0


def test_glass_alone_holds_nothing() -> None:
    for seed in range(3):
        assert not tissue_of(slides.glass(200, 300, seed)).mask.any()


def test_a_slide_that_is_all_tissue_is_taken_whole() -> None:
    pixels = slides.glass(200, 300)
    slides.paint(pixels, 0, 0, 200, 150, slides.TISSUE)
    slides.paint(pixels, 0, 150, 200, 150, (235, 205, 225))  # pale stroma
    assert tissue_of(pixels).mask.mean() > 0.99


def test_dust_is_too_small_and_a_lumen_is_filled() -> None:
    pixels = slides.glass(200, 300)
    slides.paint(pixels, 50, 60, 100, 150, slides.TISSUE)
    slides.paint(pixels, 10, 250, 5, 5, slides.TISSUE)
    pixels[95:103, 100:108] = slides.GLASS
    tissue = tissue_of(pixels)
    assert not tissue.mask[5:20, 245:260].any() and tissue.mask[95:103, 100:108].all()


@pytest.mark.parametrize(
    "ink", [slides.GREEN_INK, slides.BLUE_INK, slides.RED_INK, slides.BLACK_INK]
)
def test_ink_is_left_out_beside_and_on_tissue(ink: tuple[int, int, int]) -> None:
    pixels = slides.glass(200, 300)
    slides.paint(pixels, 50, 60, 100, 150, slides.TISSUE)
    slides.paint(pixels, 20, 20, 160, 20, ink)  # beside
    slides.paint(pixels, 90, 60, 20, 150, ink)  # across
    tissue = tissue_of(pixels)
    assert not tissue.mask[20:180, 15:45].any() and not tissue.mask[90:110].any()
    assert tissue.mask[56:84, 66:204].all() and tissue.mask[118:144, 66:204].all()
    assert tissue.ink_mm2 > 0.3


@pytest.mark.parametrize("stain", [(110, 80, 155), (205, 70, 120), (232, 160, 200), (95, 90, 150)])
def test_stains_are_not_taken_for_ink(stain: tuple[int, int, int]) -> None:
    pixels = slides.glass(200, 300)
    slides.paint(pixels, 50, 60, 100, 150, stain)
    assert tissue_of(pixels).mask[53:147, 63:207].all()


def test_the_fraction_of_a_patch_is_its_area_in_the_mask() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    tissue = Tissue(mask, step=16.0, tissue_mm2=0, ink_mm2=0)
    how = Resolution(mpp=0.5, level=0, scale=1.0, factor=1.0)  # 32 pixels: 2 of the mask
    x, y = np.array([0, 64, 72, 80, 128]), np.full(5, 16)
    assert np.allclose(tissue.fractions((x, y), how), [0, 0.5, 0.75, 1, 1])
