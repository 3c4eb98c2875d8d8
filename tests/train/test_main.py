"""The entry point: arguments, launching, the run folder, exit codes and status.json."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from models.config import ObjectiveConfig
from pipeline.index import open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.messages import collected_messages
from tests.helpers.patches import write_patches
from train import launch
from train import main as command
from train.config import Config, OptimConfig
from train.data import find_data
from train.prepare import compilable
from train.program import Interrupts
from train.summary import (
    FIGURES_S,
    METRICS_IMAGES,
    PROBE_ROW_S,
    describe_reading,
    evaluation_seconds,
    warn_about,
    warn_about_settings,
)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("set/dataset.json", "There are such in it, as "),
        ("train-0.tar", "python -m shards.verify"),
        ("a.png", "python -m shards.pack"),
    ],
)
def test_a_folder_that_is_no_data_set_says_what_it_holds(
    name: str, advice: str, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"is not a packed data set\. .*{advice}"):
        find_data(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eq-dvea"], "did you mean 'eq-dvae'"),
        (["dvae", "--data", "nowhere"], "nowhere does not exist"),
        (["dvae", "--data", __file__], "is a file; --data takes the folder"),
        (["dvae", "--threads", "0"], "threads is 0; expected at least 1"),
        (["dvae", "--data", "."], "not a packed data set"),
        (["dvae", "--images", "0"], "at least 1"),
        (["dvae", "--track", "nothing"], "unknown tracker"),
        (["dvae", "--objective.beta", "-1"], "beta"),
        (["dvae", "--seed", "-1"], "seed is -1"),
        (["dvae", "--optim.warmup", "1"], "warmup"),
        (["dvae", "--loop.keep-checkpoints", "0"], "keep_checkpoints"),
        (["dvae", "--objective.noise-var-init", "0"], "noise_var_init"),
    ],
)
def test_unusable_arguments_exit_with_2(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = command.main(argv)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and message in " ".join(capfd.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_cuda_graphs_are_of_a_compiled_step(small_dataset: Path) -> None:
    split = open_dataset(small_dataset).split("train")
    with pytest.raises(DataError, match="add --compile"):
        launch.resolve(Config(cuda_graphs=True), split, torch.device("cpu"), 1)
    config = Config(cuda_graphs=True, compile=True)
    assert launch.resolve(config, split, torch.device("cpu"), 1).cuda_graphs


@pytest.mark.parametrize(("batch", "ranks", "least"), [(1, 1, 4), (2, 1, 4), (4, 2, 8), (6, 3, 12)])
def test_a_batch_too_small_for_its_corruptions_names_the_least(
    batch: int, ranks: int, least: int, small_dataset: Path
) -> None:
    split = open_dataset(small_dataset).split("train")
    with pytest.raises(DataError, match=f"use --batch-size {least} or more"):
        launch.resolve(Config(batch_size=batch), split, torch.device("cpu"), ranks)
    launch.resolve(Config(batch_size=least), split, torch.device("cpu"), ranks)


@pytest.mark.parametrize("asked", [None, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_compiler_is_one_line_before_training(
    asked: bool | None, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind: no compiler; one named by CXX or CC that is not there; one that does not work."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    resolved, config = Config(compile=True), Config(compile=asked)
    language = "C++" if device == "cpu" else "C"
    if asked:
        with pytest.raises(DataError, match=re.escape(f"no {language} compiler")) as refused:
            compilable(resolved, config, torch.device(device))
        assert "--compile False" in str(refused.value) and "\n" not in str(refused.value)
    else:
        with collected_messages() as messages:
            assert not compilable(resolved, config, torch.device(device)).compile
        (line,) = messages
        assert f"no {language} compiler" in line and "install" in line and "\n" not in line
    monkeypatch.setenv("CXX", "nonexistent-g++")
    monkeypatch.setenv("CC", "nonexistent-gcc")
    assert "(nonexistent-g" in (launch.compile_obstacle(torch.device(device)) or "")


def test_a_compiler_is_tried_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(launch, "missing_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda call: tried.append(call) or call)
    launch.compile_failure.cache_clear()
    for _ in range(2):
        assert launch.compile_obstacle(torch.device("cpu")) is None
    assert len(tried) == 1
    launch.compile_failure.cache_clear()


def test_checkpoints_without_their_config_are_not_taken_for_another_folder(
    small_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "checkpoints" / "000000000064").mkdir(parents=True)
    words = ["dvae", "--data", str(small_dataset), "--out", str(tmp_path / "run"), "--resume"]
    assert command.main(words) == 2
    message = " ".join(capfd.readouterr().err.split())
    assert "has checkpoints of a run, but config.json" in message and "put it back" in message


@pytest.mark.slow
def test_a_compiler_that_does_not_work_is_one_line(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2; exit 1\n")
    compiler.chmod(0o755)
    code = """
import torch
from train.launch import compile_obstacle
print(compile_obstacle(torch.device("cpu")))
"""
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch cannot compile on this machine (")
    assert done.stdout.count("\n") == 1


def test_the_time_of_a_run_includes_its_evaluation(small_dataset: Path) -> None:
    dataset = open_dataset(small_dataset)
    rows = len(dataset.split("train"))
    metrics = METRICS_IMAGES * 0.1 * len(dataset.split("test"))
    expected = FIGURES_S + metrics + rows * PROBE_ROW_S
    assert evaluation_seconds(dataset, 0.1) == pytest.approx(expected)


def test_the_summary_counts_groups_and_warns(small_dataset: Path, tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset)
    assert {name: split.group_count for name, split in dataset.splits.items()} == {
        "train": 4,
        "val": 4,
        "test": 4,
    }
    with collected_messages() as messages:
        warn_about(dataset)
    (line,) = messages
    assert "few groups per class in test (normal 2, tumor 2;" in line
    write_patches(tmp_path / "raw", {"train": 2}, ("only",), seed=0)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    with collected_messages() as messages:
        warn_about(open_dataset(tmp_path / "out"))
    lines = " ".join(messages)
    assert "no val split" in lines and "one class (only)" in lines and "group of its own" in lines


@pytest.mark.parametrize(("start", "rate"), [(0.1, 10.0), (0.02, 2.0)])
def test_settings_of_a_learned_noise_variance_have_no_effect_on_a_fixed_one(
    start: float, rate: float
) -> None:
    for noise_var, count in (("learned", 0), (0.5, 1)):
        objective = ObjectiveConfig(noise_var=noise_var, noise_var_init=start)
        with collected_messages() as messages:
            warn_about_settings(Config(objective=objective, optim=OptimConfig(noise_var_lr=rate)))
        assert len(messages) == count
        for line in messages:
            assert "fixed at 0.5" in line and "noise_var_init" in line and "noise_var_lr" in line


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield Interrupts()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_scheduler_and_the_launcher_may_both_say_sigterm(interrupts: Interrupts) -> None:
    with interrupts.graceful(lambda: True):
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)  # while the end is written


def test_what_cannot_be_finished_ends_at_once(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.requested


@pytest.mark.parametrize(
    ("images", "samples", "text"),
    [
        (30, 100, "30 of 100 in train: 30 of them once;"),
        (100, 100, "100 of 100 in train: each once;"),
        (150, 100, "150 of 100 in train: each once, 50 of them once more;"),
        (320, 100, "320 of 100 in train: each 3 times, 20 of them once more;"),
    ],
)
def test_the_end_says_what_was_read(images: int, samples: int, text: str) -> None:
    assert text in describe_reading(images, samples)
