"""Worker processes: they reply what this process would have done."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import DataError
from shards.pack import workers as module
from shards.pack.plan import PackOptions, Plan, make_plan
from shards.pack.shard import Job
from shards.pack.workers import WorkerPool
from shards.sources import names
from shards.sources.files import PLAIN, look_up
from shards.sources.folder import FolderSource
from shards.sources.source import BatchPatches, FileBatch
from tests.helpers.packing import list_patches
from tests.helpers.patches import write_patches

OPTIONS = PackOptions(shard_size=8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_patches(tmp_path / "raw", {"train": 40}, ("a", "b"), seed=2)
    return tmp_path / "raw"


def ready(pool: WorkerPool, workers: int) -> WorkerPool:
    """The pool when all its workers have said that they are ready."""
    pool.start(patches=workers, shards=workers)
    for worker in pool._workers:
        assert worker.replies() == [] and worker.ready
    return pool


def keep_job(source: Path, out: Path, plan: Plan) -> Job:
    """What building the shards of a plan needs."""
    return Job(
        source=FolderSource(root=source),
        out=out,
        png="keep",
        classes=plan.classes,
        digest=plan.digest,
    )


def file_batch(source: Path, paths: list[str], **columns: list[Any]) -> FileBatch:
    return FileBatch(
        root=str(source), accepted=PLAIN, group_regex=None, paths=paths, columns=columns
    )


def test_workers_look_files_up_as_this_process_does(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [patch.path for patch in list_patches(source)]
    (tmp_path / "outside.png").write_bytes(b"")
    (source / "train" / "a" / "link.png").symlink_to(tmp_path / "outside.png")
    for name, content in (("text.gif", b""), ("large.png", bytes(PLAIN.max_bytes + 1))):
        (source / "train" / "a" / name).write_bytes(content)
        paths.append(f"train/a/{name}")
    paths += ["train/a/missing.png", "zero\0byte.png"]
    columns: dict[str, list[Any]] = {"x": [3, None, 5], "y": [4, None, 6], "mpp": [0.5, None, 0.25]}
    batches = []
    for i in range(0, len(paths), 3):
        three = paths[i : i + 3]
        cut = {name: values[: len(three)] for name, values in columns.items()}
        batch = file_batch(source, three, split=["train"] * len(three), **cut)
        batches.append(msgspec.structs.replace(batch, group_regex="(.*)\\."))
    batches.append(file_batch(source, ["train/a/link.png"], split=["val"]))
    expected = list(map(look_up, batches))
    in_this_process: list[FileBatch] = []

    def counted(batch: FileBatch) -> BatchPatches:
        in_this_process.append(batch)
        return look_up(batch)

    monkeypatch.setattr(module, "look_up", counted)
    with WorkerPool(2, 8) as pool:
        results = ready(pool, 2).look_up(batches)
    assert results == expected
    assert len(results[-3].refused) + len(results[-2].refused) == 2
    assert "outside" in str(results[-1].error) and len(in_this_process) < len(batches) - 2


def test_a_worker_that_dies_idle_is_replaced(source: Path, tmp_path: Path) -> None:
    plan = make_plan(list_patches(source), OPTIONS)
    job = keep_job(source, tmp_path, plan)
    with WorkerPool(2, 8) as pool:
        ready(pool, 2)._workers[0].kill()
        built = {record.name for record in pool.build(job, plan.shards)}
    assert built == {shard.name for shard in plan.shards}


def test_a_worker_that_does_not_start_is_replaced(source: Path, tmp_path: Path) -> None:
    plan = make_plan(list_patches(source), OPTIONS)
    job = keep_job(source, tmp_path, plan)
    with WorkerPool(2, 8) as pool:
        pool.start(patches=40, shards=5)
        pool._workers[1].kill()
        assert len(list(pool.build(job, plan.shards))) == len(plan.shards)


def test_workers_that_never_start_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(list_patches(source), OPTIONS)
    job = keep_job(source, tmp_path, plan)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with WorkerPool(2, 8) as pool:
        pool.start(patches=40, shards=5)
        with pytest.raises(DataError, match="a packing process ended with code 1; if"):
            list(pool.build(job, plan.shards))


def test_an_expression_that_backtracks_for_ever_is_stopped(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_SEARCH_S", 0.2)
    batch = file_batch(source, ["a" * 60 + "!"], split=["train"])
    (source / ("a" * 60 + "!.png")).touch()
    batch = msgspec.structs.replace(batch, paths=["a" * 60 + "!.png"], group_regex="^(a+)+$")
    assert "took more than" in str(look_up(batch).error)


def test_a_worker_starts_without_what_only_commands_and_training_need() -> None:
    code = "import sys, shards.pack.workers; print({'tyro', 'torch', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_few_patches_are_packed_by_this_process() -> None:
    with WorkerPool(0, 8) as pool:
        assert pool.start(patches=100, shards=10) == 1 and not pool._workers
    with WorkerPool(4, 8) as pool:
        assert pool.start(patches=100, shards=1) == 4 and not pool._workers


def test_a_worker_that_fails_says_why(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    batch = file_batch(source, ["train/a/nothing.png"])  # without the column `split`
    with (
        WorkerPool(2, 8) as pool,
        pytest.raises(DataError, match="ended with code 1 while it looked at"),
    ):
        ready(pool, 2).look_up([batch, batch])
    errors = capfd.readouterr().err
    assert "KeyError: 'split'" in errors and "Fatal" not in errors


def test_workers_end_quietly_when_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(2, 8) as pool:
        pool.start(patches=2, shards=2)
        for worker in pool._workers:  # while they import, as when the parent is killed
            worker.stdout.close()
        assert [worker._process.wait(60) for worker in pool._workers] == [0, 0]
    assert not capfd.readouterr().err
