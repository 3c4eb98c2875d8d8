"""What `train.doctor` says of a machine, and that nothing keeps it from saying the rest.

The kind: no data, data that are broken, remote or without a train split; a check that raises, exits
or does not answer; a missing package, compiler or driver; a user without a name; too many threads
left idle. What it says training chooses is compared with what training chooses.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pipeline.index import open_dataset
from train import launch
from train.config import Config
from train.doctor import checks, lines
from train.doctor.lines import Line, as_text, diagnose

ROOT = Path(__file__).resolve().parents[2]
NO_NAME = """
import pwd, runpy, sys
def unknown(key):
    raise KeyError(f"uid not found: {key}")
pwd.getpwuid = pwd.getpwnam = unknown
sys.argv = ["doctor", "--json", "--data", sys.argv[1]]
runpy.run_module("train.doctor", run_name="__main__")
"""


def by_name(data: str | None) -> dict[str, Line]:
    return {line.name: line for line in diagnose(data)}


def test_it_says_what_training_chooses(small_dataset: Path) -> None:
    by_line = by_name(str(small_dataset))
    assert {name for name, line in by_line.items() if line.value is None} <= {"code"}
    split = open_dataset(small_dataset).split("train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = launch.resolve(Config(), split, device, 1)
    assert by_line["storage"].value == config.storage
    assert by_line["precision"].value == config.precision
    assert by_line["batch"].value == f"{config.batch_size:,}"
    assert by_line["device"].value == device.type
    assert "train 48" in str(by_line["data"].value)
    assert "which fits in 25% of the free memory" in str(by_line["size in memory"].value)
    assert by_line["compiler"].advice or str(by_line["compiler"].value).startswith("/")
    assert "MB per second" in str(by_line["reading"].value)


@pytest.mark.parametrize("data", ["none", "remote", "not JSON", "a file", "cut off"])
def test_without_usable_data_the_other_lines_stay(
    data: str, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shards"
    if data == "not JSON":
        folder.mkdir()
        (folder / "dataset.json").write_text("{\x1b[2J")
    elif data == "a file":
        folder.write_text("")
    elif data == "cut off":
        folder.mkdir()
        (folder / "dataset.json").write_bytes((small_dataset / "dataset.json").read_bytes())
    named = {"none": None, "remote": "s3://bucket/shards"}.get(data, str(folder))
    by_line = by_name(named)
    assert by_line["reading"].unknown
    assert by_line["batch"].value and by_line["precision"].value and by_line["cores"].value
    if data != "cut off":
        assert by_line["data"].advice and by_line["storage"].unknown
    assert "\x1b" not in as_text(list(by_line.values()))


def test_a_check_that_raises_exits_or_hangs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def leave() -> str:
        sys.exit("no licence")

    def hang() -> str:
        end.wait(60)
        return ""

    def fail() -> str:
        raise RuntimeError("driver\nis broken")

    monkeypatch.setattr(lines, "LIMIT_S", 1.0)
    for name, check in {"gpus": fail, "memory": hang, "packages": leave}.items():
        monkeypatch.setattr(checks, name, check)
    by_line = by_name(None)
    end.set()
    assert by_line["GPU"].unknown == "driver is broken"
    assert by_line["memory"].unknown == "no answer within 1 seconds"
    assert by_line["packages"].unknown == "no licence"
    assert by_line["cores"].value
    assert "unknown: driver is broken" in as_text([*by_line.values()])


def test_what_can_be_changed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(checks.machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(checks.machine, "version", lambda name: None)
    monkeypatch.setattr(launch, "missing_compiler", lambda device: "there is no compiler")
    monkeypatch.setattr(checks, "LOW_DISK", 1 << 62)
    by_line = by_name(None)
    assert "6 of 8 cores" in str(by_line["threads"].advice)
    assert "install torch" in str(by_line["packages"].advice)
    assert by_line["compiler"].advice == "there is no compiler"
    assert "make room" in str(by_line["disk, runs"].advice)
    assert "- compiler: there is no compiler" in as_text([*by_line.values()])


@pytest.mark.slow
def test_the_command_needs_neither_a_name_of_the_user_nor_data(tmp_path: Path) -> None:
    names = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", NO_NAME, str(tmp_path)],
        env={**inherited, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    by_line = {line["name"]: line for line in json.loads(done.stdout)}
    assert f"called uid{os.getuid()}" in by_line["user"]["value"]
    assert all(line["value"] or line["unknown"] for line in by_line.values())
