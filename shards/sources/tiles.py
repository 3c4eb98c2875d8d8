"""`--convert tile`: one image, many patches.

Packing shuffles: the tiles of an image go to shards far apart. Each image is therefore decoded
once, and its tiles wait in a hidden file of the output folder, 3104 bytes each at the place that
their key gives, until their shard is written. Images of finished shards are not decoded again.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import progress
from common.errors import DataError
from shards.codec.png import RAW_BYTES, PngError
from shards.pack.plan import ShardPlan
from shards.schema import PATCH
from shards.sources.convert import image_size, raw_rows, read_rgb
from shards.sources.patch import Patch, read_source

_BAD = b"\xff"  # in place of the first row's filter byte: the reason follows


@dataclass(frozen=True)
class Tiling:
    """What becomes of images by tiling."""

    patches: list[Patch]  # tiles, in the order of the images, then row by row
    refused: list[tuple[str, str]]  # path and reason
    images: int  # that gave tiles
    cut: int  # of these, those with a remainder
    pixels: int
    pixels_left: int  # in the remainders


def tile(root: Path, images: Iterable[Patch]) -> Tiling:
    """A patch a whole tile, from the headers of `images`. The place of a tile in its image is
    added to the image's own, where that is known."""
    patches: list[Patch] = []
    refused: list[tuple[str, str]] = []
    count = cut = pixels = left = 0
    for image in images:
        try:
            height, width = _size(root, image)
        except PngError as error:
            refused.append((image.path, str(error)))
            continue
        tiles = list(_tiles(image, height, width))
        remainder = height * width - len(tiles) * PATCH * PATCH
        patches += tiles
        count, pixels = count + 1, pixels + height * width
        cut, left = cut + bool(remainder), left + remainder
    return Tiling(patches, refused, count, cut, pixels, left)


def _size(root: Path, image: Patch) -> tuple[int, int]:
    try:
        with open(root / image.path, "rb") as file:
            height, width = image_size(file)
    except OSError as error:
        raise DataError(f"{root / image.path} cannot be read: {error.strerror}") from None
    if min(height, width) < PATCH:
        raise PngError(f"{width}x{height} pixels: too small for a tile of {PATCH}x{PATCH}")
    return height, width


def _tiles(image: Patch, height: int, width: int) -> Iterable[Patch]:
    for y in range(0, height - PATCH + 1, PATCH):
        for x in range(0, width - PATCH + 1, PATCH):
            yield image._replace(y=(image.y or 0) + y, x=(image.x or 0) + x, tile=(y, x))


def stage(root: Path, shards: list[ShardPlan], file: Path, workers: int) -> None:
    """Decode the images of `shards` in `workers` threads and write their tiles to `file`.

    Raises:
        DataError: an image is missing or changed since the scan, or the disk is full.
    """
    wanted: dict[str, list[tuple[int, Patch]]] = defaultdict(list)
    for shard in shards:
        for key, patch in enumerate(shard.patches, shard.first_key):
            wanted[patch.path].append((key, patch))
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with (
                progress("cutting tiles", len(wanted), "images") as advance,
                ThreadPoolExecutor(workers) as pool,
            ):
                for _ in pool.map(lambda path: _stage(handle, root, wanted[path]), sorted(wanted)):
                    advance(1)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(
            f"{file} cannot be written: {error.strerror}. Tiles need {RAW_BYTES} bytes each beside "
            f"the shards until they are packed; make room and run the same command again"
        ) from None


def _stage(handle: int, root: Path, tiles: list[tuple[int, Patch]]) -> None:
    data = read_source(root, tiles[0][1])
    try:
        pixels = np.asarray(read_rgb(data))
    except PngError as error:
        for key, _ in tiles:
            os.pwrite(handle, _BAD + str(error).encode()[: RAW_BYTES - 2] + b"\0", key * RAW_BYTES)
        return
    for key, patch in tiles:
        y, x = patch.tile or (0, 0)
        raw = raw_rows(pixels[y : y + PATCH, x : x + PATCH])
        os.pwrite(handle, raw, key * RAW_BYTES)


def staged(handle: int, key: int) -> bytes:
    """The rows of a tile that `stage` wrote, as `png.inflate` gives them.

    Raises:
        PngError: its image could not be decoded.
    """
    raw = os.pread(handle, RAW_BYTES, key * RAW_BYTES)
    if raw.startswith(_BAD) or len(raw) < RAW_BYTES:
        raise PngError(raw[1:].split(b"\0")[0].decode("utf-8", "replace") or "was not staged")
    return raw
