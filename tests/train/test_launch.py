"""Whole processes: both ways of launching, two ranks, signals and kills."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.training import (
    SHORT_RUN,
    load_undamaged,
    log_without_clock,
    newest_tensors,
    run_status,
    same_tensors,
)

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
pytestmark = pytest.mark.slow


def run(command: list[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def train_command(data: Path, out: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--out", str(out)]
    return [sys.executable, str(ROOT / "train/main.py"), "dvae", *places, *SHORT_RUN, *more]


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not list((out / "checkpoints").glob("0*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def reference(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    done = run(train_command(small_dataset, out))
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_leaves_all_that_it_promises(reference: Path) -> None:
    assert run_status(reference) == "done"
    for name in (
        "config.json",
        "metrics.jsonl",
        "results.json",
        "snapshot/model.safetensors",
        "report/report.md",
        "embeddings/test.parquet",
    ):
        assert (reference / name).is_file(), name
    assert list((reference / "tensorboard").iterdir()) and list(
        (reference / "figures").glob("*.png")
    )


@pytest.mark.parametrize("flags", [[], ["--config_file", "accelerate_config.yaml"]])
def test_both_ways_of_launching_give_one_result(
    flags: list[str], reference: Path, small_dataset: Path, tmp_path: Path
) -> None:
    command = train_command(small_dataset, tmp_path / "run")[1:]
    done = run([*LAUNCH, *flags, *command])
    assert done.returncode == 0 and run_status(tmp_path / "run") == "done", done.stderr
    assert same_tensors(newest_tensors(reference), newest_tensors(tmp_path / "run"))


def test_config_json_alone_rebuilds_a_run(reference: Path, tmp_path: Path) -> None:
    config, out = str(reference / "config.json"), str(tmp_path / "run")
    done = run([sys.executable, "train/main.py", config, "--out", out])
    assert done.returncode == 0, done.stderr
    assert same_tensors(newest_tensors(reference), newest_tensors(tmp_path / "run"))


def test_an_existing_run_is_not_touched(reference: Path, small_dataset: Path) -> None:
    before = newest_tensors(reference)
    refused = run(train_command(small_dataset, reference))
    assert refused.returncode == 2 and "--resume" in refused.stderr
    other = run(train_command(small_dataset, reference, "--resume", "--seed", "1"))
    assert other.returncode == 2 and "seed: 0 -> 1" in other.stderr
    again = run(train_command(small_dataset, reference, "--resume"))
    assert again.returncode == 0, again.stderr
    assert same_tensors(before, newest_tensors(reference))


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [(signal.SIGTERM, 75, "interrupted"), (signal.SIGKILL, -signal.SIGKILL, "running")],
)
def test_stopped_and_resumed_ends_identical(
    number: int, code: int, status: str, reference: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        train_command(small_dataset, out),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for_checkpoint(out, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code and run_status(out) == status
    assert not (out / "results.json").exists()
    done = run(train_command(small_dataset, out, "--resume"))
    assert done.returncode == 0 and run_status(out) == "done", done.stderr
    assert same_tensors(newest_tensors(reference), newest_tensors(out))
    assert log_without_clock(out) == log_without_clock(reference)


def test_a_full_disk_is_named_and_keeps_the_run(small_dataset: Path, tmp_path: Path) -> None:
    limited = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = train_command(small_dataset, tmp_path / "run", "--track")
    done = run([sys.executable, "-c", limited, *command[1:]])
    assert done.returncode == 1 and "state.safetensors" in done.stderr, done.stderr
    assert run_status(tmp_path / "run") == "failed"
    assert not list((tmp_path / "run/checkpoints").glob("*"))


def test_two_ranks_train_a_run(small_dataset: Path, tmp_path: Path) -> None:
    command = train_command(small_dataset, tmp_path / "run")[1:]
    flags = ["--config_file", "accelerate_config.yaml", "--num_processes", "2"]
    done = run([*LAUNCH, *flags, *command])
    assert done.returncode == 0 and run_status(tmp_path / "run") == "done", done.stderr
    assert done.stdout.count("images in") == 1  # one rank speaks


@pytest.mark.parametrize("told", ["the launcher", "every process"])
def test_two_ranks_save_and_end_on_sigterm(told: str, small_dataset: Path, tmp_path: Path) -> None:
    """A user ends the launcher; a scheduler tells every process, and the launcher passes it on."""
    out = tmp_path / "run"
    flags = ["--config_file", "accelerate_config.yaml", "--num_processes", "2"]
    long = ["--images", "160000", "--loop.checkpoints", "1000"]
    process = subprocess.Popen(
        [*LAUNCH, *flags, *train_command(small_dataset, out)[1:], *long],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for_checkpoint(out, process)
    launcher = psutil.Process(process.pid)
    ranks = launcher.children(recursive=True)
    for each in [*ranks, launcher] if told == "every process" else [launcher]:
        each.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    _, alive = psutil.wait_procs(ranks, timeout=120)
    assert len(ranks) >= 2 and not alive
    assert run_status(out) == "interrupted" and process.returncode != 0
    saved = load_undamaged(out)
    assert saved is not None and f"saved at {saved.images_seen:,} images" in output
