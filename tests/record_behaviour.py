"""Record what the commands write, so that a rebuild can show that it changed nothing.

`python tests/record_behaviour.py --out FILE.json` packs a fixed small folder by every layout and
option, trains every preset for 20 steps on one thread, evaluates, reports, and asks every command
for its help; FILE holds a SHA-256 of each result. `--against OTHER.json` prints what differs and
exits with 1 if anything does. Only public commands are run, so the script outlives any move of the
code. Bits of training depend on the processor: compare records of one machine.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PRESETS = (
    "ae",
    "vae",
    "dvae",
    "eq-dvae",
    "eq-dvae-c4",
    "eq-dvae-refined",
    "d4-dvae",
    "c4-dvae",
    "supervised",
)
COMMANDS = (
    ["-m", "shards.pack"],
    ["-m", "shards.merge"],
    ["-m", "shards.verify"],
    ["-m", "shards.fetch"],
    ["-m", "shards.sites"],
    ["-m", "shards.synthetic"],
    [str(ROOT / "train" / "main.py")],
    ["-m", "train.sweep"],
    ["-m", "eval.main"],
    ["-m", "eval.embed"],
    ["-m", "eval.report"],
    ["-m", "eval.transfer"],
    ["-m", "eval.external"],
    [str(ROOT / "bench" / "throughput.py")],
)
MANIFEST_COLUMNS = (
    *("--columns.label", "diagnosis"),
    *("--columns.patient", "case"),
    *("--columns.split", "part"),
)
PACKS = {
    "stored": ["classes"],
    "two-workers": ["classes", "--workers", "2"],
    "keep": ["classes", "--png", "keep"],
    "small-shards": ["classes", "--shard-size", "7"],
    "seed": ["classes", "--seed", "3"],
    "group-regex": ["classes", "--group-regex", "([a-z]+)-"],
    "drawn-splits": ["unsplit", "--val", "0.25", "--test", "0.25"],
    "skip-bad": ["bad", "--skip-bad", "2"],
    "slides": ["slides", "--val", "0.3"],
    "flat": ["flat", "--layout", "flat"],
    "manifest": ["flat", "--manifest", "rows.csv", *MANIFEST_COLUMNS],
    "crop": ["large", "--convert", "crop"],
    "resize": ["large", "--convert", "resize"],
    "tile": ["large", "--convert", "tile"],
}
# what a clock, a machine or a commit decides
VOLATILE = re.compile(
    r"second|time|environment|commit|memory|images_s\b|throughput|device|threads|^(root|path|checksum)$|version"
)
SHORT = ["--batch-size", "8", "--images", "160", "--loop.validations", "1", "--loop.logs", "4"]


def patch(path: Path, rng: np.random.Generator, side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = rng.uniform(60, 220, (4, 4, 3))
    pixels = np.kron(coarse, np.ones((side // 4, side // 4, 1)))
    pixels = pixels + rng.normal(0, 8, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def make_sources(folder: Path) -> None:
    """Every kind of source that the packing command takes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12), ("test", 12)):
        for label in ("normal", "tumor"):
            for i in range(count):
                name = f"{split}-{label}-{i % 6}__y{32 * i:04d}_x0000.png"
                patch(folder / "classes" / split / label / name, rng)
    for label in ("normal", "tumor"):
        for i in range(24):
            name = f"{label}{i // 3}__y{32 * (i % 3):04d}_x0032.png"
            patch(folder / "unsplit" / label / name, rng)
            patch(folder / "bad" / "train" / label / name, rng)
    (folder / "bad" / "train" / "normal" / "broken__y0000_x0000.png").write_bytes(b"no image")
    for slide in range(6):
        for i in range(4):
            barcode = f"TCGA-A{slide}-000{slide}-01Z-00-DX1"
            patch(folder / "slides" / barcode / f"{i:06d}_x{i * 32}_y64.png", rng)
    rows = [["path", "diagnosis", "case", "part"]]
    for i in range(24):
        patch(folder / "flat" / f"f{i // 4}__{i:04d}.png", rng)
        part = ("train", "train", "val", "test")[i // 4 % 4]
        rows.append([f"f{i // 4}__{i:04d}.png", "ab"[i % 2], f"p{i // 4}", part])
    with open(folder / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    for i in range(5):
        patch(folder / "large" / "train" / "a" / f"large{i}.png", rng, side=96)


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def hashed_files(folder: Path, suffix: str = "") -> dict[str, str]:
    """Hash of each file that is not hidden and whose name ends in `suffix`."""
    files = sorted(
        path
        for path in folder.rglob("*" + suffix)
        if path.is_file() and not path.name.startswith(".")
    )
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in files}


def steady(value: Any) -> Any:
    """JSON without the fields that a clock, a machine or a commit decides."""
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if not VOLATILE.search(k)}
    return [steady(item) for item in value] if isinstance(value, list) else value


def packing(folder: Path) -> Iterator[tuple[str, Any]]:
    for name, (source, *options) in PACKS.items():
        run(["-m", "shards.pack", source, f"packed/{name}", *options], folder)
        yield f"pack {name}", hashed_files(folder / "packed" / name)
    for i in range(2):
        slicing = ["--shard-size", "7", "--task-index", str(i), "--num-tasks", "2"]
        run(["-m", "shards.pack", "classes", "packed/tasks", *slicing], folder)
    run(["-m", "shards.merge", "packed/tasks"], folder)
    yield "pack tasks", hashed_files(folder / "packed/tasks")
    run(["-m", "shards.verify", "packed/small-shards", "--index", "packed/indexed"], folder)
    yield "index sidecars", hashed_files(folder / "packed/indexed", ".parquet")
    metadata = json.loads((folder / "packed/indexed/dataset.json").read_text())
    yield "index dataset.json", steady(metadata)  # without the place of the tars
    run(["-m", "shards.sites", "packed/slides", "lists", "--val", "0.3"], folder)
    yield "site lists", hashed_files(folder / "lists")
    small = ["--train", "30", "--val", "20", "--test", "20"]
    run(["-m", "shards.synthetic", "synthetic", *small], folder)
    yield "synthetic", sha256(json.dumps(hashed_files(folder / "synthetic")).encode())


def training(folder: Path) -> Iterator[tuple[str, Any]]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread in every child
    main = str(ROOT / "train" / "main.py")
    for preset in PRESETS:
        out = f"runs/{preset}"
        run([main, preset, "--data", "packed/stored", "--out", out, *SHORT, "--track"], folder)
        yield f"weights {preset}", hashed_files(folder / out / "checkpoints", ".safetensors")
        yield f"snapshot {preset}", hashed_files(folder / out / "snapshot", ".safetensors")
        yield f"config {preset}", steady(json.loads((folder / out / "config.json").read_text()))
        lines = [json.loads(s) for s in (folder / out / "metrics.jsonl").read_text().splitlines()]
        yield f"metrics {preset}", sha256(json.dumps(steady(lines)).encode())


def evaluation(folder: Path) -> Iterator[tuple[str, Any]]:
    for preset in ("dvae", "eq-dvae"):
        run(["-m", "eval.main", f"runs/{preset}"], folder)
        results = json.loads((folder / "runs" / preset / "results.json").read_text())
        yield f"results {preset}", steady(results)
    run(["-m", "eval.report", "runs/dvae", "runs/eq-dvae", "--out", "report"], folder)
    lines = (folder / "report" / "report.md").read_text().splitlines()
    yield "report.md", [line for line in lines if "scikit-learn" not in line]  # the environment
    run(["-m", "eval.embed", "runs/dvae", "flat", "--out", "embeddings"], folder)
    yield "embeddings", hashed_files(folder / "embeddings", ".parquet")


def help_texts(folder: Path) -> Iterator[tuple[str, Any]]:
    for command in COMMANDS:
        name = " ".join(Path(part).name for part in command)
        yield f"help {name}", run([*command, "--help"], folder).splitlines()


SECTIONS = {
    "pack": packing,
    "train": training,
    "eval": evaluation,
    "help": help_texts,
}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested JSON by their path."""
    if isinstance(value, dict):
        return {p: v for k, item in value.items() for p, v in flat(item, f"{prefix}/{k}").items()}
    return {prefix: value}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = flat(before), flat(after)
    return [
        f"{path}: {str(old.get(path))[:120]} -> {str(new.get(path))[:120]}"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the record")
    parser.add_argument("--against", type=Path, help="an earlier record to compare with")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    arguments = parser.parse_args()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_sources(Path(folder))
        for section in arguments.sections:
            for name, value in SECTIONS[section](Path(folder)):
                record[name] = value
                print(name, flush=True)
    arguments.out.write_text(json.dumps(record, indent=1))
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text())
    lines = differences({name: before.get(name) for name in record}, record)
    print("\n".join(lines) or "no difference")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
