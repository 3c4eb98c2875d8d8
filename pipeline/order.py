"""Order of the samples in training.

Positions count images from the start of training: with n samples, position p is number p mod n in
the order of epoch p // n. The order depends on (seed, epoch, block) only: not on ranks, workers or
batch size.
"""

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

BLOCKS_PER_WINDOW = 256  # of a streamed order: 16,384 samples, 50 MB of pixels
STREAM_BLOCK = 64  # consecutive samples that stay together when streaming


class Order:
    """The endless order of training over `count` samples, epoch after epoch.

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
