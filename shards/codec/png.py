"""Check, decode and write PNGs of one kind: 8-bit RGB of 32x32 pixels.

Packing decodes by `inflate` (every check, one patch) and `unfilter` (a batch at once). `store`
writes the layout that makes reading a strided copy::

    byte 0    signature and IHDR, the same 33 bytes in every patch
    byte 33   IDAT: length, type, zlib header 78 01, one uncompressed deflate block
    byte 48   32 rows of one filter byte (0) and 96 bytes RGBRGB...
    byte 3152 adler32, CRC, IEND; 3172 bytes in all
"""

import zlib
from collections.abc import Callable, Iterator, Sequence

import kornia_rs.io
import numpy as np
import numpy.typing as npt
from deflate import DeflateError, adler32, crc32, zlib_decompress

from shards.schema import CHANNELS, PATCH

Pixels = npt.NDArray[np.uint8]

MAX_PNG_BYTES = 1 << 16  # in a shard: readers allocate this much
MAX_SOURCE_BYTES = 4 << 20  # before packing: some tools save a slide's colour profile in each patch
SIGNATURE = b"\x89PNG\r\n\x1a\n"
STORED_ROW = 1 + PATCH * CHANNELS
STORED_PIXELS = 33 + 8 + 2 + 5  # signature and IHDR; chunk length and type; zlib; deflate block
RAW_BYTES = PATCH * STORED_ROW
STORED_PNG_BYTES = STORED_PIXELS + RAW_BYTES + 4 + 4 + 12  # adler32, CRC, IEND
ROW = np.dtype((np.void, PATCH * CHANNELS))  # numpy copies a row as one item, three times faster

# no compressor doubles its input: a longer IDAT is a bomb or padding
_MAX_IDAT = 2 * RAW_BYTES
_PER_BLOCK = 0xFFFF // (RAW_BYTES + STORED_ROW)  # patches in a block of uncompressed deflate
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
_FORMATS = {
    b"\xff\xd8\xff": "a JPEG",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"RIFF": "a WebP",
}
_REFUSED = {
    b"acTL": "animated PNG, expected a single image",
    b"tRNS": "a transparent colour (tRNS), expected plain RGB",
    b"IHDR": "a second IHDR chunk",
}


class PngError(ValueError):
    """Bytes that are not an accepted image; the message is the reason, without the file's name."""


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = crc32(kind + body)
    return len(body).to_bytes(4, "big") + kind + body + crc.to_bytes(4, "big")


def _header(width: int, height: int) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return SIGNATURE + _chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))


def _png(width: int, height: int, blocks: Sequence[bytes]) -> bytes:
    """Write a PNG with its filtered rows in uncompressed deflate blocks of at most 65535 bytes."""
    pieces, adler = [b"IDAT\x78\x01"], 1
    for i, block in enumerate(blocks):
        size = len(block)
        lengths = size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little")
        pieces += (bytes([i + 1 == len(blocks)]) + lengths, block)
        adler = adler32(block, adler)
    pieces.append(adler.to_bytes(4, "big"))
    idat = b"".join(pieces)
    length, crc = (len(idat) - 4).to_bytes(4, "big"), crc32(idat).to_bytes(4, "big")
    return b"".join((_header(width, height), length, idat, crc, _END))


_END = _chunk(b"IEND", b"")
_HEADER = _header(PATCH, PATCH)
_TEMPLATE = _png(PATCH, PATCH, [bytes(RAW_BYTES)])
assert len(_TEMPLATE) == STORED_PNG_BYTES


def check(data: bytes) -> None:
    """Check the header, then every chunk's CRC, without decompressing anything.

    Raises:
        PngError: empty, truncated or altered data, another format, another size or kind of
            pixel, an animation, bytes after the end.
    """
    _idat(data)


def inflate(data: bytes) -> bytes:
    """Check a PNG, checksums included, and return its 32 filtered rows (RAW_BYTES bytes).

    Raises:
        PngError: as `check`, or a zlib stream that is corrupt or of another length.
    """
    stream = _idat(data)
    try:
        raw = bytes(zlib_decompress(stream, RAW_BYTES))
    except DeflateError:  # zlib gives a reason; at most 6 MB of result
        try:
            raw = zlib.decompress(stream)
        except zlib.error as error:
            raise PngError(f"corrupt pixels: {error}") from None
    if len(raw) != RAW_BYTES:
        raise PngError(f"corrupt pixels: {len(raw)} bytes of rows, expected {RAW_BYTES}")
    if max(raw[::STORED_ROW]) > 4:
        raise PngError(f"corrupt pixels: row filter {max(raw[::STORED_ROW])}, expected 0 to 4")
    return raw


def unfilter(raws: Sequence[bytes]) -> Pixels:
    """Decode n results of `inflate` to (n, 32, 32, 3) pixels.

    The patches are decoded as one tall image: the PNG standard takes the row above a first row as
    zeros, so a zero row between two patches keeps them independent and the call's cost is shared.
    """
    count = len(raws)
    if not count:
        return np.empty((0, PATCH, PATCH, CHANNELS), np.uint8)
    height = count * (PATCH + 1) - 1
    gap = bytes(STORED_ROW)
    blocks = [gap.join(raws[i : i + _PER_BLOCK]) for i in range(0, count, _PER_BLOCK)]
    blocks[:-1] = [block + gap for block in blocks[:-1]]
    tall = _png(PATCH, height, blocks)
    pixels = kornia_rs.io.decode_image_png_u8(tall, (height, PATCH), "rgb")
    out = np.empty((count, PATCH + 1, PATCH, CHANNELS), np.uint8)
    out.reshape(-1, PATCH, CHANNELS)[:height] = pixels
    return out[:, :PATCH]


def decode(data: bytes) -> Pixels:
    """Check a PNG as `inflate` does and decode it to (32, 32, 3) pixels.

    Raises:
        PngError: as `inflate`.
    """
    pixels: Pixels = unfilter([inflate(data)])[0]
    return pixels


def decode_trusted(data: bytes) -> Pixels:
    """Decode a PNG whose bytes match the CRC-32 that packing recorded to (32, 32, 3) pixels.

    Twice as fast as `decode`: the pixel checksum inside the PNG is not checked a second time.

    Raises:
        PngError: the PNG is not decodable.
    """
    if data[:33] != _HEADER or data[37:41] != b"IDAT":
        return decode(data)  # other chunks never reach the fast decoder
    try:
        pixels: Pixels = kornia_rs.io.decode_image_png_u8(data, (PATCH, PATCH), "rgb")
    except Exception as error:  # the decoder raises nothing narrower
        raise PngError(f"corrupt PNG: {error}") from None
    return pixels


def store(pixels: Pixels) -> Pixels:
    """Write (n, 32, 32, 3) uint8 in the stored layout: (n, STORED_PNG_BYTES), one PNG per row."""
    out = np.empty((len(pixels), STORED_PNG_BYTES), np.uint8)
    out[:] = np.frombuffer(_TEMPLATE, np.uint8)
    stored_rows(out)[:] = pixels.reshape(-1, PATCH, PATCH * CHANNELS).view(ROW)
    end = STORED_PIXELS + RAW_BYTES
    _seal(out, adler32, STORED_PIXELS, end)
    _seal(out, crc32, 37, end + 4)
    return out


def _seal(pngs: Pixels, checksum: Callable[[memoryview], int], start: int, end: int) -> None:
    """Write the checksum of the bytes from `start` to `end` of every PNG at its byte `end`."""
    data, starts = pngs.reshape(-1).data, range(0, pngs.size, STORED_PNG_BYTES)
    sums = np.array([checksum(data[at + start : at + end]) for at in starts], ">u4")
    pngs[:, end : end + 4] = sums.view(np.uint8).reshape(-1, 4)


def stored_rows(samples: Pixels) -> npt.NDArray[np.void]:
    """View the pixels of stored PNGs as (n, 32, 1) rows of type ROW, without a check or copy.

    Args:
        samples: (n, m) uint8 with m >= STORED_PNG_BYTES; row i starts with the first byte of
            PNG i in the stored layout. Columns must be contiguous, rows may have any stride.
    """
    rows = samples[:, STORED_PIXELS : STORED_PIXELS + RAW_BYTES]
    return rows.reshape(len(samples), PATCH, STORED_ROW)[:, :, 1:].view(ROW)


def _idat(data: bytes) -> bytes:
    """Make every check that needs no decompression, and return the zlib stream."""
    if data[:33] != _HEADER:
        _refuse_header(data)
    # one sound IDAT and the end, as most encoders write small images, need no checks of their own
    is_plain = (
        data[37:41] == b"IDAT"
        and data[-12:] == _END
        and 0 < int.from_bytes(data[33:37], "big") == len(data) - 57 <= _MAX_IDAT
        and crc32(data[37:-16]) == int.from_bytes(data[-16:-12], "big")
    )
    return data[41:-16] if is_plain else _join(data)


def chunks(data: bytes, start: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield offset, type and body of every chunk from byte `start` to IEND, each checked.

    Raises:
        PngError: a chunk that is cut or altered, or bytes after the end.
    """
    kind = b""
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if len(kind) < 4 or end > len(data):
            raise PngError(f"truncated: {len(data)} bytes end inside the chunk at byte {start}")
        if crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise PngError(f"CRC mismatch in the chunk {kind!r} at byte {start}")
        yield start, kind, data[start + 8 : end - 4]
        start = end
    if start != len(data):
        raise PngError(f"{len(data) - start} bytes after the end of the image")


def _join(data: bytes) -> bytes:
    """Join the zlib stream from any number of IDAT chunks; every chunk is checked."""
    stream: list[bytes] = []
    previous = b""
    for offset, kind, body in chunks(data, len(_HEADER)):
        if kind in _REFUSED:
            raise PngError(_REFUSED[kind])
        if kind == b"IEND" and body:
            raise PngError(f"the closing chunk holds {len(body)} bytes, expected none")
        if not kind[0] & 0x20 and kind not in (b"IDAT", b"PLTE", b"IEND"):
            raise PngError(f"unknown critical chunk {kind!r}")
        if kind == b"IDAT":
            if stream and previous != b"IDAT":
                raise PngError(f"the IDAT chunk at byte {offset} does not follow the one before")
            stream.append(body)
        previous = kind
    size = sum(map(len, stream))
    if not stream or size > _MAX_IDAT:
        raise PngError(f"{size} bytes of compressed pixels, expected 1 to {_MAX_IDAT}")
    return b"".join(stream)


def _refuse_header(data: bytes) -> None:
    """Raise the reason why the start of a file is not the one accepted header."""
    if not data:
        raise PngError("empty file")
    if not data.startswith(SIGNATURE[: len(data)]):
        formats = (name for magic, name in _FORMATS.items() if data.startswith(magic))
        name = next(formats, "something else")
        raise PngError(f"not a PNG but {name} (starts with {data[:4]!r})")
    if len(data) < 33:
        raise PngError(f"truncated: {len(data)} bytes end inside the header")
    if data[8:16] != b"\0\0\0\rIHDR":
        raise PngError(f"the first chunk is {data[12:16]!r}, expected IHDR with 13 bytes")
    if crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise PngError("CRC mismatch in the header chunk IHDR")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, colour, compression, filtering, interlace = data[24:29]
    if (width, height) != (PATCH, PATCH):
        raise PngError(f"{width}x{height} pixels, expected {PATCH}x{PATCH}")
    if (depth, colour) != (8, 2):
        name = _COLOURS.get(colour, f"unknown colour type {colour}")
        raise PngError(f"{depth}-bit {name}, expected 8-bit RGB")
    if interlace:
        raise PngError("interlaced (Adam7), expected none: save it again without interlacing")
    raise PngError(f"compression {compression} and filtering {filtering}, expected 0 and 0")
