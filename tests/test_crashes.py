"""A crash at any point of packing: what is left is refused or whole, and the command continues.

See `tests.helpers.crashes.replay`.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DataError
from shards.merge import merge
from shards.pack.packing import pack, pack_task
from shards.pack.plan import PackOptions
from shards.pack.tasks import PackTask
from shards.verify.check import verify
from tests.helpers.crashes.replay import Command, needs_strace, replay
from tests.helpers.patches import write_patches

PACK = PackOptions(shard_size=5, workers=1)
RECORD = "import sys, pathlib; from tests.test_crashes import COMMANDS; " + (
    "COMMANDS[sys.argv[1]].run(*map(pathlib.Path, sys.argv[2:]))"
)

pytestmark = [pytest.mark.slow, needs_strace]


def source(inputs: Path) -> Path:
    """12 patches of two classes in three splits."""
    if not (root := inputs / "raw").is_dir():
        write_patches(root, {"train": 4, "val": 1, "test": 1}, ("a", "b"), seed=1)
    return root


def run_tasks(inputs: Path, out: Path) -> None:
    for index in range(2):
        pack_task(source(inputs), out, PACK, PackTask(index, 2))
    merge(out)


def refused_or_whole(out: Path, *trees: object) -> None:
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


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", COMMANDS)
def test_after_a_crash_the_command_continues(name: str, tmp_path: Path) -> None:
    print(replay(COMMANDS[name], RECORD, name, tmp_path, 12))
