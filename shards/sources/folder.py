"""The patches of a folder: a sorted list, with what folders and names say of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.errors import DataError
from shards.sources.layout import PLAIN, Accepted, Layout, Walk, choose_layout
from shards.sources.look import LookAll, in_parts, look_here
from shards.sources.names import barcode
from shards.sources.patch import Patch
from shards.sources.splits import GROUPS, class_warnings

_SHOWN = 10

Group = tuple[str, str | None, str | None, str | None, str]
_group = attrgetter("split", "label", *GROUPS)


@dataclass(frozen=True)
class Survey:
    """Everything found: the patches, what is not one, and what there is to say about it."""

    patches: list[Patch]  # sorted by path
    refused: list[tuple[str, str]]  # path and reason; counted against --skip-bad
    hidden: int  # files and folders whose name starts with a dot: not looked at
    ignored: int  # notes and system files beside the images
    layout: Layout | None  # of the folders; none when a manifest lists the patches
    has_splits: bool  # the source says itself what is train, val and test
    notes: list[str]
    warnings: list[str]

    @cached_property
    def groups(self) -> set[Group]:
        """Split, class, patient, slide and source: every combination that occurs."""
        return set(map(_group, self.patches))


def scan(root: Path, group_regex: str | None = None, layout: Layout = "auto") -> list[Patch]:
    """The patches under `root`, sorted by path, whatever the order of the directory.

    Raises:
        DataError: as `survey` and `split_warnings`, and when any file is not a PNG.
    """
    found = survey(root, group_regex, layout)
    if found.refused:
        raise DataError(f"{root}: {listing(found.refused, len(found.refused))}")
    split_warnings(root, found.patches)
    return found.patches


def survey(
    root: Path,
    group_regex: str | None = None,
    layout: Layout = "auto",
    accepted: Accepted = PLAIN,
    look_all: LookAll = look_here,
) -> Survey:
    """Walk `root`; see `shards.sources.layout` for the layouts.

    Args:
        group_regex: see `shards.sources.names.source_image`.
        look_all: `look` at every part, perhaps in several processes.

    Raises:
        DataError: not a folder, empty, an ambiguous layout, a link that leaves the root, a name
            that is not UTF-8, a path the regex does not match.
    """
    walk = Walk(root, accepted)
    chosen, note = choose_layout(walk, layout)
    patches: list[Patch] = []
    refused = list(walk.refused)
    parts = in_parts(root, accepted, group_regex, *_listed(walk, chosen))
    for part, looked in zip(parts, look_all(parts), strict=True):
        if looked.error:
            raise DataError(looked.error[1])
        patches += looked.patches
        refused += looked.refused
        refused += [(part.paths[i], f"cannot be looked at: {why}") for i, why in looked.missing]
    return Survey(
        patches, sorted(refused), walk.hidden, walk.ignored, chosen, bool(walk.splits),
        [note, *barcode_notes(patches)], _empty_folders(walk, patches),
    )  # fmt: skip


def _listed(walk: Walk, layout: Layout) -> tuple[list[str], dict[str, list[Any]]]:
    """The paths of all files, and what their folders say of each."""
    field = "slide" if layout == "slides" else "label"
    paths: list[str] = []
    given: dict[str, list[Any]] = {"split": [], field: []}
    for folder in walk.folders:
        paths += [folder.prefix + name for name in folder.files]
        given["split"] += [folder.split] * len(folder.files)
        given[field] += [folder.name] * len(folder.files)
    return paths, given


def _empty_folders(walk: Walk, patches: Iterable[Patch]) -> list[str]:
    """A warning for each class or slide without a patch."""
    filled = {patch.path.rpartition("/")[0] for patch in patches}
    named = [folder.prefix[:-1] for folder in walk.folders if folder.name is not None]
    return [f"the folder {path!r} holds no patches" for path in named if path not in filled]


def barcode_notes(
    patches: Sequence[Patch], taken: Sequence[str] = ("patient", "site")
) -> list[str]:
    """One line on the fields `taken` from TCGA barcodes, if there are barcodes."""
    if not taken or not any(map(barcode, {patch.slide or patch.source for patch in patches})):
        return []
    found = [patch for patch in patches if barcode(patch.slide or patch.source)]
    counts = [f"{field}s: {len({getattr(p, field) for p in found}):,}" for field in taken]
    return [f"TCGA barcodes in the names of {len(found):,} patches ({', '.join(counts)})"]


def split_warnings(root: Path, patches: Iterable[Patch]) -> list[str]:
    """What an evaluation on these splits will lack.

    Raises:
        DataError: a class that train lacks, or patches with and without a class.
    """
    labels: dict[str, set[str | None]] = {}
    for split, label in {(patch.split, patch.label) for patch in patches}:
        labels.setdefault(split, set()).add(label)
    return class_warnings(root, labels)


def listing(refused: list[tuple[str, str]], total: int, shown: int = _SHOWN) -> str:
    """`N files cannot be used as patches`, with the first paths and reasons."""
    lines = [f"{total} file{'s' if total > 1 else ''} cannot be used as patches"]
    lines += [f"  {path!r}: {reason}" for path, reason in refused[:shown]]
    if total > shown:
        lines.append(f"  ... and {total - shown} more")
    return "\n".join(lines)
