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
from eval.measure.readouts import Symmetry
from models.vae import build
from pipeline import corruptions, d4
from pipeline.corruptions import CorruptionConfig
from pipeline.index import open_dataset
from pipeline.loader import Loader
from pipeline.pixels import to_float
from tests.train.test_loop import config, final_state, train_until
from train import checkpoint as state
from train.config import DEFAULT_PRESET
from train.launch import set_deterministic
from train.loop import Trainer
from train.saver import Copies
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
    copied = copies.on_host()
    assert all((t == 100).all() and not t.is_cuda for t in copied.values())
    assert (original == 200).all()


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
    settings = config(preset, **changes)
    run.mkdir(exist_ok=True)
    one = Trainer(Accelerator(), settings, open_dataset(data), run, lambda line: None)
    train_until(one, run, stop)
    return one


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


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    small_dataset: Path, tmp_path: Path
) -> None:
    set_deterministic()
    try:
        trained("eq-dvae", tmp_path / "whole", small_dataset)
        trained("eq-dvae", tmp_path / "cut", small_dataset, stop=5)
        one = Trainer(
            Accelerator(), config("eq-dvae"), open_dataset(small_dataset), tmp_path / "cut", print
        )
        checkpoint = state.load_newest(tmp_path / "cut", pytest.fail)
        assert checkpoint is not None and checkpoint.images_seen == 40
        one.restore(checkpoint)
        train_until(one, tmp_path / "cut", log_bytes=checkpoint.meta["log_bytes"])
    finally:
        torch.use_deterministic_algorithms(False)
    whole, cut = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_embeddings_are_those_of_the_cpu() -> None:
    model = build(config(DEFAULT_PRESET).model, 0, [0.7, 0.5, 0.6]).eval()
    symmetry = Symmetry()
    for readout in ("mean", "orbit_invariant"):
        expected = PatchEncoder(model.to(CPU), symmetry).encode(pixels(300), readout)
        encoded = PatchEncoder(model.to(GPU), symmetry).encode(pixels(300), readout)
        torch.testing.assert_close(encoded, expected, rtol=1e-2, atol=1e-2)
