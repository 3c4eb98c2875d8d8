"""Processes that act as one: which of them this is, and what goes on only when all agree.

Started by accelerate or torchrun; a process on its own is rank 0 of 1. An error on one rank is
raised on every rank, so that none waits for one that gave up.
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

PATIENCE = timedelta(hours=12)  # for the other ranks, while one packs
APPEARS_S = 30.0  # within which a network file system shows a new file to every machine


class SharedError(DataError):
    """The same error on every rank: it is enough that the main one tells it."""


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
    """Processes that the launcher started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes of the launch; nothing to do for a process on its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def gathered(value: T) -> list[T]:
    """What each rank gave, by rank, on every rank. Returns when all have called it.

    Raises:
        DataError: another rank has ended, or stayed away for longer than PATIENCE.
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
    """Do `work` on every rank; where it fails on some, all raise the error, with rank and host.

    Raises:
        SharedError: a DataError or OSError on any rank; a process on its own raises its own.
    """
    if world() == 1:
        return work()
    done: list[T] = []
    failure = ""
    try:
        done.append(work())
    except (DataError, OSError) as error:
        failure = str(error)
    failures: dict[str, list[Place]] = {}
    for where, message in gathered((place(), failure)):
        if message:
            failures.setdefault(message, []).append(where)
    if failures:
        told = (f"{named(places)}: {message}" for message, places in failures.items())
        raise SharedError("\n".join(told))
    return done[0]


def main_first(work: Callable[[], T]) -> T:
    """Do `work` on the main rank, and then on the others, who find it done.

    Raises:
        SharedError: as `together`.
    """
    if rank() > 0:
        together(lambda: None)  # the main rank's turn
    found = together(work)
    if rank() == 0:
        together(lambda: None)  # the others' turn
    return found


def named(places: list[Place]) -> str:
    """`ranks 0, 1 on a; rank 8 on b`."""
    hosts: dict[str, list[str]] = {}
    for where in places:
        hosts.setdefault(where.host, []).append(str(where.rank))
    return "; ".join(
        f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} on {host}"
        for host, ranks in hosts.items()
    )


def require_same(facts: dict[str, str], what: str) -> None:
    """See that every rank has the facts of the main rank.

    Raises:
        SharedError: names the ranks that differ.
    """
    (_, main), *others = gathered((place(), facts))
    if odd := [(where, theirs) for where, theirs in others if theirs != main]:
        raise SharedError(
            f"{what} of {named([where for where, _ in odd])} is not that of the main rank: "
            f"{odd[0][1]}, not {main}"
        )


def require_shared(folder: Path) -> None:
    """Make `folder`, and see on every rank that it is the one of the main rank.

    Raises:
        SharedError: a machine has a folder of its own there, or none, or it cannot be made.
    """
    if world() == 1:
        return
    token = folder / f".shared-{gathered(secrets.token_hex(8))[0]}"  # new: in no machine's cache
    together(lambda: _make(token) if rank() == 0 else None)
    seen = gathered((place(), str(folder.resolve()), _appears(token)))
    if rank() == 0:
        token.unlink()
    main, mine, _ = seen[0]
    if blind := [(where, theirs) for where, theirs, sees in seen if not sees]:
        raise SharedError(
            f"{blind[0][1]} of {named([where for where, _ in blind])} is not the folder {mine} of "
            f"{main}: choose an --out that is one folder for all machines (a shared file system)"
        )


def _make(token: Path) -> None:
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + APPEARS_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if path.exists():
                return True
        time.sleep(0.1)
    return False
