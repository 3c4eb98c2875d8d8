"""Trackers beside metrics.jsonl, in their offline modes; the services themselves are not called.

The kind: a package that is missing; a service that cannot start, or fails on the way; a run that is
resumed; several at once, and none.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import DataError
from eval.run import METRICS
from pipeline.index import open_dataset
from tests.helpers.messages import collected_messages
from tests.helpers.training import load_undamaged, make_trainer, short_config
from train import tracker
from train.tracker import IDS, TRACKERS, AccelerateTracker, Tracker, require_trackers

SETTINGS = {"seed": 0, "optim.lr": 4e-3}


def require(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: uv sync --extra {name}")


def train_part(dataset: Path, run: Path, name: str, until: int) -> None:
    """Train to a step, or resume, with a tracker."""
    trainer = make_trainer(open_dataset(dataset), run, short_config("vae"))
    checkpoint = load_undamaged(run)
    log_bytes = 0
    if checkpoint:
        trainer.restore(checkpoint)
        log_bytes = checkpoint.meta["log_bytes"]
    metrics = Tracker(run, [TRACKERS[name](run, trainer.images_seen, SETTINGS)], log_bytes)
    trainer.train(metrics, lambda: trainer.done == until)
    metrics.close()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_an_error_that_names_the_extra(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=rf"uv sync --extra {name} \(or pip install {package}\)"):
        require_trackers(["tensorboard", name])
    require_trackers(["tensorboard"])
    require_trackers([])


@pytest.mark.slow
def test_wandb_offline_has_one_run_that_a_resume_continues(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_part(small_dataset, tmp_path, "wandb", 6)
    ids = json.loads((tmp_path / IDS).read_text())
    train_part(small_dataset, tmp_path, "wandb", 12)
    assert json.loads((tmp_path / IDS).read_text()) == ids
    folders = [path for path in (tmp_path / "wandb").glob("offline-run-*") if path.is_dir()]
    assert len(folders) == 2 and all(path.name.endswith(ids["wandb"]) for path in folders)
    assert all(list(folder.glob("*.wandb")) for folder in folders)


@pytest.mark.slow
def test_mlflow_in_the_run_folder_has_every_metric_once_resumed(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that it is absent again at the end
        monkeypatch.delenv(name)
    import mlflow

    run = tmp_path / "run"
    train_part(small_dataset, run, "mlflow", 6)
    train_part(small_dataset, run, "mlflow", 12)
    client = mlflow.MlflowClient(tracker.mlflow_uri(run))
    (experiment,) = client.search_experiments(filter_string="name = 'eqdvae'")
    (service_run,) = client.search_runs([experiment.experiment_id])
    assert service_run.info.run_id == json.loads((run / IDS).read_text())["mlflow"]
    assert service_run.data.params == {name: str(value) for name, value in SETTINGS.items()}
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    expected = {r["images"]: r["loss"] for r in records if r["kind"] == "train"}
    history = client.get_metric_history(service_run.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == expected and len(expected) == 4


class Failing:
    """A tracker of Accelerate whose service fails at a stated call."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> None:
            self.calls.append(name)
            if name == self.at:
                raise RuntimeError(f"no\nnetwork at {name}")

        return call


def failing(run: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> tuple[AccelerateTracker, Any]:
    service = Failing(at)
    monkeypatch.setattr(tracker, "WandBTracker", lambda *args, **options: service)
    return AccelerateTracker("wandb", run, SETTINGS), service


def test_a_service_that_cannot_start_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"--track wandb cannot start: no network at start\. Log"):
        failing(tmp_path, "start", monkeypatch)
    assert not (tmp_path / IDS).exists()


def test_a_service_that_fails_on_the_way_is_left_out(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    sink, service = failing(tmp_path, "log", monkeypatch)
    with collected_messages() as messages:
        trainer = make_trainer(open_dataset(small_dataset), tmp_path, short_config("vae"))
        metrics = Tracker(tmp_path, [sink], 0)
        assert trainer.train(metrics, lambda: False)
        metrics.close()
    warned = [line for line in messages if "wandb gets no more metrics" in line]
    assert len(warned) == 1 and service.calls.count("log") == 1
    assert len((tmp_path / METRICS).read_text().splitlines()) == 6
