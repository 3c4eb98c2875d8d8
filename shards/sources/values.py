"""Values that are there but may not mean what they seem to: look-alike classes, NA, mixed mpp."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from shards.sources.names import slide_stem
from shards.sources.source import Patch

_NOTHING = """
na n/a n.a n/d n.d nan nat none null nil unknown unk missing undefined undef unspecified unassigned
anonymous anon void blank empty tbd inconnu unbekannt desconocido sconosciuto \\n
"""
_NO_LABEL = """
na n/a n.a nan nat null missing undefined unlabeled unlabelled unannotated ignore tbd \\n
"""
_MISSING, _UNLABELLED = frozenset(_NOTHING.split()), frozenset(_NO_LABEL.split())
_MISSING_TEXT = re.compile(
    r"not (?:available|applicable|known|recorded|specified|provided|reported|given|assigned)"
    r"|(?:unknown|missing|no) (?:patient|case|slide|site|centre|center|id|data|value|name)"
    r"|(?:patient|case|slide|site) unknown|to be determined|x{3,}|-\d+(?:\.0+)?"
    r"|#(?:n/a|ref|value|div/0|name|num|null)[!?]?"
)
_ROUNDED = re.compile(r"\d(?:[.,]\d+)?[eE]\+\d+")  # what a spreadsheet makes of a long number
_INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff]")
_MPP_RATIO = 1.2  # of the largest to the smallest: more is another magnification
_MPP_RANGE = (0.05, 10)  # outside, and 10 itself: a magnification, or another unit
_SHOWN = 5
_TIDY = "--tidy-labels makes them one"
_WRITING = "blanks, case, Unicode form, - or _, or the form of a number"


def plain_name(name: str) -> str:
    """Return a name without what is often written in two ways: blanks, case, Unicode form, - for _,
    the leading zeros and the `.0` of a number, and the suffix of a slide file."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name)).casefold()
    text = " ".join(slide_stem(text.strip()).split())
    if number := re.fullmatch(r"0*(\d+)(?:\.0+)?", text):
        return number[1]
    if _ROUNDED.fullmatch(text):
        return f"{float(text.replace(',', '.')):.0f}"
    return re.sub(r"(?<=\w)[ _-]+(?=\w)", " ", text)


def tidy_labels(labels: Mapping[str, int]) -> dict[str, str]:
    """Map labels that differ in the way of writing alone (`plain_name`) to the most frequent.

    Args:
        labels: number of patches by label.
    """
    similar: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels, key=lambda label: (-labels[label], label)):
        similar[plain_name(label)].append(label)
    best = {label: group[0] for group in similar.values() for label in group}
    return {label: " ".join(best[label].split()) for label in labels}


def _look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ in the way of writing alone."""
    similar: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        similar[plain_name(name)].append(name)
    return [group for group in similar.values() if len(group) > 1]


def _counted(names: Iterable[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} ({counts[name]:,})" for name in names)


def label_warnings(labels: Mapping[str, int], mend: str = _TIDY) -> list[str]:
    """Warn of classes that look alike, begin or end with a blank, or mean that there is no label.

    Args:
        labels: number of patches by label.
        mend: what makes look-alikes one.
    """
    groups = _look_alikes(labels)
    warnings = [
        f"the classes {_counted(group, labels)} differ in {_WRITING} alone, and are different "
        f"classes; {mend}"
        for group in groups
    ]
    blanks = sorted(label for label in labels if label != label.strip())
    if blanks and not any(set(blanks) & {*group} for group in groups):
        warnings.append(
            f"the classes {_counted(blanks[:_SHOWN], labels)} begin or end with a blank; {mend}"
        )
    if bad := [label for label in sorted(labels) if _means_no_label(label, labels)]:
        warnings.append(
            f"the classes {_counted(bad, labels)} may mean that there is no label: leave these "
            f"patches out, or give the class another name"
        )
    return warnings


def _means_no_label(label: str, labels: Iterable[str]) -> bool:
    """Whether a class may stand for patches without one: nan, -1, or 255 far above the others."""
    text = plain_name(label).strip("()<>[]{}\"'.")
    if text in _UNLABELLED or not text or set(text) == {"?"}:
        return True
    if text not in ("-1", "-100", "99", "255", "999") or {*labels} <= {"-1", "1"}:
        return False
    others = [abs(int(name)) for name in labels if re.fullmatch(r"-?\d{1,9}", name)]
    return text == "-1" or sorted(others)[-2:][0] < abs(int(text)) // 2


def name_warnings(
    counts: Mapping[str, Mapping[str, int]], option: str | None = "--missing"
) -> list[str]:
    """Warn of patients, slides or sites whose names mean that there is none, look alike, or were
    rounded by a spreadsheet.

    Args:
        counts: number of patches by name, for each field.
        option: which takes the names that mean none; None: there is no such option.
    """
    warnings = []
    for field, names in counts.items():
        bad = [name for name in names if is_missing(name) or _is_placeholder(name, names)]
        if bad:
            shown = ", ".join(f"{name!r} ({names[name]:,} patches)" for name in bad)
            warnings.append(
                f"the {field} {shown} is taken for one {field}, and may mean that none is known; "
                + (f"{option} {' '.join(map(repr, bad))} leaves it empty" if option else "mend it")
            )
        if groups := _look_alikes(set(names).difference(bad)):
            shown = "; ".join(_counted(group, names) for group in groups[:_SHOWN])
            warnings.append(
                f"{len(groups):,} names of {field}s are written in several ways ({shown}"
                f"{'; ...' if len(groups) > _SHOWN else ''}): they differ in {_WRITING} alone, and "
                f"are different {field}s, which may be in different splits; write each in one way"
            )
        if rounded := sorted(filter(_ROUNDED.fullmatch, names)):
            warnings.append(
                f"the {field}s {_counted(rounded[:_SHOWN], names)} look as if a spreadsheet had "
                f"rounded long numbers: different {field}s may have become one; export the column "
                f"as text"
            )
    return warnings


def is_missing(name: str) -> bool:
    """Whether a name may mean that there is no value: NA, unknown, a blank, a dash, #REF!, -9."""
    text = _INVISIBLE.sub("", name).strip().casefold()
    text = text.strip("()<>[]{}\"'").rstrip(".")
    if not any(character.isalnum() for character in text):
        return True
    return text in _MISSING or _MISSING_TEXT.fullmatch(re.sub(r"[ _]+", " ", text)) is not None


def _is_placeholder(name: str, names: Mapping[str, int]) -> bool:
    """Whether a number stands for none: 0 where there is no 1, 999 where there is no 998."""
    number = re.fullmatch(r"(0+|9{3,})(?:\.0+)?", name.strip())
    if number is None or len(names) < 2:
        return False
    neighbour = str(int(number[1]) - 1 if int(number[1]) else 1)
    return neighbour not in map(plain_name, names)


def mpp_warnings(values: Mapping[float | None, int]) -> list[str]:
    """Warn of microns per pixel that some patches lack, or that differ.

    Args:
        values: number of patches by microns per pixel.
    """
    present = sorted(value for value in values if value is not None)
    if not present:
        return []
    warnings = []
    if without := values.get(None, 0):
        warnings.append(
            f"{without:,} of {sum(values.values()):,} patches have no mpp, the others have: their "
            f"magnification is unknown"
        )
    low, high = _MPP_RANGE
    if odd := [value for value in present if not low <= value < high]:
        warnings.append(
            f"mpp is {odd[0]:.3g} for {sum(values[value] for value in odd):,} patches: expected "
            f"microns per pixel, which are about 10 / magnification: 0.25 at 40x, 0.5 at 20x"
        )
    if present[-1] > present[0] * _MPP_RATIO:
        counts: Counter[str] = Counter()
        for value in present:
            counts[f"{value:.3g}"] += values[value]
        shown = ", ".join(f"{value} ({n:,} patches)" for value, n in [*counts.items()][:_SHOWN])
        more = ", ..." if len(counts) > _SHOWN else ""
        warnings.append(
            f"patches of different magnification are mixed: mpp {shown}{more}. A tissue looks "
            f"another at each; pack each magnification by itself, or bring them to one first"
        )
    return warnings


def value_warnings(patches: Sequence[Patch]) -> list[str]:
    """Warn of labels, names of groups and mpp that may be meant otherwise."""
    labels = Counter(patch.label for patch in patches if patch.label is not None)
    counts = {
        field: Counter(name for patch in patches if (name := getattr(patch, field)) is not None)
        for field in ("patient", "slide", "site")
    }
    mpp = Counter(patch.mpp for patch in patches)
    return [*label_warnings(labels), *name_warnings(counts), *mpp_warnings(mpp)]
