"""One task's share of a pack: every N-th shard of the plan that all tasks have in common."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from shards.pack.plan import PackOptions, Plan, ShardPlan

INDEX, FIRST, STEP = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"


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
        """Whole shards, dealt out in turn: a plan of few shards leaves some tasks without any."""
        return plan.shards[self.index :: self.count]


def choose_task(
    task_index: int | None, num_tasks: int | None, environment: Mapping[str, str] = os.environ
) -> PackTask | None:
    """The slice that the options ask for; none without `num_tasks`, also in a Slurm array.

    In an array `task_index` defaults to the place of the task in it, counted from 0.

    Raises:
        ValueError: one option without the other, or an index outside of the tasks.
    """
    if num_tasks is None:
        if task_index is not None:
            raise ValueError(f"task-index is {task_index}: say of how many, by --num-tasks")
        return None
    if task_index is None:
        if INDEX not in environment:
            raise ValueError(
                f"num-tasks is {num_tasks}: say which of them this is, by --task-index "
                f"(0 to {num_tasks - 1}); in a Slurm array {INDEX} says it"
            )
        first, step = int(environment.get(FIRST, "0")), int(environment.get(STEP, "1"))
        task_index = (int(environment[INDEX]) - first) // step
    return PackTask(task_index, num_tasks)


def command(source: str, out: str, options: PackOptions, part: PackTask) -> str:
    """The command line of a task."""
    parts = ["python", "-m", "shards.pack", source, out, *_arguments(options, "--")]
    parts += ["--task-index", str(part.index), "--num-tasks", str(part.count)]
    return shlex.join(parts)


def _arguments(options: Any, prefix: str) -> list[str]:
    """The options that differ from their defaults, as the command line takes them."""
    found: list[str] = []
    default = type(options)()
    for entry in fields(options):
        value, name = getattr(options, entry.name), prefix + entry.name.replace("_", "-")
        if is_dataclass(value):
            found += _arguments(value, f"{name}.")
        elif value != getattr(default, entry.name):
            found += [name, str(value)]
    return found
