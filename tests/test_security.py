"""Hostile snapshots, checkpoints and results: a DataError, nothing run, nothing gigantic made."""

import json
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save as to_bytes

from common.errors import DataError
from common.files import MAX_JSON_BYTES, read_json
from eval.results import load_results
from models import snapshot
from models.config import ModelConfig
from models.vae import build
from pipeline.index import open_dataset
from tests.helpers.messages import collected_messages
from tests.helpers.training import make_trainer, short_config, train_until
from train import checkpoint as state
from train.loop import Trainer

BOMB = b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def pack(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def unpack(blob: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", blob[:8])
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def changed(blob: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    header, data = unpack(blob)
    change(header)
    return pack(header, data)


def first(header: dict[str, Any]) -> dict[str, Any]:
    """The entry of some float32 tensor of one dimension."""
    return next(e for e in header.values() if e["dtype"] == "F32" and len(e["shape"]) == 1)


def renamed(header: dict[str, Any], name: str) -> None:
    header[name] = header.pop(next(iter(header)))


TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2
# what a file holds instead of the tensors that it should: from those to bytes
TENSORS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda blob: b"",
    "a pickle": lambda blob: b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00\x8c\x02os",
    "a header of 8 EiB": lambda blob: pack({}, length=1 << 63),
    "a header beyond the end": lambda blob: pack({}, length=1 << 20),
    "nested brackets": lambda blob: pack(BOMB),
    "overlapping offsets": lambda blob: pack(
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)
    ),
    "offsets beyond the end": lambda blob: pack(
        {"a": entry("F32", [1 << 40], 0, 1 << 42)}, b"1234"
    ),
    "offsets backwards": lambda blob: pack({"a": entry("F32", [1], 4, 0)}, b"1234"),
    "a shape that overflows": lambda blob: pack({"a": entry("F32", [1 << 62, 4], 0, 0)}),
    "a negative shape": lambda blob: pack({"a": entry("F32", [-1], 0, 4)}, b"1234"),
    "one name twice": lambda blob: pack(TWICE[:-1] + b"}", b"1234"),
    "an unknown dtype": lambda blob: pack({"a": entry("PICKLE", [1], 0, 4)}, b"1234"),
    "an exotic dtype": lambda blob: pack({"a": entry("F8_E8M0", [4], 0, 4)}, b"1234"),
    "half a byte a number": lambda blob: pack({"a": entry("F4", [2], 0, 1)}, b"1"),
    "no tensors": lambda blob: pack({}),
    "another dtype": lambda blob: changed(blob, lambda h: first(h).update(dtype="I32")),
    "another shape": lambda blob: changed(
        blob, lambda h: first(h).update(shape=[1, *first(h)["shape"]])
    ),
    "a missing tensor": lambda blob: to_bytes({"a": torch.zeros(1)}),
    "a name that is a path": lambda blob: changed(blob, lambda h: renamed(h, "../../etc/passwd")),
    "a very long name": lambda blob: changed(blob, lambda h: renamed(h, "x" * 1_000_000)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshot")
    snapshot.save(build(ModelConfig(), 0), folder, {})
    return folder


def copy(saved: Path, folder: Path) -> dict[str, Any]:
    """Copy the snapshot without its hashes, which an attacker would write anew."""
    (folder / snapshot.WEIGHTS).write_bytes((saved / snapshot.WEIGHTS).read_bytes())
    config = read_json(saved / snapshot.CONFIG)
    del config[snapshot.WEIGHTS_HASH]
    (folder / snapshot.CONFIG).write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_weights_are_refused(name: str, saved: Path, tmp_path: Path) -> None:
    copy(saved, tmp_path)
    path = tmp_path / snapshot.WEIGHTS
    path.write_bytes(TENSORS[name](path.read_bytes()))
    with pytest.raises(DataError, match=snapshot.WEIGHTS) as refused:
        snapshot.load(tmp_path)
    assert len(str(refused.value)) < 2000


HUGE = 10**400
CONFIGS: dict[str, Any] = {
    "unknown setting": {"evil": 1},
    "infinite width": {"widths": [float("inf")] * 3},
    "width of 400 digits": {"widths": [HUGE, 2 * HUGE, 4 * HUGE]},
    "fractional width": {"widths": [16.5, 33.0, 66.0]},
    "width as text": {"widths": ["16", "32", "64"]},
    "true as channels": {"latent_channels": True},
    "channels of 400 digits": {"latent_channels": HUGE},
    "negative channels": {"latent_channels": -24},
    "no list of widths": {"widths": None},
    "kernel as list": {"stage1_kernel": [3]},
    "architecture as list": {"architecture": ["seed"]},
    "another architecture": {"architecture": "__import__('os')"},
    "stage as text": {"latent_stage": "no"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_model_configs_are_refused(name: str, saved: Path, tmp_path: Path) -> None:
    raw = copy(saved, tmp_path)
    raw["model"] |= CONFIGS[name]
    (tmp_path / snapshot.CONFIG).write_text(json.dumps(raw))
    with pytest.raises(DataError, match=snapshot.CONFIG) as refused:
        snapshot.load(tmp_path)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("text", [BOMB, b"[" * 100_000, b"[1]", b'"model"', b"null", b"", b"\xff"])
def test_hostile_json_is_refused(text: bytes, saved: Path, tmp_path: Path) -> None:
    copy(saved, tmp_path)
    (tmp_path / snapshot.CONFIG).write_bytes(text)
    with pytest.raises(DataError, match=snapshot.CONFIG):
        snapshot.load(tmp_path)
    (tmp_path / "results.json").write_bytes(text.replace(b'{"model": ', b"").removesuffix(b"}"))
    with pytest.raises(DataError, match=r"results\.json"):
        load_results(tmp_path)


@contextmanager
def memory_for(more: int) -> Iterator[None]:
    """Allocations fail beyond so many bytes more than now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_gigantic_model_is_refused_before_it_is_made(saved: Path, tmp_path: Path) -> None:
    raw = copy(saved, tmp_path)
    raw["model"] |= {"widths": [1024, 2048, 4096], "latent_channels": 4096}
    (tmp_path / snapshot.CONFIG).write_text(json.dumps(raw))
    with memory_for(256 << 20), pytest.raises(DataError, match="expected torch"):
        snapshot.load(tmp_path)


@pytest.mark.parametrize("name", [snapshot.WEIGHTS, snapshot.CONFIG, "results.json"])
def test_files_that_are_too_large_or_no_files(name: str, saved: Path, tmp_path: Path) -> None:
    copy(saved, tmp_path)
    read: Callable[[Path], Any] = load_results if name == "results.json" else snapshot.load
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(max(snapshot.MAX_WEIGHT_BYTES, MAX_JSON_BYTES) + 1)  # takes no space
    with memory_for(256 << 20), pytest.raises(DataError, match="larger than"):
        read(tmp_path)
    path.unlink()
    os.mkfifo(path)  # reading it would wait for ever
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path)


@pytest.fixture(scope="module")
def trained(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of one step with its checkpoint."""
    run = tmp_path_factory.mktemp("run")
    trainer = make_trainer(open_dataset(small_dataset), run, short_config("vae", images=8))
    assert train_until(trainer, run)
    return trainer


def forge(run: Path, meta: dict[str, Any], blob: bytes) -> Path:
    """Checkpoint files whose hash is right: whoever alters a file can compute that."""
    folder = run / "checkpoints" / f"{8:012d}"
    folder.mkdir(parents=True)
    text = json.dumps({**meta, "xxh3": state._digest(meta, blob)})
    (folder / state.META).write_text(text)
    (folder / state.TENSORS).write_bytes(blob)
    return folder


def files(trainer: Trainer) -> tuple[dict[str, Any], bytes]:
    folder = trainer.run / "checkpoints" / f"{8:012d}"
    meta = json.loads((folder / state.META).read_text())
    return {k: v for k, v in meta.items() if k != "xxh3"}, (folder / state.TENSORS).read_bytes()


def resume(trainer: Trainer, run: Path) -> None:
    checkpoint = state.load_newest(run)
    assert checkpoint is not None
    trainer.restore(checkpoint)


def test_the_forger_can_forge(trained: Trainer, tmp_path: Path) -> None:
    forge(tmp_path, *files(trained))
    resume(trained, tmp_path)


@pytest.mark.parametrize("name", TENSORS)
def test_hostile_checkpoints_are_refused(name: str, trained: Trainer, tmp_path: Path) -> None:
    meta, blob = files(trained)
    forge(tmp_path, meta, TENSORS[name](blob))
    with memory_for(512 << 20), pytest.raises(DataError) as refused:
        resume(trained, tmp_path)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    "change",
    [{"images_seen": value} for value in (True, 8.0, "8", None, -8, 10**400, [8], 16)]
    + [{"log_bytes": value} for value in (-1, 0.5, True, "0", None, [])],
    ids=str,
)
def test_hostile_checkpoint_facts_are_refused(
    change: dict[str, Any], trained: Trainer, tmp_path: Path
) -> None:
    meta, blob = files(trained)
    forge(tmp_path, {**meta, **change}, blob)
    with pytest.raises(DataError):
        resume(trained, tmp_path)


@pytest.mark.parametrize("name", [state.META, state.TENSORS])
def test_checkpoint_files_that_are_no_files(name: str, trained: Trainer, tmp_path: Path) -> None:
    path = forge(tmp_path, *files(trained)) / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="none of the 1"):
        resume(trained, tmp_path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with memory_for(256 << 20), pytest.raises(DataError, match="none of the 1"):
        resume(trained, tmp_path)
    path.unlink()
    path.write_bytes(BOMB)
    with pytest.raises(DataError, match="none of the 1"):
        resume(trained, tmp_path)


def test_linked_checkpoints_are_neither_read_nor_followed(trained: Trainer, tmp_path: Path) -> None:
    elsewhere = forge(tmp_path / "elsewhere", *files(trained))
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in (f"{8:012d}", f"{16:012d}"):
        (folder / name).symlink_to(elsewhere)
    with collected_messages() as warnings, pytest.raises(DataError, match="none of the 2"):
        state.load_newest(tmp_path / "run")
    assert len(warnings) == 2 and all("is a link" in line for line in warnings)
    state.save_checkpoint(tmp_path / "run", 16, {}, {"w": torch.ones(2)}, keep=1)
    assert [p.name for p in folder.iterdir()] == [f"{16:012d}"]
    assert sorted(p.name for p in elsewhere.iterdir()) == [state.META, state.TENSORS]
