"""PNG checks, decoding and the stored layout, against PIL and an encoder written here."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.codec import png
from shards.codec.png import PngError
from tests.helpers.patches import real_patches

Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(5)


def patches(count: int) -> Pixels:
    coarse = np.kron(RNG.integers(0, 200, (count, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    return (coarse + RNG.integers(0, 56, coarse.shape)).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int = 32, height: int = 32, kind: bytes = b"\x08\x02\0\0\0") -> bytes:
    return png.SIGNATURE + chunk(b"IHDR", struct.pack(">II", width, height) + kind)


def filtered(pixels: Pixels, filters: list[int]) -> bytes:
    """Rows filtered as chapter 9 of the PNG standard says, one filter type per row."""
    rows = np.zeros((33, 33 * 3), int)
    rows[1:, 3:] = pixels.reshape(32, 96)
    a, b, c, x = rows[1:, :-3], rows[:-1, 3:], rows[:-1, :-3], rows[1:, 3:]
    p = a + b - c
    nearest = np.argmin([abs(p - a), abs(p - b), abs(p - c)], axis=0)
    paeth = np.choose(nearest, [a, b, c])
    predicted = [np.zeros_like(x), a, b, (a + b) // 2, paeth]
    out = [np.append(f, (x[i] - predicted[f][i]) % 256) for i, f in enumerate(filters)]
    return np.array(out, np.uint8).tobytes()


def encoded(raw: bytes, *before: bytes, level: int = 6) -> bytes:
    return header() + b"".join(before) + chunk(b"IDAT", zlib.compress(raw, level)) + END


def saved(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, **{"format": "PNG", **options})  # type: ignore[arg-type]
    return out.getvalue()


END = chunk(b"IEND", b"")
PATCH = patches(1)[0]
IMAGE = Image.fromarray(PATCH)
RAW = filtered(PATCH, [0] * 32)
GOOD = encoded(RAW)


def by_pil(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))


@pytest.mark.parametrize("filters", [[f] * 32 for f in range(5)] + [[0, 1, 2, 3, 4] * 6 + [4, 3]])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_decodes_every_filter_like_pil(filters: list[int], level: int) -> None:
    for pixels in patches(5):
        data = encoded(filtered(pixels, filters), level=level)
        assert np.array_equal(by_pil(data), pixels)
        assert np.array_equal(png.decode(data), pixels)
        assert np.array_equal(png.decode_trusted(data), pixels)


@pytest.mark.parametrize("count", [0, 1, 2, 19, 20, 21, 64, 300])
def test_patches_of_one_batch_are_independent(count: int) -> None:
    pixels = patches(count)
    raws = [filtered(p, RNG.integers(0, 5, 32).tolist()) for p in pixels]
    assert np.array_equal(png.unfilter(raws), pixels)


@pytest.mark.realdata
@pytest.mark.parametrize("archive", ["colon_7class.tar", "sites_tumor_normal.tar"])
def test_agrees_with_pil_on_real_patches(archive: str) -> None:
    pixels = real_patches(2000, archive)
    blobs = [saved(Image.fromarray(p)) for p in pixels]
    assert np.array_equal(png.unfilter([png.inflate(b) for b in blobs]), pixels)
    assert all(np.array_equal(png.decode_trusted(b), p) for b, p in zip(blobs, pixels, strict=True))


def test_other_chunks_and_a_split_stream_are_accepted() -> None:
    stream = zlib.compress(RAW)
    parts = b"".join(chunk(b"IDAT", stream[i : i + 99]) for i in range(0, len(stream), 99))
    extra = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"tEXt", b"a\0b")
    for data in (header() + parts + END, header() + extra + parts + extra + END):
        assert np.array_equal(png.decode(data), PATCH)
        assert np.array_equal(png.decode_trusted(data), PATCH)


def test_stored_layout_is_a_png_and_a_view() -> None:
    pixels = patches(40)
    stored = png.store(pixels)
    assert stored.shape == (40, png.STORED_PNG_BYTES)
    for row, expected in zip(stored, pixels, strict=True):
        png.check(row.tobytes())
        assert np.array_equal(by_pil(row.tobytes()), expected)
        assert np.array_equal(png.decode(row.tobytes()), expected)
        raw = row[png.STORED_PIXELS :][: png.RAW_BYTES]
        assert raw.tobytes() == filtered(expected, [0] * 32)
    samples = np.zeros((40, 5120), np.uint8)
    samples[:, : png.STORED_PNG_BYTES] = stored
    view = png.stored_rows(samples).view(np.uint8).reshape(pixels.shape)
    assert np.array_equal(view, pixels)
    assert np.shares_memory(view, samples)


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "signature only": (GOOD[:8], "truncated"),
    "header only": (GOOD[:33], "truncated"),
    "no end": (GOOD[:-12], "truncated"),
    "trailing": (GOOD + b"x", "1 bytes after the end"),
    "two images": (GOOD + GOOD, "after the end"),
    "jpeg": (saved(IMAGE, format="JPEG"), "a JPEG"),
    "cmyk jpeg": (saved(IMAGE.convert("CMYK"), format="JPEG"), "a JPEG"),
    "gif": (saved(IMAGE, format="GIF"), "a GIF"),
    "tiff": (saved(IMAGE, format="TIFF"), "a TIFF"),
    "text": (b"<html>", "something else"),
    "grey": (saved(IMAGE.convert("L")), "8-bit grey"),
    "grey alpha": (saved(IMAGE.convert("LA")), "grey with alpha"),
    "palette": (saved(IMAGE.convert("P")), "palette"),
    "rgba": (saved(IMAGE.convert("RGBA")), "8-bit RGBA"),
    "16 bit grey": (saved(Image.fromarray(PATCH[..., 0].astype(np.uint16))), "16-bit grey"),
    "16 bit": (header(kind=b"\x10\x02\0\0\0") + END, "16-bit RGB"),
    "bilevel": (saved(IMAGE.convert("1")), "1-bit grey"),
    "unknown colour": (header(kind=b"\x08\x05\0\0\0") + END, "colour type 5"),
    "64x64": (saved(IMAGE.resize((64, 64))), "64x64 pixels"),
    "32x31": (saved(IMAGE.crop((0, 0, 32, 31))), "32x31 pixels"),
    "bomb by size": (header(60000, 60000) + END, "60000x60000 pixels"),
    "interlaced": (header(kind=b"\x08\x02\0\0\x01") + END, "interlaced"),
    "filter method": (header(kind=b"\x08\x02\0\x01\0") + END, "filtering 1"),
    "animated": (saved(IMAGE, save_all=True, append_images=[IMAGE.rotate(90)]), "animated"),
    "transparent": (encoded(RAW, chunk(b"tRNS", b"\0\1\0\2\0\3")), "transparent"),
    "critical chunk": (encoded(RAW, chunk(b"ABCD", b"")), "ABCD"),
    "second header": (encoded(RAW, header()[8:]), "second IHDR"),
    "chunk before header": (png.SIGNATURE + chunk(b"tEXt", b"a\0b") + GOOD[8:], "expected IHDR"),
    "no pixels": (header() + END, "0 bytes of compressed pixels"),
    "huge chunk": (header() + b"\xff\xff\xff\xffIDAT" + GOOD[41:], "truncated"),
    "long stream": (encoded(RNG.bytes(9000)), "bytes of compressed pixels"),
    "cut stream": (
        header() + chunk(b"IDAT", b"ab") + chunk(b"tIME", b"") + chunk(b"IDAT", b"") + END,
        "does not follow",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_decompression(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise AssertionError("decompressed")

    data, reason = REFUSED[name]
    monkeypatch.setattr(png, "zlib_decompress", fail)
    monkeypatch.setattr(png.zlib, "decompress", fail)
    for refuse in (png.check, png.decode):
        with pytest.raises(PngError, match=reason):
            refuse(data)


def with_stream(change: Callable[[bytes], bytes]) -> bytes:
    return header() + chunk(b"IDAT", change(zlib.compress(RAW))) + END


CORRUPT: dict[str, tuple[bytes, str]] = {
    "adler": (with_stream(lambda z: z[:-1] + bytes([z[-1] ^ 1])), "incorrect data check"),
    "no adler": (with_stream(lambda z: z[:-4]), "incomplete"),
    "half": (with_stream(lambda z: z[: len(z) // 2]), "incomplete"),
    "noise": (with_stream(lambda z: RNG.bytes(len(z))), "corrupt pixels"),
    "one row less": (encoded(RAW[:-97]), "3007 bytes of rows"),
    "one byte more": (encoded(RAW + b"\0"), "3105 bytes of rows"),
    "filter 5": (encoded(b"\5" + RAW[1:]), "row filter 5"),
    "bomb": (encoded(bytes(5_000_000), level=9), "5000000 bytes of rows"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_pixels_with_a_right_crc_are_refused(name: str) -> None:
    data, reason = CORRUPT[name]
    png.check(data)
    tracemalloc.start()
    with pytest.raises(PngError, match=reason):
        png.decode(data)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_every_bit_flip_and_every_cut_is_detected() -> None:
    data = saved(Image.fromarray(np.full((32, 32, 3), 200, np.uint8)))
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PngError):
            png.decode(bytes(altered))
    for end in range(len(data)):
        with pytest.raises(PngError):
            png.decode(data[:end])
