"""On a GPU: the host never waits for the device between two logging steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pipeline.index import open_dataset
from tests.test_train import config
from train.config import DEFAULT_PRESET
from train.loop import Trainer
from train.saver import Copies

pytestmark = pytest.mark.gpu


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("storage", ["device", "host", "stream"])
def test_a_compiled_step_waits_for_nothing(
    storage: str, small_dataset: Path, tmp_path: Path
) -> None:
    settings = config(DEFAULT_PRESET, images=160, storage=storage, compile=True, precision="bf16")
    dataset = open_dataset(small_dataset)
    one = Trainer(Accelerator(), settings, dataset, tmp_path, lambda line: None)
    for batch in one.loader.batches(0, 160):
        if one.done < 5:  # compiles, and fills the caches of the allocators
            one.update(batch)
        else:
            with refusing_to_wait():
                one.update(batch)
    assert one.done == 20 and one.sums.bad() is None


def test_copies_are_of_their_moment() -> None:
    """Queued behind the work before them, and untouched by in-place work queued after them."""
    original = torch.zeros(1 << 24, device="cuda")
    with refusing_to_wait():
        for _ in range(100):
            original += 1
        copies = Copies({"a": original, "b": original[:3]})
        for _ in range(100):
            original += 1
    found = copies.on_host()
    assert all((t == 100).all() and not t.is_cuda for t in found.values())
    assert (original == 200).all()
