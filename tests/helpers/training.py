"""Short training runs, and what they leave behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from common.console import log
from common.errors import DataError
from eval.run import METRICS, load_status
from pipeline.index import Dataset
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import PRESETS, Config, LoopConfig
from train.loop import Trainer
from train.tracker import Tracker

SHORT_RUN = [
    *("--images", "480"),
    *("--batch-size", "16"),
    *("--loop.checkpoints", "6"),
    *("--loop.validations", "1"),
]


def short_config(preset: str = "eq-dvae", **changes: Any) -> Config:
    """12 steps of 8 images on the CPU; checkpoints after 6 and 12."""
    settings: dict[str, Any] = {
        "images": 12 * 8,
        "batch_size": 8,
        "precision": "fp32",
        "compile": False,
        "storage": "host",
        "loop": LoopConfig(logs=4, validations=2, checkpoints=2, validation_images=8),
    }
    return replace(PRESETS[preset](), **{**settings, **changes})


def make_trainer(dataset: Dataset, run: Path, config: Config) -> Trainer:
    run.mkdir(parents=True, exist_ok=True)
    return Trainer(Accelerator(cpu=True), config, dataset, run)


def train_until(trainer: Trainer, run: Path, step: int | None = None, log_bytes: int = 0) -> bool:
    """Train to the end, or to an interruption after a step; False when interrupted."""
    tracker = Tracker(run, [], log_bytes)
    return trainer.train(tracker, lambda: trainer.done == step)


def newest_tensors(run: Path) -> dict[str, Tensor]:
    """The tensors of the newest checkpoint."""
    newest = sorted((run / "checkpoints").glob("0*"))[-1]
    return load_file(newest / checkpoint.TENSORS)


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def load_undamaged(run: Path) -> Checkpoint | None:
    """The newest checkpoint; fails where one was skipped as damaged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "warning", pytest.fail)
        return checkpoint.load_newest(run)


def log_without_clock(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "time_s"} for record in records]


def run_status(run: Path) -> str:
    """What RUN/status.json says."""
    status = load_status(run)
    assert status is not None
    return status.status


def full_disk_from(images: int) -> Callable[..., None]:
    """A `save_checkpoint` whose disk is full from `images` on."""
    save = checkpoint.save_checkpoint

    def save_until_full(run: Path, images_seen: int, *args: Any) -> None:
        if images_seen >= images:
            raise DataError(f"checkpoint at {images_seen:,} images was not saved: no space left")
        save(run, images_seen, *args)

    return save_until_full
