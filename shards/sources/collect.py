"""The kinds of source, and the patches of one with their splits."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from common.errors import DataError
from shards.known.arrays import ArraySource
from shards.slides.source import SlideSource
from shards.sources.convert import ConvertedSource, TileSource
from shards.sources.files import look_up_here
from shards.sources.folder import FolderSource
from shards.sources.manifest import ManifestSource
from shards.sources.source import Collection, LookUp, Source, SplitDraw
from shards.sources.splits import draw_splits, split_warnings
from shards.sources.values import tidy_labels, value_warnings

# what workers can be sent
AnySource = FolderSource | ManifestSource | ConvertedSource | TileSource | SlideSource | ArraySource


def collect(
    source: Source,
    val: float = 0,
    test: float = 0,
    seed: int = 0,
    look_up: LookUp = look_up_here,
    *,
    tidy: bool = False,
) -> Collection:
    """List the patches of a source with their splits, and the notes and warnings on them.

    Args:
        val, test: fractions of the patches to draw for these splits, by group.
        look_up: see `Source.collect`.
        tidy: make classes one that differ in blanks, case or Unicode form alone.

    Raises:
        DataError: as `Source.collect` and `draw_splits`; fractions given for a source that has
            splits; a class that train lacks, or patches with and without a class.
    """
    collection = source.collect(look_up)
    if tidy:
        collection = _with_tidy_labels(collection)
    collection.warnings.extend(value_warnings(collection.patches))
    if (val or test) and collection.patches:
        collection = _with_drawn_splits(collection, val, test, seed)
    if collection.patches:  # without any, the reasons are told
        members = ((patch.split, patch.label) for patch in collection.patches)
        can_draw = not collection.splits_from
        collection.warnings.extend(split_warnings(Path(collection.root), members, can_draw))
    return collection


def _with_tidy_labels(collection: Collection) -> Collection:
    counts = Counter(patch.label for patch in collection.patches if patch.label is not None)
    best = {label: tidy for label, tidy in tidy_labels(counts).items() if label != tidy}
    patches = [
        patch._replace(label=best[patch.label]) if patch.label in best else patch
        for patch in collection.patches
    ]
    changed = ", ".join(f"{label!r} became {tidy!r}" for label, tidy in sorted(best.items()))
    note = f"labels tidied: {changed or 'none differed'}"
    return replace(collection, patches=patches, notes=[*collection.notes, note])


def _with_drawn_splits(collection: Collection, val: float, test: float, seed: int) -> Collection:
    if collection.splits_from:
        hint = " (one split folder can be SOURCE by itself)"
        raise DataError(
            f"{collection.root} has splits already (split {collection.splits_from}), and --val and "
            f"--test draw new ones: leave out the options, or the splits"
            f"{hint if collection.splits_from == 'folders' else ''}"
        )
    members = [(patch.group, patch.label) for patch in collection.patches]
    splits, warnings = draw_splits(members, val, test, seed)
    kinds = sorted({kind for kind, _ in splits})
    note = (
        f"splits drawn by {' or '.join(kinds)}: {len(splits):,} groups, asked for "
        f"val {val:g}, test {test:g}"
    )
    draw = SplitDraw(by=kinds, val=val, test=test)
    return replace(
        collection,
        patches=[patch._replace(split=splits[patch.group]) for patch in collection.patches],
        origin=structs.replace(collection.origin, splits=draw),
        notes=[*collection.notes, note],
        warnings=[*collection.warnings, *warnings],
    )
