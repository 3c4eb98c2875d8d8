"""Slides to shards beside PNG files and then shards: `python -m bench.slides SLIDE [--copies N]`.

    direct                   `shards.pack` on the slide: tissue, contact sheet, patches, shards
    PNG per patch, packed    one `read_region` and one PNG file for each of the same patches, as
                             scripts that dump patches do, then `shards.pack` on the folder
    PNG per region, packed   the same, with our own regions: only the PNG files are between
    decoding alone           the regions of the patches are decoded and thrown away

One process and one thread each, in turn. Run it when nothing else does.
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pyarrow.parquet as pq
import tifffile
import tyro
from PIL import Image

from bench.records import CELL, Spread
from common.command import run_command
from common.console import log, table
from shards.codec.png import Pixels
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import CHANNELS, PATCH
from shards.slides.cutting import cut, regions
from shards.slides.grid import resolution_of
from shards.slides.options import SlideOptions
from shards.slides.reader import open_slide
from shards.sources.source import Patch

_TILE = 256
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class _Command:
    """Measure slides to shards beside PNG files and then shards."""

    slide: tyro.conf.Positional[Path]
    mpp: float = 0.5
    """Microns per pixel of the patches."""
    copies: int = 1
    """Measure on a pyramid of JPEG tiles with N x N copies of the slide's full image."""
    repeats: int = 5
    """Rounds over everything that is compared."""

    def __call__(self) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder, slide = Path(name), self.slide
            if self.copies > 1:
                slide = folder / "copies.svs"
                write_copies(self.slide, slide, self.copies)
            log.setLevel(logging.ERROR)  # a pack that is timed does not report each time
            print(measure(slide, folder, self.mpp, self.repeats))


def write_copies(source: Path, target: Path, copies: int) -> None:
    """Write a pyramid (levels 1, 4 and 16) with copies of the full image of a slide."""
    with open_slide(source) as slide:
        pixels = np.tile(slide.read(0, 0, 0, slide.width, slide.height), (copies, copies, 1))
        mpp = slide.mpp()
    height, width = pixels.shape[:2]
    description = f"Aperio Image Library v11\r\n{width}x{height}|AppMag = 20|MPP = {mpp}"
    with tifffile.TiffWriter(target) as writer:
        for i, reduction in enumerate((1, 4, 16)):
            writer.write(
                np.asarray(Image.fromarray(pixels).reduce(reduction)),
                photometric="rgb",
                tile=(_TILE, _TILE),
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                description=description,
                subfiletype=int(i > 0),
                metadata=None,
            )


def direct(slide: Path, mpp: float, out: Path) -> None:
    """Pack the slide."""
    pack(slide, out, PackOptions(workers=1, slides=SlideOptions(mpp=mpp)))


def per_patch(slide: Path, patches: list[Patch], out: Path) -> None:
    """Write a PNG file per patch, each read by itself, and pack them."""
    handle = openslide.OpenSlide(slide)
    with open_slide(slide) as opened:
        how = resolution_of(opened, patches[0])
    side = round(PATCH * how.factor)
    for patch in patches:
        corner = patch.x or 0, patch.y or 0
        image = handle.read_region(corner, how.level, (side, side)).convert("RGB")
        if how.factor != 1:
            image = image.resize((PATCH, PATCH), Image.Resampling.LANCZOS)
        _write_png(out, patch, image)
    handle.close()
    _pack_pngs(out)


def per_region(slide: Path, patches: list[Patch], out: Path) -> None:
    """Write a PNG file per patch, cut from regions, and pack them."""
    with open_slide(slide) as opened:
        how = resolution_of(opened, patches[0])
        keyed = list(enumerate(patches))
        for group in regions(keyed, opened.downsamples[how.level]):
            rows = cut(opened, how, [patch for _, patch in group])
            pixels: Pixels = rows[:, :, 1:].reshape(-1, PATCH, PATCH, CHANNELS)
            for (_, patch), image in zip(group, pixels, strict=True):
                _write_png(out, patch, Image.fromarray(image))
    _pack_pngs(out)


def decoding(slide: Path, patches: list[Patch], out: Path) -> None:
    """Decode the regions of the patches, and do nothing with them."""
    with open_slide(slide) as opened:
        how = resolution_of(opened, patches[0])
        downsample = opened.downsamples[how.level]
        side = round(PATCH * how.factor)
        for group in regions(list(enumerate(patches)), downsample):
            places = np.array([[patch.x, patch.y] for _, patch in group], float) / downsample
            (left, top), (right, bottom) = places.min(0).astype(int), places.max(0).astype(int)
            opened.read(
                how.level, int(left), int(top), int(right - left) + side, int(bottom - top) + side
            )


def _write_png(out: Path, patch: Patch, image: Image.Image) -> None:
    folder = out / "png" / "slide"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"slide__y{patch.y}_x{patch.x}.png")


def _pack_pngs(out: Path) -> None:
    pack(out / "png", out / "shards", PackOptions(workers=1, layout="slides"))


def measure(slide: Path, folder: Path, mpp: float, repeats: int) -> str:
    """Return a table of patches per second of each way, and how many times faster the first is."""
    out = folder / "out"
    from bench.timing import rounds, usage  # imports torch: not for --help

    direct(slide, mpp, out)
    patches = _patches(slide, out)
    shutil.rmtree(out)
    ways: dict[str, Callable[[Path], None]] = {
        "direct": partial(direct, slide, mpp),
        "PNG per patch, packed": partial(per_patch, slide, patches),
        "PNG per region, packed": partial(per_region, slide, patches),
        "decoding alone": partial(decoding, slide, patches),
    }

    def block(name: str) -> float:
        seconds = usage(partial(ways[name], out)).seconds
        shutil.rmtree(out, ignore_errors=True)
        return seconds

    seconds = rounds({name: partial(block, name) for name in ways}, repeats)
    rows = [["way", "patches/s", "seconds", "direct is faster by"]]
    for name, values in seconds.items():
        rates = Spread.of([len(patches) / value for value in values])
        ratios = Spread.of_ratios(values, seconds["direct"])
        rows.append([name, f"{rates}", f"{Spread.of(values):.2f}", f"{ratios:.1f}"])
    return f"{slide.name}: {len(patches):,} patches; {CELL}\n{table(rows)}"


def _patches(slide: Path, out: Path) -> list[Patch]:
    """Return the patches that were packed, in the order of a lattice."""
    with open_slide(slide) as opened:
        mpp_of_slide = opened.mpp()
    assert mpp_of_slide is not None
    status = slide.stat()
    columns = ["x", "y", "mpp"]
    rows = [r for p in out.glob("*.parquet") for r in pq.read_table(p, columns=columns).to_pylist()]
    return [
        Patch(
            path=slide.name,
            label=None,
            split="train",
            source="slide",
            y=row["y"],
            x=row["x"],
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            mpp=row["mpp"],
            scale=row["mpp"] / mpp_of_slide,
        )
        for row in sorted(rows, key=lambda row: (row["y"], row["x"]))
    ]


def main() -> int:
    return run_command("bench.slides", _Command)


if __name__ == "__main__":
    sys.exit(main())
