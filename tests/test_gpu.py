"""On a GPU: the numbers of a CPU, one graph, and a host that never waits for the device.

To be run alone (`pytest -m gpu tests/test_gpu.py`): an Accelerator that was told to stay on the CPU
keeps every later one of its process there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from accelerate import Accelerator

from eval.encoder import PatchEncoder
from eval.measure.metrics import Symmetry
from models.vae import build
from pipeline import corruptions, d4
from pipeline.config import CorruptionConfig
from pipeline.index import open_dataset
from pipeline.loader import Loader
from pipeline.pixels import to_float
from tests.helpers.training import (
    load_undamaged,
    newest_tensors,
    same_tensors,
    short_config,
    train_until,
)
from train.config import COMPARISON
from train.launch import set_deterministic
from train.loop import Trainer
from train.step import generator_for

pytestmark = pytest.mark.gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32, not TF32: AdamW makes whole steps of small differences."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def pixels(count: int) -> torch.Tensor:
    """(count, 3, 32, 32) uint8 on the CPU."""
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator())


def generator() -> torch.Generator:
    return generator_for(0, 0, 0, CPU)


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
    settings = short_config(
        COMPARISON[-1], images=160, storage=storage, compile=True, precision="bf16"
    )
    dataset = open_dataset(small_dataset)
    trainer = Trainer(Accelerator(), settings, dataset, tmp_path)
    for batch in trainer.loader.batches(0, 160):
        if trainer.done < 5:  # compiles, and fills the caches of the allocators
            trainer.update(batch)
        else:
            with refusing_to_wait():
                trainer.update(batch)
    assert trainer.done == 20 and trainer.sums.bad() is None


@pytest.mark.parametrize("storage", ["device", "host", "stream"])
def test_batches_arrive_whole_while_the_device_is_busy(storage: str, small_dataset: Path) -> None:
    split = open_dataset(small_dataset).split("train")
    order = "stream" if storage == "stream" else "host"  # the order of a stream is by blocks
    expected = Loader(split, 16, 3, CPU, order).batches(32, 480)
    batches = Loader(split, 16, 3, GPU, storage).batches(32, 480)
    busy = torch.rand(2048, 2048, device=GPU)
    copies = []
    for batch in batches:
        busy = (busy @ busy).sigmoid()
        copies.append((batch.images + 0, batch.labels + 0, batch.indices))  # queued behind the work
    for (images, labels, indices), one in zip(copies, expected, strict=True):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images.cpu(), one.images) and torch.equal(labels.cpu(), one.labels)
        assert (indices == one.indices).all()


def test_augmentation_and_corruption_are_those_of_the_cpu() -> None:
    moved = pixels(64), torch.arange(64) % 8, d4.pixel_index(32)
    assert torch.equal(d4.act(*(t.to(GPU) for t in moved)).cpu(), d4.act(*moved))
    settings, x = CorruptionConfig(), to_float(moved[0])
    draws = corruptions.draw(settings, len(x), 32, generator())
    copies = {kind: tuple(t.to(GPU) for t in tensors) for kind, tensors in draws.items()}
    corrupted = corruptions.corrupt(x.to(GPU), settings, copies).cpu()
    expected = corruptions.corrupt(x, settings, draws)
    torch.testing.assert_close(corrupted, expected, rtol=0, atol=2e-3)


def trained(
    preset: str, run: Path, data: Path, stop: int | None = None, **changes: object
) -> Trainer:
    settings = short_config(preset, **changes)
    run.mkdir(exist_ok=True)
    trainer = Trainer(Accelerator(), settings, open_dataset(data), run)
    train_until(trainer, run, stop)
    return trainer


@pytest.mark.parametrize("preset", ["eq-dvae", "d4-dvae"])
def test_a_compiled_step_is_one_graph_and_learns_as_an_eager_one(
    preset: str, small_dataset: Path, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = trained(preset, tmp_path / "a", small_dataset, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    eager = trained(preset, tmp_path / "b", small_dataset, compile=False)
    for one, other in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_cuda_graphs_learn_as_the_compiled_step_that_they_replay(
    small_dataset: Path, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = {"compile": True, "precision": "fp32"}
    replayed = trained("dvae", tmp_path / "a", small_dataset, cuda_graphs=True, **options)
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    torch._dynamo.reset()
    called = trained("dvae", tmp_path / "b", small_dataset, **options)
    for one, other in zip(replayed.model.parameters(), called.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    small_dataset: Path, tmp_path: Path
) -> None:
    set_deterministic()
    try:
        trained("eq-dvae", tmp_path / "whole", small_dataset)
        trained("eq-dvae", tmp_path / "cut", small_dataset, stop=5)
        dataset, cut = open_dataset(small_dataset), tmp_path / "cut"
        resumed = Trainer(Accelerator(), short_config("eq-dvae"), dataset, cut)
        checkpoint = load_undamaged(cut)
        assert checkpoint is not None and checkpoint.images_seen == 40
        resumed.restore(checkpoint)
        train_until(resumed, tmp_path / "cut", log_bytes=checkpoint.meta["log_bytes"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_tensors(newest_tensors(tmp_path / "whole"), newest_tensors(tmp_path / "cut"))


def test_embeddings_are_those_of_the_cpu() -> None:
    model = build(short_config(COMPARISON[-1]).model, 0, [0.7, 0.5, 0.6]).eval()
    symmetry = Symmetry()
    for readout in ("mean", "orbit_invariant"):
        expected = PatchEncoder(model.to(CPU), symmetry).encode(pixels(300), readout)
        encoded = PatchEncoder(model.to(GPU), symmetry).encode(pixels(300), readout)
        torch.testing.assert_close(encoded, expected, rtol=1e-2, atol=1e-2)
