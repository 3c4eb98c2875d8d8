"""Worker processes: they look up files and build shards, where there is enough to do.

A worker is `python -m shards.pack.workers`: one line of JSON in, one out. It imports this package
only, whatever the program that packs has imported; that program needs no `__main__` guard. A worker
ends when its standard input closes, so that none outlives its parent.
"""

import gc
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

from msgspec import Struct, json

from common.console import progress
from common.errors import DataError
from common.machine import usable_cores
from shards.pack.plan import ShardPlan
from shards.pack.resume import ShardRecord
from shards.pack.shard import Job, build
from shards.sources.files import look_up
from shards.sources.source import BatchPatches, FileBatch

_FEW = 20_000  # patches packed in about the time that starting processes takes
_REPLACED = 2  # times the workers: so many that died are replaced


class ShardTask(Struct, frozen=True, kw_only=True, tag=True):
    """A shard to be built."""

    job: Job
    plan: ShardPlan


Task = FileBatch | ShardTask


class WorkerDiedError(DataError):
    """A worker ended; `code` is its exit status, negative for a signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Reply(Struct, frozen=True, kw_only=True):
    """Result of a task: one field is set, or none in the message that a worker is ready."""

    files: BatchPatches | None = None
    shard: ShardRecord | None = None
    error: str | None = None


_ENCODER = json.Encoder(enc_hook=str)  # paths
_TASKS: json.Decoder[Task] = json.Decoder(Task, dec_hook=lambda kind, value: kind(value))
_REPLIES = json.Decoder(Reply)


class WorkerPool:
    """This process and, from `start` to the end of the `with` block, its workers.

    Args:
        workers: processes; 0: one per usable core, or this one alone when there is little to do.
        shard_size: patches per shard: more workers than shards are of no use.
    """

    def __init__(self, workers: int, shard_size: int) -> None:
        self._asked = workers
        self._shard_size = shard_size
        self._workers: list[_Worker] = []
        self._died = 0
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.close()

    def start(self, patches: int, shards: int) -> int:
        """Start as many workers as are of use, and return how many were asked for.

        This does not wait until they are ready; workers that run already are counted in.
        """
        asked = self._asked or (1 if patches <= _FEW else usable_cores())
        useful = min(asked, shards)
        while useful > 1 and len(self._workers) < useful:
            self._add()
        return asked

    def _add(self) -> None:
        worker = _Worker()
        self._workers.append(worker)
        self._selector.register(worker.stdout, selectors.EVENT_READ, worker)

    def look_up(self, batches: Sequence[FileBatch]) -> list[BatchPatches]:
        """Return `files.look_up` of every batch, in their order. This process takes part."""
        count = sum(len(batch.paths) for batch in batches)
        self.start(count, -(-count // self._shard_size))
        results: dict[int, BatchPatches] = {}
        with progress("listing", count, "files") as advance:
            for i, reply in self._spread(batches, here=True):
                assert reply.files is not None
                results[i] = reply.files
                advance(len(batches[i].paths))
        return [results[i] for i in range(len(batches))]

    def build(self, job: Job, plans: Sequence[ShardPlan]) -> Iterator[ShardRecord]:
        """Build every shard, here if there are no workers; yield records as they are finished.

        Raises:
            DataError: the first error in a shard, or workers that died again and again.
        """
        tasks = [ShardTask(job=job, plan=plan) for plan in plans]
        for _, reply in self._spread(tasks, here=not self._workers):
            assert reply.shard is not None
            yield reply.shard

    def _spread(self, tasks: Sequence[Task], here: bool) -> Iterator[tuple[int, Reply]]:
        """Yield the number of each task and its reply, as they come.

        Args:
            here: this process does tasks, too.

        A worker that a signal ended, or that had nothing to do, is replaced; its tasks are done
        again, but a second time only.

        Raises:
            DataError: an error in a task, or workers that died.
        """
        left = deque(range(len(tasks)))
        again: set[int] = set()
        while left or any(worker.pending for worker in self._workers):
            for worker in self._workers:
                while left and worker.ready:
                    # a second task waits in a worker if no other would begin it
                    if len(worker.pending) >= (2 if len(left) > len(self._workers) else 1):
                        break
                    i = left.popleft()
                    worker.ask(i, tasks[i])
            for key, _ in self._selector.select(0 if here and left else None):
                try:
                    replies = key.data.replies()
                except WorkerDiedError as error:
                    lost = self._replace(key.data, error, again)
                    again.update(lost)
                    left.extendleft(reversed(lost))
                    continue
                yield from replies
            if here and left:
                i = left.popleft()
                yield i, _do(tasks[i])

    def _replace(self, worker: "_Worker", error: WorkerDiedError, again: set[int]) -> list[int]:
        """Start another worker for one that died, and return the numbers of the tasks it had.

        Raises:
            WorkerDiedError: an error in a task ended the worker, or too many have died.
        """
        lost = [number for number, _ in worker.pending]
        self._died += 1
        if (lost and error.code >= 0) or again.intersection(lost[:1]):
            raise error
        if self._died > _REPLACED * len(self._workers):
            raise error
        self._selector.unregister(worker.stdout)
        self._workers.remove(worker)
        worker.close()
        self._add()
        return lost


class _Worker:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        # Ctrl-C reaches every process of the terminal, a worker perhaps while it still imports: it
        # starts with the signal blocked, and only the parent handles it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shards.pack.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert self._process.stdout is not None
        self.stdout = self._process.stdout
        self.ready = False
        self.pending: deque[tuple[int, Task]] = deque()  # numbered, without a reply yet

    def ask(self, number: int, task: Task) -> None:
        assert self._process.stdin is not None
        self.pending.append((number, task))
        try:
            self._process.stdin.write(_ENCODER.encode(task) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker died: reading its reply says so

    def replies(self) -> list[tuple[int, Reply]]:
        """Read the lines that the worker has begun to write: numbers of tasks and their replies.

        Raises:
            DataError: an error in a task.
            WorkerDiedError: the worker ended.
        """
        data = bytearray()
        while not data.endswith(b"\n"):
            block = os.read(self.stdout.fileno(), 1 << 20)
            if not block:
                raise self._died()
            data += block
        replies = [_REPLIES.decode(line) for line in data.splitlines()]
        if not self.ready:
            self.ready = True
            del replies[0]
        for reply in replies:
            if reply.error is not None:
                raise DataError(reply.error)
        return [(self.pending.popleft()[0], reply) for reply in replies]

    def _died(self) -> WorkerDiedError:
        code = self._process.wait()
        activity = ""
        if self.pending:
            task = self.pending[0][1]
            if isinstance(task, ShardTask):
                activity = f" while it built {task.plan.name}"
            else:
                activity = f" while it looked at {task.paths[0]}"
        return WorkerDiedError(
            f"a packing process ended with code {code}{activity}; if it did not say why, the "
            f"memory may have run out: use fewer --workers. Finished shards are kept",
            code,
        )

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        # the end of the block waits for the process and closes the pipes; closing flushes what a
        # dead one never read, which raises once more
        with suppress(BrokenPipeError), self._process:
            pass


def _do(task: Task) -> Reply:
    if isinstance(task, ShardTask):
        return Reply(shard=build(task.job, task.plan))
    return Reply(files=look_up(task))


def _work() -> None:
    """Do tasks from standard input until it closes, as a worker process."""
    gc.disable()  # nothing here makes cycles, and collecting takes a fifth of `look_up`'s time
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    stdout = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    reply = Reply()  # ready
    while True:
        stdout.write(_ENCODER.encode(reply) + b"\n")
        stdout.flush()
        task = _TASKS.decode(lines.get())
        try:
            reply = _do(task)
        except DataError as error:
            reply = Reply(error=str(error))


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on what the parent writes; end the process when the parent has ended."""
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    try:
        _work()
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # past the thread that reads: it would hold up an ordinary end
