"""Replay of the crash states of a command, which is recorded once (`tests.helpers.crashes.states`).

A few of the states are tried by default; EQDVAE_CRASH_STATES is their number per command, or `all`.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.crashes.states import (
    CrashState,
    Tree,
    crash_states,
    read_tree,
    record,
    write_tree,
)

STATES = os.environ.get("EQDVAE_CRASH_STATES", "")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@dataclass(frozen=True)
class Command:
    """A command on `inputs`, which it reads, and `out`, which it writes.

    Args:
        inspect: raises where `out` is neither refused nor whole; gets the trees before and after
            an uninterrupted command as well.
        begin: makes the inputs, and what `out` holds before.
        normal: leaves of a tree what two uninterrupted commands have in common.
    """

    run: Callable[[Path, Path], object]
    inspect: Callable[[Path, Tree, Tree], None]
    begin: Callable[[Path, Path], object] = lambda inputs, out: None
    normal: Callable[[Tree], object] = lambda tree: tree


def replay(command: Command, code: str, name: str, folder: Path, states: int) -> str:
    """Record a command and continue it after crashes; fail where one goes wrong.

    Args:
        code: Python that runs the command; gets `name`, inputs and `out` as arguments.
        states: to try, spread evenly, unless EQDVAE_CRASH_STATES says otherwise.

    Returns:
        What was tried, in numbers.
    """
    inputs, out = folder / "inputs", folder / "out"
    inputs.mkdir(), out.mkdir()
    command.begin(inputs, out)
    before = read_tree(out)
    operations = record(code, [name, str(inputs), str(out)], out)
    after = read_tree(out)
    possible = crash_states(before, operations)
    tried = _spread(possible, states)
    problems = []
    for state in tried:
        write_tree(state.tree, out)
        try:
            command.inspect(out, before, after)
            command.run(inputs, out)
            command.inspect(out, before, after)
            left = read_tree(out)
            names = sorted({*left} ^ {*after})
            assert command.normal(left) == command.normal(after), f"other content; names: {names}"
        except Exception as error:
            problems.append(f"{state}: {type(error).__name__}: {error}"[:600])
    counts = f"{name}: {len(operations)} operations, {len(possible)} states, {len(tried)} tried"
    assert not problems, f"{counts}, {len(problems)} wrong:\n" + "\n".join(problems)
    return counts


def _spread(states: list[CrashState], count: int) -> list[CrashState]:
    if STATES == "all":
        return states
    count = min(int(STATES or count), len(states))
    return [states[i * len(states) // count] for i in range(count)]
