"""The table of slides: what each holds, how it is read, and why it has no patches."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from common.console import printable
from common.files import write_atomically
from shards.slides.survey import Survey

TABLE_NAME = "slides.csv"

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


def write_table(file: Path, surveys: Sequence[Survey]) -> None:
    """Write the table as CSV, a row per slide.

    Raises:
        DataError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADING)
    writer.writerows([_cell(value) for value in _row(survey)] for survey in surveys)
    write_atomically(file, text.getvalue().encode())


def _row(survey: Survey) -> tuple[object, ...]:
    slide, how = survey.slide, survey.how
    classes = ", ".join(f"{name}: {count}" for name, count in sorted(survey.classes.items()))
    return (
        slide.path,
        slide.slide,
        slide.patient,
        slide.split,
        len(survey.patches),
        classes,
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
