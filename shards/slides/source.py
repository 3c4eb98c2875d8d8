"""Slides as packing sees them: `SlideSource`, and the table of slides that it writes."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from msgspec import Struct, structs

from common.console import printable, progress
from common.errors import DataError
from common.files import write_atomically
from shards.slides.listing import SlideFolder, slide_names
from shards.slides.options import SlideOptions
from shards.slides.staging import in_turn, stage_slides
from shards.slides.survey import Survey, survey_slide
from shards.sources.manifest import ManifestSource
from shards.sources.source import Collection, LookUp, Patch, ReadPatch, SlideOrigin
from shards.sources.staged import open_staged, read_done, with_shares

FOLDER_NAME = "slides"  # in the output folder: contact sheets and the table
TABLE_NAME = "slides.csv"

_SHOWN = 5
_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet would compute
_HEADING = (
    "path",
    "slide",
    "patient",
    "split",
    "patches",
    "classes",
    "reason",
    "mpp",
    "level",
    "resampled",
    "mpp_of_slide",
    "width",
    "height",
    "tissue_mm2",
    "ink_mm2",
    "boxes",
    "reader",
)


class SlideSource(Struct, frozen=True, kw_only=True, tag=True):
    """Slides, and which patches to cut from them."""

    is_slow: ClassVar[bool] = True

    slides: SlideFolder | ManifestSource
    options: SlideOptions
    folder: Path  # of the contact sheets and the table
    workers: int
    staged: tuple[Path, ...] = ()  # files that hold the patches

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches of all slides; write the contact sheets and the table.

        A slide that cannot be read is refused by itself; one without tissue is warned of.

        Raises:
            DataError: as the collection of the files; OpenSlide is missing, or there are labels
                beside those of annotations.
        """
        files = self.slides.collect(look_up)
        names = slide_names([slide.path for slide in files.patches])
        listed = [  # the name is the source of the patches unless another is known
            slide._replace(
                slide=slide.slide or name, source=slide.known_source or slide.slide or name
            )
            for slide, name in zip(files.patches, names, strict=True)
        ]
        if self.options.annotations is not None and any(slide.label for slide in listed):
            raise DataError(
                f"{files.root}: the classes come from --annotations, and the folders or the "
                f"manifest name others: leave out one of them"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        sheets = {
            slide.path: self.folder / f"{name.replace('/', '__')[:200]}.png"
            for slide, name in zip(listed, names, strict=True)
        }

        def survey(slide: Patch) -> Survey:
            return survey_slide(self.slides.root, slide, self.options, sheets[slide.path])

        surveys: list[Survey] = []
        with progress("finding tissue", len(listed), "slides") as advance:
            for _, result in in_turn(survey, listed, self.workers):
                surveys.append(result)
                advance(1)
        if (self.folder / TABLE_NAME).exists():
            for stale in {*self.folder.glob("*.png")} - {*sheets.values()}:
                stale.unlink()
        write_table(self.folder / TABLE_NAME, surveys)
        refused = [(s.slide.path, s.reason) for s in surveys if not s.usable]
        return replace(
            files,
            patches=[patch for survey in surveys for patch in survey.patches],
            refused=sorted([*files.refused, *refused]),
            origin=structs.replace(files.origin, slides=self._origin(surveys)),
            notes=[*files.notes, *_notes(surveys, self.folder)],
            warnings=[*files.warnings, *_warnings(surveys)],
        )

    def _origin(self, surveys: Sequence[Survey]) -> SlideOrigin:
        options = self.options
        cut = [survey for survey in surveys if survey.patches]
        resampled = any(survey.how and survey.how.factor != 1 for survey in cut)
        return SlideOrigin(
            mpp=options.mpp,
            stride=options.stride,
            min_tissue=options.min_tissue,
            coords=None if options.coords is None else options.coords.name,
            annotations=None if options.annotations is None else options.annotations.name,
            resampling="lanczos" if resampled else "none",
            slides=len(cut),
            readers=dict(Counter(survey.reader for survey in cut)),
        )

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> Self:
        """Cut the patches into `scratch`, or continue where an interrupted call stopped; those that
        tasks have cut into files beside it are not cut again.

        Raises:
            DataError: a slide changed since it was listed, or the disk is full.
        """
        files = with_shares(scratch)
        cut_elsewhere = {path for file in files[1:] for path in read_done(file)}
        stage_slides(self.slides.root, patches, scratch, workers, cut_elsewhere)
        return structs.replace(self, staged=tuple(files))

    @contextmanager
    def open(self) -> Iterator[ReadPatch]:
        with open_staged(*self.staged) as read:
            yield read


def _notes(surveys: Sequence[Survey], folder: Path) -> list[str]:
    """Describe how the slides are read, a line per resolution, and where the sheets are."""
    ways: Counter[str] = Counter()
    for survey in surveys:
        if survey.how and survey.patches:
            resampled = survey.how.factor != 1
            ways[
                f"{survey.how.mpp:.4g} microns per pixel, level {survey.how.level} "
                + (f"resampled by {survey.how.factor:.3g} (Lanczos)" if resampled else "as it is")
            ] += 1
    lines = [f"patches at {way}: {count:,} slides" for way, count in ways.most_common(_SHOWN)]
    if len(ways) > _SHOWN:
        lines.append(f"... and {len(ways) - _SHOWN:,} other resolutions: see {TABLE_NAME}")
    return [*lines, f"contact sheets and {TABLE_NAME}: {folder}"]


def _warnings(surveys: Sequence[Survey]) -> list[str]:
    empty = [survey for survey in surveys if survey.usable and not survey.patches]
    lines = [f"{survey.slide.path}: no patches: {survey.reason}" for survey in empty[:_SHOWN]]
    if len(empty) > _SHOWN:
        lines.append(f"{len(empty) - _SHOWN:,} more slides have no patches: see {TABLE_NAME}")
    return lines


def write_table(file: Path, surveys: Sequence[Survey]) -> None:
    """Write the table of slides as CSV: what each holds, how it is read, why it has no patches.

    Raises:
        DataError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADING)
    for survey in surveys:
        slide, how = survey.slide, survey.how
        classes = sorted(Counter(p.label for p in survey.patches if p.label is not None).items())
        values = (
            slide.path,
            slide.slide,
            slide.patient,
            slide.split,
            len(survey.patches),
            ", ".join(f"{name}: {count}" for name, count in classes),
            survey.reason,
            how and how.mpp,
            how and how.level,
            how and how.factor != 1,
            survey.mpp_of_slide,
            survey.width,
            survey.height,
            survey.tissue_mm2,
            survey.ink_mm2,
            survey.boxes,
            survey.reader,
        )
        writer.writerow(map(_cell, values))
    write_atomically(file, text.getvalue().encode())


def _cell(value: object) -> str:
    """Show a value in a line; text that a spreadsheet would compute gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = printable(str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text
