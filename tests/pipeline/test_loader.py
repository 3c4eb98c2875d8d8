"""The loader: pixels equal to the packed ones, accounting over ranks, storage and epochs."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from PIL import Image

from common.errors import DataError
from pipeline import loader as loader_module
from pipeline import reader as reader_module
from pipeline.index import Dataset, open_dataset
from pipeline.loader import STORES, Loader, Streamed
from pipeline.reader import Reader, read_split
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import METADATA_NAME, dumps_metadata, load_metadata
from tests.helpers.patches import write_patches

CPU = torch.device("cpu")
STORAGES = sorted(STORES.keys() - {"device"})


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Dataset:
    return open_dataset(small_dataset)


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_pixels_and_labels_are_those_of_the_files(mode: str, tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 30, "val": 3}, ("a", "b"), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(png=mode, shard_size=17, workers=1))  # type: ignore[arg-type]
    opened = open_dataset(tmp_path / "out")
    for split in opened.splits.values():
        pixels = read_split(split)
        paths = split.table["path"].to_pylist()
        for i, path in enumerate(paths):
            assert np.array_equal(pixels[i], np.asarray(Image.open(tmp_path / "raw" / path)))
            assert opened.metadata.classes[split.labels[i]] == Path(path).parent.name
        shuffled = np.random.default_rng(0).permutation(len(split))
        assert np.array_equal(Reader(split).read(shuffled), pixels[shuffled])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_exactly_once_an_epoch(storage: str, world: int, dataset: Dataset) -> None:
    split, epochs = dataset.split("train"), 3
    ranks = [Loader(split, 12, 0, CPU, storage, rank, world) for rank in range(world)]
    stop = epochs * len(split)
    batches = [list(loader.batches(0, stop)) for loader in ranks]
    assert {len(b) for b in batches} == {stop // 12}
    merged = [np.concatenate([b.indices for b in step]) for step in zip(*batches, strict=True)]
    counts = np.bincount(np.concatenate(merged), minlength=len(split))
    assert (counts == epochs).all()
    for step, batch in enumerate(batches[0]):
        assert np.array_equal(ranks[0].indices(12 * step), batch.indices)
        assert batch.images.shape == (12 // world, 3, 32, 32) and batch.images.dtype == torch.uint8
        assert np.array_equal(batch.labels.numpy(), split.labels[batch.indices])
        read = Reader(split).read(batch.indices)
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), read)


@pytest.mark.parametrize("storage", STORAGES)
def test_resuming_continues_the_order(storage: str, dataset: Dataset) -> None:
    split = dataset.split("train")
    whole = [b.indices for b in Loader(split, 7, 1, CPU, storage).batches(0, 20 * 7)]
    later = [b.indices for b in Loader(split, 7, 1, CPU, storage).batches(9 * 7, 20 * 7)]
    assert len(whole) == 20 and all(map(np.array_equal, whole[9:], later))


def test_batches_must_divide_among_ranks(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="not divisible by 3"):
        Loader(dataset.split("train"), 10, 0, CPU, "host", 0, 3)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 9])
def test_a_stream_with_little_room_gives_the_same_samples(
    slots: int, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "STREAM_BLOCK", 8)
    monkeypatch.setattr(loader_module, "SLOTS", slots)
    split, rng = dataset.split("train"), np.random.default_rng(slots)
    pixels, stream = Reader(split).read(np.arange(len(split))), Streamed(split, CPU)
    for _ in range(60):
        rows = rng.integers(len(split), size=int(rng.integers(1, 30)))
        gathered = stream.gather(rows).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(gathered, pixels[rows])


def test_twenty_epochs_leak_nothing(tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 400}, ("a", "b"), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    split = open_dataset(tmp_path / "out").split("train")
    loader, epoch = Loader(split, 16, 0, CPU, "stream"), len(split)  # 49 MB in twenty epochs
    me, warm = psutil.Process(), list(loader.batches(0, 2 * epoch))
    del warm
    files, memory = me.num_fds(), me.memory_info().rss
    for _ in loader.batches(0, 20 * epoch):
        pass
    assert me.num_fds() == files and me.memory_info().rss - memory < 5 << 20


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_FILES", 8)
    write_patches(tmp_path / "raw", {"train": 6}, ("a", "b"), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(shard_size=1, workers=1))
    split, before = open_dataset(tmp_path / "out").split("train"), psutil.Process().num_fds()
    with Reader(split) as reader:
        reader.read(np.arange(len(split)))
        assert len(split.metadata.shards) == 12
        assert 0 < psutil.Process().num_fds() - before <= 8
    assert psutil.Process().num_fds() == before


def damaged(root: Path, how: str) -> None:
    tar, other = root / "train-000000.tar", root / "val-000000.tar"
    content = tar.read_bytes()
    if how == "missing":
        tar.unlink()
    elif how == "truncated":
        os.truncate(tar, len(content) - 512)
    elif how == "swapped":
        tar.rename(root / "x")
        other.rename(tar)
        (root / "x").rename(other)
    elif how == "swapped with sidecars":
        damaged(root, "swapped")
        names = [root / f"{split}-000000.parquet" for split in ("train", "val")]
        blobs = [name.read_bytes() for name in names]
        for name, blob in zip(reversed(names), blobs, strict=True):
            name.write_bytes(blob)
    elif how == "renamed":
        tar.rename(root / "train-000001.tar")
    elif how == "sidecar":
        blob = bytearray((root / "train-000000.parquet").read_bytes())
        blob[len(blob) // 2] ^= 1
        (root / "train-000000.parquet").write_bytes(blob)
    elif how == "no sidecar":
        (root / "train-000000.parquet").unlink()


DAMAGES = [
    *("missing", "truncated", "swapped", "swapped with sidecars", "renamed"),
    *("sidecar", "no sidecar"),
]


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_found_before_the_first_step(how: str, tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 10, "val": 10}, ("a", "b"), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    damaged(tmp_path / "out", how)
    with pytest.raises(DataError, match="train-000000"):
        open_dataset(tmp_path / "out")


def test_a_copied_shard_is_found_by_its_keys(tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 10, "val": 10}, ("a", "b"), seed=4)
    out = tmp_path / "out"
    pack(tmp_path / "raw", out, PackOptions(workers=1))
    metadata = load_metadata(out)
    train, val = metadata.splits["train"].shards[0], metadata.splits["val"].shards[0]
    for suffix in (".tar", ".parquet"):
        shutil.copy(out / (train.name + suffix), out / (val.name + suffix))
    copy = replace(train, name=val.name)
    splits = {**metadata.splits, "val": replace(metadata.splits["val"], shards=[copy])}
    (out / METADATA_NAME).write_bytes(dumps_metadata(replace(metadata, splits=splits)))
    with pytest.raises(DataError, match=r"train-000000 and val-000000 both hold the sample s0"):
        open_dataset(out)


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_every_bit_flip_in_a_payload_is_detected(mode: str, tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 4}, ("a",), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(png=mode, workers=1))  # type: ignore[arg-type]
    split, tar = open_dataset(tmp_path / "out").split("train"), tmp_path / "out/train-000000.tar"
    clean, rng = tar.read_bytes(), np.random.default_rng(0)
    rows = split.table.to_pylist()
    for _ in range(400):
        row = rows[int(rng.integers(len(split)))]
        flipped = bytearray(clean)
        flipped[row["offset"] + int(rng.integers(row["size"]))] ^= 1 << int(rng.integers(8))
        tar.write_bytes(flipped)
        with pytest.raises(DataError, match=rf"train-000000.tar: sample {row['key']} at byte"):
            read_split(split)


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_rows_of_a_sidecar_may_lie_in_any_order(mode: str, tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 20}, ("a", "b"), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(png=mode, workers=1))  # type: ignore[arg-type]
    split = open_dataset(tmp_path / "out").split("train")
    pixels, every = read_split(split), np.arange(len(split))
    backwards = replace(split, index=split.index.take(every[::-1].copy()))
    assert np.array_equal(Reader(backwards).read(every), pixels[::-1])
    first = replace(split, index=split.index.take(np.zeros(len(split), np.int64)))
    assert np.array_equal(Reader(first).read(every), pixels[np.zeros(len(split), int)])


def test_names_stay_on_the_disk_until_they_are_asked_for(tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 30, "val": 3}, ("a", "b"), seed=4)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(shard_size=17, workers=1))
    split = open_dataset(tmp_path / "out").split("train")
    assert all(pa.types.is_integer(field.type) for field in split.index.schema)
    assert split.keys(np.array([2, 0])) == split.table["key"].take([2, 0]).to_pylist()
    sidecar = split.metadata.shards[1].sidecar(split.root)
    sidecar.write_bytes(sidecar.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=rf"{sidecar.name} was altered"):
        _ = split.table
