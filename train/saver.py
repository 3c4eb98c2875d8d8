"""Checkpoints beside training: the state is copied at its step, and one thread writes the copy."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from common.errors import DataError
from train import checkpoint as state


class Saver:
    """At most one write is in flight. A context that ends once the last write has.

    `save`, `check`, `wait` and leaving the context raise the DataError of a write that failed;
    where another error is on its way out already, `say` tells of it instead.
    """

    def __init__(self, run: Path, keep: int, say: Callable[[str], None]) -> None:
        self.run, self.keep, self.say = run, keep, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._write: Future[None] | None = None

    def save(self, images_seen: int, meta: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Copy the tensors as they are now, and write them while the caller goes on."""
        self.wait()
        copies = Copies(tensors)
        self._write = self._thread.submit(self._save, images_seen, meta, copies)

    def check(self) -> None:
        """Raise the error of a write that has ended; costs nothing, waits for nothing."""
        if self._write is not None and self._write.done():
            self.wait()

    def wait(self) -> None:
        """Return once the write in flight is on the disk."""
        if self._write is not None:
            write, self._write = self._write, None
            write.result()

    def _save(self, images_seen: int, meta: dict[str, Any], copies: "Copies") -> None:
        state.save_checkpoint(self.run, images_seen, meta, copies.on_host(), self.keep)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self.wait()
        except DataError as failed:
            if error is None:
                raise
            self.say(f"error: {failed}")
        finally:
            self._thread.shutdown()


class Copies:
    """Tensors as they were when this was made: training updates the originals in place.

    On a GPU the clones are queued behind the step like any kernel, so that making them waits for
    nothing; whoever asks for them on the host waits, on a stream of its own beside training.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        dense = torch.contiguous_format
        self._clones = {n: t.detach().clone(memory_format=dense) for n, t in tensors.items()}
        self._device = next((t.device for t in tensors.values() if t.is_cuda), None)
        self._ready = torch.cuda.Event() if self._device else None
        if self._ready:
            self._ready.record(torch.cuda.current_stream(self._device))

    def on_host(self) -> dict[str, Tensor]:
        if self._ready is None:
            return self._clones
        stream = torch.cuda.Stream(self._device)
        stream.wait_event(self._ready)
        with torch.cuda.stream(stream):
            return {name: clone.cpu() for name, clone in self._clones.items()}
