"""The order of training, and its batches on the device, from disk, host memory or device memory.

A loader has no state: `batches(start, stop)` depends on positions alone, so resuming needs one
integer, the images seen. Each rank takes an equal share of each global batch. Batches continue
across epochs: all have the same shape, and each epoch has each sample exactly once.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import DataError
from common.machine import available_memory
from pipeline.config import Storage
from pipeline.index import Split
from pipeline.reader import Reader, read_split
from shards.schema import CHANNELS, PATCH, PATCH_BYTES

BLOCKS_PER_WINDOW = 256  # of a streamed order: 16,384 samples, 50 MB of pixels
STREAM_BLOCK = 64  # consecutive samples that stay together when streaming
PREFETCH = 3  # batches read ahead by one thread
SLOTS = 2 * BLOCKS_PER_WINDOW  # blocks that a stream keeps in memory: 100 MB
MEMORY_SHARE = 0.25  # largest share of the free memory for a resident split


class Batch(NamedTuple):
    images: Tensor  # (b, 3, 32, 32) uint8 on the device, channels-last memory
    labels: Tensor  # (b,) int64 on the device, -1 = none
    indices: NDArray[np.int64]  # (b,) into the split


class Order:
    """The endless order of training over `count` samples, epoch after epoch.

    Positions count images from the start of training: with n samples, position p is number p mod n
    in the order of epoch p // n. The order depends on (seed, epoch, block) only: not on ranks,
    workers or batch size.

    Blocks of consecutive samples are permuted, then the samples within a window of blocks. With
    block = 1 this is an exact uniform permutation, for splits in memory; larger blocks keep the
    reads of a streamed split sequential.
    """

    def __init__(self, count: int, seed: int, block: int) -> None:
        if count < 1:
            raise DataError("the split is empty: there is nothing to train on")
        self.count, self.seed, self.block = count, seed, block
        self.blocks = -(-count // block)
        self._epoch, self._perm = -1, np.empty(0, np.int64)
        self._window_id, self._samples = (-1, -1), np.empty(0, np.int64)

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the sample indices at positions start..stop of training."""
        runs = []
        while start < stop:
            epoch, offset = divmod(start, self.count)
            begin, samples = self._window_at(epoch, offset)
            runs.append(samples[offset - begin : offset - begin + stop - start])
            start += len(runs[-1])
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def share(self, start: int, stop: int, rank: int, world: int) -> NDArray[np.int64]:
        """Return one rank's equal share of the global batch at positions start..stop.

        This is every world-th sample. In a streamed order it is the samples of neighbouring
        blocks, in the order of the batch, so that each rank reads its own part of the shards.
        """
        batch = self.take(start, stop)
        if self.block == 1 or world == 1:
            return batch[rank::world]
        each = len(batch) // world
        by_block = np.argsort(batch // self.block, kind="stable")
        return batch[np.sort(by_block[rank * each : (rank + 1) * each])]

    def _window_at(self, epoch: int, offset: int) -> tuple[int, NDArray[np.int64]]:
        """Return the start and the ordered samples of the window that holds `offset`."""
        if epoch != self._epoch:
            self._epoch, self._perm = epoch, self._rng(0, epoch).permutation(self.blocks)
            self._sizes = np.full(self.blocks, self.block)
            self._sizes[self._perm == self.blocks - 1] = self.count - (self.blocks - 1) * self.block
            self._starts = np.concatenate([[0], self._sizes.cumsum()])
        if self.block == 1:
            return 0, self._perm
        block = int(np.searchsorted(self._starts, offset, side="right")) - 1
        window = block // BLOCKS_PER_WINDOW
        first = window * BLOCKS_PER_WINDOW
        if self._window_id != (epoch, window):
            blocks = self._perm[first : first + BLOCKS_PER_WINDOW]
            samples = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
            samples = samples[samples < self.count]
            self._window_id = (epoch, window)
            self._samples = self._rng(1, epoch, window).permutation(samples)
        return int(self._starts[first]), self._samples

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *stream])))


class Store(Protocol):
    """Where the patches of a split are read from."""

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        """Return patches (n, 3, 32, 32), uint8, on the store's device."""
        ...


class Streamed:
    """Blocks of consecutive samples, read from the shards as they are needed.

    The blocks of two windows of the order are kept: memory does not grow with the split, and each
    block is read about once per epoch.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.reader, self.pin = Reader(split), device.type == "cuda"
        self.count = len(split)
        blocks = -(-self.count // STREAM_BLOCK)
        slots = min(SLOTS, blocks)
        self.pixels = np.empty((slots * STREAM_BLOCK, PATCH_BYTES), np.uint8)
        self.slot = np.full(blocks, -1)  # by block: the slot that holds it, or -1
        self.block = np.full(slots, -1)  # by slot: the block in it, or -1
        self.filled = np.zeros(slots, np.int64)  # by slot: the count of reads when it was filled

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        out = torch.empty(len(indices), PATCH_BYTES, dtype=torch.uint8, pin_memory=self.pin)
        slots = len(self.block)
        for first in range(0, len(indices), slots):  # blocks of at most `slots` samples always fit
            samples = indices[first : first + slots]
            blocks = samples // STREAM_BLOCK
            if (self.slot[blocks] < 0).any():
                self._hold(np.unique(blocks))
            rows = self.slot[blocks] * STREAM_BLOCK + samples % STREAM_BLOCK
            self.pixels.take(rows, axis=0, out=out.numpy()[first : first + slots], mode="clip")
        return _channels_last(out)

    def _hold(self, needed: NDArray[np.int64]) -> None:
        """Read the needed blocks that are missing, in place of the oldest that are not needed."""
        missing = needed[self.slot[needed] < 0]
        free = np.flatnonzero(~np.isin(self.block, needed))
        free = free[np.argsort(self.filled[free], kind="stable")]
        for block, slot in zip(missing.tolist(), free[: len(missing)].tolist(), strict=True):
            first = block * STREAM_BLOCK
            rows = np.arange(first, min(first + STREAM_BLOCK, self.count))
            if (old := self.block[slot]) >= 0:  # also if reading fails
                self.slot[old], self.block[slot] = -1, -1
            start = slot * STREAM_BLOCK
            pixels = self.pixels[start : start + len(rows)]
            self.reader.read(rows, pixels.reshape(-1, PATCH, PATCH, CHANNELS))
            self.block[slot], self.slot[block] = block, slot
            self.filled[slot] = self.filled.max() + 1


class HostResident:
    """The split, decoded once into host memory."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.pixels = read_split(split).reshape(len(split), PATCH_BYTES)
        self.pin = device.type == "cuda"

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        out = torch.empty(len(indices), PATCH_BYTES, dtype=torch.uint8, pin_memory=self.pin)
        # torch's gather would start a second pool of OpenMP threads in the reading thread, which
        # takes the cores from training (bench/LOG.md); without clip, numpy buffers the output
        np.take(self.pixels, indices, axis=0, out=out.numpy(), mode="clip")
        return _channels_last(out)


class DeviceResident:
    """The split, decoded once into device memory: a batch is one gather there."""

    def __init__(self, split: Split, device: torch.device) -> None:
        pixels = read_split(split).reshape(len(split), PATCH_BYTES)
        self.pixels = torch.from_numpy(pixels).to(device)

    def gather(self, indices: NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(indices).to(self.pixels.device, non_blocking=True)
        return _channels_last(torch.index_select(self.pixels, 0, rows))


STORES: dict[str, Callable[[Split, torch.device], Store]] = {
    "stream": Streamed,
    "host": HostResident,
    "device": DeviceResident,
}


def choose_storage(split: Split, device: torch.device, local_ranks: int = 1) -> Storage:
    """Choose the fastest storage in which the split takes at most a quarter of the free memory."""
    need = len(split) * PATCH_BYTES
    if device.type == "cuda" and need < MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    if need < MEMORY_SHARE * available_memory() / local_ranks:
        return "host"
    return "stream"


class Loader:
    """Training batches of one rank.

    Args:
        batch_size: images of a global batch, divisible by `world`.
        storage: a key of STORES.
        rank, world: which share of each global batch to read.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        device: torch.device,
        storage: str,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ValueError(f"batch size {batch_size} is not divisible by {world} processes")
        self.batch_size, self.device, self.rank, self.world = batch_size, device, rank, world
        self.order = Order(len(split), seed, STREAM_BLOCK if storage == "stream" else 1)
        self.store = STORES[storage](split, device)
        self.labels = torch.from_numpy(split.labels)

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield the batches that begin at `start`, `start` + batch size, ... up to `stop`."""
        read = self._read_ahead(start, stop)
        return self._copied_ahead(read) if self.device.type == "cuda" else read

    def _read_ahead(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield batches on the store's device, in pinned memory where a copy follows."""
        pin = self.device.type == "cuda"
        pending: deque[Future[tuple[Tensor, NDArray[np.int64]]]] = deque()
        positions = iter(range(start, stop, self.batch_size))
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
            try:
                pending.extend(thread.submit(self._read, p) for p in islice(positions, PREFETCH))
                while pending:
                    images, indices = pending.popleft().result()
                    if (position := next(positions, None)) is not None:
                        pending.append(thread.submit(self._read, position))
                    labels = self.labels[torch.from_numpy(indices)]
                    yield Batch(images, labels.pin_memory() if pin else labels, indices)
            finally:
                thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, position: int) -> tuple[Tensor, NDArray[np.int64]]:
        indices = self._share(self.order, position)
        return self.store.gather(indices), indices

    def indices(self, position: int) -> NDArray[np.int64]:
        """Return the samples of the batch that begins at `position`."""
        # a new order: the other one belongs to the reading thread
        return self._share(Order(self.order.count, self.order.seed, self.order.block), position)

    def _share(self, order: Order, position: int) -> NDArray[np.int64]:
        return order.share(position, position + self.batch_size, self.rank, self.world)

    def _copied_ahead(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """Copy each batch in a stream of its own while the one before it is in use."""
        stream = torch.cuda.Stream(self.device)
        ahead: deque[tuple[Batch, torch.cuda.Event]] = deque()
        with closing(batches):
            for images, labels, indices in batches:
                with torch.cuda.stream(stream):
                    images = images.to(self.device, non_blocking=True)
                    labels = labels.to(self.device, non_blocking=True)
                ahead.append((Batch(images, labels, indices), stream.record_event()))
                if len(ahead) > 1:
                    yield self._arrived(*ahead.popleft())
            while ahead:
                yield self._arrived(*ahead.popleft())

    def _arrived(self, batch: Batch, copied: torch.cuda.Event) -> Batch:
        """Make the current stream wait for a batch; the host does not wait."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(current)  # its memory is kept until this stream has used it
        return batch


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.view(-1, PATCH, PATCH, CHANNELS).permute(0, 3, 1, 2)
