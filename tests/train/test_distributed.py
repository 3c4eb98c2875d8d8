"""Training on real ranks: the order and the gradients of one process, resuming, disagreements."""

import io
import json
import os
import signal
import socket
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import ranks
from common.errors import DataError
from eval.run import load_status
from models.config import ModelConfig, ObjectiveConfig
from models.objective import Objective
from models.vae import build
from pipeline.config import CorruptionConfig
from pipeline.index import open_dataset
from pipeline.loader import STREAM_BLOCK, Batch, Loader, Order
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.patches import write_patches
from tests.helpers.ranks import run_ranks
from tests.helpers.training import run_status
from train import main as command
from train import program
from train.launch import start_accelerator
from train.loop import Trainer
from train.step import Draws, TrainStep, generator_for

BATCH = 24  # parts of one size for every kind of corruption on 1, 2 and 3 ranks

pytestmark = pytest.mark.slow

Indices = NDArray[np.int64]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training samples in one shard: fewer shards than ranks, fewer samples than places."""
    folder = tmp_path_factory.mktemp("few")
    write_patches(folder / "raw", {"train": 5}, ("only",), seed=3)
    pack(folder / "raw", folder / "shards", PackOptions(shard_size=5, workers=1))
    return folder / "shards"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_patches(folder / "raw", {"train": 24, "val": 8, "test": 8}, ("normal", "tumor"), seed=9)
    pack(folder / "raw", folder / "shards", PackOptions(shard_size=20, workers=1))
    return folder / "shards"


def whole(shares: list[list[Indices]]) -> Indices:
    """The global batches, put together from those of the ranks; one count of steps."""
    assert len({len(batches) for batches in shares}) == 1
    return np.concatenate([np.stack(parts, 1).ravel() for parts in zip(*shares, strict=True)])


def indices_of(datasets: list[Path], images: int) -> list[list[Indices]]:
    """This rank's samples, batch by batch, for every data set streamed and in memory."""
    accelerator = start_accelerator()
    at = accelerator.process_index, accelerator.num_processes
    indices = []
    for folder in datasets:
        for storage in ("stream", "host"):
            split = open_dataset(folder).split("train")
            loader = Loader(split, BATCH, 0, accelerator.device, storage, *at)
            indices.append([batch.indices for batch in loader.batches(0, images)])
    accelerator.end_training()
    return indices


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_order_is_one_for_any_number_of_ranks(
    world: int, small_dataset: Path, few: Path
) -> None:
    by_rank = run_ranks(world, indices_of, [small_dataset, few], 240)
    counts = [len(open_dataset(folder).split("train")) for folder in (small_dataset, few)]
    assert counts == [48, 5]
    orders = [Order(n, 0, block) for n in counts for block in (STREAM_BLOCK, 1)]
    for order, *shares in zip(orders, *by_rank, strict=True):
        seen, batches = whole(shares), order.take(0, 240).reshape(-1, BATCH)
        if order.block == 1:
            np.testing.assert_array_equal(seen, batches.ravel())
        # of a stream the ranks share each batch by blocks: the same samples, dealt otherwise
        np.testing.assert_array_equal(np.sort(seen.reshape(-1, BATCH)), np.sort(batches))
        epochs = batches.reshape(-1, order.count)
        assert (np.sort(epochs) == np.arange(order.count)).all()


def new_step() -> TrainStep:
    objective = Objective(ObjectiveConfig(equivariance=0.3), 24)
    return TrainStep(build(ModelConfig(), 0), objective, CorruptionConfig())


def by_kind(parts: list[Tensor]) -> Tensor:
    """The samples of all ranks, kind of corruption by kind: a batch of one process."""
    counts = CorruptionConfig().counts(len(parts[0]))
    pieces = [part.split(list(counts.values())) for part in parts]
    return torch.cat([piece for kind in zip(*pieces, strict=True) for piece in kind])


def as_one(draws: list[Draws]) -> Draws:
    """The random tensors of all ranks, for that batch."""
    samples = [by_kind([getattr(d, name) for d in draws]) for name in Draws._fields[:3]]
    corruption = {
        kind: tuple(map(torch.cat, zip(*(d.corruption[kind] for d in draws), strict=True)))
        for kind in draws[0].corruption
    }
    return Draws(*samples, corruption)


def gradients(data: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """By parameter: averaged over the ranks, and of one process on the whole batch."""
    accelerator = start_accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    split = open_dataset(data).split("train")
    images = [
        next(Loader(split, BATCH, 0, accelerator.device, "host", r, world).batches(0, 1)).images
        for r in range(world)
    ]
    step, alone = new_step(), new_step()
    draws = [
        step.draw(BATCH // world, generator_for(0, 0, r, images[0].device)) for r in range(world)
    ]
    wrapped = accelerator.prepare(step)
    accelerator.backward(wrapped(images[rank], draws[rank])["loss"])
    alone(by_kind(images), as_one(draws))["loss"].backward()
    accelerator.end_training()
    return {
        name: (parameter.grad.numpy(), alone.get_parameter(name).grad.numpy())
        for name, parameter in step.named_parameters()
    }


@pytest.mark.parametrize("world", [1, 2, 3])
def test_gradients_are_those_of_one_process(world: int, small_dataset: Path) -> None:
    for by_parameter in run_ranks(world, gradients, small_dataset):
        for name, (shared, alone) in by_parameter.items():
            distance = np.linalg.norm(shared - alone)
            assert distance <= 1e-4 * np.linalg.norm(alone), name


def launched(commands: list[list[str]]) -> tuple[int, str]:
    """Exit code and messages of training, started with a command of its own on each rank."""
    ranks.APPEARS_S = 1.0
    with redirect_stderr(io.StringIO()) as told:
        code = command.main(commands[int(os.environ["RANK"])])
    return code, told.getvalue()


def training(data: Path, out: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--out", str(out)]
    budget = ["--images", "480", "--batch-size", str(BATCH), "--loop.validations", "1"]
    return ["dvae", *places, *budget, "--track", *more]


def test_ranks_that_differ_are_refused_before_the_first_step(
    small_dataset: Path, other: Path, tmp_path: Path
) -> None:
    host, out = socket.gethostname(), tmp_path / "run"
    hashes = [open_dataset(folder).hash for folder in (small_dataset, other)]
    cases = [
        (training(small_dataset, tmp_path / "elsewhere"), [str(out), str(tmp_path / "elsewhere")]),
        (training(other, out), [f"data.hash: {hashes[0]} -> {hashes[1]}", str(other)]),
        (training(small_dataset, out, "--seed", "1"), ["seed: 0 -> 1"]),
        (training(tmp_path / "nowhere", out), ["nowhere does not exist"]),
    ]
    for command_of_rank_1, named in cases:
        (code, told), (other_code, silent) = run_ranks(
            2, launched, [training(small_dataset, out), command_of_rank_1]
        )
        assert code == other_code == program.UNUSABLE_ARGUMENTS and "error" not in silent
        for text in [*named, f"rank 1 on {host}"]:
            assert text in told, told
        assert not list(out.glob("*"))


def recorded(argv: list[str], stop_at: int | None) -> tuple[int, list[Indices]]:
    """Train, note the samples of every step, and interrupt the last rank after some."""
    seen: list[Indices] = []
    update = Trainer.update

    def noting(trainer: Trainer, batch: Batch) -> None:
        seen.append(batch.indices)
        update(trainer, batch)
        if trainer.done == stop_at and ranks.rank() == ranks.world() - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer.update = noting  # type: ignore[method-assign]
    return command.main(argv), seen


def test_another_number_of_ranks_resumes_in_the_same_order(
    small_dataset: Path, tmp_path: Path
) -> None:
    argv = training(small_dataset, tmp_path / "run")
    first = run_ranks(2, recorded, argv, 5)
    assert {code for code, _ in first} == {program.STOPPED}
    assert run_status(tmp_path / "run") == "interrupted"
    then = run_ranks(3, recorded, [*argv, "--resume"], None)
    assert {code for code, _ in then} == {program.DONE} and run_status(tmp_path / "run") == "done"
    seen = np.concatenate([whole([batches for _, batches in part]) for part in (first, then)])
    np.testing.assert_array_equal(seen, Order(48, 0, 1).take(0, 480))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    images = [row["images"] for row in map(json.loads, lines) if row["kind"] == "train"]
    assert images == sorted(set(images)) and images[-1] == 480


def failing(argv: list[str]) -> int | str:
    """Train; the second rank fails after three steps."""
    update = Trainer.update

    def until_3(trainer: Trainer, batch: Batch) -> None:
        update(trainer, batch)
        if trainer.done == 3 and ranks.rank() == 1:
            raise DataError("its shard was altered")

    Trainer.update = until_3  # type: ignore[method-assign]
    try:
        return command.main(argv)
    except RuntimeError:  # of a rank that waited for the other
        return "broken off"


def test_the_rank_that_failed_says_why(small_dataset: Path, tmp_path: Path) -> None:
    codes = run_ranks(2, failing, training(small_dataset, tmp_path / "run"))
    assert codes == ["broken off", program.FAILED]
    status = load_status(tmp_path / "run")
    assert status is not None
    assert (status.status, status.error) == ("failed", "its shard was altered")
