"""Efficiency in the report: what the benchmark of the models wrote, beside the right arms."""

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import counts
from common.errors import DataError
from eval.report import efficiency
from eval.report.__main__ import main
from eval.report.arms import compare_runs
from eval.report.document import Missing
from eval.report.report import write_report
from eval.report.runs import load_runs
from models.config import ModelConfig
from models.vae import build
from tests.helpers.report_runs import change_results, pack_noise, write_run

SEED = ModelConfig(architecture="seed")


def write_measurement(path: Path) -> Path:
    """What `bench/throughput.py model --json` writes for the architecture `seed`."""
    model = build(SEED, 0)
    facts = {"mode": "model", "architecture": "seed", "model": asdict(SEED)}
    sizes = {"macs": counts.multiply_adds(model), "flops": counts.flops(model)}
    rates = {"eager fp32": 900.4, "eager bf16": 1200.6}
    speeds: list[dict[str, Any]] = [
        {
            **facts,
            "kind": "speed",
            "pass": name,
            "variant": variant,
            "images_per_s": {"median": rate, "low": rate - 9, "high": rate + 9, "repeats": 3},
        }
        for name in ("encode", "eq-dvae forward+backward")
        for variant, rate in rates.items()
    ]
    unmeasured = {"not_measured": "needs --compiled"}
    speeds.append({**speeds[0], "variant": "compiled bf16", "images_per_s": unmeasured})
    environment = {
        "device": "=a <machine>",
        "threads": 2,
        "packages": {"torch": "2.11.0"},
        "commit": "0123456789abcdef",
    }
    records = [{"kind": "size", **facts, **sizes}, *speeds]
    document = {"environment": environment, "mode": "model", "results": records}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """An eq-dvae and a dvae of the architecture seed, and one of another."""
    data = pack_noise(tmp_path / "data", groups=2)
    tied = ModelConfig("tied")
    runs = []
    for name, config, weight in (
        ("eq-dvae", SEED, 0.3),
        ("dvae", SEED, 0.0),
        ("d4-dvae", tied, 0.0),
    ):
        facts: dict[str, Any] = json.loads(json.dumps(asdict(config)))
        facts |= {"snapshot": f"{name}0", "parameters": counts.parameters(build(config, 0))}
        run = write_run(tmp_path / name, data, name, 0, 1.0, equivariance=weight, decodes=True)
        runs.append(change_results(run, model=facts))
    return runs


def rows(runs: list[Path], measured: efficiency.Efficiency | None) -> dict[str, list[str]]:
    table = efficiency.table(compare_runs(load_runs(runs)).arms.values(), measured)
    return {str(name): list(cells) for name, *cells in table.rows}


def test_every_arm_has_the_cost_of_its_architecture(runs: list[Path], tmp_path: Path) -> None:
    cells = rows(runs, efficiency.load(write_measurement(tmp_path / "model.json")))
    model = build(SEED, 0)
    macs = counts.multiply_adds(model)
    assert isinstance(macs, dict)
    operations = (macs["encoder"], macs["total"], counts.flops(model)["forward"])
    millions = [int(count) / 1e6 for count in operations]
    size = ["217,311", "68,790", *(f"{count:.1f}" for count in millions)]
    fastest = "1,201 (1,192–1,210) eager bf16"
    assert cells["eq-dvae"] == [*size, fastest, fastest]
    assert cells["dvae"] == [*size, fastest, "not measured"]  # its own step was not timed
    assert cells["d4-dvae"][2:] == ["not measured"] * 5
    assert int(cells["d4-dvae"][0].replace(",", "")) < 217_311


def test_without_a_benchmark_only_parameters_are_known(runs: list[Path]) -> None:
    for cells in rows(runs, None).values():
        assert cells[0] != "–" and len(cells) == 2
    _, missing = efficiency.parts(list(compare_runs(load_runs(runs)).arms.values()), None)
    assert isinstance(missing, Missing) and missing.command == efficiency.MEASURE


def test_the_report_names_the_machine(runs: list[Path], tmp_path: Path) -> None:
    written = write_report(runs, tmp_path / "out", (), write_measurement(tmp_path / "m.json"))
    text = html.unescape(written.with_name("report.html").read_text())
    assert "a <machine>, 2 threads, torch 2.11.0, commit 0123456789." in text


@pytest.mark.parametrize("text", ['{"mode": "train"}', "[]", "no json", '{"results": 3}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        efficiency.load(path)


def test_a_measurement_of_another_mode_or_version_is_refused(
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_measurement(tmp_path / "old.json")
    document = json.loads(path.read_text())
    for record in document["results"]:
        del record["model"]
    path.write_text(json.dumps(document))
    argv = ["eval.report", str(runs[0]), "--out", str(tmp_path / "out"), "--efficiency", str(path)]
    monkeypatch.setattr("sys.argv", argv)
    assert main() != 0
    message = capsys.readouterr().err
    assert "old.json is not of this version" in message and "throughput.py model --json" in message
