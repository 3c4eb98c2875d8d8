"""Packing under faults: locks, kills, full disks, changing sources, folders of others."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DataError
from shards.pack.packing import pack
from shards.pack.plan import PackOptions, ShardPlan, make_plan
from shards.pack.resume import ShardRecord, packer_lock
from shards.pack.shard import Job, build
from shards.pack.workers import WorkerPool
from shards.schema import load_metadata
from shards.sources.folder import FolderSource
from tests.helpers.packing import file_hashes, list_patches
from tests.helpers.patches import write_patches

OPTIONS = PackOptions(shard_size=5, workers=1)
SHARDS = 2 * (5 + 2 + 2)  # files of 24, 8 and 8 patches


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_patches(tmp_path / "raw", {"train": 12, "val": 4, "test": 4}, ("a", "b"), seed=1)
    return tmp_path / "raw"


def test_a_second_packer_exits_at_once_and_names_the_lock(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        packer_lock(out),
        pytest.raises(DataError, match=r"out/\.lock is locked: another packer"),
    ):
        pack(source, out, OPTIONS)
    assert not out.exists()
    pack(source, out, OPTIONS)


def test_a_lock_on_a_removed_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open, path = os.open, tmp_path / "out" / ".lock"
    lost = []

    def open_then_lose(name: Path, *args: int) -> int:
        handle = real_open(name, *args)
        if name == path and not lost:
            path.unlink()  # as the packer that held the lock does when it ends
            lost.append(os.fstat(handle).st_ino)
        return handle

    monkeypatch.setattr(os, "open", open_then_lose)
    with packer_lock(tmp_path / "out"):
        assert lost and path.is_file()  # made again, and locked: nobody else gets in
        with pytest.raises(DataError, match="is locked"), packer_lock(tmp_path / "out"):
            pytest.fail("entered")


def test_a_data_set_is_replaced_only_when_asked_and_no_shard_of_it_stays(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pack(source, out, OPTIONS)
    before = file_hashes(out)
    with pytest.raises(DataError, match=r"already holds a data set, of another source"):
        pack(source, out, replace(OPTIONS, seed=5))
    assert file_hashes(out) == before and len(before) == SHARDS + 2
    for name in ("notes.txt", "extra-000000.tar", ".keep"):
        (out / name).write_text("mine")
    pack(source, out, PackOptions(shard_size=100, workers=1, overwrite=True))
    fresh = tmp_path / "fresh"
    pack(source, fresh, PackOptions(shard_size=100, workers=1))
    left = file_hashes(out)
    others = {left.pop(name) for name in ("notes.txt", "extra-000000.tar", ".keep")}
    assert others == {hashlib.sha256(b"mine").hexdigest()}
    assert left == file_hashes(fresh)


def test_what_differs_from_the_packed_files_is_named(source: Path, tmp_path: Path) -> None:
    out, first = tmp_path / "out", min(source.rglob("*.png"))
    name, status, data = str(first.relative_to(source)), first.stat(), first.read_bytes()
    other = first.with_name("0new.png")
    pack(source, out, OPTIONS)

    def differs(what: str, seed: int = OPTIONS.seed) -> None:
        with pytest.raises(DataError) as error:
            pack(source, out, replace(OPTIONS, seed=seed))
        assert f"changed since: {what}; replace it" in str(error.value)

    same = "the packed files have the same names; their sizes or times, options, values of a "
    differs(f"{same}manifest or skipped files differ", seed=5)
    other.write_bytes(data)
    new = f"1 files are new (as {other.relative_to(source)})"
    differs(new)
    first.unlink()
    differs(f"{new}, 1 files are gone (as {name})")
    other.unlink()
    first.write_bytes(data)
    differs(f"1 files were written since (as {name})")
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    pack(source, out, OPTIONS)  # as it was: complete


def test_a_finished_pack_knows_files_that_changed_under_a_clock_that_went_back(
    source: Path, tmp_path: Path
) -> None:
    """A file may be replaced by an older one of its size, or all may be newer than the pack."""
    file = next(source.rglob("*.png"))
    content, times = file.read_bytes(), file.stat()
    os.utime(file, (times.st_atime, times.st_mtime + 3600))  # of a machine ahead of this one
    pack(source, tmp_path / "out", OPTIONS)
    pack(source, tmp_path / "out", OPTIONS)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, (times.st_atime, times.st_mtime - 3600))
    with pytest.raises(DataError, match="files have changed since"):
        pack(source, tmp_path / "out", OPTIONS)


def test_a_bad_source_costs_no_data_set(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(source, out, OPTIONS)
    before = file_hashes(out)
    (source / "train" / "a" / "x.jpg").touch()
    for root in (source, tmp_path / "absent"):
        with pytest.raises(DataError):
            pack(root, out, PackOptions(overwrite=True))
    assert file_hashes(out) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_never_replaced(overwrite: bool, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-000000.tar").write_text("mine")
    with pytest.raises(DataError, match=r"holds no data set of this tool \(\['train-000000.tar'\]"):
        pack(source, out, PackOptions(overwrite=overwrite))
    assert file_hashes(out) == {"train-000000.tar": hashlib.sha256(b"mine").hexdigest()}


def test_a_new_shard_does_not_replace_a_file_of_others(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(source, out, PackOptions(shard_size=100, workers=1))
    (out / "train-000001.tar").write_text("mine")
    before = file_hashes(out)
    with pytest.raises(DataError, match=r"train-000001\.tar is not part of a data set"):
        pack(source, out, PackOptions(shard_size=5, workers=1, overwrite=True))
    assert file_hashes(out) == before


def stop_after(count: int) -> object:
    """`WorkerPool.build` that is interrupted after `count` shards."""

    def build_some(pool: WorkerPool, job: Job, plans: list[ShardPlan]) -> Iterator[ShardRecord]:
        for plan in plans[:count]:
            yield build(job, plan)
        raise KeyboardInterrupt

    return build_some


def test_an_interrupted_pack_continues_where_it_stopped(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WorkerPool, "build", stop_after(3))
        pack(source, out, OPTIONS)
    with pytest.raises(DataError, match=r"unfinished pack: run the same .* or, if several tasks"):
        load_metadata(out)
    (out / ".train-000004.tar.123.tmp").write_text("half")
    # not the inode: that of a file which was removed may be given to the next
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("train-00000[0-2].*")}
    (out / "train-000002.tar").write_bytes(b"cut")  # its size is not the recorded one
    with pytest.raises(DataError, match="unfinished pack of another source, of other options"):
        pack(source, out, PackOptions(shard_size=6))
    pack(source, out, OPTIONS)
    same = {name: (out / name).stat().st_mtime_ns == time for name, time in done.items()}
    assert [name for name, unchanged in sorted(same.items()) if unchanged] == [
        "train-000000.parquet",
        "train-000000.tar",
        "train-000001.parquet",
        "train-000001.tar",
    ]
    pack(source, tmp_path / "fresh", OPTIONS)
    assert file_hashes(out) == file_hashes(tmp_path / "fresh")


def test_a_pack_that_was_stopped_while_it_cleaned_up_is_completed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shards.pack.metadata.finish", lambda out: signal.raise_signal(signal.SIGINT))
        pack(source, out, OPTIONS)
    assert (out / "dataset.json").exists() and (out / ".packing.json").exists()
    built = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    pack(source, out, OPTIONS)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")} == built
    pack(source, tmp_path / "fresh", OPTIONS)
    assert file_hashes(out) == file_hashes(tmp_path / "fresh")
    before = file_hashes(out)
    assert pack(source, out, OPTIONS) and file_hashes(out) == before
    (out / "train-000000.parquet").unlink()
    with pytest.raises(DataError, match=r"train-000000.parquet is missing.*--overwrite"):
        pack(source, out, OPTIONS)


def test_an_interrupted_overwrite_leaves_no_stale_shard(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack(source, out, OPTIONS)
    other = PackOptions(shard_size=12, workers=1, overwrite=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(WorkerPool, "build", stop_after(1))
        pack(source, out, other)
    assert not (out / "dataset.json").exists()
    pack(source, out, PackOptions(shard_size=12, workers=1))
    pack(source, tmp_path / "fresh", PackOptions(shard_size=12, workers=1))
    assert file_hashes(out) == file_hashes(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "workers"),
    [("same size", 1), ("grown", 1), ("removed", 1), ("touched", 1), ("grown", 2)],
)
def test_a_source_that_changes_is_detected(
    change: str, workers: int, source: Path, tmp_path: Path
) -> None:
    plan = make_plan(list_patches(source), OPTIONS)
    victim = source / plan.shards[1].patches[2].path
    data = victim.read_bytes()
    if change == "removed":
        victim.unlink()
    elif change == "touched":
        os.utime(victim, ns=(0, 0))
    else:
        victim.write_bytes(data[:-1] + b"?" + b"?" * (change == "grown"))
    out = tmp_path / "out"
    out.mkdir()
    job = Job(
        source=FolderSource(root=source),
        out=out,
        png="stored",
        classes=plan.classes,
        digest=plan.digest,
    )
    reason = "cannot be read: No such file" if change == "removed" else "changed while"
    with pytest.raises(DataError, match=f"{victim.name} {reason}"), WorkerPool(workers, 5) as pool:
        pool.start(len(plan.shards), len(plan.shards))
        list(pool.build(job, plan.shards))
    assert not list(out.glob("train-000001*")) and not list(out.glob(".train-000001*"))


def run(
    source: Path, out: Path, *options: str, limit: int | None = None, group: bool = False
) -> subprocess.Popen[str]:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in a background
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "shards.pack", str(source), str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        start_new_session=group,
    )


def test_a_full_disk_is_named_and_packing_continues_after_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    packer = run(source, out, "--shard-size", "16", "--workers", "1", limit=70_000)
    _, errors = packer.communicate(timeout=60)
    assert packer.returncode == 1 and "Traceback" not in errors
    assert "out/train-000000.tar cannot be written: File too large" in errors
    assert {path.name for path in out.iterdir()} == {".packing.json"}
    pack(source, out, PackOptions(shard_size=16, workers=1))
    pack(source, tmp_path / "fresh", PackOptions(shard_size=16, workers=1))
    assert file_hashes(out) == file_hashes(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_random_points_and_run_again(workers: str, tmp_path: Path) -> None:
    source, out = tmp_path / "raw", tmp_path / "out"
    write_patches(source, {"train": 600, "val": 100}, ("a", "b"), seed=2)
    pack(source, tmp_path / "fresh", PackOptions(shard_size=8, workers=1))
    whole = file_hashes(tmp_path / "fresh")
    rng, finished = random.Random(workers), 0
    for _ in range(5):  # each in the midst of the 175 shards, some time after one was finished
        packer = run(source, out, "--shard-size", "8", "--workers", workers)
        while packer.poll() is None and len(list(out.glob("*.tar"))) == finished:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        packer.send_signal(signal.SIGKILL)
        packer.communicate()
        assert packer.returncode == -signal.SIGKILL and not (out / "dataset.json").exists()
        visible = {
            name: sums for name, sums in file_hashes(out).items() if not name.startswith(".")
        }
        assert visible.items() < whole.items()  # a file has its name only when it is whole
        finished = len(list(out.glob("*.tar")))
    packer = run(source, out, "--shard-size", "8", "--workers", workers)
    assert packer.wait(60) == 0, packer.stderr.read() if packer.stderr else ""
    packer.communicate()
    assert file_hashes(out) == whole


@pytest.mark.slow
def test_ctrl_c_leaves_whole_shards_and_no_process(tmp_path: Path) -> None:
    source, out = tmp_path / "raw", tmp_path / "out"
    write_patches(source, {"train": 1500}, ("a", "b"), seed=2)
    packer = run(source, out, "--shard-size", "5", "--workers", "2", group=True)
    while packer.poll() is None and not list(out.glob("*.tar")):
        time.sleep(0.002)
    os.killpg(packer.pid, signal.SIGINT)
    _, errors = packer.communicate(timeout=30)
    assert packer.returncode == 130 and "the same command continues" in errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(packer.pid, 0)
    assert not list(out.glob(".*.tmp")) and not (out / ".lock").exists()
    pack(source, out, PackOptions(shard_size=5, workers=1))
    pack(source, tmp_path / "fresh", PackOptions(shard_size=5, workers=1))
    assert file_hashes(out) == file_hashes(tmp_path / "fresh")
