"""Complete a data set that several tasks packed: `python -m shards.merge OUT`.

Reads no patch: it checks that every shard of the recorded plan is finished and has the size that
its task recorded, and writes `dataset.json`. The folder is then byte for byte what one packer
writes.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import log
from common.errors import DataError
from shards.pack.locks import packer_lock
from shards.pack.metadata import conclude, without_skipped
from shards.pack.recorded import Recorded, read_plan
from shards.pack.resume import PLAN_NAME, finish, read_record
from shards.pack.shard import Record
from shards.pack.summary import log_summary
from shards.pack.tasks import PackTask, command
from shards.schema import METADATA_NAME, DatasetMetadata, load_metadata


def merge(out: Path, skip_bad: int | None = None) -> DatasetMetadata:
    """Write the metadata of `out`, and return it; a complete data set is left as it is.

    Args:
        skip_bad: go on without up to this many bad patches in all tasks together; default: what
            the task that made the plan was given.

    Raises:
        DataError: no plan in `out`, a task or a packer that still runs, an incomplete task (each
            is named with its command), more bad patches than `skip_bad`.
    """
    out = Path(out)
    if not out.is_dir():
        raise DataError(f"{out} is not a folder: name the OUT of the tasks")
    with packer_lock(out):
        recorded = read_plan(out)
        if recorded is None:
            return _complete(out)
        records = _records(out, recorded)
        allowed = recorded.options.skip_bad if skip_bad is None else skip_bad
        options = replace(recorded.options, skip_bad=allowed)
        intake = without_skipped(out, recorded.intake, records)
        metadata = conclude(out, intake, recorded.plan, records, options)
    log_summary(metadata, intake.survey)
    return metadata


def _complete(out: Path) -> DatasetMetadata:
    """The metadata of a merge that was done, perhaps by one killed while it cleaned up."""
    if not (out / METADATA_NAME).exists():
        raise DataError(f"{out / PLAN_NAME} does not exist: no task has packed into {out}")
    metadata = load_metadata(out)
    finish(out)
    log.info(f"{out} is a complete data set: nothing to merge")
    return metadata


def _records(out: Path, recorded: Recorded) -> list[Record]:
    found: dict[str, Record] = {}
    incomplete = []
    for index in range(recorded.tasks):
        part = PackTask(index, recorded.tasks)
        shards = part.shards(recorded.plan)
        saved = {shard.name: read_record(out, shard.name, recorded.plan.digest) for shard in shards}
        found |= {name: Record(**record) for name, record in saved.items() if record is not None}
        if missing := [name for name, record in saved.items() if record is None]:
            line = command(recorded.intake.source, str(out), recorded.options, part)
            incomplete.append(
                f"  {part}: {len(missing)} of {len(shards)} shards are missing "
                f"({missing[0]}, ...); run: {line}"
            )
    if incomplete:
        raise DataError(
            f"{out}: {len(incomplete)} tasks are not complete\n" + "\n".join(incomplete)
        )
    return [found[shard.name] for shard in recorded.plan.shards]


_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="the output folder of the tasks")]


@dataclass(frozen=True)
class _Command:
    """Complete a data set that several tasks packed."""

    out: tyro.conf.Positional[_Out]
    skip_bad: int | None = None
    """Go on without up to this many bad patches in all tasks together. Default: as the tasks."""

    def __call__(self) -> None:
        merge(self.out, self.skip_bad)


def main() -> int:
    return run_command("shards.merge", _Command)


if __name__ == "__main__":
    sys.exit(main())
