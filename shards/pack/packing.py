"""Packs a folder of patches into shards: collect, plan, build, write `dataset.json`."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.console import log, progress
from common.errors import DataError
from shards.pack.locks import packer_lock, plan_lock, task_lock
from shards.pack.metadata import conclude, refuse_bad, without_skipped
from shards.pack.plan import PackOptions, Plan, ShardPlan, make_plan
from shards.pack.recorded import Recorded, read_plan, record_plan, refuse_difference
from shards.pack.resume import prepare, read_record, refuse_occupied, sweep, tiles_file, tiles_name
from shards.pack.shard import Job, Record
from shards.pack.summary import log_collection, log_summary, log_task
from shards.pack.tasks import PackTask
from shards.pack.workers import WorkerPool
from shards.schema import DatasetMetadata
from shards.sources.collect import Intake, gather
from shards.sources.look import Look, Looked
from shards.sources.names import require_utf8
from shards.sources.patch import gc_paused
from shards.sources.tiles import stage


def pack(source: Path, out: Path, options: PackOptions | None = None) -> DatasetMetadata:
    """Pack `source` into `out` and return the metadata written there.

    Raises:
        DataError: the source or the output folder cannot be used, more bad patches than
            `options.skip_bad`, a source file that changed, a full disk. `out` then holds no
            `dataset.json`; after an interruption or a full disk the same call continues.
    """
    source, out, options = Path(source), Path(out), options or PackOptions()
    _refuse_paths(source, out)
    start = time.monotonic()
    with packer_lock(out):
        refuse_occupied(out, options.overwrite)
        try:
            with WorkerPool(options.workers) as pool:
                intake, plan = _plan(source, options, pool)
                prepare(out, plan, options.overwrite)
                records = _build(source, out, plan, plan.shards, options, pool)
        finally:
            sweep(out)
        intake = without_skipped(out, intake, records)
        metadata = conclude(out, intake, plan, records, options)
    log_summary(metadata, intake.survey, time.monotonic() - start)
    return metadata


def pack_task(source: Path, out: Path, options: PackOptions, task: PackTask) -> list[Record]:
    """Build one task's share of the shards of `out`; `shards.merge` completes the data set.

    The tasks may run at once, on any machines that share `out`, each as often as it takes. The
    first one lists the source and records the plan; the others read it.

    Raises:
        DataError: as `pack`, and a task that runs already, or was asked for something else than
            the recorded plan says.
    """
    source, out = Path(source), Path(out)
    _refuse_paths(source, out)
    if options.overwrite:
        raise DataError(
            f"--overwrite in a task would erase what the others have built: remove {out}, or "
            f"choose another OUT"
        )
    start = time.monotonic()
    with task_lock(out, task.index):
        own = {tiles_name(task.index)}
        try:
            with WorkerPool(options.workers) as pool:
                recorded = _shared_plan(source, out, options, task.count, pool)
                shards = task.shards(recorded.plan)
                own |= {shard.name for shard in shards}
                sweep(out, own)
                records = _build(source, out, recorded.plan, shards, options, pool, task.index)
        finally:
            sweep(out, own)
    log_task(task, recorded.plan, records, out, time.monotonic() - start)
    _refuse_many(str(source), records, options.skip_bad)
    return records


def _refuse_paths(source: Path, out: Path) -> None:
    for path in (source.resolve(), out.resolve()):
        require_utf8(str(path))
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside {source}: its shards would be scanned as patches")


def _plan(source: Path, options: PackOptions, pool: WorkerPool) -> tuple[Intake, Plan]:
    def look_all(parts: Sequence[Look]) -> list[Looked]:
        files = sum(map(len, parts))
        pool.start(files, -(-files // options.shard_size))
        return pool.look(parts)

    with gc_paused():
        intake = gather(source, options, look_all)
        log_collection(source, intake.survey)
        refused = intake.survey.refused
        if len(refused) > options.skip_bad:
            refuse_bad(str(source), refused, len(refused))
        if not intake.survey.patches:
            raise DataError(f"{source}: no usable patch is left")
        return intake, make_plan(intake.survey.patches, options)


def _shared_plan(
    source: Path, out: Path, options: PackOptions, tasks: int, pool: WorkerPool
) -> Recorded:
    """The plan that the first task recorded: this one, if there is none."""
    with plan_lock(out):
        recorded = read_plan(out)
        if recorded is None:
            refuse_occupied(out, overwrite=False)
            intake, plan = _plan(source, options, pool)
            prepare(out, plan, overwrite=False)
            recorded = Recorded(intake, options, tasks, plan)
            record_plan(out, recorded)
    refuse_difference(out, recorded, source.resolve().name, options, tasks)
    return recorded


def _refuse_many(source: str, records: Iterable[Record], allowed: int) -> None:
    """A task ends as a whole pack would: its shards stay, for a merge that allows more."""
    bad = [(path, why) for record in records for path, why in record.bad_first]
    if (total := sum(record.bad for record in records)) > allowed:
        refuse_bad(source, bad, total)


def _build(
    source: Path,
    out: Path,
    plan: Plan,
    shards: list[ShardPlan],
    options: PackOptions,
    pool: WorkerPool,
    task: int | None = None,
) -> list[Record]:
    """The records of `shards` in their order; finished ones are not built again."""
    records: dict[str, Record] = {}
    missing: list[ShardPlan] = []
    for shard in shards:
        saved = read_record(out, shard.name, plan.digest)
        if saved is None:
            missing.append(shard)
        else:
            records[shard.name] = Record(**saved)
    if records:
        log.info(f"continuing: {len(records)} of {len(shards)} shards are finished")
    total = sum(len(shard.patches) for shard in missing)
    workers = pool.start(total, len(missing))
    tiles = None
    if options.convert == "tile":
        tiles = str(tiles_file(out, task))
        stage(source, missing, Path(tiles), workers)
    job = Job(str(source), str(out), options.png, plan.classes, plan.digest, options.convert, tiles)
    with progress("packing", total, "patches") as advance:
        for record in pool.build(job, missing):
            records[record.name] = record
            advance(record.count + record.bad)
    return [records[shard.name] for shard in shards]
