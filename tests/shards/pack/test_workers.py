"""Worker processes: what they answer is what this process would have found."""

from pathlib import Path

import pytest

from common.errors import DataError
from shards.pack import workers as module
from shards.pack.plan import PackOptions, make_plan
from shards.pack.shard import Job
from shards.pack.workers import WorkerPool
from shards.sources.folder import scan
from shards.sources.layout import PLAIN
from shards.sources.look import Look, Looked, look
from tests.helpers.patches import write_patches

OPTIONS = PackOptions(shard_size=8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_patches(tmp_path / "raw", {"train": 40}, ("a", "b"), seed=2)
    return tmp_path / "raw"


def ready(crew: WorkerPool, workers: int) -> WorkerPool:
    """The crew when all its workers have said that they are ready."""
    crew.start(patches=workers, shards=workers)
    for worker in crew._workers:
        assert worker.hear() == [] and worker.ready
    return crew


def test_workers_look_as_this_process_does(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [patch.path for patch in scan(source)]
    (tmp_path / "outside.png").write_bytes(b"")
    (source / "train" / "a" / "link.png").symlink_to(tmp_path / "outside.png")
    for name, content in (("text.gif", b""), ("large.png", bytes(PLAIN.max_bytes + 1))):
        (source / "train" / "a" / name).write_bytes(content)
        paths.append(f"train/a/{name}")
    paths += ["train/a/missing.png", "zero\0byte.png"]
    given = {"x": [3, None, 5], "y": [4, None, 6], "mpp": [0.5, None, 0.25]}
    parts = [
        Look(
            str(source), PLAIN, "(.*)\\.",
            part := paths[i : i + 3],
            {"split": ["train"] * len(part)} | {k: v[: len(part)] for k, v in given.items()},
        )
        for i in range(0, len(paths), 3)
    ]  # fmt: skip
    parts.append(Look(str(source), PLAIN, None, ["train/a/link.png"], {"split": ["val"]}))
    expected = list(map(look, parts))
    mine: list[Look] = []

    def counted(part: Look) -> Looked:
        mine.append(part)
        return look(part)

    monkeypatch.setattr(module, "look", counted)
    with WorkerPool(2) as crew:
        found = ready(crew, 2).look(parts)
    assert found == expected
    assert len(found[-3].refused) + len(found[-2].refused) == 2
    assert "outside" in str(found[-1].error) and len(mine) < len(parts) - 2


def test_a_dead_worker_is_named(source: Path, tmp_path: Path) -> None:
    plan = make_plan(scan(source), OPTIONS)
    job = Job(str(source), str(tmp_path), "keep", plan.classes, plan.digest)
    with WorkerPool(2) as crew:
        ready(crew, 2)._workers[0].kill()
        with pytest.raises(DataError, match="ended with code -9 while it built train-000000"):
            list(crew.build(job, plan.shards))


def test_a_worker_that_does_not_start_is_named(source: Path, tmp_path: Path) -> None:
    plan = make_plan(scan(source), OPTIONS)
    job = Job(str(source), str(tmp_path), "keep", plan.classes, plan.digest)
    with WorkerPool(2) as crew:
        crew.start(patches=40, shards=5)
        crew._workers[1].kill()
        with pytest.raises(DataError, match="a packing process ended with code -9; if"):
            list(crew.build(job, plan.shards))


def test_few_patches_are_packed_by_this_process() -> None:
    with WorkerPool(0) as crew:
        assert crew.start(patches=100, shards=10) == 1 and not crew._workers
    with WorkerPool(4) as crew:
        assert crew.start(patches=100, shards=1) == 4 and not crew._workers


def test_a_worker_that_fails_says_why(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    part = Look(str(source), PLAIN, None, ["train/a/nothing.png"], {})  # `split` is not given
    with (
        WorkerPool(2) as crew,
        pytest.raises(DataError, match="ended with code 1 while it looked at"),
    ):
        list(ready(crew, 2).look([part, part]))
    said = capfd.readouterr().err
    assert "KeyError: 'split'" in said and "Fatal" not in said


def test_workers_end_quietly_when_nobody_listens(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(2) as crew:
        crew.start(patches=2, shards=2)
        for worker in crew._workers:  # while they import, as when the parent is killed
            worker.stdout.close()
        assert [worker._process.wait(60) for worker in crew._workers] == [0, 0]
    assert not capfd.readouterr().err
