"""Real ranks for tests: the processes of a gloo group, forked from a server that has torch loaded,
so that starting some takes no longer than their work. What they do is a function of a test file.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

T = TypeVar("T")

TIMEOUT_S = 240
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["train.main", "eval.embed"])


def run_ranks(world: int, work: Callable[..., T], *args: Any) -> list[T]:
    """What `work(*args)` returns on each of `world` ranks; None for a rank that died."""
    port = _free_port()
    processes, pipes = [], []
    for rank in range(world):
        ours, theirs = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=_be, args=(rank, world, port, theirs, work, args))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        return [_answer(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _be(
    rank: int, world: int, port: int, answers: Connection, work: Callable[..., T], args: Any
) -> None:
    """In the environment that torchrun makes."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in where.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    answers.send(work(*args))


def _answer(pipe: Connection) -> Any:
    assert pipe.poll(TIMEOUT_S), "a rank hangs"
    try:
        return pipe.recv()
    except EOFError:
        return None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
