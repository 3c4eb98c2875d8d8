"""Complete a data set that several tasks packed: `python -m shards.merge OUT`.

The command reads no patch: it checks that every shard of the recorded plan is finished and has the
size that its task recorded, and writes `dataset.json`. The folder is then byte for byte what one
packer writes.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import log
from common.errors import DataError
from shards.pack.metadata import log_summary, without_skipped, write_metadata
from shards.pack.resume import PLAN_NAME, ShardRecord, finish, packer_lock, read_record
from shards.pack.tasks import PackTask, SharedPlan, command_line, read_plan
from shards.schema import METADATA_NAME, DatasetMetadata, load_metadata


def merge(out: Path, skip_bad: int | None = None) -> DatasetMetadata:
    """Write the metadata of `out` and return it; a complete data set is left as it is.

    Args:
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
        records = _records(out, shared)
        allowed = shared.options.skip_bad if skip_bad is None else skip_bad
        options = replace(shared.options, skip_bad=allowed)
        collection = without_skipped(out, shared.collection, records)
        metadata = write_metadata(out, collection, shared.plan, records, options)
    log_summary(metadata, collection.memberships)
    return metadata


def _records(out: Path, shared: SharedPlan) -> list[ShardRecord]:
    """Read the records of all shards, in the order of the plan."""
    plan = shared.plan
    records = {shard.name: read_record(out, shard.name, plan.digest) for shard in plan.shards}
    incomplete = []
    for index in range(shared.tasks):
        task = PackTask(index, shared.tasks)
        shards = task.shards(plan)
        if missing := [shard.name for shard in shards if records[shard.name] is None]:
            line = command_line(shared.collection.root, str(out), shared.options, task)
            more = ", ..." if len(missing) > 1 else ""
            incomplete.append(
                f"  {task}: {len(missing)} of {len(shards)} shards are missing "
                f"({missing[0]}{more}); run: {line}"
            )
    if incomplete:
        raise DataError(
            f"{out}: {len(incomplete)} tasks are not complete\n" + "\n".join(incomplete)
        )
    return [record for record in records.values() if record is not None]


_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="the output folder of the tasks")]


@dataclass(frozen=True)
class _Command:
    """Complete a data set that several tasks packed."""

    out: tyro.conf.Positional[_Out]
    skip_bad: int | None = None
    """Skip up to this many bad patches in all tasks together. Default: the --skip-bad
    of the task that made the plan."""

    def __call__(self) -> None:
        merge(self.out, self.skip_bad)


def main() -> int:
    return run_command("shards.merge", _Command)


if __name__ == "__main__":
    sys.exit(main())
