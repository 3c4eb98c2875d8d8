"""Slides for tests: tiled pyramids with tissue, ink and glass, as TIFF files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

h5py = pytest.importorskip("h5py", reason="the extra slides is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")
pytest.importorskip("openslide", reason="the extra slides is not installed")

Pixels = NDArray[np.uint8]

GLASS = (243, 240, 244)
TISSUE = (190, 120, 175)
GREEN_INK, BLUE_INK, RED_INK, BLACK_INK = (40, 130, 80), (50, 70, 160), (200, 40, 45), (25, 22, 30)
TILE = 64


def glass(height: int, width: int, seed: int = 0) -> Pixels:
    """An empty slide with the noise of a camera."""
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    return (np.array(GLASS) + noise).clip(0, 255).astype(np.uint8)


def paint(
    pixels: Pixels, top: int, left: int, height: int, width: int, colour: tuple[int, int, int]
) -> None:
    """Paint a textured rectangle, in place."""
    texture = np.random.default_rng(top * 7919 + left).normal(0, 12, (height, width, 3))
    area = np.array(colour) + texture
    pixels[top : top + height, left : left + width] = area.clip(0, 255).astype(np.uint8)


def tissue_slide(height: int = 600, width: int = 800, seed: int = 0) -> Pixels:
    """Glass with a rectangle of tissue: rows 128 to 448, columns 192 to 576."""
    pixels = glass(height, width, seed)
    paint(pixels, 128, 192, 320, 384, TISSUE)
    return pixels


def write_slide(
    path: Path,
    pixels: Pixels,
    mpp: float | None = 0.5,
    reductions: tuple[int, ...] = (1,),
    tile: int | None = TILE,
    **options: Any,
) -> None:
    """Write a TIFF that OpenSlide takes for one of Aperio, lossless unless `options` say otherwise.

    Args:
        reductions: of the levels.
        tile: side of a tile; None: strips, which OpenSlide cannot read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = "" if mpp is None else f"|MPP = {mpp}"
    description = f"Aperio Image Library v11.2.1\r\n{pixels.shape[1]}x{pixels.shape[0]}"
    description += f"|AppMag = 20{resolution}"
    with tifffile.TiffWriter(path) as writer:
        for i, reduction in enumerate(reductions):
            level = np.asarray(Image.fromarray(pixels).reduce(reduction))
            writer.write(
                level,
                photometric="rgb",
                tile=None if tile is None else (tile, tile),
                description=description,
                subfiletype=int(i > 0),
                metadata=None,
                **options,
            )


def write_boxes(path: Path, corners: Any, side: int, **attributes: Any) -> None:
    """Write boxes as TRIDENT does, or with the `attributes` of another tool."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=np.array(corners, np.int64))
        trident = {
            "patch_size_level0": side,
            "level0_magnification": 20,
            "target_magnification": 20,
            "overlap": 0,
        }
        for name, value in {"patch_size": side, **(attributes or trident)}.items():
            dataset.attrs[name] = value


def write_annotation(path: Path, name: str, left: float = 0, width: float = 1e4) -> None:
    """Write a rectangle of a class as QuPath does, more than as high as any slide here."""
    right = left + width
    ring = [[left, 0], [right, 0], [right, 1e4], [left, 1e4], [left, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))


def break_tile(path: Path, row: int, column: int) -> None:
    """Move a tile of level 0 to behind the end of the file."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags["TileOffsets"]
        offsets = list(tag.value)
        across = -(-file.pages[0].imagewidth // TILE)
        offsets[row * across + column] = path.stat().st_size + 4096
        tag.overwrite(offsets)
