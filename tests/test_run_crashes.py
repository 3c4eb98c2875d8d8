"""A crash at any point of training, evaluating, embedding or a sweep: the command continues.

What is left is refused or whole, and `--resume`, or the same command, ends as if there had been no
crash, hidden files included. See `tests.helpers.crashes.replay`.
"""

import re
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from common.errors import DataError
from common.locks import held
from eval import run as runs
from eval.config import EmbedOptions
from eval.embedding import embed
from eval.evaluation import evaluate
from eval.measure.scores import SCORES, read_scores
from eval.results import RESULTS, load_results
from models import snapshot
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.crashes.replay import Command, needs_strace, replay
from tests.helpers.crashes.states import Tree
from tests.helpers.patches import write_patches
from tests.helpers.sweeping import FakeSweep
from tests.helpers.trained_runs import SMALLEST, make_run, packed_noise
from train import checkpoint, launch, program
from train import main as command

RECORD = "import sys, pathlib; from tests.test_run_crashes import COMMANDS; " + (
    "COMMANDS[sys.argv[1]].run(*map(pathlib.Path, sys.argv[2:]))"
)
CLOCKS = re.compile(rb'"(time_s|seconds|pid|time|log_bytes|xxh3)": *("[^"]*"|[0-9.e+-]+)')

pytestmark = needs_strace


def without_clocks(tree: Tree) -> Tree:
    """A tree without what differs between two uninterrupted commands."""
    texts = (".json", ".jsonl")
    return {
        path: CLOCKS.sub(b"", content) if content and path.endswith(texts) else content
        for path, content in tree.items()
    }


def data_of(inputs: Path) -> Path:
    """A packed data set of two classes."""
    if not (inputs / "shards").is_dir():
        write_patches(inputs / "raw", {"train": 12, "val": 4, "test": 4}, ("a", "b"), seed=1)
        pack(inputs / "raw", inputs / "shards", PackOptions(workers=1))
    return inputs / "shards"


def train(inputs: Path, out: Path, images: int = 36) -> None:
    """Train without the evaluation, which is a command of its own."""
    argv = ["vae", "--data", str(data_of(inputs)), "--out", str(out / "run"), "--resume", "--track"]
    argv += ["--images", str(images), "--batch-size", "12", "--loop.checkpoints", "3"]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(launch, "threads_for", lambda *args: 1))
        stack.enter_context(mock.patch.object(program, "conclude", lambda *args: None))
        torch.set_num_threads(1)
        assert command.main(argv) == program.DONE


def inspect_run(out: Path, before: Tree, after: Tree) -> None:
    """Every file of the run folder can be read, and the snapshot is of one moment."""
    run = out / "run"
    runs.load_status(run)
    checkpoint.load_newest(run)
    if (run / runs.CONFIG).is_file():
        runs.load_record(run / runs.CONFIG)
    try:
        snapshot.load(run / "snapshot")
        runs.load_info(run)
    except DataError:
        return
    names = [f"run/snapshot/{name}" for name in (snapshot.WEIGHTS, snapshot.CONFIG)]
    pair = [(out / name).read_bytes() for name in names]
    assert pair in [[tree.get(name) for name in names] for tree in (before, after)]


def begin_evaluation(inputs: Path, out: Path) -> None:
    for name in ("one", "two"):
        (inputs / name).mkdir()
        packed_noise(
            inputs / name, ["train", "val", "test"][: 3 if name == "one" else 2], ["a", "b"]
        )
    make_run(out / "run", inputs / "one" / "shards")


def evaluated(inputs: Path, out: Path, data: str = "one") -> None:
    with held(out / "run", "evaluates"):
        evaluate(out / "run", inputs / data / "shards", SMALLEST)


def inspect_results(out: Path, before: Tree, after: Tree) -> None:
    """Results and scores are refused, or of one evaluation."""
    try:
        results = load_results(out / "run")
        _, facts = read_scores(out / "run" / SCORES)
    except DataError:
        return
    if facts["dataset_hash"] == results.data.hash:  # else refused by reports
        names = [f"run/{name}" for name in (RESULTS, SCORES)]
        pair = without_clocks({name: (out / name).read_bytes() for name in names})
        wholes = [without_clocks({n: tree.get(n) for n in names}) for tree in (before, after)]
        assert pair in wholes


def embedded(inputs: Path, out: Path) -> None:
    options = EmbedOptions(out / "table", formats=("npy", "h5"), part_rows=9)
    embed(inputs / "run", inputs / "raw", options)


def begin_embedding(inputs: Path, out: Path) -> None:
    make_run(inputs / "run", data_of(inputs))


def swept(inputs: Path, out: Path) -> None:
    """Two runs, by scripts in place of training: what the sweep itself writes is replayed."""
    shutil.rmtree(inputs / "fake", ignore_errors=True)
    fake = FakeSweep(inputs / "fake", data_of(inputs))
    fake.runs = [replace(run, out=out.resolve()) for run in fake.runs[:2]]
    assert fake.sweep() == 0


def without_output(tree: Tree) -> Tree:
    """What the sweep writes, and the states of its runs."""
    return {
        path: content
        for path, content in without_clocks(tree).items()
        if path.startswith("configs") or path.endswith("/status.json") or "tmp" in path
    }


COMMANDS = {
    "train": Command(train, inspect_run, lambda i, o: data_of(i), without_clocks),
    "train on": Command(
        lambda i, o: train(i, o, 72), inspect_run, lambda i, o: train(i, o, 36), without_clocks
    ),
    "evaluate": Command(evaluated, inspect_results, begin_evaluation, without_clocks),
    "evaluate again": Command(
        lambda i, o: evaluated(i, o, "two"),
        inspect_results,
        lambda i, o: (begin_evaluation(i, o), evaluated(i, o)),
        without_clocks,
    ),
    "embed": Command(embedded, lambda *args: None, begin_embedding),
    "sweep": Command(swept, lambda *args: None, lambda i, o: data_of(i), without_output),
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("name", "states"), [("train", 6), ("embed", 6), ("sweep", 4)])
def test_after_a_crash_the_command_continues(name: str, states: int, tmp_path: Path) -> None:
    print(replay(COMMANDS[name], RECORD, name, tmp_path, states))


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", ["train on", "evaluate", "evaluate again"])
def test_after_a_crash_a_longer_command_continues(name: str, tmp_path: Path) -> None:
    print(replay(COMMANDS[name], RECORD, name, tmp_path, 12))
