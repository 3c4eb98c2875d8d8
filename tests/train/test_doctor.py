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
import time
from pathlib import Path

import pytest
import torch

from pipeline.index import open_dataset
from train import doctor, launch
from train.config import Config
from train.doctor import Line, as_text, diagnose

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
    lines = by_name(str(small_dataset))
    assert {name for name, line in lines.items() if line.value is None} <= {"code"}
    split = open_dataset(small_dataset).split("train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = launch.resolve(Config(), split, device, 1)
    assert lines["storage"].value == config.storage
    assert lines["precision"].value == config.precision
    assert lines["batch"].value == f"{config.batch_size:,}"
    assert lines["device"].value == device.type
    assert "train 48" in str(lines["data"].value)
    assert "which fits in 25% of the free memory" in str(lines["size in memory"].value)
    assert lines["compiler"].advice or str(lines["compiler"].value).startswith("/")
    assert "MB per second" in str(lines["reading"].value)


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
    lines = by_name(named)
    assert lines["reading"].unknown
    assert lines["batch"].value and lines["precision"].value and lines["cores"].value
    if data != "cut off":
        assert lines["data"].advice and lines["storage"].unknown
    assert "\x1b" not in as_text(list(lines.values()))


def test_a_check_that_raises_exits_or_hangs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def leave() -> str:
        sys.exit("no licence")

    def hang() -> str:
        end.wait(60)
        return ""

    def fail() -> str:
        raise RuntimeError("driver\nis broken")

    monkeypatch.setattr(doctor, "LIMIT_S", 1.0)
    for name, check in {"_gpus": fail, "_memory": hang, "_packages": leave}.items():
        monkeypatch.setattr(doctor, name, check)
    began = time.monotonic()
    lines = by_name(None)
    end.set()
    assert time.monotonic() - began < 30
    assert lines["GPU"].unknown == "driver is broken"
    assert lines["memory"].unknown == "no answer within 1 seconds"
    assert lines["packages"].unknown == "no licence"
    assert lines["cores"].value
    assert "unknown: driver is broken" in as_text([*lines.values()])


def test_what_can_be_changed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(doctor.machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(doctor.machine, "version", lambda name: None)
    monkeypatch.setattr(launch, "missing_compiler", lambda device: "there is no compiler")
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 62)
    lines = by_name(None)
    assert "6 of 8 cores" in str(lines["threads"].advice)
    assert "install torch" in str(lines["packages"].advice)
    assert lines["compiler"].advice == "there is no compiler"
    assert "make room" in str(lines["disk, runs"].advice)
    assert "- compiler: there is no compiler" in as_text([*lines.values()])


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
    lines = {line["name"]: line for line in json.loads(done.stdout)}
    assert f"called uid{os.getuid()}" in lines["user"]["value"]
    assert all(line["value"] or line["unknown"] for line in lines.values())
