"""Every command of docs/your-data.md runs, on small made data, in the order of the page."""

import csv
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tars import members, samples, write_tar

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your-data.md").read_text()
SHORT = ["--images", "64", "--batch-size", "16", "--loop.validations", "1", "--track"]


def commands(section: str) -> list[list[str]]:
    """The lines after `$` of a section, continued lines joined."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found, f"no command in {section}"
    return [shlex.split(line.replace("\\\n", " ")) for line in found]


def run(command: list[str], folder: Path) -> None:
    """As on the page, with this environment's Python; training is cut short."""
    if command[:2] == ["accelerate", "launch"]:
        command = ["python", str(ROOT / command[2]), *command[3:], *SHORT]
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def patch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def class_folders(folder: Path) -> None:
    for name in ("TUM", "NORM"):
        for source in range(8):
            for x in (0, 32):
                patch(folder / "patches" / name / f"{name}-{source}__y0000_x{x:04d}.png")


def table(folder: Path) -> None:
    rows = []
    for site in ("oral", "colon", "bone"):
        for label in ("normal", "tumor"):
            for i in range(12):
                file = f"{site}/{label}/{site}-{label}-{i}__y0000_x0000.png"
                patch(folder / "patches" / file)
                case = f"{site}-case-{label}-{i // 2}" if site == "bone" else ""
                rows.append([file, label, case, f"{site}-{label}-{i}", site])
    with open(folder / "patients.csv", "w", newline="") as file_out:
        csv.writer(file_out).writerows([["file", "diagnosis", "case", "slide", "site"], *rows])


def dumps(folder: Path) -> None:
    for slide in range(6):
        for i in range(3):
            barcode = f"TCGA-A{slide}-000{slide}-01Z-00-DX1"
            patch(folder / "dumps" / barcode / f"{i:06d}_x{i * 32}_y64.png")


def flat(folder: Path) -> None:
    for i in range(40):
        patch(folder / "patches" / f"{i:04d}.png")


def tars(folder: Path) -> None:
    for split in ("train", "val"):
        write_tar(folder / "tars" / f"{split}-000000.tar", members(samples(9, f"{split}/")))


@pytest.mark.parametrize(
    ("section", "made"),
    [
        ("Class folders", class_folders),
        ("A table with patients and sites", table),
        ("Slides cut by TRIDENT or a similar tool", dumps),
        ("Shards that another tool wrote", tars),
    ],
)
def test_packing_commands_run(section: str, made: Callable[[Path], None], tmp_path: Path) -> None:
    made(tmp_path)
    for command in commands(section):
        run(command, tmp_path)


@pytest.mark.slow
def test_unlabelled_patches_pack_train_and_embed(tmp_path: Path) -> None:
    flat(tmp_path)
    for section in ("A folder of patches without labels", "Embeddings of any patches"):
        for command in commands(section):
            run(command, tmp_path)
    assert list((tmp_path / "embeddings").glob("part-*.parquet"))
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    images = "import numpy as np\nimages = np.zeros((3, 32, 32, 3), np.uint8)\n"
    run(["python", "-c", images + snippet + "assert features.shape == (3, 384)"], tmp_path)
