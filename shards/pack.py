"""Pack patches into WebDataset shards: `python -m shards.pack SOURCE OUT`.

The bytes written depend on the files and on the options alone: not on the number of processes,
the order of the directory, the machine or the time.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from shards.build import MAX_LISTED, Job, Record
from shards.command import run_command
from shards.crew import build_all
from shards.intake import gather
from shards.output import (
    finish,
    locked,
    prepare,
    publish,
    read_record,
    refuse_occupied,
    sweep,
    sync_folder,
    tiles_file,
)
from shards.plan import PackOptions, Plan, ShardPlan, make_plan
from shards.progress import progress
from shards.schema import (
    CARD_NAME,
    CHANNELS,
    PATCH,
    DataError,
    DatasetCard,
    Shard,
    SplitCard,
    dumps_card,
)
from shards.sources import Survey, listing
from shards.summary import print_summary, print_survey
from shards.tiles import stage

_FEW = 20_000  # patches packed in about the time that starting processes takes
_SHOWN_BAD = 20


def pack(source: Path, out: Path, options: PackOptions | None = None) -> DatasetCard:
    """Pack `source` into `out` and return the card written there.

    Raises:
        DataError: the source or the output folder cannot be used, more bad patches than
            `options.skip_bad`, a source file that changed, a full disk. `out` then holds no
            `dataset.json`; after an interruption or a full disk the same call continues.
    """
    source, out, options = Path(source), Path(out), options or PackOptions()
    _refuse_nested(source, out)
    start = time.monotonic()
    with locked(out):
        refuse_occupied(out, options.overwrite)
        found, said = gather(source, options)
        print_survey(source, found)
        if len(found.refused) > options.skip_bad:
            _refuse_bad(source, found.refused, len(found.refused))
        plan = make_plan(found.patches, options)
        prepare(out, plan, options.overwrite)
        try:
            records = _build(source, out, plan, options)
        finally:
            sweep(out)
        card = _card(source, plan, found, records, options, said)
        with publish(out / CARD_NAME) as file:
            file.write(dumps_card(card))
        sync_folder(out)
        finish(out)
    print_summary(card, plan, time.monotonic() - start)
    return card


def _refuse_nested(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside {source}: its shards would be scanned as patches")


def _build(source: Path, out: Path, plan: Plan, options: PackOptions) -> list[Record]:
    """The records of all shards in the order of the plan; finished ones are not built again."""
    records: dict[str, Record] = {}
    missing: list[ShardPlan] = []
    for shard in plan.shards:
        saved = read_record(out, shard.name, plan.digest)
        if saved is None:
            missing.append(shard)
        else:
            records[shard.name] = Record(**saved)
    if records:
        print(f"continuing: {len(records)} of {len(plan.shards)} shards are finished")
    total = sum(len(shard.patches) for shard in missing)
    workers = options.workers or _default_workers(total)
    tiles = None
    if options.convert == "tile":
        tiles = str(tiles_file(out))
        stage(source, missing, tiles_file(out), workers)
    job = Job(str(source), str(out), options.png, plan.classes, plan.digest, options.convert, tiles)
    workers = min(workers, len(missing))
    with progress("packing", total, "patches") as advance:
        for record in build_all(job, missing, workers):
            records[record.name] = record
            advance(record.count + record.bad)
    return [records[shard.name] for shard in plan.shards]


def _default_workers(patches: int) -> int:
    if patches <= _FEW:
        return 1
    # macOS has no affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _card(
    source: Path,
    plan: Plan,
    found: Survey,
    records: list[Record],
    options: PackOptions,
    said: dict[str, Any],
) -> DatasetCard:
    """The card of a finished pack, if the bad patches are few enough."""
    bad = [*found.refused, *((path, why) for record in records for path, why in record.bad_first)]
    total_bad = len(found.refused) + sum(record.bad for record in records)
    if total_bad > options.skip_bad:
        _refuse_bad(source, bad, total_bad)
    for record in records:
        if not record.count:
            raise DataError(f"{source}: no usable patch is left for {record.name}")
    splits = {split: _split_card(plan, split, records) for split in plan.key_ranges}
    provenance: dict[str, Any] = {
        "source": source.resolve().name,
        "patches": sum(len(shard.patches) for shard in plan.shards),
        "seed": options.seed,
        "shard_size": options.shard_size,
        "group_regex": options.group_regex,
        "order": "within each split by the stable argsort of the raw PCG64 stream of the seed",
        "key_ranges": {split: list(keys) for split, keys in plan.key_ranges.items()},
        **said,
        "skipped": {"count": total_bad, "first": [list(pair) for pair in bad[:MAX_LISTED]]},
    }
    mean = _channel_mean(records)
    return DatasetCard(options.png, plan.classes, splits, mean, provenance)


def _refuse_bad(source: Path, bad: list[tuple[str, str]], total: int) -> None:
    raise DataError(
        f"{source}: {listing(bad, total, _SHOWN_BAD)}\n"
        f"Mend or remove them (if shards were already written, pack again with --overwrite), "
        f"or go on without them: --skip-bad {total}; images of other sizes and kinds can be "
        f"taken by --convert"
    )


def _split_card(plan: Plan, split: str, records: list[Record]) -> SplitCard:
    mine = [record for record in records if record.split == split]
    shards = [Shard(r.name, r.count, r.size, r.xxh3, r.sidecar_size, r.sidecar_xxh3) for r in mine]
    counts = [sum(record.class_counts[i] for record in mine) for i in range(len(plan.classes))]
    return SplitCard(sum(record.count for record in mine), counts, shards)


def _channel_mean(records: list[Record]) -> list[float]:
    """RGB in [0, 1] over the train split, or over everything when there is none."""
    used = [record for record in records if record.split == "train"] or records
    values = 255 * PATCH * PATCH * sum(record.count for record in used)
    return [sum(record.channel_sums[c] for record in used) / values for c in range(CHANNELS)]


_Source = Annotated[Path, tyro.conf.arg(metavar="SOURCE", help="folder of patches")]
_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="new folder for the data set")]


@dataclass(frozen=True)
class _Command:
    """Pack 32x32 RGB PNG patches into WebDataset shards."""

    source: tyro.conf.Positional[_Source]
    out: tyro.conf.Positional[_Out]
    packing: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)

    def __call__(self) -> None:
        pack(self.source, self.out, self.packing)


def main() -> int:
    return run_command("shards.pack", _Command, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    sys.exit(main())
