"""Runs as training leaves them, with untrained weights, their embeddings, and noise data sets."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.config import EvalConfig
from eval.features import Features, read_embeddings
from models import snapshot
from models.config import ModelConfig
from models.vae import build
from pipeline.config import CorruptionConfig
from pipeline.index import open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions

SMALL = ModelConfig(widths=(4, 8, 16))
SMALLEST = EvalConfig(  # the evaluation that fits one probe
    readouts=("mean",),
    orbit_probe=False,
    baselines=("mean_rgb",),
    probes=("logistic",),
    budgets=False,
    robustness=False,
)
COUNTS = {"train": 24, "val": 12, "test": 12}  # patches per class
INFO: dict[str, Any] = {
    "preset": "eq-dvae",
    "seed": 0,
    "images_seen": 1000,
    "noise_var": 0.01,
    "beta": 1.0,
    "equivariance": 0.3,
    "group": "D4",
    "fibres": "trivial",
    "stochastic": True,
    "dataset_hash": "0" * 16,
}


def packed_noise(
    folder: Path, splits: list[str], classes: list[str], leaking: bool = False
) -> Path:
    """Pack patches of coloured noise whose mean shows the class, four per source image.

    Args:
        leaking: source images are in several splits.
    """
    rng = np.random.default_rng(0)
    for split in splits:
        for label, name in enumerate(classes):
            (folder / "raw" / split / name).mkdir(parents=True)
            for i in range(COUNTS[split]):
                mean = np.array([160 - 30 * label, 120, 150]) + rng.normal(size=3) * 20
                pixels = np.clip(mean + 25 * rng.normal(size=(32, 32, 3)), 0, 255)
                source = f"{'' if leaking else split}{label}{i // 4}"
                file = f"{source}__y0000_x{32 * (i % 4):04d}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "raw" / split / name / file)
    pack(folder / "raw", folder / "shards", PackOptions(workers=1))
    return folder / "shards"


def save_snapshot(folder: Path, config: ModelConfig, **info: Any) -> Path:
    """Write the snapshot of an untrained model to a run folder."""
    facts = INFO | info
    snapshot.save(build(config, facts["seed"]), folder / "snapshot", facts)
    return folder


def make_run(folder: Path, data: Path, **info: Any) -> Path:
    """Write what training leaves behind: a snapshot, a config and a log, cut in its last line."""
    save_snapshot(folder, SMALL, **({"dataset_hash": open_dataset(data).hash} | info))
    config = {
        "preset": "dvae",
        "config": {"corruption": asdict(CorruptionConfig())},
        "data": {"root": str(data), "hash": "0" * 16},
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"kind": kind, "images": n, "loss": 1 / n, "psnr": n, "kl": 3.0, "equivariance_error": 0.5}
        for n in (100, 200)
        for kind in ("train", "val")
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"kind": "tr')
    return folder


def read_parts(out: Path) -> tuple[Features, list[str]]:
    """All embeddings (n, d) in a folder, and the paths of their patches, in order."""
    tables = [read_embeddings(path) for path in sorted(out.glob("part-*.parquet"))]
    paths = [path for _, table in tables for path in table["path"].to_pylist()]
    return np.concatenate([features for features, _ in tables]), paths
