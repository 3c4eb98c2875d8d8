"""Fixtures that tests of several packages share. Helpers are in `tests.helpers`."""

import logging
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import threadpoolctl
import torch

from common.console import log
from common.machine import THREAD_VARIABLES
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.patches import write_patches

# the batches of tests are too small to share, and threads that spin stop a busy machine; the limit
# holds for libraries that are loaded by then, and scikit-learn brings its own
import_module("sklearn.linear_model")
torch.set_num_threads(1)
threadpoolctl.threadpool_limits(1)


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """Undo what commands that run in the process of a test do to show messages."""
    yield
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Undo what commands that run in the process of a test do to threads, here and in children."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        threadpoolctl.threadpool_limits(1)


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of two classes: 24 train, 8 val and 8 test patches per class."""
    folder = tmp_path_factory.mktemp("small")
    write_patches(folder / "raw", {"train": 24, "val": 8, "test": 8}, ("normal", "tumor"), seed=0)
    pack(folder / "raw", folder / "shards", PackOptions(shard_size=20, workers=1))
    return folder / "shards"
