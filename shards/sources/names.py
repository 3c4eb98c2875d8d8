"""What the name of a file says: source image, slide, patient, site and position.

The source of a patch is what stands in its file's name before `__` or before its position, or a
TCGA barcode. Counters, hashes, camera names, the name of the class and words such as `img` are no
sources: where a name carries nothing else, the source is unknown, and its column holds the path.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import NamedTuple, NoReturn

from common.errors import DataError
from shards.sources.source import Patch

SOURCE_RULE = (
    "the source of a patch is its slide where a folder or column names one, else what stands in "
    "the file's name before __ or before the position (x..._y..., y..._x..., row..._col..., "
    "SLIDE_x_y), else a TCGA barcode; other names carry none"
)
REGEX_RULE = "the source of a patch is the first group of --group-regex {} in its path"

SLIDE_SUFFIXES = (
    *(".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".isyntax"),
    *(".dcm", ".qptiff", ".ome.tiff", ".ome.tif", ".tiff", ".tif"),
)

_X = r"x(?:ini|min|start|pos)?[ _=:-]?(?P<x>\d{1,9})"
_Y = r"y(?:ini|min|start|pos)?[ _=:-]?(?P<y>\d{1,9})"
_START, _GAP, _END = r"(?:^|(?<=[\W_]))", r"[\W_]{1,3}", r"(?!\d)"
_POSITIONS = (
    re.compile(rf"{_START}{_Y}{_GAP}{_X}{_END}", re.IGNORECASE),
    re.compile(rf"{_START}{_X}{_GAP}{_Y}{_END}", re.IGNORECASE),
)
_GRID = re.compile(
    rf"{_START}r(?:ow)?[ _=:-]?\d{{1,9}}{_GAP}c(?:ol(?:umn)?)?[ _=:-]?\d{{1,9}}{_END}",
    re.IGNORECASE,
)
_PAIR = re.compile(r"_(?P<x>\d{1,6})_(?P<y>\d{1,6})(?: ?\(\d+\))?$")
_DATED = re.compile(r"(?:[A-Za-z]+[-_ ]?)?(?:19|20)\d\d(?:[-_. ]?\d+)*")  # IMG_2024_05_12_30
_COUNTED_POSITION = re.compile(r"(?:(\d+)_)?x\d{1,9}_y\d{1,9}")
_COUNTER = re.compile(
    r"(?:(?:patch|tile|crop|cell|nucleus)[-_ ]?(?=\d+[-_ ]+\d+[-_]\d)|"
    r"(?:(?:patch|tile|crop|cell|nucleus)[-_ ]?)?(?=\d+[-_ ]+[xyr]\D{0,4}\d))(\d+)",
    re.IGNORECASE,
)
_TCGA = re.compile(r"(?<![A-Za-z0-9])TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?![A-Za-z0-9])")
_BARCODE = re.compile(_TCGA.pattern + r"(?:-\d{2}[A-Z]?(?:-\d{2}[A-Z]?)?(?:-[A-Z]{2}[A-Z0-9]?)?)?")
_WORD = re.compile(r"[^\W\d_]+")
_GENERAL_WORDS = (
    "img image images imgs im patch patches tile tiles crop crops roi region photo pic picture "
    "scan frame file sample slide wsi case patient subject cell cells nucleus nuclei tissue data "
    "train val valid test dsc dscn dscf dscsc imgp pxl mvimg win vid screenshot capture snap "
    "snapshot untitled copy new no nr number id class label he"
)
_NO_SOURCES = frozenset(_GENERAL_WORDS.split())
_PATCH_WORDS = frozenset(("patch", "tile", "crop", "cell", "nucleus"))  # with a number: counted
_SEARCH_S = 5.0  # of processor time, for one search of --group-regex


@dataclass(frozen=True)
class Convention:
    """The names of a published data set, and what they mean."""

    pattern: re.Pattern[str]  # groups slide and, where the names have them, source, patient, x, y
    meaning: str
    classes: frozenset[str] = frozenset()  # folders that are its classes, where others look alike


CONVENTIONS = {
    "BreakHis": Convention(
        re.compile(r"SOB_[BM]_[A-Z]+[-_](?P<slide>(?P<patient>\d\d-\d+)[A-Z]*)-\d+-\d+.*"),
        "slide 14-22549AB and patient 14-22549 from SOB_B_A-14-22549AB-40-001",
        frozenset({"benign", "malignant"}),
    ),
    "IDC": Convention(
        re.compile(r"(?P<slide>(?P<patient>\d+)_idx\d+)_x(?P<x>\d+)_y(?P<y>\d+)_class\d.*"),
        "slide 8863_idx5 and patient 8863 from 8863_idx5_x51_y1251_class0",
    ),
    "WILDS Camelyon17": Convention(
        re.compile(
            r"patch_(?P<slide>(?P<patient>patient_\d+)_node_\d+)_x_(?P<x>\d+)_y_(?P<y>\d+).*"
        ),
        "slide patient_004_node_4 and patient patient_004 from patch_patient_004_node_4_x_1_y_2",
    ),
    "Kather 2016": Convention(
        re.compile(
            r"(?P<source>[0-9A-F]+_(?P<slide>CRC-Prim-HE-\d+)_\d+[A-Za-z]?\.tif)_Row_\d+_Col_\d+.*"
        ),
        "slide CRC-Prim-HE-03 from 10009_CRC-Prim-HE-03_009.tif_Row_1_Col_301",
    ),
}


class Name(NamedTuple):
    """What the name of a file says of its patch."""

    source: str | None = None
    slide: str | None = None
    patient: str | None = None
    y: int | None = None
    x: int | None = None
    rule: str = ""  # what gave the source: "__", "position", "barcode" or a convention


def require_utf8(path: str) -> None:
    """Refuse a name that no sidecar or `dataset.json` could hold.

    Raises:
        DataError: a name in `path` is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        advice = "rename it" if encoding == "utf-8" else f"set PYTHONUTF8=1, not {encoding}"
        raise DataError(f"{os.fsencode(path)!r}: the name is not UTF-8; {advice}") from None


def read_name(stem: str, label: str | None = None, numbered: bool = False) -> Name:
    """Read the source, slide, patient and position in a file's name.

    Args:
        stem: name without folder and suffix.
        label: class of the patch: a name that only repeats it carries no source.
        numbered: a number alone before a position is a slide and not a counter; see
            `numbers_are_slides`.
    """
    before, separator, _ = stem.partition("__")
    if not separator:
        for rule, convention in CONVENTIONS.items():
            match = convention.pattern.fullmatch(stem)
            if match is not None:
                at = match.groupdict()
                y, x = (int(at[axis]) if axis in at else None for axis in "yx")
                slide = match["slide"]
                return Name(at.get("source", slide), slide, at.get("patient"), y, x, rule)
    y = x = None
    for pattern in _POSITIONS:
        match = pattern.search(stem)
        if match is not None:
            y, x = int(match["y"]), int(match["x"])
            break
    else:
        match = None if separator else _GRID.search(stem)
    if not separator and match is None:
        match = _PAIR.search(stem)
        before = "" if match is None else stem[: match.start()]
        if match is None or _DATED.fullmatch(before) or not _is_source(before, label, numbered):
            tcga = _BARCODE.search(stem)
            return Name() if tcga is None else Name(tcga[0], rule="barcode")
        y, x = int(match["y"]), int(match["x"])
    if match is not None and not separator:
        before = re.sub(r"\[[^\]]*$", "", stem[: match.start()]).rstrip("_-. [(,")  # QuPath: [x=
    if not _is_source(before, label, numbered or bool(separator)):
        return Name(y=y, x=x)
    return Name(before, y=y, x=x, rule=separator or "position")


@lru_cache(maxsize=1 << 16)
def _is_source(text: str, label: str | None, numbered: bool) -> bool:
    """Whether a text names a source: more than the class, and than words such as `img`."""
    words = _WORD.findall(text.lower())
    if any(character.isdigit() for character in text):
        own = not _PATCH_WORDS.issuperset(words) or numbered
    else:
        own = not _NO_SOURCES.issuperset(words)
    return own and (label is None or text.casefold() != label.rpartition("/")[2].casefold())


def slide_stem(slide: str) -> str:
    """Return the name of a slide without the suffix of a slide file; other dots belong to it."""
    lower = slide.lower()
    suffix = next((suffix for suffix in SLIDE_SUFFIXES if lower.endswith(suffix)), "")
    return slide[: len(slide) - len(suffix)]


def numbers_are_slides(stems_by_folder: Sequence[Sequence[str]]) -> bool:
    """Whether the numbers before positions, as in `10253_x51_y1251` or `tile7_x0_y0`, name slides
    or images.

    Counters, as in TRIDENT's `000123_x1234_y5678`, are never there twice within a folder.
    """
    for stems in stems_by_folder:
        numbers = [match[1] for stem in stems if (match := _COUNTER.match(stem))]
        if len(set(numbers)) < len(numbers):
            return True
    return False


def only_position(stem: str, numbered: bool = False) -> bool:
    """Whether a file's name is only a position, as in a folder of one slide: `x1234_y5678`, or
    `000123_x1234_y5678` as TRIDENT and similar tools write it."""
    match = _COUNTED_POSITION.fullmatch(stem)
    return match is not None and not (numbered and match[1])


@lru_cache(maxsize=1 << 16)
def barcode(name: str) -> tuple[str, str] | None:
    """Return patient and site from a name that holds a TCGA barcode (`TCGA-A6-2671-01Z-00-DX1...`):
    its first 12 characters, and the tissue source site code at characters 6 and 7."""
    match = _TCGA.search(name)
    return None if match is None else (match[0], match[1])


def barcode_notes(
    patches: Sequence[Patch], fields: Sequence[str] = ("patient", "site")
) -> list[str]:
    """Return a line on the `fields` that come from TCGA barcodes, if any patch has a barcode."""
    coded = [patch for patch in patches if fields and barcode(patch.slide or patch.source)]
    if not coded:
        return []
    counts = [f"{field}s: {len({getattr(p, field) for p in coded}):,}" for field in fields]
    return [f"TCGA barcodes in the names of {len(coded):,} patches ({', '.join(counts)})"]


class SourcePattern:
    """`--group-regex`: its first group, searched in a path, is the source image.

    An instance serves the thread that made it.
    """

    def __init__(self, regex: str) -> None:
        """Compile the expression.

        Raises:
            DataError: not a regular expression, or one without a group.
        """
        try:
            self._pattern = re.compile(regex)
        except re.error as error:
            raise DataError(f"--group-regex {regex!r} is not valid: {error}") from None
        if not self._pattern.groups:
            raise DataError(
                f"--group-regex {regex!r} has no group: put (...) around the source image"
            )
        # only the main thread handles signals; the handler stays, as it costs more than a search
        self._limited = threading.current_thread() is threading.main_thread()
        if self._limited:
            signal.signal(signal.SIGVTALRM, _stop_search)

    def source(self, path: str) -> str:
        """Return the source image that `path` names.

        Raises:
            DataError: no match, an empty group, or a search that takes too long.
        """
        match = self._search(path)
        if match is None or not match.group(1):
            what = "does not match" if match is None else "captures nothing in"
            raise DataError(
                f"--group-regex {self._pattern.pattern!r} {what} {path!r}: "
                f"its first group must give the source image of every file"
            )
        return match.group(1)

    def _search(self, path: str) -> re.Match[str] | None:
        """Search with a limit of time: an expression such as (a+)+$ can backtrack for ever."""
        if not self._limited:
            return self._pattern.search(path)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, _SEARCH_S)
            return self._pattern.search(path)
        except TimeoutError:
            raise DataError(
                f"--group-regex {self._pattern.pattern!r} took more than {_SEARCH_S:g} s on "
                f"{path!r}: it tries too many ways to match; avoid a repeat within a repeat"
            ) from None
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _stop_search(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError


def group_pattern(regex: str | None) -> SourcePattern | None:
    """Compile `--group-regex`.

    Raises:
        DataError: as `SourcePattern`.
    """
    return None if regex is None else SourcePattern(regex)


def source_rule(regex: str | None) -> str:
    """Say what the source of a patch is, with `--group-regex` and without."""
    return SOURCE_RULE if regex is None else REGEX_RULE.format(regex)


def source_image(
    path: str, name: Name, slide: str | None, pattern: SourcePattern | None = None
) -> str:
    """Return the source image of a patch, or its path where the source is unknown.

    Raises:
        DataError: as `SourcePattern.source`.
    """
    if pattern is not None:
        return pattern.source(path)
    return slide or name.source or path
