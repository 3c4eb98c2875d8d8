"""Hand-made evaluated runs for tests of the report: results, scores, embeddings and logs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.features import COLUMNS, write_embeddings
from eval.measure.scores import SCORES, Condition, ScoreBook
from pipeline.corruptions import GRADED
from pipeline.index import Dataset, groups, open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import PATCH

HOSTILE = "<script>alert(1)<-script>"
FORMULA = "=cmd()|x"
CLASSES = (HOSTILE, FORMULA)  # in the order of packing
DRAWS = 3


def pack_noise(folder: Path, groups: int = 12) -> Dataset:
    """Pack two classes of coloured noise, `groups` source images of two patches per split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for label, name in enumerate(CLASSES):
            (folder / "raw" / split / name).mkdir(parents=True)
            for i in range(2 * groups):
                pixels = rng.integers(0, 256, (PATCH, PATCH, 3), np.uint8)
                file = f"{split}{label}{i // 2}__x{PATCH * (i % 2):04d}.png"
                Image.fromarray(pixels).save(folder / "raw" / split / name / file)
    pack(folder / "raw", folder / "shards", PackOptions(workers=1))
    return open_dataset(folder / "shards")


def write_run(
    folder: Path, data: Dataset, preset: str, seed: int, skill: float, **run: Any
) -> Path:
    """Write an evaluated run whose probe separates the classes by about `skill` deviations.

    Args:
        run: other facts of the run.
    """
    facts = {
        "preset": preset,
        "seed": seed,
        "images_seen": 1000,
        "noise_var": 0.01,
        "beta": 1.0,
        "equivariance": 0.3,
    }
    folder.mkdir(parents=True)
    results = _results(data, facts | run, auroc=0.5 + skill / 10 + seed / 1000)
    (folder / "results.json").write_text(json.dumps(results))
    origin = {"snapshot_xxh3": f"{preset}{seed}", "dataset_hash": data.hash}
    _book(data, seed, skill).write(folder / SCORES, origin)
    _embeddings(folder, data, seed)
    rows = [
        {"kind": kind, "images": images, "loss": 1 / images, "psnr": images / 10}
        for images in (100, 200)
        for kind in ("train", "val")
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def _results(data: Dataset, run: dict[str, Any], auroc: float) -> dict[str, Any]:
    preset, seed = run["preset"], run["seed"]
    classes = {name: {"patches": 24, "groups": 12} for name in CLASSES}
    severities = {kind: {"levels": [{"severity": 1, "auroc": 0.58}]} for kind in GRADED}
    return {
        "run": run,
        "data": {"hash": data.hash, "root": str(data.root)},
        "model": {"architecture": "seed", "snapshot": f"{preset}{seed}"},
        "protocol": {
            "metrics_split": "test",
            "classes": list(CLASSES),
            "splits": {"train": {"patches": 48, "groups": 24, "classes": classes}},
        },
        "reconstruction": {"psnr": 25.123 + seed, "ssim": 0.8, "by_kind": {}},
        "latent": {"kl": 301.5 + seed},
        "equivariance": {"error": 0.5, "by_element": {"rotation 90": 0.4321}},
        "probe": {
            "mean": {"features": "readout", "dimensions": 384, "auroc": auroc, "setting": 0.1},
            "random_init": {"features": "baseline", "dimensions": 384, "auroc": 0.55},
        },
        "budgets": {"mean": {"k=2": {"groups_per_class": [2], "auroc": 0.6}}},
        "robustness": {"clean": auroc, "kinds": severities},
        "notices": ["7 of the source groups are in more than one split"],
    }


def change_results(folder: Path, drop: Iterable[str] = (), **sections: Any) -> Path:
    """Replace and drop sections of a run's results.json."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) | sections
    path.write_text(json.dumps({k: v for k, v in results.items() if k not in set(drop)}))
    return folder


def _book(data: Dataset, seed: int, skill: float) -> ScoreBook:
    split = data.split("test")
    columns = ["key", "label", "source", "slide", "patient", "site"]
    rows = split.table.select(columns).append_column("group", groups(split.table))
    book = ScoreBook(rows, len(CLASSES))
    shared, own = np.random.default_rng(9), np.random.default_rng(seed)
    conditions = []
    for features in ("mean", "random_init"):
        conditions.append(Condition(features))
        conditions += [Condition(features, budget="k=2", draw=draw) for draw in range(DRAWS)]
        conditions += [
            Condition(features, corruption=kind, severity=s) for kind in GRADED for s in range(1, 6)
        ]
    for condition in conditions:
        separation = skill if condition.features == "mean" else 0.1
        noise = shared.normal(size=len(split)) + 0.1 * own.normal(size=len(split))
        p = 1 / (1 + np.exp(-(separation * (2 * split.labels - 1) + noise)))
        book.add(condition, np.stack([1 - p, p], 1), np.arange(2))
    return book


def _embeddings(folder: Path, data: Dataset, seed: int) -> None:
    split = data.split("test")
    features = np.random.default_rng(seed).normal(size=(len(split), 384)).astype(np.float32)
    rows = split.table.select(COLUMNS)
    write_embeddings(folder / "embeddings" / "test.parquet", rows, [features], {})
