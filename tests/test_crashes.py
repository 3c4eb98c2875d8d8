"""A crash at any point of a command: what is left is refused or whole, and the command continues.

Each command is recorded once, and every prefix of its file operations is replayed, with what was
not synced left out. A few of the states are tried by default; EQDVAE_CRASH_STATES is their number
per command, or `all`.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from common.errors import DataError
from shards.merge import merge
from shards.pack.packing import pack, pack_task
from shards.pack.plan import PackOptions
from shards.pack.tasks import PackTask
from shards.verify.check import verify
from tests.helpers.crashes import CrashState, Tree, crash_states, read_tree, record, write_tree
from tests.helpers.patches import write_patches

STATES = os.environ.get("EQDVAE_CRASH_STATES", "12")
PACK = PackOptions(shard_size=5, workers=1)
RECORD = "import sys, pathlib; from tests.test_crashes import COMMANDS; " + (
    "COMMANDS[sys.argv[1]].run(*map(pathlib.Path, sys.argv[2:]))"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


@dataclass(frozen=True)
class Command:
    """A command on `inputs`, which it reads, and `out`, which it writes."""

    run: Callable[[Path, Path], object]
    inspect: Callable[[Path, Tree], None]  # raises where `out` is wrong and not refused
    begin: Callable[[Path, Path], object] = lambda inputs, out: None  # what `out` holds before


def source(inputs: Path) -> Path:
    """12 patches of two classes in three splits."""
    if not (root := inputs / "raw").is_dir():
        write_patches(root, {"train": 4, "val": 1, "test": 1}, ("a", "b"), seed=1)
    return root


def run_tasks(inputs: Path, out: Path) -> None:
    for index in range(2):
        pack_task(source(inputs), out, PACK, PackTask(index, 2))
    merge(out)


def refused_or_whole(out: Path, _: Tree) -> None:
    """A data set is refused, or all of it is sound."""
    try:
        report = verify(out)
    except DataError:
        return
    assert report.problem_count == 0


COMMANDS = {
    "pack": Command(lambda inputs, out: pack(source(inputs), out, PACK), refused_or_whole),
    "pack by workers": Command(
        lambda inputs, out: pack(source(inputs), out, replace(PACK, workers=2)), refused_or_whole
    ),
    "pack over another": Command(
        lambda inputs, out: pack(source(inputs), out, replace(PACK, overwrite=True)),
        refused_or_whole,
        lambda inputs, out: pack(source(inputs), out, replace(PACK, seed=1, shard_size=3)),
    ),
    "pack by tasks": Command(run_tasks, refused_or_whole),
}


def chosen(states: list[CrashState]) -> list[CrashState]:
    """The states to try, spread evenly."""
    if STATES == "all":
        return states
    count = min(int(STATES), len(states))
    return [states[i * len(states) // count] for i in range(count)]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", COMMANDS)
def test_after_a_crash_the_command_continues(name: str, tmp_path: Path) -> None:
    command, inputs, out = COMMANDS[name], tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir(), out.mkdir()
    command.begin(inputs, out)
    source(inputs)
    before = read_tree(out)
    operations = record(RECORD, [name, str(inputs), str(out)], out)
    after = read_tree(out)
    states = crash_states(before, operations)
    problems = []
    for state in chosen(states):
        write_tree(state.tree, out)
        try:
            command.inspect(out, after)
            command.run(inputs, out)
            command.inspect(out, after)
            left = read_tree(out)
            different = [p for p in sorted({*left, *after}) if left.get(p, 0) != after.get(p, 0)]
            assert not different, different
        except Exception as error:
            problems.append(f"{state}: {type(error).__name__}: {error}"[:400])
    print(f"{name}: {len(operations)} operations, {len(states)} states")
    assert not problems, f"{len(problems)} of {len(chosen(states))}:\n" + "\n".join(problems)
