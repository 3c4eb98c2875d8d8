"""Pack patches into WebDataset shards: `python -m shards.pack SOURCE OUT`.

The bytes written depend on the files and on the options alone: not on the number of processes or
tasks, the order of the directory, the machine or the time.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import progress
from common.errors import DataError
from shards.pack.console import print_slice, print_summary, print_survey
from shards.pack.locks import packer_lock, plan_lock, task_lock
from shards.pack.metadata import conclude, refuse_bad, without_skipped
from shards.pack.plan import PackOptions, Plan, ShardPlan, make_plan
from shards.pack.recorded import Recorded, read_plan, record_plan, refuse_difference
from shards.pack.resume import prepare, read_record, refuse_occupied, sweep, tiles_file, tiles_name
from shards.pack.shard import Job, Record
from shards.pack.tasks import Slice, choose_slice
from shards.pack.workers import Crew
from shards.schema import DatasetMetadata
from shards.sources.collect import Intake, gather
from shards.sources.look import Look, Looked
from shards.sources.names import require_utf8
from shards.sources.patch import uncollected
from shards.sources.tiles import stage


def pack(source: Path, out: Path, options: PackOptions | None = None) -> DatasetMetadata:
    """Pack `source` into `out` and return its metadata.

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
            with Crew(options.workers) as crew:
                intake, plan = _plan(source, options, crew)
                prepare(out, plan, options.overwrite)
                records = _build(source, out, plan, plan.shards, options, crew)
        finally:
            sweep(out)
        intake = without_skipped(out, intake, records)
        metadata = conclude(out, intake, plan, records, options)
    print_summary(metadata, intake.survey, time.monotonic() - start)
    return metadata


def pack_slice(source: Path, out: Path, options: PackOptions, part: Slice) -> list[Record]:
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
    with task_lock(out, part.index):
        own = {tiles_name(part.index)}
        try:
            with Crew(options.workers) as crew:
                recorded = _shared_plan(source, out, options, part.count, crew)
                shards = part.shards(recorded.plan)
                own |= {shard.name for shard in shards}
                sweep(out, own)
                records = _build(source, out, recorded.plan, shards, options, crew, part.index)
        finally:
            sweep(out, own)
    print_slice(part, recorded.plan, records, out, time.monotonic() - start)
    _refuse_many(str(source), records, options.skip_bad)
    return records


def _refuse_paths(source: Path, out: Path) -> None:
    for path in (source.resolve(), out.resolve()):
        require_utf8(str(path))
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{out} lies inside {source}: its shards would be scanned as patches")


def _plan(source: Path, options: PackOptions, crew: Crew) -> tuple[Intake, Plan]:
    def look_all(parts: Sequence[Look]) -> list[Looked]:
        files = sum(map(len, parts))
        crew.start(files, -(-files // options.shard_size))
        return crew.look(parts)

    with uncollected():
        intake = gather(source, options, look_all)
        print_survey(source, intake.survey)
        refused = intake.survey.refused
        if len(refused) > options.skip_bad:
            refuse_bad(str(source), refused, len(refused))
        if not intake.survey.patches:
            raise DataError(f"{source}: no usable patch is left")
        return intake, make_plan(intake.survey.patches, options)


def _shared_plan(source: Path, out: Path, options: PackOptions, tasks: int, crew: Crew) -> Recorded:
    """The plan that the first task recorded: this one, if there is none."""
    with plan_lock(out):
        recorded = read_plan(out)
        if recorded is None:
            refuse_occupied(out, overwrite=False)
            intake, plan = _plan(source, options, crew)
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
    source: Path, out: Path, plan: Plan, shards: list[ShardPlan], options: PackOptions, crew: Crew,
    task: int | None = None,
) -> list[Record]:  # fmt: skip
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
        print(f"continuing: {len(records)} of {len(shards)} shards are finished")
    total = sum(len(shard.patches) for shard in missing)
    workers = crew.start(total, len(missing))
    tiles = None
    if options.convert == "tile":
        tiles = str(tiles_file(out, task))
        stage(source, missing, Path(tiles), workers)
    job = Job(str(source), str(out), options.png, plan.classes, plan.digest, options.convert, tiles)
    with progress("packing", total, "patches") as advance:
        for record in crew.build(job, missing):
            records[record.name] = record
            advance(record.count + record.bad)
    return [records[shard.name] for shard in shards]


_Source = Annotated[Path, tyro.conf.arg(metavar="SOURCE", help="folder of patches")]
_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="new folder for the data set")]


@dataclass(frozen=True)
class _Command:
    """Pack 32x32 RGB PNG patches into WebDataset shards."""

    source: tyro.conf.Positional[_Source]
    out: tyro.conf.Positional[_Out]
    packing: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)
    task_index: int | None = None
    """Which of --num-tasks this is, from 0. Default: the place in a Slurm array."""
    num_tasks: int | None = None
    """Build only the shards of one of so many tasks; python -m shards.merge OUT completes them."""

    def __post_init__(self) -> None:
        choose_slice(self.task_index, self.num_tasks)

    def __call__(self) -> None:
        part = choose_slice(self.task_index, self.num_tasks)
        if part is None:
            pack(self.source, self.out, self.packing)
        else:
            pack_slice(self.source, self.out, self.packing, part)


def main() -> int:
    return run_command("shards.pack", _Command, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    sys.exit(main())
