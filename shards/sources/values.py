"""Values that are there but may not mean what they seem to: look-alike classes, NA, mixed mpp."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from shards.sources.source import Patch

_NOTHING = (
    "na n/a n.a. nan none null nil unknown unk missing undefined unspecified tbd ? - -- -1 <na> "
    "#n/a"
)
_MISSING = frozenset(_NOTHING.split()) | {"not available", "not applicable", "not known"}
_MPP_RATIO = 1.2  # of the largest to the smallest: more is another magnification
_SHOWN = 5


def plain_label(label: str) -> str:
    """Return a label without differences of blanks, case and Unicode form."""
    text = unicodedata.normalize("NFKC", label).casefold()
    return " ".join(re.sub("[\u200b\u200c\u200d\ufeff]", "", text).split())


def tidy_labels(labels: Mapping[str, int]) -> dict[str, str]:
    """Map labels that differ in blanks, case or Unicode form alone to the most frequent of them.

    Args:
        labels: number of patches by label.
    """
    similar: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels, key=lambda label: (-labels[label], label)):
        similar[plain_label(label)].append(label)
    best = {label: group[0] for group in similar.values() for label in group}
    return {label: " ".join(best[label].split()) for label in labels}


def label_warnings(labels: Mapping[str, int]) -> list[str]:
    """Warn of classes that look alike.

    Args:
        labels: number of patches by label.
    """
    similar: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        similar[plain_label(label)].append(label)
    return [
        f"the classes {', '.join(f'{label!r} ({labels[label]:,})' for label in group)} differ in "
        f"blanks, case or Unicode form alone, and are different classes; --tidy-labels makes them "
        f"one"
        for group in similar.values()
        if len(group) > 1
    ]


def missing_warnings(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Warn of patients, slides or sites whose name means that there is none.

    Args:
        counts: number of patches by name, for each field.
    """
    warnings = []
    for field, names in counts.items():
        bad = {name: count for name, count in names.items() if is_missing(name)}
        if bad:
            shown = ", ".join(f"{name!r} ({count:,} patches)" for name, count in bad.items())
            warnings.append(
                f"the {field} {shown} is taken for one {field}, and may mean that none is known; "
                f"--missing {' '.join(repr(name) for name in bad)} leaves it empty"
            )
    return warnings


def is_missing(name: str) -> bool:
    """Whether a name may mean that there is no value: NA, unknown, a blank."""
    text = name.strip().casefold()
    return not text or text in _MISSING


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
    return [*label_warnings(labels), *missing_warnings(counts), *mpp_warnings(mpp)]
