"""Embedding on real ranks: what one process writes, and no rank that waits for ever."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import ranks
from common.errors import DataError
from eval import embedding
from eval.config import EmbedOptions
from eval.embedding import embed
from models.config import ModelConfig
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.ranks import run_ranks
from tests.helpers.trained_runs import read_parts, save_snapshot

pytestmark = pytest.mark.slow


def embedded(run: Path, source: Path, out: Path, rows: int | None) -> None:
    ranks.join()
    embed(run, source, EmbedOptions(out, part_rows=rows, pack=PackOptions(workers=1)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_snapshot(tmp_path_factory.mktemp("encoder"), ModelConfig(), group="C4")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_embed_every_sample_once_in_order(
    world: int, encoder: Path, small_dataset: Path, tmp_path: Path
) -> None:
    alone = embed(encoder, small_dataset, EmbedOptions(tmp_path / "alone", part_rows=9))
    run_ranks(world, embedded, encoder, small_dataset, tmp_path / "shared", 9)
    names = [path.name for path in sorted(alone.iterdir())]
    assert [path.name for path in sorted((tmp_path / "shared").iterdir())] == names
    features, paths = read_parts(tmp_path / "shared")
    assert paths == sorted(paths) and len(set(paths)) == len(paths) == 80
    np.testing.assert_array_equal(features, read_parts(alone)[0])


def test_ranks_wait_for_the_packing_of_this_launch(
    encoder: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """An interruption left the packed form of another source: nobody opens it."""
    raw = small_dataset.parent / "raw"
    shutil.copytree(raw / "test", tmp_path / "other")
    pack(tmp_path / "other", tmp_path / "out" / embedding.SHARDS, PackOptions(workers=1))
    run_ranks(2, embedded, encoder, raw, tmp_path / "out", 9)
    alone = embed(encoder, small_dataset, EmbedOptions(tmp_path / "alone", part_rows=9))
    for shared, expected in zip(read_parts(tmp_path / "out"), read_parts(alone), strict=True):
        np.testing.assert_array_equal(shared, expected)
    assert not (tmp_path / "out" / embedding.SHARDS).exists()


def fails_on_rank_1(how: str, *args: Any) -> str:
    """The error of a rank when the second one fails in the middle of its share."""
    ranks.join()

    def fail(*_: object) -> None:
        if how == "dies":
            os._exit(1)
        raise DataError("its disk is full")

    if ranks.rank() == 1:
        embedding.write_file = fail
    try:
        embedded(*args)
    except DataError as error:
        return str(error)
    return "done"


@pytest.mark.parametrize(
    ("how", "message"), [("fails", "rank 1 on .*: its disk is full"), ("dies", "another process")]
)
def test_no_rank_waits_for_one_that_failed(
    how: str, message: str, encoder: Path, small_dataset: Path, tmp_path: Path
) -> None:
    args = encoder, small_dataset, tmp_path / "out", 9
    errors = run_ranks(3, fails_on_rank_1, how, *args)
    assert [bool(re.search(message, error or "")) for error in errors] == [
        True,
        how == "fails",
        True,
    ]
    run_ranks(2, embedded, *args)  # the same command continues, on another number of ranks
    assert len(set(read_parts(tmp_path / "out")[1])) == 80
