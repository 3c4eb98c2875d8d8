"""Ranks of a distributed launch: which one this process is, and steps that all take together.

Ranks are started by accelerate or torchrun; a single process is rank 0 of 1. An error on one rank
is raised on every rank, so that no rank waits for one that gave up.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from common.errors import DataError

T = TypeVar("T")

PATIENCE = timedelta(hours=12)  # how long ranks wait for another one, which may be packing
APPEARS_S = 30.0  # a network file system shows a new file on every machine within this


class SharedError(DataError):
    """The same error on every rank: only the main rank needs to print it."""


class Place(NamedTuple):
    rank: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def place() -> Place:
    return Place(rank(), socket.gethostname())


def local_ranks() -> int:
    """Number of processes that the launcher started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join() -> None:
    """Join the process group of the launch, if there is more than one process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_object(value: T) -> list[T]:
    """Gather the values of all ranks, by rank, on every rank; waits until all have called it.

    Raises:
        DataError: another rank has ended, or did not call this within PATIENCE.
    """
    if world() == 1:
        return [value]
    values = [value] * world()
    try:
        dist.all_gather_object(values, value)
    except RuntimeError as error:
        raise DataError(
            f"another process of this launch ended; its message says why ({error})"
        ) from None
    return values


def together(work: Callable[[], T]) -> T:
    """Call `work` on every rank; if it fails on some, raise the error on all, with rank and host.

    Raises:
        SharedError: a DataError or OSError on any rank; a single process raises its own.
    """
    if world() == 1:
        return work()
    results: list[T] = []
    failure = ""
    try:
        results.append(work())
    except (DataError, OSError) as error:
        failure = str(error)
    failures: dict[str, list[Place]] = {}
    for where, message in gather_object((place(), failure)):
        if message:
            failures.setdefault(message, []).append(where)
    if failures:
        lines = (f"{format_places(places)}: {text}" for text, places in failures.items())
        raise SharedError("\n".join(lines))
    return results[0]


def main_process_first(work: Callable[[], T]) -> T:
    """Call `work` on the main rank first, and then on the others, which find it done.

    Raises:
        SharedError: as `together`.
    """
    if rank() > 0:
        together(lambda: None)  # the main rank's turn
    result = together(work)
    if rank() == 0:
        together(lambda: None)  # the others' turn
    return result


def format_places(places: list[Place]) -> str:
    """Format as `ranks 0, 1 on a; rank 8 on b`."""
    hosts: dict[str, list[str]] = {}
    for where in places:
        hosts.setdefault(where.host, []).append(str(where.rank))
    return "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} on {host}"
        for host, ranks in hosts.items()
    )


def require_same(facts: dict[str, str], what: str) -> None:
    """Check that every rank has the facts of the main rank.

    Args:
        facts: name and value of each.
        what: what the facts describe, for the message.

    Raises:
        SharedError: a rank differs; the message names all that do.
    """
    (_, main), *others = gather_object((place(), facts))
    if odd := [(where, theirs) for where, theirs in others if theirs != main]:
        raise SharedError(
            f"{what} of {format_places([where for where, _ in odd])} is not that of the main rank: "
            f"{odd[0][1]}, not {main}"
        )


def require_shared(folder: Path) -> None:
    """Make `folder`, and check on every rank that it is the folder of the main rank.

    Raises:
        SharedError: a machine has another folder there, or none, or it cannot be made.
    """
    if world() == 1:
        return
    name = gather_object(secrets.token_hex(8))[0]  # new: in no machine's cache
    token = folder / f".shared-{name}"

    def make() -> None:
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()

    together(make)
    seen = gather_object((place(), str(folder.resolve()), _appears(token)))
    if rank() == 0:
        token.unlink()
    main, path, _ = seen[0]
    if blind := [(where, theirs) for where, theirs, sees in seen if not sees]:
        raise SharedError(
            f"{blind[0][1]} of {format_places([where for where, _ in blind])} is not the folder "
            f"{path} of {main}: choose an --out that is one folder "
            f"for all machines (a shared file system)"
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + APPEARS_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if path.exists():
                return True
        time.sleep(0.1)
    return False
