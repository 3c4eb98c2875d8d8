"""Decode images of another tool, PNG or JPEG; refused from the header unless 32x32 8-bit RGB."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from shards.codec import png
from shards.codec.png import Pixels, PngError
from shards.schema import CHANNELS, PATCH

JPEG_START = b"\xff\xd8\xff"


def decode_all(images: Sequence[bytes]) -> tuple[Pixels, dict[int, str]]:
    """Check and decode n images.

    Returns:
        (n, 32, 32, 3) pixels, zero where an image is refused, and the reasons by index.
    """
    out = np.zeros((len(images), PATCH, PATCH, CHANNELS), np.uint8)
    raws: dict[int, bytes] = {}
    refused: dict[int, str] = {}
    for i, data in enumerate(images):
        try:
            if data.startswith(JPEG_START):
                out[i] = decode_jpeg(data)
            else:
                raws[i] = png.inflate(data)
        except PngError as error:
            refused[i] = str(error)
    out[list(raws)] = png.unfilter(list(raws.values()))
    return out, refused


def decode_trusted(data: bytes) -> Pixels:
    """Decode an image whose bytes match the CRC-32 of the indexing scan to (32, 32, 3) pixels.

    Raises:
        PngError: the image is not decodable.
    """
    return decode_jpeg(data) if data.startswith(JPEG_START) else png.decode_trusted(data)


def decode_jpeg(data: bytes) -> Pixels:
    """Decode a JPEG to (32, 32, 3) pixels. A JPEG has no checksum: damage may go unseen.

    Raises:
        PngError: another size or kind of pixel, several frames, or not decodable.
    """
    try:
        # pinned: PIL opens by content; the header alone is read here
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.size != (PATCH, PATCH):
                raise PngError(f"{image.width}x{image.height} pixels, expected {PATCH}x{PATCH}")
            if image.mode != "RGB":
                raise PngError(f"a JPEG of mode {image.mode}, expected 8-bit RGB")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise PngError(f"{frames} images in one JPEG, expected one")
            return np.asarray(image)
    except PngError:
        raise
    except Exception as error:  # decoders raise nothing narrower
        raise PngError(f"corrupt JPEG: {error}") from None
