"""The order of training: each sample once an epoch; (seed, epoch, block) alone decide it."""

import numpy as np
import pytest

from pipeline.loader import BLOCKS_PER_WINDOW, Order


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 64 * BLOCKS_PER_WINDOW * 2 + 17])
@pytest.mark.parametrize("block", [1, 64])
def test_each_sample_once_an_epoch(count: int, block: int) -> None:
    order = Order(count, 0, block)
    for epoch in range(2):
        taken = order.take(epoch * count, (epoch + 1) * count)
        assert np.array_equal(np.sort(taken), np.arange(count))


@pytest.mark.parametrize("block", [1, 64])
def test_any_way_of_asking_gives_the_same_order(block: int) -> None:
    count = 40_000
    whole = Order(count, 7, block).take(0, 100_000)
    pieces = Order(count, 7, block)
    for start in (99_000, 39_900, 0, 16_300, 80_000, 39_900):
        assert np.array_equal(pieces.take(start, start + 700), whole[start : start + 700])


def test_epochs_and_seeds_differ() -> None:
    a, b = Order(500, 0, 1), Order(500, 1, 1)
    assert not np.array_equal(a.take(0, 500), a.take(500, 1000))
    assert not np.array_equal(a.take(0, 500), b.take(0, 500))


@pytest.mark.parametrize("block", [1, 64])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_one_global_order(block: int, world: int) -> None:
    order = Order(10_000, 0, block)
    for start in (0, 9_600):  # the second goes on into the next epoch
        batch = order.take(start, start + 600)
        shares = [order.share(start, start + 600, rank, world) for rank in range(world)]
        assert {len(share) for share in shares} == {600 // world}
        assert sorted(np.concatenate(shares)) == sorted(batch)
        if start == 0:  # no sample comes twice: each share has the order of the batch
            place = {sample: i for i, sample in enumerate(batch)}
            assert all((np.diff([place[s] for s in share]) > 0).all() for share in shares)


@pytest.mark.parametrize("world", [2, 4])
def test_each_rank_of_a_stream_reads_its_own_blocks(world: int) -> None:
    order, size = Order(4 * 64 * BLOCKS_PER_WINDOW, 0, 64), 512 * world
    starts = range(0, 64 * BLOCKS_PER_WINDOW, size)
    for rank in range(world):
        read = np.concatenate([order.share(p, p + size, rank, world) for p in starts])
        assert len(np.unique(read // 64)) < 1.25 * BLOCKS_PER_WINDOW / world
