"""Throughput: exact sizes, timers that time only what they name, tables and JSON of the command."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import counts, throughput, timing, training
from bench.model import ARCHITECTURES, PASSES, VARIANTS
from bench.settings import DEFAULTS, Settings
from bench.table import cell, not_measured, table
from models.vae import build
from pipeline import corrupt
from pipeline.index import open_dataset
from train import launch

COMMAND = Path(throughput.__file__)
TINY = Settings(batch_size=8, repeats=2, steps=1, compiled=False)
STEM_MACS = 32 * 32 * 16 * 3 * 5 * 5


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> Callable[..., None]:
        def call(*_: Any) -> None:
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("seed", 217_311, 31_930_368), ("refined", 219_279, 32_030_720)],
)
def test_sizes_are_exact(name: str, parameters: int, macs: int) -> None:
    model = build(ARCHITECTURES[name], 0)
    found, flops = counts.multiply_adds(model), counts.flops(model)
    assert counts.parameters(model)["total"] == parameters
    assert found["total"] == macs == found["encoder"] + found["decoder"]
    assert flops["forward"] == 2 * macs
    # every convolution has two gradients as dear as itself, but the image needs none
    assert flops["forward+backward"] == 3 * 2 * macs - 2 * STEM_MACS


CONVOLUTIONS = {
    "plain": nn.Conv2d(6, 4, 3, padding=1),
    "strided": nn.Conv2d(6, 4, 4, stride=2, padding=1),
    "transposed": nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
}


@pytest.mark.parametrize("conv", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_backward_flops_without_groups_are_those_of_torch(conv: nn.Module) -> None:
    x = torch.rand(2, 6, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as reference:
        conv(x).sum().backward()
    assert counts.count_flops(lambda: conv(x).sum().backward()) == reference.get_total_flops()


def test_backward_flops_of_groups_are_those_of_their_parts() -> None:
    def spent(channels: int, groups: int) -> int:
        conv = nn.Conv2d(channels, 2 * channels, 3, groups=groups)
        x = torch.rand(2, channels, 8, 8, requires_grad=True)
        return counts.count_flops(lambda: conv(x).sum().backward())

    assert spent(6, groups=6) == 6 * spent(1, groups=1)
    assert spent(6, groups=2) == 2 * spent(3, groups=1)


def test_without_fvcore_the_number_is_missing_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    assert "fvcore" in counts.multiply_adds(build(ARCHITECTURES["seed"], 0))["not_measured"]


def test_a_timer_gives_the_mean_of_a_call(clock: Clock) -> None:
    clock.work(5.0)()
    assert timing.timed(clock.work(0.25), 4, CPU) == 0.25


def test_rounds_alternate_their_direction() -> None:
    order, ticks = [], count()

    def block(name: str) -> Callable[[], float]:
        def call() -> float:
            order.append(name)
            return float(next(ticks))

        return call

    values = timing.rounds({n: block(n) for n in "abc"}, 2, lambda line: None)
    assert "".join(order) == "abccba"
    assert values == {"a": [0, 5], "b": [1, 4], "c": [2, 3]}


def test_spread() -> None:
    assert timing.Spread.of([3.0, 1.0, 8.0]) == timing.Spread(3.0, 1.0, 8.0, 3)


def test_spans_see_the_calls_inside_them(clock: Clock) -> None:
    spans = timing.Spans(CPU)
    inner = spans.around("inner", clock.work(2.0))

    def outer() -> str:
        clock.now += 1.0
        inner()
        return "result"

    watched = spans.around("outer", outer)
    assert [watched(), watched()] == ["result"] * 2
    assert spans.seconds() == {"inner": [2.0, 2.0], "outer": [3.0, 3.0]}


def test_steps_are_timed_only_when_the_loader_is_at_its_pace(clock: Clock) -> None:
    closed = []

    def source() -> Any:
        try:
            for step in count():
                yield 100.0 if step < training.WARMUP else 1.0
        finally:
            closed.append(True)

    trainer: Any = SimpleNamespace(device=CPU, update=lambda seconds: clock.work(seconds)())
    assert training._block(trainer, source, steps=3) == 1.0
    assert closed


def test_the_parts_of_a_step_add_up_and_leave_the_trainer_as_it_was(
    small_dataset: Path, tmp_path: Path
) -> None:
    trainer = training.make_trainer(
        "dvae", TINY, Accelerator(cpu=True), open_dataset(small_dataset), tmp_path
    )
    before = trainer.step.draw, trainer.forward, corrupt.corrupt
    fixed = training.sources(trainer)[training.FIXED]
    records = training._split(trainer, fixed, TINY, lambda line: None)
    assert {r["part"] for r in records} == {"draw", "corrupt", "forward", "backward", training.REST}
    assert sum(r["share"] for r in records) == pytest.approx(1)
    assert all(r["seconds"]["low"] > 0 for r in records)
    assert trainer.done == 1 + TINY.repeats * TINY.steps
    assert (trainer.step.draw, trainer.forward, corrupt.corrupt) == before


def test_a_table_is_aligned() -> None:
    lines = table([["name", "n"], ["a", "1,000"], ["longer", "7"]]).splitlines()
    assert lines[0] == "  name        n" and lines[3] == "  longer      7"
    assert {len(line) for line in lines} == {15}
    assert cell({"median": 1234.5, "low": 1000.0, "high": 2000.0}) == "1,234 (1,000..2,000)"
    assert cell(not_measured("needs a GPU")) == "not measured"


def is_spread(value: Any) -> bool:
    return (
        set(value) == {"median", "low", "high", "repeats"}
        and 0 < value["low"] <= value["median"] <= value["high"]
    )


@pytest.fixture(scope="module")
def everything(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a tiny run of all modes, on one thread, which suits so small a batch."""
    target = tmp_path_factory.mktemp("bench") / "all.json"
    argv = ["all", "--json", str(target), "--data", str(small_dataset)]
    tiny = ["--batch-size", "8", "--repeats", "2", "--steps", "1", "--no-compiled"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launch, "usable_cores", lambda: 1)
        assert throughput.main([*argv, *tiny]) == 0
    torch.set_num_threads(threads)
    assert [path.name for path in target.parent.iterdir()] == ["all.json"]
    document: dict[str, Any] = json.loads(target.read_bytes())
    return document


def test_the_document_says_what_was_measured_and_where(
    everything: dict[str, Any], small_dataset: Path
) -> None:
    assert set(everything) == {"environment", "mode", "settings", "results"}
    assert everything["mode"] == "all"
    assert everything["settings"] == {**vars(TINY), "data": str(small_dataset)}
    assert everything["environment"]["threads"] == 1
    assert {"device", "packages", "commit", "load_average"} <= set(everything["environment"])


def test_every_pass_is_measured_or_says_why_not(everything: dict[str, Any]) -> None:
    records = [r for r in everything["results"] if r["mode"] == "model" and r["kind"] == "speed"]
    found = {(r["architecture"], r["pass"], r["variant"]): r["images_per_s"] for r in records}
    assert len(found) == len(records) == len(ARCHITECTURES) * len(PASSES) * len(VARIANTS)
    for (_, _, variant), rate in found.items():
        if VARIANTS[variant].compiled:
            assert set(rate) == {"not_measured"}
        elif VARIANTS[variant].precision == "fp32":
            assert is_spread(rate) and rate["repeats"] == 2


def test_training_is_compared_with_the_same_steps_on_one_batch(everything: dict[str, Any]) -> None:
    records = [r for r in everything["results"] if r["mode"] == "train" and r["kind"] == "speed"]
    assert {(r["preset"], r["source"]) for r in records} >= {
        (preset, source) for preset in ("dvae", "eq-dvae") for source in ("fixed", "host", "stream")
    }
    for record in records:
        assert all(is_spread(record[k]) for k in ("images_per_s", "step_s", "step_over_fixed"))
        assert record["images_per_s"]["low"] * record["step_s"]["high"] == pytest.approx(8)
        if record["source"] == "fixed":
            assert record["step_over_fixed"]["low"] == record["step_over_fixed"]["high"] == 1


def test_tables_show_what_the_document_holds(everything: dict[str, Any]) -> None:
    settings = replace(DEFAULTS["cpu"], batch_size=8)
    shown = ""
    for name, mode in throughput.MODES.items():
        records = [r for r in everything["results"] if r["mode"] == name]
        shown += mode.report(records, settings)
    for record in everything["results"]:
        if record["kind"] == "speed":
            assert cell(record["images_per_s"]) in shown
    assert "217,311" in shown and "31,930,368" in shown and "63,860,736" in shown


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["model", "--json", "nowhere/a.json"], 2, "nowhere does not exist"),
        (["model", "--repeats", "0"], 2, "repeats is 0"),
        (["cook"], 2, "invalid choice"),
        (["train", "--data", "nowhere"], 1, "not a packed data set"),
    ],
)
def test_unusable_arguments_are_refused_before_any_work(
    argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = throughput.main(argv)
    except SystemExit as stopped:
        found = int(stopped.code or 0)
    assert found == code and message in capsys.readouterr().err


def test_the_command_starts_by_path_from_anywhere_and_imports_little(tmp_path: Path) -> None:
    """Neither what training does without, nor what takes long to import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(COMMAND), "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "--batch-size" in done.stdout and "torch" in imported
    assert not imported & {"tyro", "sklearn", "tensorboard", "pandas", "fvcore", "webdataset"}
