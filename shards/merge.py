"""Complete a data set that several tasks packed: `python -m shards.merge OUT`.

The command reads no source: it checks that every shard of the recorded plan is finished and has the
size that its task recorded, or builds the shards from the slides that the tasks have cut, and
writes `dataset.json`. The folder is then byte for byte what one packer writes.
"""

import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import log
from common.errors import DataError
from shards.pack.metadata import log_summary, without_skipped, write_metadata
from shards.pack.packing import build_cut, slide_counts
from shards.pack.resume import (
    PLAN_NAME,
    ShardRecord,
    finish,
    packer_lock,
    read_record,
    staged_file,
)
from shards.pack.tasks import PackTask, SharedPlan, command_line, read_plan
from shards.schema import METADATA_NAME, DatasetMetadata, load_metadata
from shards.sources.staged import read_done, with_shares


def merge(out: Path, skip_bad: int | None = None, workers: int = 0) -> DatasetMetadata:
    """Write the metadata of `out` and return it; a complete data set is left as it is.

    Args:
        workers: processes that build shards of slides; 0: one per usable core.
        skip_bad: skip up to this many bad patches in all tasks together; default: the --skip-bad
            of the task that made the plan.

    Raises:
        DataError: no plan in `out`, a task or a packer that still runs, incomplete tasks (each is
            named with the command that completes it), more bad patches than `skip_bad`.
    """
    out = Path(out)
    if not out.is_dir():
        raise DataError(f"{out} is not a folder: name the OUT of the tasks")
    with packer_lock(out):
        shared = read_plan(out)
        if shared is None:
            # merged already, perhaps by a process that was killed while it cleaned up
            if not (out / METADATA_NAME).exists():
                raise DataError(f"{out / PLAN_NAME} does not exist: no task has packed into {out}")
            metadata = load_metadata(out)
            finish(out)
            log.info(f"{out} is a complete data set: nothing to merge")
            return metadata
        records = _records(out, shared, workers)
        allowed = shared.options.skip_bad if skip_bad is None else skip_bad
        options = replace(shared.options, skip_bad=allowed)
        collection = without_skipped(out, shared.collection, records)
        metadata = write_metadata(out, collection, shared.plan, records, options)
    log_summary(metadata, collection.memberships)
    return metadata


def _records(out: Path, shared: SharedPlan, workers: int) -> list[ShardRecord]:
    """Return the records of all shards, in the order of the plan; shards of slides are built."""
    plan, is_slides = shared.plan, shared.options.slides.asked
    records = {shard.name: read_record(out, shard.name, plan.digest) for shard in plan.shards}
    unfinished = [shard for shard in plan.shards if records[shard.name] is None]
    tasks = [PackTask(index, shared.tasks) for index in range(shared.tasks)]
    if is_slides:
        counts = slide_counts(plan.shards)
        shares = [task.slides(counts) for task in tasks]
        cut = {path for file in with_shares(staged_file(out)) for path in read_done(file)}
        missing = slide_counts(unfinished).keys() - cut
    else:
        shares = [[shard.name for shard in task.shards(plan)] for task in tasks]
        missing = {shard.name for shard in unfinished}
    _refuse_incomplete(out, shared, dict(zip(tasks, shares, strict=True)), missing)
    if is_slides:
        return build_cut(out, shared, workers)
    return [record for record in records.values() if record is not None]


def _refuse_incomplete(
    out: Path, shared: SharedPlan, shares: Mapping[PackTask, list[str]], missing: Set[str]
) -> None:
    """Refuse shards that no task has built, or slides that none has cut.

    Raises:
        DataError: each task that is not complete is named with the command that completes it.
    """
    unit = "slides" if shared.options.slides.asked else "shards"
    incomplete = []
    for task, share in shares.items():
        if names := [name for name in share if name in missing]:
            line = command_line(shared.collection.root, str(out), shared.options, task)
            more = ", ..." if len(names) > 1 else ""
            incomplete.append(
                f"  {task}: {len(names)} of {len(share)} {unit} are missing ({names[0]}{more}); "
                f"run: {line}"
            )
    if incomplete:
        raise DataError(
            f"{out}: {len(incomplete)} tasks are not complete\n" + "\n".join(incomplete)
        )


_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="the output folder of the tasks")]


@dataclass(frozen=True)
class _Command:
    """Complete a data set that several tasks packed."""

    out: tyro.conf.Positional[_Out]
    skip_bad: int | None = None
    """Skip up to this many bad patches in all tasks together. Default: the --skip-bad
    of the task that made the plan."""
    workers: int = 0
    """Processes that build the shards of slides; 0: one per usable core."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}, expected 0 or more")

    def __call__(self) -> None:
        merge(self.out, self.skip_bad, self.workers)


def main() -> int:
    return run_command("shards.merge", _Command)


if __name__ == "__main__":
    sys.exit(main())
