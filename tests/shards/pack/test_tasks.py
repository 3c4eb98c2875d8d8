"""Packing by several tasks: the folder is what one packer writes, however the tasks come and go."""

import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from common.errors import DataError
from shards import merge as merging
from shards.merge import merge
from shards.pack import __main__ as pack_command
from shards.pack import packing
from shards.pack import shard as build
from shards.pack.packing import pack, pack_task
from shards.pack.plan import PackOptions, Plan, ShardPlan
from shards.pack.resume import PLAN_NAME, ShardRecord, packer_lock, task_lock
from shards.pack.tasks import PackTask, choose_task, command_line
from shards.sources.manifest import Columns
from tests.helpers.packing import file_hashes
from tests.helpers.patches import write_patches

OPTIONS = PackOptions(shard_size=5, workers=1)
COUNTS = {"train": 12, "val": 4, "test": 4}  # per class: 5 + 2 + 2 shards


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks") / "raw"
    write_patches(root, COUNTS, ("a", "b"), seed=1)
    return root


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, str]:
    """What one packer writes."""
    pack(source, source.parent / "whole", OPTIONS)
    return file_hashes(source.parent / "whole")


@pytest.mark.parametrize(
    ("order", "workers"), [([0], 1), ([2, 0, 1], 1), ([1, 0], 2), ([*range(12)], 1)]
)
def test_any_number_of_tasks_in_any_order_write_what_one_packer_writes(
    order: list[int], workers: int, source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    options = replace(OPTIONS, workers=workers)
    for index in order:
        pack_task(source, tmp_path / "out", options, PackTask(index, len(order)))
    merge(tmp_path / "out")
    assert file_hashes(tmp_path / "out") == whole


def test_tiles_a_manifest_and_drawn_splits_come_through_the_recorded_plan(tmp_path: Path) -> None:
    root, rng = tmp_path / "raw", np.random.default_rng(0)
    root.mkdir()
    lines = ["file,case,x,y,mpp"]
    for i in range(12):
        pixels = rng.integers(0, 256, (70, 96, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"i{i}, 漢.png")
        lines.append(f'"i{i}, 漢.png",case {i // 2},{i},7,0.25{i}')
    (tmp_path / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    options = PackOptions(
        shard_size=9,
        workers=1,
        convert="tile",
        val=0.2,
        test=0.2,
        manifest=tmp_path / "list.csv",
        columns=Columns(path="file", patient="case"),
        seed=3,
    )
    pack(root, tmp_path / "whole", options)
    for index in (1, 0):
        pack_task(root, tmp_path / "out", options, PackTask(index, 2))
        (tmp_path / "list.csv").unlink(missing_ok=True)  # the second reads the plan alone
    merge(tmp_path / "out")
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "whole")


def test_the_source_is_listed_once(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "raw"
    subprocess.run(["cp", "-rp", str(source), str(root)], check=True)
    pack_task(root, tmp_path / "out", OPTIONS, PackTask(0, 2))
    (root / "train" / "a" / "came later.png").write_bytes(b"")
    monkeypatch.setattr(packing, "collect", None)
    pack_task(root, tmp_path / "out", OPTIONS, PackTask(1, 2))
    merge(tmp_path / "out")
    assert file_hashes(tmp_path / "out") == whole


def test_tasks_that_disagree_are_refused_and_the_difference_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack_task(source, out, OPTIONS, PackTask(0, 2))
    before = file_hashes(out)
    pack_task(source, out, replace(OPTIONS, workers=2, skip_bad=3), PackTask(0, 2))
    for options, task, reason in (
        (
            replace(OPTIONS, shard_size=6, png="keep"),
            PackTask(1, 2),
            "png is 'keep', in the plan 's",
        ),
        (replace(OPTIONS, shard_size=6), PackTask(1, 2), "shard-size is 6, in the plan 5"),
        (OPTIONS, PackTask(1, 3), "num-tasks is 3, in the plan 2"),
    ):
        with pytest.raises(DataError, match=reason):
            pack_task(source, out, options, task)
    with pytest.raises(DataError, match="source is 'other', in the plan 'raw'"):
        pack_task(tmp_path / "other", out, OPTIONS, PackTask(1, 2))
    with pytest.raises(DataError, match="--overwrite in a task would erase"):
        pack_task(source, out, replace(OPTIONS, overwrite=True), PackTask(1, 2))
    other = Plan(classes=[], key_ranges={}, shards=[], digest="other")
    with monkeypatch.context() as patched:
        patched.setattr("shards.pack.tasks.make_plan", lambda *_: other)
        with pytest.raises(DataError, match="this task makes other from the same list"):
            pack_task(source, out, OPTIONS, PackTask(1, 2))
    (out / PLAN_NAME).write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match=r"\.plan\.parquet cannot be read"):
        merge(out)
    assert {name for name, digest in file_hashes(out).items() if before.get(name) != digest} == {
        PLAN_NAME
    }


def test_a_missing_task_is_named_with_the_command_that_completes_it(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out put"
    for index in (0, 2):
        pack_task(source, out, OPTIONS, PackTask(index, 3))
    with pytest.raises(DataError, match="task 1 of 3: 3 of 3 shards are missing") as error:
        merge(out)
    assert "1 tasks are not complete" in str(error.value)
    (line,) = [s.split("run: ")[1] for s in str(error.value).splitlines() if "run: " in s]
    monkeypatch.setattr("sys.argv", shlex.split(line)[2:])
    assert pack_command.main() == 0
    (out / "train-000001.tar").write_bytes(b"cut")  # after its task had recorded it
    with pytest.raises(
        DataError, match=r"task 1 of 3: 1 of 3 shards are missing \(train-000001\);"
    ):
        merge(out)
    assert pack_command.main() == 0
    monkeypatch.setattr("sys.argv", ["merge", str(out)])
    assert merging.main() == merging.main() == 0  # a second merge changes nothing
    assert file_hashes(out) == whole


def test_the_command_line_of_a_task_has_all_its_options(tmp_path: Path) -> None:
    options = PackOptions(
        png="keep",
        shard_size=7,
        seed=2,
        skip_bad=4,
        group_regex=r"(a b)",
        val=0.25,
        manifest=Path("m.csv"),
        columns=Columns(x="left edge"),
        missing=("NA", "not known"),
        tidy_labels=True,
        follow_links=True,
    )
    line = shlex.split(command_line("in put", "out", options, PackTask(1, 4)))
    assert line[:5] == ["python", "-m", "shards.pack", "in put", "out"]
    parsed = tyro.cli(pack_command._Command, args=line[3:])
    assert vars(parsed.packing) == vars(options)
    assert (parsed.task_index, parsed.num_tasks) == (1, 4)


def test_locks_name_who_is_in_the_way(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with task_lock(out, 1):
        with pytest.raises(DataError, match=r"\.task-1\.lock is locked: task 1 runs already"):
            pack_task(source, out, OPTIONS, PackTask(1, 2))
        for whole_folder in (lambda: pack(source, out, OPTIONS), lambda: merge(out)):
            with pytest.raises(DataError, match=r"out/\.lock is locked"):
                whole_folder()
        pack_task(source, out, OPTIONS, PackTask(0, 2))  # another task is welcome
    with packer_lock(out), pytest.raises(DataError, match=r"out/\.lock is locked"):
        pack_task(source, out, OPTIONS, PackTask(1, 2))
    with pytest.raises(DataError, match="is not a folder"):
        merge(tmp_path / "absent")
    with pytest.raises(DataError, match="no task has packed into"):
        merge(source)


def test_one_packer_completes_what_tasks_left(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    pack_task(source, tmp_path / "out", OPTIONS, PackTask(1, 2))
    built = {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.tar")}
    pack(source, tmp_path / "out", OPTIONS)
    assert file_hashes(tmp_path / "out") == whole
    assert built == {n: (tmp_path / "out" / n).stat().st_ino for n in built} and len(built) == 4
    assert pack_task(source, tmp_path / "out", OPTIONS, PackTask(0, 2)) == []
    with pytest.raises(DataError, match="already holds a data set, of another source"):
        pack_task(source, tmp_path / "out", replace(OPTIONS, seed=9), PackTask(0, 2))


def test_bad_patches_are_added_up_over_the_tasks(tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    write_patches(root, COUNTS, ("a", "b"), seed=1)
    for i in range(4):
        (root / "train" / "a" / f"bad{i}.png").write_bytes(b"")
    options = replace(OPTIONS, skip_bad=3)
    for index in (0, 1):
        pack_task(root, out, options, PackTask(index, 2))  # no task alone has more than 3
    with pytest.raises(DataError, match="4 files cannot be used"):
        merge(out)
    assert merge(out, skip_bad=4).provenance["skipped"]["count"] == 4
    pack(root, tmp_path / "whole", replace(OPTIONS, skip_bad=4))
    assert file_hashes(out) == file_hashes(tmp_path / "whole")
    with pytest.raises(DataError, match=r"files? cannot be used"):
        for index in (0, 1):
            pack_task(root, tmp_path / "strict", OPTIONS, PackTask(index, 2))


@pytest.mark.parametrize(
    ("index", "count", "environment", "expected"),
    [
        (None, None, {}, None),
        (None, None, {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, None),
        (2, 4, {"SLURM_ARRAY_TASK_ID": "1"}, PackTask(2, 4)),
        (None, 4, {"SLURM_ARRAY_TASK_ID": "1"}, PackTask(1, 4)),
        (None, 4, {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "1"}, PackTask(3, 4)),
        (
            None,
            3,
            {
                "SLURM_ARRAY_TASK_ID": "30",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "10",
            },
            PackTask(2, 3),
        ),
        (None, 4, {}, "give the index of this task by --task-index"),
        (1, None, {}, "give the number of tasks by --num-tasks"),
        (4, 4, {}, "task-index is 4, expected 0 to 3"),
        (None, 4, {"SLURM_ARRAY_TASK_ID": "7"}, "task-index is 7, expected 0 to 3"),
        (0, 0, {}, "num-tasks is 0"),
    ],
)
def test_which_task_this_is(
    index: int | None, count: int | None, environment: dict[str, str], expected: object
) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            choose_task(index, count, environment)
    else:
        assert choose_task(index, count, environment) == expected


def start(source: Path, out: Path, index: int, count: int) -> subprocess.Popen[str]:
    options = ["--shard-size", "5", "--workers", "1"]
    task = ["--task-index", str(index), "--num-tasks", str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", "shards.pack", str(source), str(out), *options, *task],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_task_redoes_only_what_it_had_not_finished(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    task = start(source, out, 0, 2)
    while task.poll() is None and not list(out.glob(".train-*.json")):
        time.sleep(0.001)
    task.send_signal(signal.SIGKILL)
    task.communicate()
    (out / ".train-000004.tar.1.tmp").write_text("half, of this task")
    (out / ".train-000001.tar.1.tmp").write_text("half, of the other task")
    done = {path.name[1:-5] for path in out.glob(".train-*.json")}
    built: list[str] = []

    def counted(job: build.Job, plan: ShardPlan) -> ShardRecord:
        built.append(plan.name)
        return build.build(job, plan)

    with monkeypatch.context() as patched:
        patched.setattr("shards.pack.workers.build", counted)
        pack_task(source, out, OPTIONS, PackTask(0, 2))
        assert not done & set(built) and not (out / ".train-000004.tar.1.tmp").exists()
        assert (out / ".train-000001.tar.1.tmp").exists()  # its owner may be at work
        pack_task(source, out, OPTIONS, PackTask(1, 2))
    assert len(built) + len(done) == 9
    merge(out)
    assert file_hashes(out) == whole


@pytest.mark.slow
def test_tasks_that_start_at_once(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    tasks = [start(source, tmp_path / "out", index, 4) for index in range(4)]
    for task in tasks:
        _, errors = task.communicate(timeout=120)
        assert task.returncode == 0, errors
    merge(tmp_path / "out")
    assert file_hashes(tmp_path / "out") == whole
