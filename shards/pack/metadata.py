"""The end of a pack: from the records of all shards to `dataset.json`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import atomic_file, sync_folder
from shards.codec.sidecar import columns
from shards.pack.plan import PackOptions, Plan
from shards.pack.repeats import repeated
from shards.pack.resume import finish, shard_files
from shards.pack.shard import MAX_LISTED, Record
from shards.schema import (
    CHANNELS,
    METADATA_NAME,
    PATCH,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    dumps_metadata,
)
from shards.sources.assign import achieved
from shards.sources.collect import Intake
from shards.sources.folder import listing

_SHOWN_BAD = 20


def conclude(
    out: Path, intake: Intake, plan: Plan, records: list[Record], options: PackOptions
) -> DatasetMetadata:
    """Write the metadata of a finished pack, and remove what only an unfinished one needs.

    Raises:
        DataError: too many bad patches, or a shard without any usable one.
    """
    metadata = make_metadata(out, intake, plan, records, options)
    with atomic_file(out / METADATA_NAME) as file:
        file.write(dumps_metadata(metadata))
    sync_folder(out)
    finish(out)
    return metadata


def without_skipped(out: Path, intake: Intake, records: list[Record]) -> Intake:
    """What was packed of what was found: a group of patches that were left out is none."""
    if not any(record.bad for record in records):
        return intake
    packed: set[str] = set()
    for record in records:
        if record.count:
            packed.update(columns(shard_files(out, record.name)[1], ["path"])["path"].to_pylist())
    patches = [patch for patch in intake.survey.patches if patch.path in packed]
    said = dict(intake.said)
    if "splits" in said:
        counts = achieved((patch.split, patch.group, patch.label) for patch in patches)
        said["splits"] = said["splits"] | {"achieved": counts}
    return replace(intake, survey=replace(intake.survey, patches=patches), said=said)


def make_metadata(
    out: Path, intake: Intake, plan: Plan, records: list[Record], options: PackOptions
) -> DatasetMetadata:
    """The metadata, if the bad patches are few enough; `records` in the order of the plan."""
    refused = intake.survey.refused
    bad = [*refused, *((path, why) for record in records for path, why in record.bad_first)]
    total_bad = len(refused) + sum(record.bad for record in records)
    if total_bad > options.skip_bad:
        refuse_bad(intake.source, bad, total_bad)
    for record in records:
        if not record.count:
            raise DataError(f"{intake.source}: no usable patch is left for {record.name}")
    splits = {split: _split_metadata(plan, split, records) for split in plan.key_ranges}
    twice, pairs = repeated(out, records)
    provenance: dict[str, Any] = {
        "source": intake.name,
        "patches": sum(len(shard.patches) for shard in plan.shards),
        "seed": options.seed,
        "shard_size": options.shard_size,
        "group_regex": options.group_regex,
        "order": "within each split by the stable argsort of the raw PCG64 stream of the seed",
        "key_ranges": {split: list(keys) for split, keys in plan.key_ranges.items()},
        **intake.said,
        "skipped": {"count": total_bad, "first": [list(pair) for pair in bad[:MAX_LISTED]]},
        "repeated": {"count": twice, "first": pairs},
    }
    mean = _channel_mean(records)
    return DatasetMetadata(options.png, plan.classes, splits, mean, provenance)


def refuse_bad(source: str, bad: list[tuple[str, str]], total: int) -> None:
    """Raises:
    DataError: always; the paths and reasons, and what to do.
    """
    raise DataError(
        f"{source}: {listing(bad, total, _SHOWN_BAD)}\n"
        f"Mend or remove them (if shards were already written, pack again with --overwrite), "
        f"or go on without them: --skip-bad {total}; images of other sizes and kinds can be "
        f"taken by --convert"
    )


def _split_metadata(plan: Plan, split: str, records: list[Record]) -> SplitMetadata:
    mine = [record for record in records if record.split == split]
    shards = [Shard(r.name, r.count, r.size, r.xxh3, r.sidecar_size, r.sidecar_xxh3) for r in mine]
    counts = [sum(record.class_counts[i] for record in mine) for i in range(len(plan.classes))]
    return SplitMetadata(sum(record.count for record in mine), counts, shards)


def _channel_mean(records: list[Record]) -> list[float]:
    """RGB in [0, 1] over the train split, or over everything when there is none."""
    used = [record for record in records if record.split == "train"] or records
    values = 255 * PATCH * PATCH * sum(record.count for record in used)
    return [sum(record.channel_sums[c] for record in used) / values for c in range(CHANNELS)]
