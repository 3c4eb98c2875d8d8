"""`--convert`: make 32x32 RGB patches of images of other sizes and kinds, by one stated rule.

    crop     the centre 32x32
    resize   the centre square, resampled to 32x32 by PIL's antialiased Lanczos filter
    tile     every whole 32x32 tile from the top left; the remainder is left out

Alpha is composited on white; palette and grey become RGB. Colour profiles and EXIF rotation are
not applied. 16-bit, CMYK, animated and multi-page images stay refused.

Packing shuffles: the tiles of an image go to shards far apart. Each image is therefore decoded
once, and its tiles wait in a scratch file, 3104 bytes each at the offset that their key gives,
until their shard is written. Images of finished shards are not decoded again.
"""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, Self

import numpy as np
from msgspec import Struct, structs
from PIL import Image, UnidentifiedImageError

from common.console import progress
from common.errors import DataError
from shards.codec.png import RAW_BYTES, SIGNATURE, STORED_ROW, Pixels, PngError, chunks
from shards.known.files import KnownFiles
from shards.schema import PATCH
from shards.sources.folder import FolderSource
from shards.sources.manifest import ManifestSource
from shards.sources.source import (
    Accepted,
    Collection,
    Conversion,
    LookUp,
    Patch,
    ReadPatch,
    read_file,
)
from shards.sources.staged import open_scratch, open_staged, write_reason, write_rows

Rule = Literal["none", "crop", "resize", "tile"]

Files = FolderSource | ManifestSource | KnownFiles

CONVERTIBLE = Accepted(("png", "jpg", "jpeg", "tif", "tiff"), 256 << 20, "PNG, JPEG or TIFF file")

_FORMATS = ("PNG", "JPEG", "TIFF")  # pinned: PIL opens by content, not by name
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_BITS_PER_SAMPLE = 258  # tag of TIFF


class ConvertedSource(Struct, frozen=True, kw_only=True, tag=True):
    """Files that become one patch each, by `crop` or `resize`."""

    is_slow: ClassVar[bool] = False

    files: Files
    rule: Literal["crop", "resize"]

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches: one per file, whatever its size."""
        collection = self.files.collect(look_up)
        return _with_conversion(collection, Conversion(rule=self.rule))

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> Self:
        return self

    @contextmanager
    def open(self) -> Iterator[ReadPatch]:
        root = str(self.files.root)

        def read(key: int, patch: Patch) -> tuple[Patch, bytes, bytes]:
            converted = convert(read_file(root, patch), self.rule, self.files.side)
            moved = patch._replace(
                y=None if patch.y is None else patch.y + converted.y,
                x=None if patch.x is None else patch.x + converted.x,
                mpp=None if patch.mpp is None else patch.mpp * converted.scale,
            )
            return moved, b"", converted.raw

        yield read


class TileSource(Struct, frozen=True, kw_only=True, tag=True):
    """Files that hold many patches each: every whole tile."""

    is_slow: ClassVar[bool] = False

    files: Files
    staged: Path | None = None  # file that holds the tiles

    def collect(self, look_up: LookUp) -> Collection:
        """List a patch per whole tile, from the headers of the images: image after image, row by
        row. The position of a tile in its image is added to the image's own, where that is known.
        """
        collection = self.files.collect(look_up)
        tiles: list[Patch] = []
        refused = list(collection.refused)
        images = with_remainder = pixels = pixels_left = 0
        for image in collection.patches:
            try:
                height, width = image_size(self.files.root / image.path)
                _refuse_size(width, height, self.files.side)
                if min(height, width) < PATCH:
                    raise PngError(
                        f"{width}x{height} pixels: too small for a tile of {PATCH}x{PATCH}"
                    )
            except PngError as error:
                refused.append((image.path, str(error)))
                continue
            rows, columns = height // PATCH, width // PATCH
            for row, column in product(range(rows), range(columns)):
                y, x = row * PATCH, column * PATCH
                tiles.append(
                    image._replace(y=(image.y or 0) + y, x=(image.x or 0) + x, tile=(y, x))
                )
            remainder = height * width - rows * columns * PATCH * PATCH
            images, pixels = images + 1, pixels + height * width
            with_remainder, pixels_left = with_remainder + bool(remainder), pixels_left + remainder
        conversion = Conversion(
            rule="tile",
            images=images,
            images_with_remainder=with_remainder,
            pixels=pixels,
            pixels_left=pixels_left,
        )
        note = (
            f"tile: {images:,} images cut into {len(tiles):,} tiles; {with_remainder:,} images "
            f"had a remainder, {pixels_left / max(pixels, 1):.1%} of all pixels, left out"
        )
        collection = replace(
            collection, patches=tiles, refused=sorted(refused), notes=[*collection.notes, note]
        )
        return _with_conversion(collection, conversion)

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> Self:
        """Decode the images of `patches` and write their tiles to `scratch`.

        Raises:
            DataError: an image is missing or changed since it was listed, or the disk is full.
        """
        tiles: dict[str, list[tuple[int, Patch]]] = defaultdict(list)
        for key, patch in patches:
            tiles[patch.path].append((key, patch))
        scratch.unlink(missing_ok=True)
        with (
            open_scratch(scratch) as handle,
            progress("cutting tiles", len(tiles), "images") as advance,
            ThreadPoolExecutor(workers) as pool,
        ):
            stage = partial(_stage, handle, str(self.files.root))
            for _ in pool.map(stage, [tiles[path] for path in sorted(tiles)]):
                advance(1)
        return structs.replace(self, staged=scratch)

    @contextmanager
    def open(self) -> Iterator[ReadPatch]:
        if self.staged is None:
            yield self._decoder()
            return
        with open_staged(self.staged) as read:
            yield read

    def _decoder(self) -> ReadPatch:
        """Return a function that reads a tile from its image, which it keeps for the next."""
        root = str(self.files.root)
        last: tuple[str, Pixels | PngError] | None = None

        def read(key: int, patch: Patch) -> tuple[Patch, bytes, bytes]:
            nonlocal last
            if last is None or last[0] != patch.path:
                try:
                    last = patch.path, np.asarray(read_rgb(read_file(root, patch)))
                except PngError as error:
                    last = patch.path, error
            if isinstance(last[1], PngError):
                raise last[1]
            y, x = patch.tile or (0, 0)
            return patch, b"", raw_rows(last[1][y : y + PATCH, x : x + PATCH])

        return read


def _with_conversion(collection: Collection, conversion: Conversion) -> Collection:
    origin = structs.replace(collection.origin, convert=conversion)
    return replace(collection, origin=origin)


def _stage(handle: int, root: str, tiles: list[tuple[int, Patch]]) -> None:
    """Decode one image and write its tiles, or the reason why it has none."""
    data = read_file(root, tiles[0][1])
    try:
        pixels = np.asarray(read_rgb(data))
    except PngError as error:
        for key, _ in tiles:
            write_reason(handle, key, str(error))
        return
    for key, patch in tiles:
        y, x = patch.tile or (0, 0)
        write_rows(handle, key, raw_rows(pixels[y : y + PATCH, x : x + PATCH]))


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A patch that was cut out of an image."""

    raw: bytes  # 32 rows, each after a zero byte, as `png.inflate` gives
    y: int  # pixel row and column of its corner in the image
    x: int
    scale: float  # pixels of the image per pixel of the patch


def convert(data: bytes, rule: Literal["crop", "resize"], expected: int | None = None) -> Converted:
    """Make a patch of a whole PNG, JPEG or TIFF file.

    Args:
        expected: side of the image, where it is known.

    Raises:
        PngError: as `read_rgb`, or an image of another size, or smaller than the crop.
    """
    image = read_rgb(data)
    width, height = image.size
    _refuse_size(width, height, expected)
    if rule == "crop":
        if min(width, height) < PATCH:
            raise PngError(f"{width}x{height} pixels: too small to crop {PATCH}x{PATCH}")
        x, y, side = (width - PATCH) // 2, (height - PATCH) // 2, PATCH
    else:
        side = min(width, height)
        x, y = (width - side) // 2, (height - side) // 2
    # Cropped first: resize(box=...) would let pixels around the square in.
    image = image.crop((x, y, x + side, y + side))
    if rule == "resize":
        image = image.resize((PATCH, PATCH), Image.Resampling.LANCZOS)
    return Converted(raw=raw_rows(np.asarray(image)), y=y, x=x, scale=side / PATCH)


def _refuse_size(width: int, height: int, side: int | None) -> None:
    if side is not None and (width, height) != (side, side):
        raise PngError(f"{width}x{height} pixels, expected {side}x{side}")


def image_size(path: Path) -> tuple[int, int]:
    """Read the height and width of an image from its header alone.

    Raises:
        PngError: as `read_rgb`, as far as the header shows it.
        DataError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file, _open(file) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_rgb(data: bytes) -> Image.Image:
    """Decode a PNG, JPEG or TIFF file as RGB.

    Raises:
        PngError: another format, damage, 16-bit, CMYK or other kinds of pixel, several frames,
            more pixels than PIL's guard against decompression bombs allows.
    """
    if data.startswith(SIGNATURE):
        for _ in chunks(data, len(SIGNATURE)):  # PIL does not check the CRC of every chunk
            pass
    with _open(io.BytesIO(data)) as image:
        try:
            image.load()
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
        except Exception as error:  # decoders raise nothing narrower
            raise PngError(f"corrupt {image.format or 'image'}: {error}") from None


def raw_rows(pixels: Pixels) -> bytes:
    """Return (32, 32, 3) pixels as `png.inflate` gives them: a zero byte before each row."""
    rows = np.zeros((PATCH, STORED_ROW), np.uint8)
    rows[:, 1:] = pixels.reshape(PATCH, -1)
    raw = rows.tobytes()
    assert len(raw) == RAW_BYTES
    return raw


def _open(file: BinaryIO) -> Image.Image:
    """Open an image and check its header; no pixel is decoded."""
    head = file.read(33)
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise PngError(f"refused: {error}") from None
    except UnidentifiedImageError:  # whose message has an address in memory
        raise PngError("not a PNG, JPEG or TIFF that can be read") from None
    except Exception as error:  # parsers raise nothing narrower
        raise PngError(f"not a PNG, JPEG or TIFF that can be read: {error}") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise PngError(f"{image.width}x{image.height} pixels, expected at most {limit} in all")
    if frames > 1:
        raise PngError(f"{frames} frames or pages, expected a single image")
    if image.mode not in _MODES:
        raise PngError(f"pixels of mode {image.mode}, expected 8-bit RGB, RGBA, grey or palette")
    bits = 8  # per sample, of a JPEG
    if image.format == "PNG":
        bits = head[24]
    elif image.format == "TIFF":
        bits = max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,)))
    if bits > 8:
        raise PngError(f"{bits}-bit, expected 8-bit: PIL would cut it silently")
    return image
