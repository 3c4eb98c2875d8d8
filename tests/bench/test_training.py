"""The training side of the bench: equal work on every rung, bytes and shares that are right."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import train.step
from bench import baselines, plain_trainer, roofline, steps
from bench.baselines import Baseline
from bench.modes import side_by_side, training
from bench.modes.side_by_side import measured_rate
from bench.plain_trainer import PlainTrainer
from bench.records import NotMeasured, Spread
from bench.settings import Settings
from models.objective import Inputs, Objective
from models.vae import build
from pipeline import corruptions, d4
from pipeline.config import NONE
from pipeline.index import open_dataset
from pipeline.reader import read_split
from train.config import PRESETS, OptimConfig
from train.loop import Trainer

CPU = torch.device("cpu")
TINY = Settings(batch_size=8, repeats=2, steps=1, compiled=False)


@pytest.fixture
def trainer(small_dataset: Path) -> Trainer:
    dataset, accelerator = open_dataset(small_dataset), Accelerator(cpu=True)
    return steps.make_trainer("dvae", accelerator, dataset, batch_size=8, precision="fp32")


def test_the_parts_of_a_step_are_named_and_the_trainer_is_left_as_it_was(trainer: Trainer) -> None:
    def watched() -> list[Any]:
        names = vars(train.step)["d4"], torch._foreach_lerp_
        return [trainer.step.draw, trainer.forward, corruptions.corrupt, *names]

    before = watched()
    records = steps.measure_parts(trainer, trainer.loader, "dvae", TINY)
    assert {r.part for r in records} == {
        *("load", "draw", "augment", "corrupt", "forward", "backward", "clip, optimizer"),
        *("EMA", steps.REMAINDER),
    }
    assert sum(r.share for r in records) == pytest.approx(1)
    assert all(r.seconds.median > 0 for r in records)
    assert trainer.done == steps.WARMUP + TINY.repeats * TINY.steps
    assert watched() == before


def test_traffic_of_a_convolution_is_what_it_reads_and_writes() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    weight, inputs, outputs = 4 * 3 * 9 * 4, 2 * 3 * 64 * 4, 2 * 4 * 64 * 4  # bytes
    out: list[Tensor] = []
    assert roofline.moved_bytes(lambda: out.append(conv(x))) == inputs + weight + outputs
    gradient = torch.ones_like(out[0])
    # the gradient, the image and the weight are read, the gradients of the last two written
    assert roofline.moved_bytes(lambda: out[0].backward(gradient)) == outputs + 2 * (
        inputs + weight
    )


@pytest.mark.parametrize(
    ("call", "floats"),
    [
        (lambda x: x.view(2, 2, 3).permute(2, 0, 1)[:, 0].expand(5, 3, 2), 0),
        (lambda x: x + 1, 2 * 12),
        (lambda x: x.add_(x), 3 * 12),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x + torch.zeros(1, device=x.device).expand(4, 3), 1 + 2 * 12 + 1),
    ],
    ids=["views", "add", "in place", "empty", "expanded"],
)
def test_views_move_nothing(call: Callable[[Tensor], Any], floats: int) -> None:
    x = torch.rand(4, 3)
    assert roofline.moved_bytes(lambda: call(x)) == 4 * floats


def test_what_is_kept_for_the_backward_pass_counts_once() -> None:
    x = torch.rand(10, 100, requires_grad=True)
    with roofline.kept_storages() as storages:
        y = x.exp()  # keeps its result
        z = y * y  # keeps the same twice
        w = z.sum()  # keeps nothing
        assert sum(storages.values()) == 10 * 100 * 4
    del w


def test_needs_grow_with_the_images_and_shares_with_the_rate(trainer: Trainer) -> None:
    need = roofline.needs(trainer, training.fixed_batch(trainer))
    model = 3 * 2 * 31_930_368 - 2 * 32 * 32 * 16 * 3 * 25  # as in test_bench
    assert model < need.flops < 1.001 * model  # blur and JPEG are products as well
    assert need.moved_bytes > 2 * need.saved_bytes > 2 * 2e6
    assert isinstance(need.peak_bytes, NotMeasured)
    share = roofline.shares(need, 5.0, arithmetic=need.flops * 100, bandwidth=need.saved_bytes * 40)
    assert share.arithmetic == pytest.approx(0.05) and share.bound_arithmetic == 100
    assert share.memory_kept == pytest.approx(0.25) and share.bound_kept == 20
    assert share.memory_moved == pytest.approx(5 / share.bound_moved)


@pytest.mark.parametrize("preset", ["dvae", "eq-dvae"])
def test_the_plain_trainer_has_our_objective_and_learns(preset: str) -> None:
    config = replace(PRESETS[preset](), corruption=NONE, optim=OptimConfig(lr=1e-4))
    plain = PlainTrainer(config, CPU)
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours = Objective(config.objective, config.model.latent_channels)
    torch.manual_seed(5)
    losses = plain.losses(x, x)
    torch.manual_seed(5)
    noise, g_B = torch.randn(8, 24, 4, 4), torch.randint(1, 8, (8,))
    expected = ours(build(config.model, config.seed), Inputs(x, x, noise, g_B))
    assert losses.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-5)
    before = [p.detach().clone() for p in plain.ema.parameters()]
    for _ in range(2):
        plain.update(x)
    assert plain.losses(x, x)["loss"] < losses["loss"]
    assert any(not torch.equal(a, b) for a, b in zip(before, plain.ema.parameters(), strict=True))


def test_the_plain_modules_move_and_corrupt_as_ours_do() -> None:
    plain = PlainTrainer(PRESETS["dvae"](), CPU)
    torch.manual_seed(0)
    ramp = torch.arange(1024.0).reshape(1, 1, 32, 32).expand(64, 3, 32, 32) / 1023
    moved = plain.augment(ramp)
    orbit = torch.stack([d4.act_one(ramp[0], g) for g in range(8)])
    nearest = (moved[:, None] - orbit).abs().amax((2, 3, 4)).min(1)
    assert nearest.values.max() < 1e-3 and len(nearest.indices.unique()) == 8
    touched = (plain.corrupt(ramp) - ramp).abs().amax((1, 2, 3)) > 1e-4
    assert 0.3 < touched.float().mean() < 0.85  # 1 - (3/4)^3 = 0.58


def test_the_plain_loaders_give_the_patches(small_dataset: Path, tmp_path: Path) -> None:
    train = open_dataset(small_dataset).split("train")
    plain_trainer.write_out(train, tmp_path, 4)
    packed = {p.tobytes() for p in read_split(train)}

    def are_packed(images: Tensor) -> list[bool]:
        assert images.dtype == torch.float32 and images.shape[1:] == (3, 32, 32)
        rows = (images * 255).round().byte().permute(0, 2, 3, 1)
        return [row.contiguous().numpy().tobytes() in packed for row in rows]

    for load in plain_trainer.LOADERS.values():
        batches = load(tmp_path, 20, False)
        assert all(all(are_packed(next(batches))) for _ in range(4))  # further than an epoch
        batches.close()
    tars = plain_trainer.tar_batches(tmp_path, 20, False)
    once = [ok for images in tars for ok in are_packed(images)]
    assert len(once) == len(train) and all(once)


def test_a_watched_run_counts_its_own_images(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves by a second at each look."""
    batch, looks = training.fixed_batch(trainer), count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(looks)))
    monkeypatch.setattr(side_by_side, "time", clock)
    rate = measured_rate(trainer, iter([batch] * 9), replace(TINY, steps=2, window=1.5))
    assert trainer.done == 4 and rate == 4 * TINY.batch_size / 2


def test_the_picture_shows_what_was_measured(tmp_path: Path) -> None:
    rate = Spread(median=5.0, low=4.0, high=7.0, repeats=3)

    def record(preset: str, size: int, name: str, rate: Spread | NotMeasured) -> Baseline:
        return Baseline(preset, size, name, False, rate, rate)

    records = [
        record(preset, size, "eager", rate) for preset in ("dvae", "eq-dvae") for size in (32, 64)
    ]
    records.append(record("dvae", 32, "compiled", NotMeasured("why")))
    baselines.plot(records, tmp_path / "baselines.svg")
    text = (tmp_path / "baselines.svg").read_text()
    assert "<!-- eager -->" in text and "<!-- eq-dvae -->" in text and "compiled" not in text
