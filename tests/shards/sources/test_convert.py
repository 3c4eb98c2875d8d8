"""--convert: other sizes and kinds become patches by the stated rule, or stay refused."""

import io
import random
import shutil
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.console import show_messages
from common.errors import DataError
from shards.codec.png import PngError, decode, unfilter
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.pack.workers import WorkerPool
from shards.sources.convert import Rule, TileSource, convert, image_size, read_rgb
from tests.helpers.packing import file_hashes, sidecar_rows

Pixels = NDArray[np.uint8]
OnePatchRule = Literal["crop", "resize"]  # of an image
RULES: tuple[OnePatchRule, ...] = get_args(OnePatchRule)


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> Pixels:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(pixels: Pixels) -> bytes:
    return saved(Image.fromarray(pixels))


def converted(data: bytes, rule: OnePatchRule) -> Pixels:
    patch: Pixels = unfilter([convert(data, rule).raw])[0]
    return patch


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 50), (64, 32), (101, 75)])
def test_crop_is_the_centre(height: int, width: int) -> None:
    pixels = picture(height, width)
    y, x = (height - 32) // 2, (width - 32) // 2
    done = convert(png(pixels), "crop")
    assert (done.y, done.x, done.scale) == (y, x, 1)
    assert np.array_equal(unfilter([done.raw])[0], pixels[y : y + 32, x : x + 32])


def lanczos(side: int) -> NDArray[np.float64]:
    """(32, side) weights of the antialiased filter with three lobes."""
    scale = side / 32
    reach = max(scale, 1)
    centre = (np.arange(32)[:, None] + 0.5) * scale
    t = (np.arange(side)[None] + 0.5 - centre) / reach
    weights = np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 130), (224, 224), (45, 41), (28, 30)])
def test_resize_is_lanczos_of_the_centre_square(height: int, width: int) -> None:
    pixels, side = picture(height, width), min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    square = pixels[y : y + side, x : x + side].astype(float)
    weights = lanczos(side)
    # PIL rounds and clips after each of its two passes.
    rows = np.einsum("ow,hwc->hoc", weights, square).round().clip(0, 255)
    expected = np.einsum("oh,hwc->owc", weights, rows).clip(0, 255)
    done = convert(png(pixels), "resize")
    assert (done.y, done.x, done.scale) == (y, x, side / 32)
    assert np.abs(unfilter([done.raw])[0] - expected).max() < 1.01


def test_patches_that_need_no_conversion_keep_their_pixels() -> None:
    pixels = picture(32, 32)
    for rule in RULES:
        assert np.array_equal(converted(png(pixels), rule), pixels)


def with_transparent_colour() -> tuple[Image.Image, Pixels]:
    pixels = picture(32, 32)
    pixels[:5] = (1, 2, 3)
    return Image.fromarray(pixels), np.where((pixels == (1, 2, 3)).all(-1)[..., None], 255, pixels)


def kinds() -> dict[str, tuple[bytes, Pixels, float]]:
    """Files, the RGB pixels expected of them, and how far from these they may be."""
    rgb, grey = picture(32, 32), picture(32, 32, 1, 1)[..., 0]
    alpha = picture(32, 32, 2, 1)
    blend = (rgb * (alpha / 255) + 255 * (1 - alpha / 255)).round().astype(np.uint8)
    grey_blend = (grey[..., None] * (alpha / 255) + 255 * (1 - alpha / 255)).round()
    palette = Image.fromarray(rgb).quantize(50)
    image, cleared = with_transparent_colour()
    smooth = np.kron(picture(4, 4, 3), np.ones((8, 8, 1), np.uint8))
    triple = np.repeat(grey[..., None], 3, axis=2)
    return {
        "RGB": (png(rgb), rgb, 0),
        "RGBA": (saved(Image.fromarray(np.dstack([rgb, alpha]))), blend, 1),
        "opaque RGBA": (saved(Image.fromarray(rgb).convert("RGBA")), rgb, 0),
        "grey": (saved(Image.fromarray(grey)), triple, 0),
        "grey with alpha": (
            saved(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha[..., 0])])),
            np.repeat(grey_blend, 3, axis=2).astype(np.uint8),
            1,
        ),
        "palette": (saved(palette), np.asarray(palette.convert("RGB")), 0),
        "two levels": (saved(Image.fromarray(grey > 99)), (triple > 99).astype(np.uint8) * 255, 0),
        "transparent colour": (saved(image, transparency=(1, 2, 3)), cleared, 0),
        "JPEG": (saved(Image.fromarray(smooth), "JPEG", quality=98, subsampling=0), smooth, 12),
        "grey JPEG": (
            saved(Image.fromarray(smooth[..., 0]), "JPEG", quality=98),
            np.repeat(smooth[..., :1], 3, 2),
            12,
        ),
        "TIFF": (saved(Image.fromarray(rgb), "TIFF"), rgb, 0),
        "TIFF, LZW": (saved(Image.fromarray(rgb), "TIFF", compression="tiff_lzw"), rgb, 0),
    }


@pytest.mark.parametrize("kind", kinds())
def test_kinds_of_pixels(kind: str) -> None:
    data, expected, tolerance = kinds()[kind]
    for rule in RULES:
        difference = converted(data, rule).astype(int) - expected
        assert np.abs(difference).max() <= tolerance


def sixteen_bit(kind: str) -> bytes:
    """RGB of 16 bits per sample, which PIL reads but cannot write."""
    if kind == "PNG":
        rows = zlib.compress(bytes(32 * (1 + 32 * 6)))
        header = (32).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
        chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
            for name, body in chunks
        )
    data = bytearray(saved(Image.new("RGB", (32, 32)), kind))
    at = data.index(b"\x08\x00\x08\x00\x08\x00")  # BitsPerSample
    data[at : at + 6] = b"\x10\x00" * 3
    return bytes(data)


def refused() -> dict[str, tuple[bytes, str]]:
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [Image.new("RGB", (32, 32), "red")],
    }
    plain = Image.new("RGB", (32, 32))
    good = png(picture(40, 40))
    return {
        "empty": (b"", "not a PNG, JPEG or TIFF"),
        "text": (b"hello", "not a PNG, JPEG or TIFF"),
        "GIF": (saved(plain, "GIF"), "not a PNG, JPEG or TIFF"),
        "BMP": (saved(plain, "BMP"), "not a PNG, JPEG or TIFF"),
        "WebP": (saved(plain, "WEBP"), "not a PNG, JPEG or TIFF"),
        "16-bit RGB PNG": (sixteen_bit("PNG"), "16-bit, expected 8-bit"),
        "16-bit RGB TIFF": (sixteen_bit("TIFF"), "16-bit, expected 8-bit"),
        "16-bit grey PNG": (saved(Image.new("I;16", (32, 32))), "mode I;16"),
        "float TIFF": (saved(Image.new("F", (32, 32)), "TIFF"), "mode F"),
        "CMYK JPEG": (saved(Image.new("CMYK", (32, 32)), "JPEG"), "mode CMYK"),
        "CMYK TIFF": (saved(Image.new("CMYK", (32, 32)), "TIFF"), "mode CMYK"),
        "LAB TIFF": (saved(Image.new("LAB", (32, 32)), "TIFF"), "mode LAB"),
        "animated PNG": (saved(plain, "PNG", **frames), "2 frames or pages"),
        "TIFF of two pages": (saved(plain, "TIFF", **frames), "2 frames or pages"),
        "truncated PNG": (good[:-20], "truncated"),
        "PNG with a tail": (good + b"tail", "4 bytes after the end"),
        "truncated JPEG": (saved(Image.fromarray(picture(64, 64)), "JPEG")[:900], "corrupt JPEG"),
        "too small": (png(picture(31, 40)), "too small to crop"),
    }


@pytest.mark.parametrize("kind", refused())
def test_what_stays_refused(kind: str) -> None:
    data, reason = refused()[kind]
    with pytest.raises(PngError, match=reason):
        convert(data, "crop")


def test_every_flip_in_a_png_is_detected() -> None:
    data, rng = bytearray(png(picture(40, 48))), random.Random(0)
    for _ in range(60):
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        with pytest.raises(PngError):
            convert(bytes(data), "resize")
        data[at] ^= 1 << bit


def test_bombs_are_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(PngError, match="at most 4095"),
    ):
        read_rgb(png(picture(64, 64)))
    with pytest.raises(PngError, match=r"refused: .*decompression bomb"):
        read_rgb(png(picture(100, 100)))
    (tmp_path / "bomb.png").write_bytes(png(picture(100, 100)))
    with pytest.raises(PngError, match="refused"):
        image_size(tmp_path / "bomb.png")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and formats in two classes; names give a place."""
    root = tmp_path_factory.mktemp("convert") / "raw"
    sizes = [(64, 96), (70, 33), (32, 32), (130, 64)]
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            image = Image.fromarray(picture(height, width, i))
            kind = ("png", "tif", "png", "jpeg")[i]
            image.save(root / label / f"{label}{i}__y1000_x0200.{kind}")
    return root


def image_of(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"))


def patches_of(out: Path) -> list[tuple[dict[str, Any], Pixels]]:
    patches = []
    for path in sorted(out.glob("*.parquet")):
        data = path.with_suffix(".tar").read_bytes()
        rows = pq.read_table(path).to_pylist()
        patches += [(row, decode(data[row["offset"] :][: row["size"]])) for row in rows]
    return patches


def test_tiles_put_together_are_the_image(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_messages()
    metadata = pack(source, tmp_path / "out", PackOptions(convert="tile", workers=1, shard_size=10))
    patches = patches_of(tmp_path / "out")
    assert len({(row["path"], row["y"], row["x"]) for row, _ in patches}) == len(patches) == 34
    for row, pixels in patches:
        y, x = row["y"] - 1000, row["x"] - 200
        image = image_of(source / row["path"])
        assert y % 32 == x % 32 == 0
        assert np.array_equal(pixels, image[y : y + 32, x : x + 32])
    remainder = 2 * (70 * 33 - 2 * 1024 + 130 * 64 - 8 * 1024)
    assert metadata.provenance["convert"] == {
        "rule": "tile",
        "images": 8,
        "images_with_remainder": 4,
        "pixels": 34 * 1024 + remainder,
        "pixels_left": remainder,
    }
    printed = capsys.readouterr().out
    assert "tile: 8 images cut into 34 tiles; 4 images had a remainder" in printed
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".packed.json"]


@pytest.mark.parametrize(
    ("rule", "places"),
    [
        ("crop", [(42, 36, 0.25)]),
        ("resize", [(26, 20, 0.5)]),
        ("tile", [(x, y, 0.25) for x in (10, 42, 74) for y in (20, 52)]),
    ],
)
def test_places_and_resolution_follow(
    rule: Rule, places: list[tuple[int, int, float]], source: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,x,y,mpp\na/a0__y1000_x0200.png,10,20,0.25\n")
    pack(source, tmp_path / "out", PackOptions(manifest=manifest, convert=rule, workers=1))
    rows = [(row["x"], row["y"], row["mpp"]) for row in sidecar_rows(tmp_path / "out")]
    assert sorted(rows) == places


@pytest.mark.parametrize("rule", ["resize", "tile"])
def test_bytes_do_not_depend_on_processes(rule: Rule, source: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        options = PackOptions(convert=rule, workers=workers, shard_size=4, val=0.3)
        pack(source, tmp_path / str(workers), options)
    assert file_hashes(tmp_path / "1") == file_hashes(tmp_path / "2")


def test_an_interrupted_pack_of_tiles_continues(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PackOptions(convert="tile", workers=1, shard_size=10)
    pack(source, tmp_path / "whole", options)

    build = WorkerPool.build

    def stop_after_two(*arguments: Any) -> Any:
        records = build(*arguments)
        yield next(records)
        yield next(records)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkerPool, "build", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", options)
    assert not list((tmp_path / "out").glob(".tiles*"))
    (tmp_path / "out" / ".tiles.99999.tmp").write_bytes(b"of a packer that was killed")
    pack(source, tmp_path / "out", options)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_bad_images_are_listed_and_their_tiles_left_out(source: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(source, tmp_path / "raw"))
    (root / "a" / "small.png").write_bytes(png(picture(20, 200)))
    (root / "a" / "cmyk.jpg").write_bytes(saved(Image.new("CMYK", (64, 64)), "JPEG"))
    damaged = bytearray(png(picture(64, 64)))
    damaged[len(damaged) // 2] ^= 1
    (root / "a" / "damaged.png").write_bytes(damaged)
    with pytest.raises(DataError, match="6 files cannot be used") as error:  # and tiles
        pack(root, tmp_path / "out", PackOptions(convert="tile", workers=1))
    assert "--skip-bad 6" in str(error.value) and "CRC mismatch" in str(error.value)
    assert "'a/small.png': 200x20 pixels: too small for a tile" in str(error.value)
    assert "'a/cmyk.jpg': pixels of mode CMYK" in str(error.value)
    metadata = pack(root, tmp_path / "out", PackOptions(convert="tile", workers=1, skip_bad=6))
    assert metadata.splits["train"].count == 34
    bad = metadata.provenance["skipped"]
    assert bad["count"] == 6 and "CRC mismatch" in dict(bad["first"])["a/damaged.png"]


def test_an_image_that_changes_is_detected(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(source, tmp_path / "raw"))

    stage = TileSource.stage

    def change_first(*arguments: Any) -> TileSource:
        (root / "a" / "a0__y1000_x0200.png").write_bytes(png(picture(64, 96, 9)))
        return stage(*arguments)

    monkeypatch.setattr(TileSource, "stage", change_first)
    with pytest.raises(DataError, match=r"a0__y1000_x0200.png changed while it was packed"):
        pack(root, tmp_path / "out", PackOptions(convert="tile", workers=1))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").glob(".tiles*"))


def test_without_convert_they_are_refused_and_keep_cannot_convert(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"--convert takes it[^$]*can be taken by --convert"):
        pack(source, tmp_path / "out", PackOptions(workers=1))
    with pytest.raises(ValueError, match="no source bytes for --png keep"):
        PackOptions(convert="crop", png="keep")
