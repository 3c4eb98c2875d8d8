"""Share a pack among several tasks: the index of this one, and the plan of all.

`OUT/.plan.parquet` is made once by the first task and read by all the others: a row per patch, in
the order in which they were collected. Its metadata holds, as JSON, the rest of the collection,
the options and the number of tasks. A source folder that changes later, or that another machine
lists differently, cannot make tasks disagree.
"""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import DataError
from common.files import atomic_file
from shards.pack.plan import PackOptions, Plan, ShardPlan, make_plan
from shards.pack.resume import PLAN_NAME
from shards.sources.source import Collection, Patch, gc_paused

INDEX, FIRST, STEP = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"

_TYPES = {
    "y": pa.int64(),
    "x": pa.int64(),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    "mpp": pa.float64(),
    "tile": pa.list_(pa.int64(), 2),
    "scale": pa.float64(),
}
_SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, pa.string())) for name in Patch._fields])
_MAY_DIFFER = ("workers", "skip_bad", "overwrite")  # options, between the tasks of a pack
_HEADER = b"plan"  # key in the metadata of the table


@dataclass(frozen=True)
class PackTask:
    """Task `index` of `count`, from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"num-tasks is {self.count}, expected 1 or more")
        if not 0 <= self.index < self.count:
            raise ValueError(f"task-index is {self.index}, expected 0 to {self.count - 1}")

    def __str__(self) -> str:
        return f"task {self.index} of {self.count}"

    def shards(self, plan: Plan) -> list[ShardPlan]:
        """Return the whole shards of this task, dealt out in turn: with few shards some tasks have
        none."""
        return plan.shards[self.index :: self.count]

    def slides(self, counts: Mapping[str, int]) -> list[str]:
        """Return the paths of the slides that this task cuts. They are dealt out by their numbers
        of patches: each, from the largest on, to the task with the fewest so far."""
        own: list[str] = []
        loads = [0] * self.count
        for path in sorted(counts, key=lambda path: (-counts[path], path)):
            index = loads.index(min(loads))
            loads[index] += counts[path]
            if index == self.index:
                own.append(path)
        return own


def choose_task(
    task_index: int | None, num_tasks: int | None, environment: Mapping[str, str] = os.environ
) -> PackTask | None:
    """Return the task that the options ask for; None without `num_tasks`, also in a Slurm array.

    In an array `task_index` defaults to the place of the task in it, counted from 0.

    Raises:
        ValueError: one option without the other, or an index outside of the tasks.
    """
    if num_tasks is None:
        if task_index is not None:
            raise ValueError(f"task-index is {task_index}: give the number of tasks by --num-tasks")
        return None
    if task_index is None:
        if INDEX not in environment:
            raise ValueError(
                f"num-tasks is {num_tasks}: give the index of this task by --task-index "
                f"(0 to {num_tasks - 1}); in a Slurm array {INDEX} gives it"
            )
        first, step = int(environment.get(FIRST, "0")), int(environment.get(STEP, "1"))
        task_index = (int(environment[INDEX]) - first) // step
    return PackTask(task_index, num_tasks)


def command_line(source: str, out: str, options: PackOptions, task: PackTask) -> str:
    """Write the command line of a task."""
    words = ["python", "-m", "shards.pack", source, out, *_arguments(options, "--")]
    words += ["--task-index", str(task.index), "--num-tasks", str(task.count)]
    return shlex.join(words)


def _arguments(options: Any, prefix: str) -> list[str]:
    """List the options that differ from their defaults, as the command line takes them."""
    words: list[str] = []
    default = type(options)()
    for entry in fields(options):
        value, name = getattr(options, entry.name), prefix + entry.name.replace("_", "-")
        if is_dataclass(value):
            # the options about slides have no prefix
            words += _arguments(value, prefix if entry.name == "slides" else f"{name}.")
        elif value != getattr(default, entry.name):
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [name, *map(str, values)]
    return words


@dataclass(frozen=True, kw_only=True)
class SharedPlan:
    """The plan that the tasks of a pack share, and what it was made from."""

    collection: Collection
    options: PackOptions  # of the task that made the plan
    tasks: int
    plan: Plan


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """All of the recorded plan but the patches."""

    collection: Collection  # without its patches
    options: PackOptions
    tasks: int
    digest: str  # of the plan


def record_plan(out: Path, shared: SharedPlan) -> None:
    """Write the plan, whole or not at all.

    Raises:
        DataError: the disk is full.
    """
    header = _Header(
        collection=replace(shared.collection, patches=[]),
        options=shared.options,
        tasks=shared.tasks,
        digest=shared.plan.digest,
    )
    patches = shared.collection.patches
    columns = {name: [patch[i] for patch in patches] for i, name in enumerate(Patch._fields)}
    schema = _SCHEMA.with_metadata({_HEADER: msgspec.json.encode(header, enc_hook=str)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    with atomic_file(out / PLAN_NAME) as file:
        file.write(memoryview(sink.getvalue()))


def read_plan(out: Path) -> SharedPlan | None:
    """Read the recorded plan; None if there is none.

    Raises:
        DataError: the file cannot be read, or this version of the program makes another plan
            from the same list.
    """
    path = out / PLAN_NAME
    if not path.exists():
        return None
    try:
        with pq.ParquetFile(path) as file, gc_paused():
            table = file.read()
            header = msgspec.json.decode(
                table.schema.metadata[_HEADER],
                type=_Header,
                dec_hook=lambda kind, value: kind(value),
            )
            columns = {name: table[name].to_pylist() for name in Patch._fields}
            columns["tile"] = [None if tile is None else tuple(tile) for tile in columns["tile"]]
            patches = list(map(Patch._make, zip(*columns.values(), strict=True)))
            plan = make_plan(patches, header.options)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {out} and start again") from None
    if plan.digest != header.digest:
        raise DataError(
            f"{path} has the plan {header.digest}, and this task makes {plan.digest} from the same "
            f"list: run one version of this program in all tasks, or remove {out} and start again"
        )
    collection = replace(header.collection, patches=patches)
    return SharedPlan(collection=collection, options=header.options, tasks=header.tasks, plan=plan)


def refuse_difference(
    out: Path, shared: SharedPlan, name: str, options: PackOptions, tasks: int
) -> None:
    """Refuse a task whose source or options differ from those of the recorded plan.

    Args:
        name: of the source folder.

    Raises:
        DataError: another source, number of tasks or option; each difference is named.
    """
    planned = {
        "source": shared.collection.name,
        "num_tasks": shared.tasks,
        **msgspec.to_builtins(shared.options, enc_hook=str),
    }
    asked = {"source": name, "num_tasks": tasks, **msgspec.to_builtins(options, enc_hook=str)}
    differences = [
        f"{key.replace('_', '-')} is {asked[key]!r}, in the plan {planned[key]!r}"
        for key in asked
        if key not in _MAY_DIFFER and asked[key] != planned[key]
    ]
    if differences:
        raise DataError(
            f"{out / PLAN_NAME} was made by a task with other options ({'; '.join(differences)}): "
            f"give all tasks the same, or remove {out} and start again"
        )
