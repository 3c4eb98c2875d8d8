"""Packing: what goes in comes out in any reader, and the bytes depend on nothing else."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from common.console import progress, show_messages
from shards.codec import png
from shards.codec.tar_writer import STORED_STRIDE_LABELLED, STORED_STRIDE_UNLABELLED
from shards.pack.__main__ import main
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import SIDECAR, load_metadata
from tests.helpers.packing import file_hashes, sidecar_rows
from tests.helpers.patches import real_archive, write_patches

Mode = Literal["stored", "keep"]

COUNTS = {"train": 12, "val": 4, "test": 5}
CLASSES = ("ADI", "LYM", "tumor é")
TOTAL = 3 * sum(COUNTS.values())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pack") / "raw"
    write_patches(root, COUNTS, CLASSES, seed=3)
    return root


def pixels_of(path: Path) -> bytes:
    return Image.open(path).tobytes()


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_any_reader_finds_the_pixels_and_labels_of_the_source(
    mode: Mode, source: Path, tmp_path: Path
) -> None:
    metadata = pack(source, tmp_path / "out", PackOptions(png=mode, shard_size=10, workers=1))
    assert metadata == load_metadata(tmp_path / "out")
    rows = {row["key"]: row for row in sidecar_rows(tmp_path / "out")}
    assert len(rows) == TOTAL
    assert {row["path"] for row in rows.values()} == {
        str(p.relative_to(source)) for p in source.rglob("*.png")
    }
    urls = [str(p) for p in sorted((tmp_path / "out").glob("*.tar"))]
    read = wds.WebDataset(urls, shardshuffle=False).decode("pil")
    for sample in read:
        row = rows.pop(sample["__key__"])
        path = Path(str(row["path"]))
        assert sample["png"].tobytes() == pixels_of(source / path)
        assert metadata.classes[sample["cls"]] == path.parent.name
        assert sample["cls"] == row["label"]
    assert not rows


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_tars_are_what_tarfile_writes_and_rows_point_into_them(
    mode: Mode, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pack(source, out, PackOptions(png=mode, shard_size=7, workers=1))
    for tar in sorted(out.glob("*.tar")):
        data, again = tar.read_bytes(), io.BytesIO()
        rows = pq.read_table(tar.with_suffix(".parquet"))
        assert rows.schema.equals(SIDECAR)
        with tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as copy:
            for row in rows.to_pylist():
                blob = data[row["offset"] :][: row["size"]]
                if mode == "keep":
                    assert blob == (source / row["path"]).read_bytes()
                for name, body in (("png", blob), ("cls", str(row["label"]).encode())):
                    info = tarfile.TarInfo(f"{row['key']}.{name}")
                    info.size = len(body)
                    copy.addfile(info, io.BytesIO(body))
        assert data == again.getvalue()


def test_stored_samples_have_a_constant_stride(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "out", PackOptions(workers=1))
    table = pq.read_table(tmp_path / "out" / "train-000000.parquet")
    data = np.fromfile(tmp_path / "out" / "train-000000.tar", np.uint8)
    assert set(np.diff(table["offset"])) == {STORED_STRIDE_LABELLED}
    samples = data[: len(table) * STORED_STRIDE_LABELLED].reshape(len(table), -1)[:, 512:]
    expected = [pixels_of(source / path.as_py()) for path in table["path"]]
    assert png.stored_rows(samples).tobytes() == b"".join(expected)


def test_the_metadata_counts_what_is_packed(source: Path, tmp_path: Path) -> None:
    metadata = pack(source, tmp_path / "out", PackOptions(shard_size=10, workers=1, seed=4))
    train = [np.asarray(Image.open(p)) for p in (source / "train").rglob("*.png")]
    assert np.allclose(metadata.channel_mean, np.mean(train, (0, 1, 2)) / 255, rtol=0, atol=1e-12)
    assert {name: split.class_counts for name, split in metadata.splits.items()} == {
        name: [count] * 3 for name, count in COUNTS.items()
    }
    assert metadata.provenance["key_ranges"] == {
        "train": [0, 36],
        "val": [36, 48],
        "test": [48, 63],
    }
    text = (tmp_path / "out" / "dataset.json").read_text()
    assert str(tmp_path) not in text and str(source.parent) not in text
    rows = {row["path"]: row for row in sidecar_rows(tmp_path / "out")}
    row = rows["train/ADI/train-ADI-1__y0032_x0000.png"]
    assert (row["y"], row["x"], row["source"]) == (32, 0, "train-ADI-1")
    keys = sorted(str(row["key"]) for row in rows.values())
    assert keys == [f"s{i:09d}" for i in range(TOTAL)]


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_bytes_do_not_depend_on_processes_or_directory_order(
    mode: Mode, source: Path, tmp_path: Path
) -> None:
    shuffled = tmp_path / "elsewhere" / "raw"
    files = list(source.rglob("*.png"))
    random.Random(1).shuffle(files)
    for path in files:
        target = shuffled / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)  # with its time, which the record of the pack holds
    for root in (source, shuffled):
        (root / "train" / "LYM" / "bad.png").write_bytes(b"")
    for name, root, workers in (("a", source, 1), ("b", shuffled, 3)):
        options = PackOptions(png=mode, shard_size=6, workers=workers, skip_bad=1)
        pack(root, tmp_path / name, options)
    (source / "train" / "LYM" / "bad.png").unlink()
    assert file_hashes(tmp_path / "a") == file_hashes(tmp_path / "b")
    assert len(file_hashes(tmp_path / "a")) == 2 * (7 + 2 + 3) + 2


def test_the_order_is_a_permutation_that_the_seed_decides(source: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1):
        pack(source, tmp_path / str(seed), PackOptions(workers=1, seed=seed))
        table = pq.read_table(tmp_path / str(seed) / "train-000000.parquet")
        orders.append(table["path"].to_pylist())
    assert orders[0] != orders[1] != sorted(orders[1])
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_unlabelled_patches_have_no_class_member(mode: Mode, source: Path, tmp_path: Path) -> None:
    flat = tmp_path / "raw" / "train"
    flat.mkdir(parents=True)
    for i, path in enumerate((source / "val").rglob("*.png")):
        shutil.copyfile(path, flat / f"{i}.png")
    metadata = pack(tmp_path / "raw", tmp_path / "out", PackOptions(png=mode, workers=1))
    assert not metadata.labelled and metadata.splits["train"].class_counts == []
    table = pq.read_table(tmp_path / "out" / "train-000000.parquet")
    assert set(table["label"].to_pylist()) == {-1}
    if mode == "stored":
        assert set(np.diff(table["offset"])) == {STORED_STRIDE_UNLABELLED}
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == [f"{name}.png" for name in table["key"].to_pylist()]


NAMES = ["a b", "a.b.c__y1_x2", "x\ny", "ü漢", "n" * 240, "=cmd()", "semi;colon'\"", "-rf"]


def test_names_of_any_kind_come_back_exactly(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "train" / ("class\nwith=odd 漢 name" + "!" * 200)
    folder.mkdir(parents=True)
    some = next(source.rglob("*.png"))
    for name in NAMES:
        shutil.copyfile(some, folder / f"{name}.png")
    metadata = pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    assert metadata.classes == [folder.name]
    rows = sidecar_rows(tmp_path / "out")
    paths = {str(row["path"]) for row in rows}
    assert paths == {f"train/{folder.name}/{n}.png" for n in NAMES}
    assert max(map(len, paths)) > 300
    prefix = f"train/{folder.name}/"
    sources = {n: n.split("__")[0] if "__" in n else f"{prefix}{n}.png" for n in NAMES}
    assert {row["source"] for row in rows} == {*sources.values()}


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["SOURCE"], 2),
        (["SOURCE", "OUT", "--png", "jpeg"], 2),
        (["SOURCE", "OUT", "--shard-size", "0"], 2),
        (["SOURCE", "OUT", "--workers", "-1"], 2),
        (["SOURCE", "OUT", "--group-regex", "no group"], 2),
        (["SOURCE", "OUT", "--group-regex", "("], 2),
        (["MISSING", "OUT"], 1),
        (["SOURCE", "OUT", "--group-regex", "(absent)"], 1),
        (["SOURCE", "SOURCE/out"], 1),
        (["SOURCE", "OUT", "--png", "keep", "--group-regex", "/([A-Z]+)-|/(t)"], 1),
        (["SOURCE", "OUT", "--png", "keep", "--group-regex", "([^/]+)__"], 0),
    ],
)
def test_exit_status(
    arguments: list[str],
    status: int,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"SOURCE": str(source), "OUT": str(tmp_path / "out"), "MISSING": str(tmp_path / "no")}
    places["SOURCE/out"] = str(source / "out")
    monkeypatch.setattr("sys.argv", ["pack", *(places.get(a, a) for a in arguments)])
    try:
        code = main()
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == status
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and bool(errors.strip()) == bool(status)
    assert (tmp_path / "out").exists() == (status == 0)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_rate_and_time_left(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(float(i) for i in range(0, 1000, 2))
    monkeypatch.setattr("common.console.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    show_messages()
    with progress("packing", 1000, "patches") as advance:
        for _ in range(4):
            advance(100)
    errors = capsys.readouterr().err
    if not terminal:
        assert errors == "packing: 300 of 1,000 patches, 50/s, 14 s left\n"
    assert ("400/1000" in errors) == terminal


@pytest.mark.realdata
def test_real_patches_come_back(tmp_path: Path) -> None:
    with tarfile.open(real_archive("colon_7class.tar")) as tar:
        tar.extractall(tmp_path, filter="data")
    metadata = pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    assert metadata.classes == ["ADI", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
    assert metadata.splits["train"].class_counts == [294] * 7
    for split in metadata.splits:
        table = pq.read_table(tmp_path / "out" / f"{split}-000000.parquet")
        data = np.fromfile(tmp_path / "out" / f"{split}-000000.tar", np.uint8)
        samples = data[: len(table) * STORED_STRIDE_LABELLED].reshape(len(table), -1)[:, 512:]
        expected = [pixels_of(tmp_path / "raw" / path.as_py()) for path in table["path"]]
        assert png.stored_rows(samples).tobytes() == b"".join(expected)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["version"] == 1
