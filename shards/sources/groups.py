"""What groups the patches have: patient, slide or source, or none where the source is unknown."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from common.console import printable
from shards.sources.source import Groups, Patch

UNKNOWN = "patch"  # kind of the group of a patch whose source is unknown

_EXAMPLES = 2  # of each kind
_KINDS = ("patient", "slide", "source", UNKNOWN)


def group_facts(patches: Sequence[Patch], rule: str) -> Groups:
    """Count the patches by the kind of their group, with examples of each kind.

    Args:
        rule: what the source of a patch is.
    """
    counts = dict.fromkeys(_KINDS, 0)
    examples: dict[str, list[list[str]]] = {kind: [] for kind in _KINDS}
    names: set[tuple[str, str]] = set()
    for patch in patches:
        kind, name = group = patch.group
        counts[kind] += 1
        if len(examples[kind]) < _EXAMPLES and group not in names:
            names.add(group)
            examples[kind].append([patch.path, kind, name])
    return Groups(
        rule=rule,
        patches={kind: counts[kind] for kind in _KINDS if counts[kind]},
        examples=[example for kind in _KINDS for example in examples[kind]],
    )


def describe_groups(groups: Groups) -> list[str]:
    """Describe in lines what the groups are, with counts and examples."""
    lines = [f"sources: {groups.rule}"]
    for kind, count in groups.patches.items():
        examples = [
            printable(path) if kind == UNKNOWN else f"{printable(name)} from {printable(path)}"
            for path, of_kind, name in groups.examples
            if of_kind == kind
        ]
        text = "source unknown" if kind == UNKNOWN else f"grouped by {kind}"
        lines.append(f"  {count:,} patches {text}: {', '.join(examples)}")
    return lines


def unknown_sources(provenance: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of patches whose source is unknown, and of all, from `dataset.json`.

    (0, 0) where the data set does not say: it was packed before this was recorded.
    """
    try:
        groups = msgspec.convert(provenance.get("sources"), Groups)
    except msgspec.ValidationError:
        return 0, 0
    return groups.patches.get(UNKNOWN, 0), sum(groups.patches.values())


def unknown_warning(unknown: int, total: int) -> str:
    """Warn that the source of patches is unknown; empty if none is."""
    if not unknown:
        return ""
    every = "every patch" if unknown == total else f"{unknown:,} of {total:,} patches"
    return (
        f"the source is unknown of {every}: for these, splits, budgets and intervals are by patch, "
        f"so patches of one slide or patient may be in train and in test (leakage), and scores may "
        f"be too good. Name the source when packing: --group-regex RE, or --manifest with a column "
        f"slide or patient"
    )
