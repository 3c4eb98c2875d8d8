"""Throughput: exact sizes, tables and JSON of the command."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import command, counts, roofline
from bench.arguments import make_parser
from bench.modes import model
from bench.modes.model import ARCHITECTURES, PASSES
from bench.records import NotMeasured, Spread
from bench.settings import VARIANTS, Settings
from common.console import table
from models.vae import build
from tests.helpers.spreads import is_spread
from train import launch

COMMAND = Path(command.__file__).with_name("throughput.py")
TINY = Settings(batch_size=8, repeats=2, steps=1, compiled=False)
TWO = {mode: command.MODES[mode] for mode in ("model", "train")}  # those of any machine
MEASURED = {name: ARCHITECTURES[name] for name in ("seed", "tied D4")}
STEM_MACS = 32 * 32 * 16 * 3 * 5 * 5


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("seed", 217_311, 31_930_368), ("refined", 219_279, 32_030_720)],
)
def test_sizes_are_exact(name: str, parameters: int, macs: int) -> None:
    model = build(ARCHITECTURES[name], 0)
    multiply_adds, flops = counts.multiply_adds(model), counts.flops(model)
    assert counts.parameters(model)["total"] == parameters
    assert isinstance(multiply_adds, dict)
    assert multiply_adds["total"] == macs
    assert multiply_adds["encoder"] + multiply_adds["decoder"] == macs  # type: ignore[operator]
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
    def flops(channels: int, groups: int) -> int:
        conv = nn.Conv2d(channels, 2 * channels, 3, groups=groups)
        x = torch.rand(2, channels, 8, 8, requires_grad=True)
        return counts.count_flops(lambda: conv(x).sum().backward())

    assert flops(6, groups=6) == 6 * flops(1, groups=1)
    assert flops(6, groups=2) == 2 * flops(3, groups=1)


def test_without_fvcore_the_number_is_missing_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    missing = counts.multiply_adds(build(ARCHITECTURES["seed"], 0))
    assert isinstance(missing, NotMeasured) and "fvcore" in missing.not_measured


def test_a_table_is_aligned() -> None:
    lines = table([["name", "n"], ["a", "1,000"], ["longer", "7"]]).splitlines()
    assert lines == ["name    n", "a       1,000", "longer      7"]
    assert f"{Spread(1234.5, 1000.0, 2000.0, 3):,.0f}" == "1,234 (1,000..2,000)"
    assert f"{NotMeasured('needs a GPU'):,.0f}" == "not measured"


@pytest.fixture(scope="module")
def everything(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a tiny run of two modes, on one thread, which suits so small a batch.

    What the command printed is under "printed".
    """
    target = tmp_path_factory.mktemp("bench") / "all.json"
    argv = ["all", "--json", str(target), "--data", str(small_dataset)]
    tiny = ["--batch-size", "8", "--repeats", "2", "--steps", "1", "--no-compiled"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launch, "threads_for", lambda *args: 1)
        patched.setattr(command, "MODES", TWO)
        patched.setattr(model, "ARCHITECTURES", MEASURED)
        patched.setitem(roofline.MATRIX_SIDE, "cpu", 64)
        patched.setitem(roofline.COPY_BYTES, "cpu", 1 << 16)
        with redirect_stdout(StringIO()) as printed:
            assert command.main(make_parser().parse_args([*argv, *tiny])) == 0
    torch.set_num_threads(threads)
    assert [path.name for path in target.parent.iterdir()] == ["all.json"]
    document: dict[str, Any] = json.loads(target.read_bytes())
    return {**document, "printed": printed.getvalue()}


def test_the_document_says_what_was_measured_and_where(
    everything: dict[str, Any], small_dataset: Path
) -> None:
    assert set(everything) == {"environment", "mode", "settings", "results", "printed"}
    assert everything["mode"] == "all"
    tuples = {"batch_sizes": [], "patches": list(TINY.patches)}  # JSON has lists
    assert everything["settings"] == {**vars(TINY), **tuples, "data": str(small_dataset)}
    assert everything["environment"]["threads"] == 1
    assert {"device", "packages", "commit", "load_average"} <= set(everything["environment"])


def test_every_pass_is_measured_or_says_why_not(everything: dict[str, Any]) -> None:
    records = [r for r in everything["results"] if r["mode"] == "model" and r["kind"] == "speed"]
    rates = {(r["architecture"], r["pass"], r["variant"]): r["images_per_s"] for r in records}
    assert len(rates) == len(records) == len(MEASURED) * len(PASSES) * len(VARIANTS)
    for record in records:  # as results.json has it: the report finds the measurement by it
        config = MEASURED[record["architecture"]]
        assert record["model"] == json.loads(json.dumps(asdict(config)))
    for (_, _, variant), rate in rates.items():
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
    shown = everything["printed"]
    for record in everything["results"]:
        if record["kind"] == "speed":
            rate = record["images_per_s"]
            missing = "not_measured" in rate
            assert ("not measured" if missing else f"{Spread(**rate):,.0f}") in shown
    assert "217,311" in shown and "31,930,368" in shown and "63,860,736" in shown


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["model", "--json", "nowhere/a.json"], 2, "nowhere does not exist"),
        (["model", "--repeats", "0"], 2, "repeats is 0"),
        (["cook"], 2, "invalid choice"),
        (["train", "--batch-sizes", "8", "0"], 2, "batch_sizes are (8, 0)"),
        (["train", "--plot", "nowhere/a.png"], 2, "nowhere does not exist"),
        (["train", "--window", "0"], 2, "window is 0.0"),
        (["train", "--data", "nowhere"], 1, "not a packed data set"),
    ],
)
def test_unusable_arguments_are_refused_before_any_work(
    argv: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "threads_for", lambda *args: 1)  # the threads of the next tests
    try:
        status = command.main(make_parser().parse_args(argv))
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == code and message in capsys.readouterr().err


def test_the_command_starts_by_path_from_anywhere(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(COMMAND), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "--batch-size" in run.stdout


def test_the_command_imports_neither_what_training_does_without_nor_what_takes_long() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import bench.command"],
        cwd=COMMAND.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in run.stderr.splitlines()}
    assert "torch" in imported
    slow = {"sklearn", "torchmetrics", "tensorboard", "pandas", "fvcore", "webdataset"}
    assert not imported & {"tyro", *slow}
