"""The supervised ceiling: its loss, what it leaves alone, and a run of it like any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from common.errors import DataError
from eval.config import EvalConfig
from eval.evaluation import evaluate
from eval.report.report import write_report
from eval.run import DataRecord, RunRecord
from models.classification import Classification
from models.config import ModelConfig, ObjectiveConfig
from models.objective import Inputs
from models.vae import build
from pipeline.config import NONE, CorruptionConfig
from pipeline.index import open_dataset
from pipeline.loader import Loader
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.ranks import run_ranks
from tests.helpers.training import (
    load_undamaged,
    log_without_clock,
    make_trainer,
    newest_tensors,
    same_tensors,
    short_config,
    train_until,
)
from train.config import PRESETS, as_json
from train.launch import start_accelerator
from train.prepare import write_record
from train.step import TrainStep, generator_for
from train.task import require_labels

CPU = torch.device("cpu")
BATCH = 12
SHORT = EvalConfig(
    baselines=("mean_rgb",),
    probes=("logistic",),
    readouts=("mean",),
    budgets=False,
    robustness=False,
    orbit_probe=False,
)


def new_step(classes: int = 2) -> TrainStep:
    objective = Classification(PRESETS["supervised"]().objective, 24, classes)
    return TrainStep(build(ModelConfig(), 0), objective, CorruptionConfig())


def images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def test_loss_is_the_cross_entropy_of_the_labelled_patches() -> None:
    step = new_step(3)
    objective, model = step.objective, step.model
    assert isinstance(objective, Classification)
    torch.nn.init.normal_(objective.head.weight)
    x, labels = torch.rand(8, 3, 32, 32), torch.tensor([0, 1, 2, -1, 1, -1, 0, 2])
    batch = Inputs(torch.zeros_like(x), x, torch.empty(0), labels, labels)
    losses = objective(model, batch)
    labelled = labels >= 0
    logits = objective.head(model.encoder(x[labelled]).mean.flatten(1))
    assert losses["loss"].item() == pytest.approx(F.cross_entropy(logits, labels[labelled]).item())
    expected = (logits.argmax(1) == labels[labelled]).float().mean()
    assert losses["accuracy"].item() == pytest.approx(expected.item())
    nothing = objective(model, batch._replace(labels_B=torch.full((8,), -1)))
    assert nothing["loss"].item() == 0


def test_step_is_one_graph_and_leaves_the_decoder_alone() -> None:
    step = new_step()
    counter = CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=False)
    for i in range(2):
        batch, labels = images(8), torch.arange(8) % 2
        draws = step.draw(8, generator_for(0, 8 * i, 0, CPU))
        losses = compiled(batch, draws, labels)
        assert torch.equal(losses["loss"], step(batch, draws, labels)["loss"])
        losses["loss"].backward()
    assert counter.frame_count == 1
    trained = {name for name, p in step.named_parameters() if p.grad is not None}
    named = {name for name, _ in step.named_parameters()}
    assert {n for n in named if "decoder" not in n} == trained


def test_a_run_learns_resumes_to_the_bit_and_is_evaluated(
    small_dataset: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(small_dataset)
    settings = short_config("supervised", images=480, batch_size=16)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainer = make_trainer(dataset, whole, settings)
    head = trainer.step.get_parameter("objective.head.weight")
    (group,) = [g for g in trainer.optimizer.param_groups if any(p is head for p in g["params"])]
    assert group["scale"] == 1 and group["weight_decay"] == 0
    before = {name: p.clone() for name, p in trainer.model.decoder.named_parameters()}
    assert train_until(trainer, whole)
    assert all(torch.equal(p, before[n]) for n, p in trainer.ema.decoder.named_parameters())
    log = log_without_clock(whole)
    train, val = ([r for r in log if r["kind"] == kind] for kind in ("train", "val"))
    assert train[-1]["loss"] < train[0]["loss"] and train[-1]["accuracy"] > 0.7
    assert val[-1]["accuracy"] > 0.7 and "psnr" not in val[-1]

    assert not train_until(make_trainer(dataset, cut, settings), cut, 7)
    checkpoint = load_undamaged(cut)
    assert checkpoint is not None and "step/objective.head.weight" in checkpoint.tensors
    resumed = make_trainer(dataset, cut, settings)
    resumed.restore(checkpoint)
    train_until(resumed, cut, None, checkpoint.meta["log_bytes"])
    assert same_tensors(newest_tensors(whole), newest_tensors(cut))
    assert log_without_clock(cut) == log

    trainer.save_snapshot("supervised")
    data = DataRecord(str(small_dataset), dataset.hash)
    write_record(whole / "config.json", RunRecord("supervised", as_json(settings), data))
    results = evaluate(whole, small_dataset, SHORT)
    raw = json.loads((whole / "results.json").read_text())
    assert raw["reconstruction"]["psnr"] is None and raw["latent"]["kl"] is None
    assert raw["reconstruction"]["by_kind"]["noise"]["input_psnr"] > 0
    assert raw["probe"]["mean"]["auroc"] > 0.5
    assert any("decoder is untrained" in notice for notice in results.notices)
    assert not (whole / "figures" / "reconstructions.png").exists()
    assert write_report([whole], whole / "report").is_file()


def test_data_without_labels_are_refused(small_dataset: Path, tmp_path: Path) -> None:
    for index in range(6):
        pixels = np.full((32, 32, 3), 40 * index, np.uint8)
        (tmp_path / "raw").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "raw" / f"{index}.png")
    pack(tmp_path / "raw", tmp_path / "shards", PackOptions(workers=1))
    unlabelled = open_dataset(tmp_path / "shards")
    with pytest.raises(DataError, match="labels of 0 classes"):
        require_labels(PRESETS["supervised"](), unlabelled)
    require_labels(PRESETS["dvae"](), unlabelled)
    require_labels(PRESETS["supervised"](), open_dataset(small_dataset))


def test_other_terms_beside_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="one term"):
        ObjectiveConfig(task="classify", stochastic=False)


def gradients(data: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Gradients by parameter: averaged over the ranks, and of one process on the whole batch."""
    accelerator = start_accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    split = open_dataset(data).split("train")

    def batch(rank: int, world: int) -> tuple[Tensor, Tensor]:
        loader = Loader(split, BATCH, 0, accelerator.device, "host", rank, world)
        first = next(loader.batches(0, 1))
        return first.images, first.labels

    step, alone = plain_step(), plain_step()
    wrapped = accelerator.prepare(step)
    for module, (x, labels) in ((wrapped, batch(rank, world)), (alone, batch(0, 1))):
        draws = alone.draw(len(x), generator_for(0, 0, 0, x.device))
        accelerator.backward(module(x, draws, labels)["loss"])
    accelerator.end_training()
    return {
        name: (parameter.grad.numpy(), alone.get_parameter(name).grad.numpy())
        for name, parameter in step.named_parameters()
        if parameter.grad is not None
    }


def plain_step() -> TrainStep:
    """Make a step without anything random, so that ranks and one process see the same."""
    step = new_step()
    assert isinstance(step.objective, Classification)
    torch.nn.init.constant_(step.objective.head.weight[0], 0.1)
    return TrainStep(step.model, step.objective, NONE, augment=False)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_gradients_on_several_ranks_are_those_of_one(world: int, small_dataset: Path) -> None:
    for by_name in run_ranks(world, gradients, small_dataset):
        assert "objective.head.weight" in by_name
        for name, (shared, alone) in by_name.items():
            distance = np.linalg.norm(shared - alone)
            assert distance <= 1e-4 * np.linalg.norm(alone), name
