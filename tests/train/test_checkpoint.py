"""Checkpoint files: killed, damaged, on a full disk. What is loaded is whole, or named."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import DataError
from tests.helpers.crashes.calls import was_killed
from tests.helpers.messages import collected_messages
from tests.helpers.training import load_undamaged
from train import checkpoint as state

META = {"log_bytes": 1234, "processes": 1}


def tensors(images: int) -> dict[str, Tensor]:
    return {"w": torch.full((300,), float(images)), "step": torch.tensor(images)}


def save(run: Path, images: int, keep: int = 2) -> None:
    state.save_checkpoint(run, images, META, tensors(images), keep)


def names(run: Path) -> list[int]:
    return sorted(int(folder.name) for folder in (run / "checkpoints").iterdir())


def assert_loads(run: Path, images: int, warnings: int) -> None:
    with collected_messages() as messages:
        loaded = state.load_newest(run)
    assert loaded is not None and loaded.images_seen == images and len(messages) == warnings
    assert loaded.meta == {"images_seen": images, **META}
    assert all(torch.equal(loaded.tensors[name], t) for name, t in tensors(images).items())


def test_killed_at_any_file_operation_one_whole_checkpoint_is_there(tmp_path: Path) -> None:
    call = killed = 0
    while killed == call:
        call, run = call + 1, tmp_path / str(call)
        save(run, 8, keep=1)
        killed += was_killed(call, lambda run=run: save(run, 16, keep=1))
        final = [int(p.name) for p in (run / "checkpoints").glob("[0-9]*")]
        assert final, "a whole checkpoint is under its final name at any time"
        assert_loads(run, max(final), warnings=0)
        save(run, 16, keep=1)  # the resumed run comes there again, over what was left
        assert names(run) == [16]
        assert_loads(run, 16, warnings=0)
    assert killed >= 10, "the write has at least as many operations"


@pytest.mark.parametrize("name", [state.TENSORS, state.META])
def test_any_damage_of_any_file_is_found(name: str, tmp_path: Path) -> None:
    for images in (8, 16):
        save(tmp_path, images)
    path = tmp_path / "checkpoints" / f"{16:012d}" / name
    undamaged = path.read_bytes()
    layout = (
        {i for i, byte in enumerate(undamaged) if chr(byte).isspace()} if name == state.META else {}
    )
    flips = [
        8 * i + bit for i in range(0, len(undamaged), 1 + len(undamaged) // 50) for bit in (0, 6)
    ]
    for flip in flips:
        if flip // 8 not in layout:  # white space between the values of the JSON means nothing
            damaged = bytearray(undamaged)
            damaged[flip // 8] ^= 1 << flip % 8
            path.write_bytes(damaged)
            assert_loads(tmp_path, 8, warnings=1)
    for cut in (0, 1, len(undamaged) // 2, len(undamaged) - 1 - (name == state.META)):
        path.write_bytes(undamaged[:cut])
        assert_loads(tmp_path, 8, warnings=1)
    path.unlink()
    assert_loads(tmp_path, 8, warnings=1)
    path.mkdir()
    assert_loads(tmp_path, 8, warnings=1)
    path.rmdir()
    path.write_bytes(undamaged)
    assert_loads(tmp_path, 16, warnings=0)


def test_a_swapped_or_renamed_checkpoint_is_found(tmp_path: Path) -> None:
    for images in (8, 16):
        save(tmp_path, images)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / f"{8:012d}", folder / f"{24:012d}")
    assert_loads(tmp_path, 16, warnings=1)
    shutil.copy(folder / f"{8:012d}" / state.META, folder / f"{16:012d}" / state.META)
    assert_loads(tmp_path, 8, warnings=2)


def test_without_a_whole_checkpoint_a_run_does_not_start_over(tmp_path: Path) -> None:
    assert load_undamaged(tmp_path) is None
    for images in (8, 16):
        save(tmp_path, images)
        (tmp_path / "checkpoints" / f"{images:012d}" / state.TENSORS).unlink()
    none_whole = r"none of the 2 checkpoints in .*checkpoints is whole"
    with collected_messages() as messages, pytest.raises(DataError, match=none_whole):
        state.load_newest(tmp_path)
    assert len(messages) == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(
    keep: int, tmp_path: Path
) -> None:
    """A resume from 8 passed 24 over, and is interrupted at 16: 16 is what must stay."""
    for images in (8, 24):
        save(tmp_path, images)
    (tmp_path / "checkpoints" / f"{24:012d}" / state.META).unlink()
    save(tmp_path, 16, keep)
    assert names(tmp_path) == [8, 16][-keep:]
    assert_loads(tmp_path, 16, warnings=0)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full: longer files fail as they do there. Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_keeps_the_old(tmp_path: Path) -> None:
    save(tmp_path, 8)
    named = rf"at 16 images was not saved: .*{state.TENSORS} cannot be written"
    with files_of_at_most(1000), pytest.raises(DataError, match=named):
        save(tmp_path, 16)
    assert names(tmp_path) == [8]
    assert_loads(tmp_path, 8, warnings=0)


def test_a_value_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    save(tmp_path, 8)
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = {**tensors(16), "ema/weight": torch.tensor([0.0, value])}
        with pytest.raises(DataError, match="at 16 images was not saved: not finite: ema/weight"):
            state.save_checkpoint(tmp_path, 16, META, bad, keep=2)
    assert names(tmp_path) == [8]
