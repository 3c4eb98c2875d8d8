"""Contact sheet: a small picture of a slide with its patches outlined."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from common.files import atomic_path
from shards.slides.cutting import corner
from shards.slides.grid import Resolution
from shards.slides.reader import Slide
from shards.slides.tissue import Thumbnail
from shards.sources.source import Patch

SHEET_SIDE = 1024  # pixels of the longer side of a contact sheet, or up to twice as many

_LEAST_OUTLINE = 5  # pixels: smaller patches are drawn as one area
_COLOURS = ("#00a000", "#e6194b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000000")


def sheet_step(slide: Slide) -> float:
    """Return how many pixels of level 0 a pixel of a contact sheet has, at most."""
    return max(1.0, max(slide.width, slide.height) / SHEET_SIDE)


def draw_sheet(file: Path, small: Thumbnail, how: Resolution, patches: Sequence[Patch]) -> None:
    """Draw a slide with the outlines of its patches, a colour per class; write a PNG.

    Raises:
        DataError: the file cannot be written.
    """
    image = Image.fromarray(small.pixels)
    labels = sorted({patch.label or "" for patch in patches})
    colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(labels)}
    side = how.side / small.step
    draw = ImageDraw.Draw(image)
    for label, colour in colours.items():
        area = Image.new("L", image.size)
        paint = ImageDraw.Draw(area)
        for patch in patches:
            if (patch.label or "") == label:
                x, y = (value / small.step for value in corner(patch))
                box = (x, y, x + side, y + side)
                if side >= _LEAST_OUTLINE:
                    draw.rectangle(box, outline=colour)
                else:
                    paint.rectangle(box, fill=255)
        image.paste(colour, mask=ImageChops.subtract(area, area.filter(ImageFilter.MinFilter(3))))
    for i, label in enumerate(filter(None, labels)):
        draw.text((8, 8 + 14 * i), label[:60].encode("ascii", "replace"), fill=colours[label])
    with atomic_path(file) as hidden:
        image.save(hidden, compress_level=1)
