"""Builds shards in several processes.

A worker is `python -m shards.crew`: one JSON line in, one JSON line out. It starts in the time of
importing this package whatever the program that packs has imported, needs no guard in that
program, and ends when its standard input closes, so that no worker outlives its parent.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, fields
from operator import attrgetter

from shards.build import Job, Record, build
from shards.plan import ShardPlan
from shards.schema import DataError
from shards.sources import Patch

_row = attrgetter(*(field.name for field in fields(Patch)))


def build_all(job: Job, plans: list[ShardPlan], workers: int) -> Iterator[Record]:
    """Build every shard, in `workers` processes (1: in this one); records as they are finished.

    Raises:
        DataError: the first one of a shard, or a worker that died.
    """
    if workers <= 1:
        yield from (build(job, plan) for plan in plans)
        return
    crew = [_Worker(job) for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def build_in_worker(plan: ShardPlan) -> Record:
        worker = idle.get()
        try:
            return worker.build(plan)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(build_in_worker, plan) for plan in plans]
        for future in as_completed(futures):
            yield future.result()
    finally:
        for worker in crew:
            worker.kill()  # after an error a thread waits for its answer: this ends the wait
        pool.shutdown(cancel_futures=True)
        for worker in crew:
            worker.close()


class _Worker:
    """One process and the pipes to it."""

    def __init__(self, job: Job) -> None:
        # Ctrl-C reaches every process of the terminal, a worker perhaps while it still imports: it
        # is born with the signal blocked, and the parent alone decides
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shards.crew"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._send(asdict(job))

    def build(self, plan: ShardPlan) -> Record:
        """Build one shard, and wait for it."""
        self._send([plan.name, plan.split, plan.first_key, [_row(p) for p in plan.patches]])
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise DataError(
                f"a packing process ended with code {code} while it built {plan.name}; "
                f"if the memory ran out, use fewer --workers. Finished shards are kept"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(answer["error"])
        return Record(**answer)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        # leaving the process waits for it and closes the pipes; bytes that a dead one never read
        # break them once more
        with suppress(BrokenPipeError), self._process:
            pass

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker died: reading its answer says so


def _work() -> None:
    """The loop of a worker process."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    job = Job(**json.loads(lines.get()))
    while True:
        name, split, first_key, rows = json.loads(lines.get())
        try:
            record = build(job, ShardPlan(name, split, first_key, [Patch(*row) for row in rows]))
            answer = asdict(record)
        except DataError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on what the parent says; without a parent there is nothing to finish."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    _work()
