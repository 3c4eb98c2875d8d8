"""Kill or fail this process at one of its calls of the file system."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Call = Callable[..., Any]
KILLED_AT = (
    *((Path, name) for name in ("write_bytes", "rename", "mkdir")),
    *((os, name) for name in ("fsync", "unlink")),
    (shutil, "rmtree"),
)


def before_each(
    operations: Iterable[tuple[Any, str]], act: Callable[[int, str, Call, tuple[Any, ...]], None]
) -> None:
    """Arm this process: `act` comes before each call of the operations, an owner and a name.

    Args:
        act: gets the number of the call, from 1, its name, what is called, and the arguments.
    """
    calls = 0

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            act(calls, name, original, args)
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    for owner, name in operations:
        watch(owner, name)


def kill_at_file_operation(number: int) -> None:
    """Arm this process: SIGKILL before its file operation `number`, or half-way in a write."""

    def act(call: int, name: str, original: Call, args: tuple[Any, ...]) -> None:
        if call == number:
            if name == "write_bytes":
                path, data = args
                original(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    before_each(KILLED_AT, act)


def was_killed(number: int, action: Callable[[], Any]) -> bool:
    """Run the action in a fork, killed at its file operation `number`, if it gets there."""
    if (child := os.fork()) == 0:
        try:
            kill_at_file_operation(number)
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
