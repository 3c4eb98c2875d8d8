"""Looks at files and builds shards, in several processes where there is enough to do.

A worker is `python -m shards.pack.workers`: one JSON line in, one JSON line out. It starts in the
time of importing this package whatever the program that packs has imported, needs no guard in that
program, and ends when its standard input closes, so that no worker outlives its parent.
"""

import gc
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple
from typing import Any, Self

from common.console import progress
from common.errors import DataError
from common.machine import usable_cores
from shards.pack.plan import ShardPlan
from shards.pack.shard import Job, Record, build
from shards.sources.layout import Accepted
from shards.sources.look import Look, Looked, look
from shards.sources.patch import Patch

_FEW = 20_000  # patches packed in about the time that starting processes takes
_Message = tuple[str, str, list[Any]]  # task, what it is about, arguments


class WorkerPool:
    """This process and, from `start` to the end of the `with` block, its workers.

    Args:
        workers: processes; 0: one a usable core, or this one alone when there is little to do.
    """

    def __init__(self, workers: int) -> None:
        self._wanted = workers
        self._workers: list[_Worker] = []
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
        """Start as many workers as are of use, if that has not been done; they get ready while
        this process goes on. Returns how many were asked for."""
        wanted = self._wanted or (1 if patches <= _FEW else usable_cores())
        useful = min(wanted, shards)
        while useful > 1 and len(self._workers) < useful:
            worker = _Worker()
            self._workers.append(worker)
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        return wanted

    def look(self, parts: Sequence[Look]) -> list[Looked]:
        """`look` at every part, in their order. This process takes part."""

        def message(i: int) -> _Message:
            part = parts[i]
            limits = astuple(part.accepted)
            arguments = [part.root, limits, part.regex, part.paths, part.given]
            return "look", f"looked at {part.paths[0]}", arguments

        found: dict[int, Looked] = {}
        with progress("listing", sum(map(len, parts)), "files") as advance:
            for i, answer in self._spread(len(parts), message, lambda i: look(parts[i])):
                if not isinstance(answer, Looked):
                    rows, refused, missing, error = answer
                    answer = Looked(
                        list(map(Patch._make, rows)),
                        list(map(tuple, refused)),
                        list(map(tuple, missing)),
                        error and tuple(error),
                    )
                found[i] = answer
                advance(len(parts[i]))
        return [found[i] for i in range(len(parts))]

    def build(self, job: Job, plans: Sequence[ShardPlan]) -> Iterator[Record]:
        """Build every shard; records as they are finished.

        Raises:
            DataError: the first one of a shard, or a worker that died.
        """
        if not self._workers:
            yield from (build(job, plan) for plan in plans)
            return

        def message(i: int) -> _Message:
            plan = plans[i]
            shard = [plan.name, plan.split, plan.first_key, plan.patches]
            return "build", f"built {plan.name}", [astuple(job), shard]

        for _, record in self._spread(len(plans), message):
            yield Record(**record)

    def _spread(
        self, count: int, message: Callable[[int], _Message],
        here: Callable[[int], Any] | None = None,
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        """The answers to `count` messages, as they come; `here` gives those of this process.

        Raises:
            DataError: one that a worker met, or a worker that died.
        """
        left, crew = deque(range(count)), self._workers
        while left or any(worker.asked for worker in crew):
            for worker in crew:
                # one task waits in a worker that is at another, unless others could begin it
                while left and worker.ready and len(worker.asked) < 1 + (len(left) > len(crew)):
                    worker.ask(left[0], message(left.popleft()))
            alone = here is not None and bool(left)
            for key, _ in self._selector.select(0 if alone else None):
                yield from key.data.hear()
            if here is not None and left:
                i = left.popleft()
                yield i, here(i)


class _Worker:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        # Ctrl-C reaches every process of the terminal, a worker perhaps while it still imports: it
        # is born with the signal blocked, and the parent alone decides
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
        self.asked: deque[tuple[int, str]] = deque()  # number of the task and what it is about

    def ask(self, number: int, message: _Message) -> None:
        assert self._process.stdin is not None
        self.asked.append((number, message[1]))
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker died: reading its answer says so

    def hear(self) -> list[tuple[int, Any]]:
        """Numbers of tasks and their answers: the lines that the worker has begun to say.

        Raises:
            DataError: one that the worker met, or it died.
        """
        said = bytearray()
        while not said.endswith(b"\n"):
            part = os.read(self.stdout.fileno(), 1 << 20)
            if not part:
                raise self._died()
            said += part
        lines = said.splitlines()
        if not self.ready:
            self.ready = True
            del lines[0]
        return [(self.asked.popleft()[0], _answer(line)) for line in lines]

    def _died(self) -> DataError:
        code = self._process.wait()
        doing = f" while it {self.asked[0][1]}" if self.asked else ""
        return DataError(
            f"a packing process ended with code {code}{doing}; if it did not say why, the memory "
            f"may have run out: use fewer --workers. Finished shards are kept"
        )

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        # leaving the process waits for it and closes the pipes; bytes that a dead one never read
        # break them once more
        with suppress(BrokenPipeError), self._process:
            pass


def _answer(line: bytearray) -> Any:
    answer = json.loads(line)
    if isinstance(answer, str):
        raise DataError(answer)
    return answer


def _work() -> None:
    """The loop of a worker process."""
    gc.disable()  # nothing here makes cycles, and a search takes a fifth of the time of `look`
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    answer: Any = None  # ready
    while True:
        said.write(json.dumps(answer) + "\n")
        said.flush()
        task, _, arguments = json.loads(lines.get())
        try:
            answer = _TASKS[task](*arguments)
        except DataError as error:
            answer = str(error)


def _look(root: str, limits: list[Any], *rest: Any) -> list[Any]:
    suffixes, max_bytes = limits
    found = look(Look(root, Accepted(tuple(suffixes), max_bytes), *rest))
    return [found.patches, found.refused, found.missing, found.error]


def _build(job: list[Any], shard: list[Any]) -> dict[str, Any]:
    name, split, first_key, rows = shard
    plan = ShardPlan(name, split, first_key, list(map(Patch._make, rows)))
    return asdict(build(Job(*job), plan))


_TASKS: dict[str, Callable[..., Any]] = {"look": _look, "build": _build}


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on what the parent says; without a parent there is nothing to finish."""
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
