"""One slide: the patches to cut from it, or the reason why there are none."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.slides.annotations import ANNOTATION_FILES, classes_at, read_annotations
from shards.slides.coordinates import COORDINATE_FILES, read_boxes
from shards.slides.grid import Positions, Resolution, inside_boxes, lattice, resolution
from shards.slides.options import SlideOptions
from shards.slides.reader import Slide, SlideError, open_slide
from shards.slides.sheet import draw_sheet, sheet_step
from shards.slides.tissue import MASK_MPP, Thumbnail, find_tissue, thumbnail
from shards.sources.source import Patch


@dataclass(kw_only=True)
class Survey:
    """What a slide holds; fields that were not reached are empty."""

    slide: Patch  # the file, as it was listed
    reader: str = ""
    width: int | None = None
    height: int | None = None
    mpp_of_slide: float | None = None  # microns per pixel of level 0
    how: Resolution | None = None
    boxes: int | None = None  # of --coords
    tissue_mm2: float | None = None
    ink_mm2: float | None = None
    patches: list[Patch] = field(default_factory=list)
    reason: str = ""  # why there are no patches
    usable: bool = True  # False: the reason is a fault of the file


def survey_slide(root: Path, slide: Patch, options: SlideOptions, sheet: Path) -> Survey:
    """Find the patches of a slide and draw its contact sheet.

    Args:
        slide: its `mpp` is that of the full image, where a manifest gives it.
        sheet: file of the contact sheet.
    """
    survey = Survey(slide=slide)
    try:
        with open_slide(root / slide.path) as opened:
            survey.reader = opened.reader
            survey.width, survey.height = opened.width, opened.height
            mpp = survey.mpp_of_slide = _mpp_of(opened, slide, options)
            step = min(sheet_step(opened), MASK_MPP / mpp)
            small = thumbnail(opened, max(1.0, step))
            _survey(survey, opened, small, options)
            assert survey.how is not None
            draw_sheet(sheet, small.reduced(sheet_step(opened)), survey.how, survey.patches)
    except SlideError as error:
        survey.reason, survey.usable, survey.patches = str(error), False, []
    return survey


def _survey(survey: Survey, opened: Slide, small: Thumbnail, options: SlideOptions) -> None:
    mpp = survey.mpp_of_slide
    assert mpp is not None
    if options.coords is not None:
        file = _file_about(survey.slide, options.coords, COORDINATE_FILES, "coordinates")
        boxes = read_boxes(file, opened)
        survey.boxes = len(boxes.corners)
        survey.how = how = resolution(opened, mpp, options.mpp or mpp * boxes.scale)
        positions = inside_boxes(opened, how, options.stride, boxes.corners, boxes.side)
        why = "the boxes lie outside of the slide" if survey.boxes else "the coordinates are empty"
    else:
        assert options.mpp is not None
        survey.how = how = resolution(opened, mpp, options.mpp)
        positions = _on_tissue(survey, opened, small, options)
        why = "no tissue was found"
        if survey.ink_mm2:
            why += f", and {survey.ink_mm2:.1f} mm2 of ink left out"
    labels: list[str | None] = [survey.slide.label] * len(positions[0])
    if options.annotations is not None:
        file = _file_about(survey.slide, options.annotations, ANNOTATION_FILES, "annotations")
        x, y = (axis + how.side / 2 for axis in positions)
        left, top = opened.bounds_corner()  # QuPath shows, and counts from, the scanned area
        labels = classes_at(read_annotations(file), x - left, y - top)
        within = np.array([label is not None for label in labels], bool)
        why = "no patch has its centre in an annotation" if len(labels) else why
        positions = positions[0][within], positions[1][within]
        labels = [label for label in labels if label is not None]
    survey.patches = [
        survey.slide._replace(x=x, y=y, label=label, mpp=how.mpp, scale=how.scale)
        for x, y, label in zip(positions[0].tolist(), positions[1].tolist(), labels, strict=True)
    ]
    survey.reason = "" if survey.patches else why


def _on_tissue(survey: Survey, opened: Slide, small: Thumbnail, options: SlideOptions) -> Positions:
    """Return the corners of the patches of the lattice that are tissue."""
    how, mpp = survey.how, survey.mpp_of_slide
    assert how is not None and mpp is not None
    tissue = find_tissue(small.reduced(max(1.0, MASK_MPP / mpp)), mpp)
    survey.tissue_mm2, survey.ink_mm2 = tissue.tissue_mm2, tissue.ink_mm2
    x, y = lattice(opened, how, options.stride)
    enough = tissue.fractions((x, y), how) >= max(options.min_tissue, 1e-6)
    return x[enough], y[enough]


def _file_about(slide: Patch, place: Path, patterns: Sequence[str], kind: str) -> Path:
    """Return the file of another tool about a slide: `place`, or one in this folder by its name.

    Raises:
        SlideError: there is none.
    """
    if place.is_file():
        return place
    name, path = str(slide.slide), Path(slide.path)
    # with a folder in its name, another slide has the same file name
    names = [name] if "/" in name else list(dict.fromkeys((name, path.stem, path.name)))
    for named in names:
        for pattern in patterns:
            if (file := place / pattern.format(named)).is_file():
                return file
    expected = " or ".join(p.format(names[0]) for p in patterns if "/" not in p)
    raise SlideError(f"no {kind}: {place} has no {expected}")


def _mpp_of(opened: Slide, slide: Patch, options: SlideOptions) -> float:
    """Return microns per pixel of level 0: of the manifest, else the file, else the option."""
    mpp = slide.mpp or opened.mpp() or options.mpp_of_slide
    if mpp is None:
        power = opened.objective_power()
        hint = f" (it names an objective of {power}x)" if power else ""
        raise SlideError(
            f"the file does not say how many microns a pixel is{hint}: give them by "
            f"--mpp-of-slide, or per slide in the column mpp of a --manifest"
        )
    return mpp
