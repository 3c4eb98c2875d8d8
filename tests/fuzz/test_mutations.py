"""No mutation of a file is silent: readers get what they got before, or a named error."""

import os
from pathlib import Path

import pytest

from tests.fuzz.mutations import make_world, mutate

COUNT = int(os.environ.get("EQDVAE_MUTATIONS", "10000"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


def test_none_of_some_mutations_is_silent(world: Path) -> None:
    tally = mutate(world, 150, seed=0)
    assert not tally.silent and not tally.crashed, tally
    assert all(tally.refused[name] for name in tally.tried), tally


@pytest.mark.long
def test_none_of_many_mutations_is_silent(world: Path) -> None:
    tally = mutate(world, COUNT, seed=1)
    print(tally)
    assert not tally.silent and not tally.crashed, "\n".join([*tally.silent, *tally.crashed])
