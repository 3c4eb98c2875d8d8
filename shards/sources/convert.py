"""`--convert`: images of other sizes and kinds become 32x32 RGB by one stated rule, when asked.

    crop     the centre 32x32
    resize   the centre square, resampled to 32x32 by PIL's antialiased Lanczos filter
    tile     every whole 32x32 tile from the top left; what remains at the right and below is left

Alpha is composited on white; palette and grey become RGB. Colour profiles and EXIF rotation are
not applied. 16-bit, CMYK, animated and multi-page images stay refused.
"""

import io
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from deflate import crc32
from PIL import Image

from shards.codec.png import RAW_BYTES, SIGNATURE, STORED_ROW, Pixels, PngError
from shards.schema import PATCH
from shards.sources.layout import Accepted

Rule = Literal["none", "crop", "resize", "tile"]

CONVERTIBLE = Accepted(("png", "jpg", "jpeg", "tif", "tiff"), 256 << 20)

_FORMATS = ("PNG", "JPEG", "TIFF")  # pinned: PIL opens by content, not by name
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_BITS_PER_SAMPLE = 258  # tag of TIFF


@dataclass(frozen=True)
class Converted:
    raw: bytes  # 32 rows, each after a zero byte, as `png.inflate` gives
    y: int  # pixel row and column of its corner in the image
    x: int
    scale: float  # pixels of the image a pixel of the patch


def convert(data: bytes, rule: Rule) -> Converted:
    """A patch from a whole PNG, JPEG or TIFF file, by `crop` or `resize`.

    Raises:
        PngError: not an image that is converted, or one smaller than the crop.
    """
    image = read_rgb(data)
    width, height = image.size
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
    return Converted(raw_rows(np.asarray(image)), y, x, side / PATCH)


def image_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width of an image that `read_rgb` would read, from its header alone.

    Raises:
        PngError: as `read_rgb`, as far as the header tells.
    """
    with _open(file) as image:
        return image.height, image.width


def read_rgb(data: bytes) -> Image.Image:
    """The RGB image in a PNG, JPEG or TIFF file.

    Raises:
        PngError: another format, damage, 16-bit, CMYK or other kinds of pixel, several frames,
            more pixels than PIL's guard against decompression bombs allows.
    """
    if data.startswith(SIGNATURE):
        _check_chunks(data)
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
    """(32, 32, 3) pixels as `png.inflate` gives them: a zero filter byte before each row."""
    rows = np.zeros((PATCH, STORED_ROW), np.uint8)
    rows[:, 1:] = pixels.reshape(PATCH, -1)
    raw = rows.tobytes()
    assert len(raw) == RAW_BYTES
    return raw


def _open(file: BinaryIO) -> Image.Image:
    """An image whose header was read and checked; no pixel is decoded."""
    head = file.read(33)
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
        frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise PngError(f"refused: {error}") from None
    except Exception as error:  # parsers raise nothing narrower
        raise PngError(f"not a PNG, JPEG or TIFF that can be read: {error}") from None
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise PngError(f"{image.width}x{image.height} pixels, expected at most {limit} in all")
    if frames > 1:
        raise PngError(f"{frames} frames or pages, expected a single image")
    if image.mode not in _MODES:
        raise PngError(f"pixels of mode {image.mode}, expected 8-bit RGB, RGBA, grey or palette")
    if _bits(image, head) > 8:
        raise PngError(f"{_bits(image, head)}-bit, expected 8-bit: PIL would cut it silently")
    return image


def _bits(image: Image.Image, head: bytes) -> int:
    """Bits a sample: PIL opens 16-bit RGB without saying so."""
    if image.format == "PNG":
        return head[24]
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        return max(tags.get(_BITS_PER_SAMPLE, (1,)))
    return 8


def _check_chunks(data: bytes) -> None:
    """Every chunk of a PNG whole and with the right CRC: PIL does not check all of them."""
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or end > len(data):
            raise PngError(f"truncated: {len(data)} bytes end inside the chunk at byte {at}")
        if crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise PngError(f"CRC mismatch in the chunk {kind!r} at byte {at}")
        at = end
    if at != len(data):
        raise PngError(f"{len(data) - at} bytes after the end of the image")
