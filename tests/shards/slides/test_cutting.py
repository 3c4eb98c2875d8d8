"""Pixels of patches: copied exactly, resampled once, whatever region they were decoded in."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.schema import PATCH
from shards.slides.cutting import cut, regions
from shards.slides.grid import lattice, resolution, resolution_of
from shards.slides.reader import SlideError, open_slide
from shards.sources.source import Patch
from tests.helpers import slides


def patch(x: int, y: int, mpp: float, scale: float) -> Patch:
    return Patch("a.svs", None, "train", "a", y, x, 0, 0, mpp=mpp, scale=scale)


def rows_to_pixels(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    assert not rows[:, :, 0].any()
    return rows[:, :, 1:].reshape(-1, PATCH, PATCH, 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a.svs"
    slides.write_slide(path, slides.tissue_slide(), mpp=0.25, reductions=(1, 2, 4))
    return path


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.5, 1), (0.505, 1), (1.0, 2)])
def test_a_level_of_the_resolution_is_copied(mpp: float, level: int, path: Path) -> None:
    scale = 2**level
    image = np.asarray(Image.fromarray(slides.tissue_slide()).reduce(scale))
    with open_slide(path) as slide:
        how = resolution(slide, 0.25, mpp)
        assert (how.level, how.factor, how.mpp) == (level, 1, 0.25 * scale)
        x, y = lattice(slide, how, 40)
        patches = [patch(*place, how.mpp, how.scale) for place in np.stack([x, y], 1).tolist()]
        assert resolution_of(slide, patches[0]) == how
        pixels = rows_to_pixels(cut(slide, how, patches))
    for got, column, row in zip(pixels, x // scale, y // scale, strict=True):
        assert (got == image[row : row + PATCH, column : column + PATCH]).all()
    side = PATCH * scale
    assert x.max() + side <= 800 < x.max() + side + 40 * scale


def test_between_levels_patches_are_resampled_once_and_continue_each_other(path: Path) -> None:
    with open_slide(path) as slide:
        how = resolution(slide, 0.25, 0.75)
        assert (how.level, how.factor, how.scale) == (1, 1.5, 3)
        x, y = lattice(slide, how, PATCH)
        patches = [patch(*place, how.mpp, how.scale) for place in np.stack([x, y], 1).tolist()]
        pixels = rows_to_pixels(cut(slide, how, patches))
    columns = len(np.unique(x))
    level = Image.fromarray(slides.tissue_slide()).reduce(2)
    height, width = PATCH * (len(x) // columns), PATCH * columns
    box = (0, 0, 1.5 * width, 1.5 * height)
    whole = np.asarray(level.resize((width, height), Image.Resampling.LANCZOS, box))
    rows = whole.reshape(-1, PATCH, columns, PATCH, 3).swapaxes(1, 2).reshape(pixels.shape)
    assert np.abs(pixels.astype(int) - rows).max() <= 1


def test_a_patch_does_not_depend_on_its_region(path: Path) -> None:
    with open_slide(path) as slide:
        how = resolution(slide, 0.25, 0.33)
        x, y = lattice(slide, how, 29)
        patches = [patch(*place, how.mpp, how.scale) for place in np.stack([x, y], 1).tolist()]
        together = cut(slide, how, patches)
        for i in (0, 7, len(patches) // 2, len(patches) - 1):
            assert (cut(slide, how, patches[i : i + 1])[0] == together[i]).all()


def test_every_patch_is_in_one_region() -> None:
    keyed = [
        (i, patch(x, y, 0.5, 1.0))
        for i, (x, y) in enumerate([(0, 0), (9000, 0), (2047, 5), (2048, 5), (0, 2048)])
    ]
    assert [[key for key, _ in group] for group in regions(keyed, 1.0)] == [[0, 2], [3], [1], [4]]


def test_what_lies_outside_of_a_slide_is_white(path: Path) -> None:
    with open_slide(path) as slide:
        region = slide.read(0, 790, 590, 20, 20)
        assert (region[10:] == 255).all() and (region[:, 10:] == 255).all()
        assert (region[:10, :10] == slides.tissue_slide()[590:, 790:]).all()
        assert (slide.read(0, 5000, 0, 4, 4) == 255).all()


def test_detail_that_a_slide_lacks_is_not_made_up(path: Path) -> None:
    with open_slide(path) as slide, pytest.raises(SlideError, match="no more detail"):
        resolution(slide, 0.25, 0.2)


def test_a_tiff_that_openslide_refuses_is_read_by_tiffslide(tmp_path: Path) -> None:
    pixels = slides.tissue_slide()
    slides.write_slide(tmp_path / "a.tif", pixels, tile=None)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.reader.startswith("tiffslide") and slide.mpp() == 0.5
        assert (slide.read(0, 0, 0, 800, 600) == pixels).all()
        assert (slide.read(0, 790, 0, 20, 20)[:, 10:] == 255).all()


def test_a_file_that_is_no_slide_gives_the_reason_of_both_libraries(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"not a slide")
    with (
        pytest.raises(SlideError, match=r"OpenSlide: .*; tiffslide: "),
        open_slide(tmp_path / "a.svs"),
    ):
        pass
