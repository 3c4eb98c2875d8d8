"""The plan that the tasks of one pack share: made once by the first, read by all the others.

`OUT/.plan.parquet` has a row a patch, in the order of the survey, and in its metadata as JSON what
else the survey found, the options and the number of tasks. A source folder that changes later, or
that another machine lists otherwise, cannot make tasks disagree.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import DataError
from common.files import atomic_file
from shards.pack.plan import PackOptions, Plan, make_plan
from shards.pack.resume import PLAN_NAME
from shards.sources.collect import Intake
from shards.sources.folder import Survey
from shards.sources.manifest import Columns
from shards.sources.patch import Patch, gc_paused

_TYPES = {
    "y": pa.int64(),
    "x": pa.int64(),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    "mpp": pa.float64(),
    "tile": pa.list_(pa.int64(), 2),
}
_FIELDS = Patch._fields
_SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, pa.string())) for name in _FIELDS])
_OF_THE_MACHINE = ("workers", "skip_bad", "overwrite")  # tasks may differ in these
_ABOUT = b"plan"


@dataclass(frozen=True)
class Recorded:
    """What the tasks have in common."""

    intake: Intake
    options: PackOptions  # of the task that made the plan
    tasks: int
    plan: Plan


def record_plan(out: Path, recorded: Recorded) -> None:
    """Write the plan, whole or not at all.

    Raises:
        DataError: the disk is full.
    """
    survey = recorded.intake.survey
    rest = {f.name: getattr(survey, f.name) for f in fields(Survey) if f.name != "patches"}
    about = {
        "source": recorded.intake.source,
        "name": recorded.intake.name,
        "said": recorded.intake.said,
        "survey": rest,
        "options": _plain(recorded.options),
        "tasks": recorded.tasks,
        "digest": recorded.plan.digest,
    }
    columns = {name: [patch[i] for patch in survey.patches] for i, name in enumerate(_FIELDS)}
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    with atomic_file(out / PLAN_NAME) as file:
        file.write(memoryview(sink.getvalue()))


def read_plan(out: Path) -> Recorded | None:
    """The recorded plan; none where there is no file of it.

    Raises:
        DataError: the file cannot be read, or this version of the program makes another plan of
            the same list.
    """
    path = out / PLAN_NAME
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path) as file, gc_paused():
            recorded, digest = _parse(file.read())
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {out} and start again") from None
    if recorded.plan.digest != digest:
        raise DataError(
            f"{path} has the plan {digest}, and this task makes {recorded.plan.digest} of the same "
            f"list: run one version of this program in all tasks, or remove {out} and start again"
        )
    return recorded


def refuse_difference(
    out: Path, recorded: Recorded, name: str, options: PackOptions, tasks: int
) -> None:
    """Whether this task was asked for what the plan says.

    Raises:
        DataError: another source, number of tasks or option; each difference is named.
    """
    theirs = {
        "source": recorded.intake.name,
        "num_tasks": recorded.tasks,
        **_plain(recorded.options),
    }
    mine = {"source": name, "num_tasks": tasks, **_plain(options)}
    differences = [
        f"{key.replace('_', '-')} is {mine[key]!r}, in the plan {theirs[key]!r}"
        for key in mine
        if key not in _OF_THE_MACHINE and mine[key] != theirs[key]
    ]
    if differences:
        raise DataError(
            f"{out / PLAN_NAME} was made by a task with other options ({'; '.join(differences)}): "
            f"give all tasks the same, or remove {out} and start again"
        )


def _parse(table: pa.Table) -> tuple[Recorded, str]:
    about: dict[str, Any] = json.loads(table.schema.metadata[_ABOUT])
    columns = [table[name].to_pylist() for name in _FIELDS]
    columns[-1] = [None if tile is None else tuple(tile) for tile in columns[-1]]
    patches = list(map(Patch._make, zip(*columns, strict=True)))
    rest = dict(about["survey"])
    rest["refused"] = [(path, reason) for path, reason in rest["refused"]]
    intake = Intake(about["source"], about["name"], Survey(patches, **rest), about["said"])
    given = dict(about["options"])
    given["columns"] = Columns(**given["columns"])
    given["manifest"] = None if given["manifest"] is None else Path(given["manifest"])
    options = PackOptions(**given)
    plan = make_plan(patches, options)
    return Recorded(intake, options, int(about["tasks"]), plan), str(about["digest"])


def _plain(options: PackOptions) -> dict[str, Any]:
    """As JSON holds them."""
    plain = asdict(options)
    plain["manifest"] = None if options.manifest is None else str(options.manifest)
    return plain
