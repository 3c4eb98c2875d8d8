"""Real ranks for tests: processes of a gloo group that run a function of a test file.

They are forked from a server that has torch loaded, so that they start at once.
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
SERVER.set_forkserver_preload(["train.program", "eval.embed"])


def run_ranks(world: int, work: Callable[..., T], *args: Any) -> list[T]:
    """Return what `work(*args)` returns on each of `world` ranks; None for a rank that died."""
    port = _free_port()
    processes, pipes = [], []
    for rank in range(world):
        ours, theirs = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=_run_rank, args=(rank, world, port, theirs, work, args))
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


def _run_rank(
    rank: int, world: int, port: int, answers: Connection, work: Callable[..., T], args: Any
) -> None:
    """Work in the environment that torchrun makes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in numbers.items()}
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
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
