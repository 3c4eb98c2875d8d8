"""Processes that are killed in the middle of a write."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill_at_file_operation(number: int) -> None:
    """Arm this process: SIGKILL before its file operation `number`, or half-way in a write."""
    calls = 0

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if name == "write_bytes":
                    path, data = args
                    original(path, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, counted)

    for name in ("write_bytes", "rename", "mkdir"):
        watch(Path, name)
    for name in ("fsync", "unlink"):
        watch(os, name)
    watch(shutil, "rmtree")


def was_killed(number: int, action: Callable[[], Any]) -> bool:
    """Run the action in a fork, killed at its file operation `number`, if it gets there."""
    if (child := os.fork()) == 0:
        try:
            kill_at_file_operation(number)
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
