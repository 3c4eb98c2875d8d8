"""Tars of other tools, indexed where they lie: pixels, labels and columns are those in the tar."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from common.errors import DataError
from pipeline.index import Dataset, Split, open_dataset
from pipeline.loader import Loader
from pipeline.reader import read_split
from shards.foreign.collect import find_tars
from shards.foreign.index import index_tars
from shards.foreign.provenance import IndexOptions
from shards.foreign.scan import ScanOptions, scan_tar
from shards.schema import dataset_hash, load_metadata, without_paths
from shards.verify.__main__ import main
from shards.verify.check import verify
from tests.helpers.messages import collected_messages
from tests.helpers.tars import CLASSES, WRITERS, image_of, json_body, members, samples, write_tar

CPU = torch.device("cpu")


def options(writer: str) -> IndexOptions:
    return IndexOptions(label_field="diagnosis" if writer.endswith("json") else None)


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {m.name: opened.extractfile(m).read() for m in opened if m.isfile()}  # type: ignore[union-attr]


def by_key(split: Split) -> dict[str, int]:
    """Row by WebDataset key."""
    paths = split.table["path"].to_pylist()
    return {path.split(".tar/")[1].rpartition(".")[0]: i for i, path in enumerate(paths)}


@pytest.mark.parametrize("writer", WRITERS)
def test_pixels_labels_and_rows_are_those_of_the_tar(writer: str, tmp_path: Path) -> None:
    tar = tmp_path / "tars" / "train-000000.tar"
    tar.parent.mkdir()
    WRITERS[writer](tar, samples(70))
    before = tar.read_bytes()
    metadata = index_tars(str(tar), tmp_path / "out", options(writer))
    split = open_dataset(tmp_path / "out").split("train")
    pixels, paths, bodies = read_split(split), split.table["path"].to_pylist(), members_of(tar)
    sources = split.table["source"].to_pylist()
    assert len(split) == len(set(paths)) == 70
    for i, path in enumerate(paths):
        name = path.removeprefix("train-000000.tar/")
        image = Image.open(io.BytesIO(bodies[name]), formats=["PNG", "JPEG"])
        assert np.array_equal(pixels[i], np.asarray(image))
        stem = name.rpartition("/")[2].partition(".")[0]
        assert split.labels[i] == int(stem.rpartition("_")[2]) % 3
        assert sources[i] == stem.split("__")[0]
    assert metadata.classes == (list(CLASSES) if writer.endswith("json") else ["0", "1", "2"])
    assert np.allclose(metadata.channel_mean, pixels.mean((0, 1, 2)) / 255, rtol=0, atol=1e-12)
    assert tar.read_bytes() == before
    assert verify(tmp_path / "out").problem_count == 0


@pytest.mark.parametrize("writer", ["ShardWriter", "jpeg"])
def test_training_sees_what_the_reader_of_webdataset_sees(writer: str, tmp_path: Path) -> None:
    for number in range(3):
        WRITERS[writer](tmp_path / f"train-{number:06d}.tar", samples(20, f"{number}/"))
    index_tars(str(tmp_path), tmp_path / "out")
    split = open_dataset(tmp_path / "out").split("train")
    url = str(tmp_path / "train-{000000..000002}.tar")
    reader = webdataset.WebDataset(url, shardshuffle=False).decode("rgb8")
    suffix = "jpg" if writer == "jpeg" else "png"
    theirs = {s["__key__"]: (s[suffix], s["cls"]) for s in reader}
    names = {row: key for key, row in by_key(split).items()}
    seen = set()
    for batch in Loader(split, 10, 0, CPU, "stream").batches(0, 60):
        images = batch.images.permute(0, 2, 3, 1).numpy()
        for image, label, i in zip(images, batch.labels.tolist(), batch.indices, strict=True):
            expected = theirs[names[int(i)]]
            assert np.array_equal(image, expected[0]) and label == expected[1]
            seen.add(names[int(i)])
    assert seen == set(theirs) and len(seen) == 60


def test_fields_of_json_become_columns(tmp_path: Path) -> None:
    full = {
        "patient": 7,
        "slide": "S-1",
        "site": "A",
        "source": "q",
        "x": 64.0,
        "y": 32,
        "mpp": 0.5,
    }
    samples = [
        ("a/s__y0032_x0064", full),
        ("TCGA-A6-2671-01Z__y0001_x0002", {"x": None}),
        ("c", {}),
    ]
    content: list[tuple[str, bytes]] = []
    for key, fields in samples:
        content += [(f"{key}.png", image_of(key)), (f"{key}.json", json_body(**fields))]
    write_tar(tmp_path / "test.tar", content)
    index_tars(str(tmp_path / "test.tar"), tmp_path / "out")
    rows = open_dataset(tmp_path / "out").split("test").table.to_pylist()
    columns = ("patient", "slide", "site", "source", "x", "y", "mpp", "label")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("7", "S-1", "A", "q", 64, 32, 0.5, -1),
        ("TCGA-A6-2671", None, "A6", "TCGA-A6-2671-01Z", 2, 1, None, -1),
        (None, None, None, "test.tar/c.png", None, None, None, -1),
    ]


def write_labelled_tar(path: Path, labels: list[bytes]) -> None:
    content = []
    for i, label in enumerate(labels):
        content += [(f"k{i}.cls", label), (f"k{i}.png", image_of(f"k{i}"))]
    write_tar(path, content)


def indexed_labels(folder: Path, texts: list[bytes], names: str | None) -> Dataset:
    """The data set of a tar with these labels, whose classes are `names`."""
    write_labelled_tar(folder / "train.tar", texts)
    index_tars(str(folder), folder / "out", IndexOptions(classes=names))
    return open_dataset(folder / "out")


@pytest.mark.parametrize(
    ("texts", "names", "classes", "numbers"),
    [
        ([b"3", b"0\n"], None, ["0", "1", "2", "3"], [3, 0]),
        ([b"3", b"0"], "n,s,l,t", ["n", "s", "l", "t"], [3, 0]),
        ([b"tumor", b" normal\n"], None, ["normal", "tumor"], [1, 0]),
        ([b"tumor", b"normal"], "tumor,normal", ["tumor", "normal"], [0, 1]),
        ([b"007", b"7"], None, ["007", "7"], [0, 1]),
        ([b"1.0", b"0"], None, ["0", "1"], [1, 0]),
        ([b"2.0\r\n", b"1.0\n"], None, ["1", "2"], [1, 0]),
        ([b"\xef\xbb\xbf1", b"0", b"-1.0"], None, ["0", "1"], [1, 0, -1]),
    ],
)
def test_labels_are_numbers_or_names(
    texts: list[bytes], names: str | None, classes: list[str], numbers: list[int], tmp_path: Path
) -> None:
    opened = indexed_labels(tmp_path, texts, names)
    assert opened.metadata.classes == classes
    assert opened.split("train").labels.tolist() == numbers
    assert (
        opened.metadata.splits["train"].class_counts
        == np.bincount([n for n in numbers if n >= 0], minlength=len(classes)).tolist()
    )


def test_splits_come_from_names_folders_or_the_option(tmp_path: Path) -> None:
    names = ["a-train-000.tar", "train_1.tar", "validation/000.tar", "Test/x-1.tar"]
    for name in names:
        write_tar(tmp_path / "all" / name, [])
    splits = {tar.name: tar.split for tar in find_tars(str(tmp_path / "all"))}
    assert splits == dict(zip(names, ("train", "train", "val", "test"), strict=True))
    pattern = str(tmp_path / "all" / "{a-train-000,train_{1..1}}.tar")
    assert [tar.name for tar in find_tars(pattern)] == names[:2]
    assert {tar.split for tar in find_tars(str(tmp_path / "all" / "**/*.tar"), "extra")} == {
        "extra"
    }
    with pytest.raises(DataError, match=r"train_2\.tar does not exist"):
        find_tars(str(tmp_path / "all" / "train_{1..2}.tar"))
    write_tar(tmp_path / "all" / "other.tar", [])
    with pytest.raises(DataError, match=r"other\.tar.*--split"):
        find_tars(str(tmp_path / "all"))
    (tmp_path / "all" / "val.tar.gz").touch()
    with pytest.raises(DataError, match=r"val\.tar\.gz is compressed"):
        find_tars(str(tmp_path / "all"))


def test_tars_inside_the_index_move_with_it_and_keep_its_hash(tmp_path: Path) -> None:
    write_tar(tmp_path / "one/tars/train-0.tar", members(samples(4)))
    index_tars(str(tmp_path / "one"), tmp_path / "one")
    index_tars(str(tmp_path / "one/tars"), tmp_path / "apart")
    hashes = {dataset_hash(load_metadata(tmp_path / name)) for name in ("one", "apart")}
    (tmp_path / "one").rename(tmp_path / "two")
    assert len(open_dataset(tmp_path / "two").split("train")) == 4
    assert verify(tmp_path / "two").problem_count == 0
    with pytest.raises(DataError, match=r"one/tars/train-0\.tar is missing"):
        open_dataset(tmp_path / "apart")
    metadata = load_metadata(tmp_path / "two")
    assert dataset_hash(metadata) == dataset_hash(without_paths(metadata)) and len(hashes) == 2


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"tars/train-{number}.tar", members(samples(5, f"{number}/")))
    results = [
        index_tars(str(tmp_path / "tars"), tmp_path / str(workers), IndexOptions(workers=workers))
        for workers in (1, 2)
    ]
    assert results[0] == results[1]
    assert len({(tmp_path / w / "train-000001.parquet").read_bytes() for w in "12"}) == 1


def test_the_command_indexes_then_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "tars/train-0.tar", members(samples(3)))
    out = str(tmp_path / "out")
    for arguments, status in (
        ([str(tmp_path / "tars"), "--index", out, "--classes", "a,b,c"], 0),
        ([out], 0),
        ([str(tmp_path / "tars"), "--index", out], 1),
        ([out, "--split", "train"], 2),
        ([str(tmp_path / "tars"), "--index", out, "--ignore", "png"], 2),
    ):
        monkeypatch.setattr("sys.argv", ["verify", *arguments])
        assert main() == status, arguments
    printed = capsys.readouterr()
    assert f"{out}: sound" in printed.out and "already holds a data set" in printed.err


@pytest.mark.parametrize("ignore", [(), ("seg.png", "npz")])
def test_other_members_only_when_they_are_named(ignore: tuple[str, ...], tmp_path: Path) -> None:
    others = [
        ("k.npz", b"PK\x03\x04" + bytes(100_000)),
        ("k.SEG.png", b"mask"),
        ("k.txt", b"a word"),
    ]
    tar = tmp_path / "train.tar"
    write_tar(tar, [*others, *members([("k", 1)])])
    scan = scan_tar(tar, "train.tar", ScanOptions(ignore=ignore))
    if ignore:
        assert (scan.broken, scan.bad_count, len(scan.table)) == (None, 0, 1)
    else:
        assert scan.broken and scan.broken.offset == 0 and "--ignore npz" in str(scan.broken)


def test_members_of_file_managers_are_left_out_and_counted(tmp_path: Path) -> None:
    """Kinds: resource forks, archives of macOS, pictures of folders, thumbnails of a NAS."""
    junk = ["._k0.png", "__MACOSX/._k0.png", ".DS_Store", "a/Thumbs.db", "@eaDir/k0.png"]
    content = [*members([("k0", 0), ("k1", 1)]), *((name, b"x") for name in junk)]
    write_tar(tmp_path / "train.tar", content)
    scan = scan_tar(tmp_path / "train.tar", "train.tar", ScanOptions())
    assert (scan.broken, scan.bad_count, len(scan.table), scan.junk) == (None, 0, 2, 5)


@pytest.mark.parametrize(
    ("texts", "names", "classes", "numbers"),
    [
        ([b"1", b"3"], None, ["1", "2", "3"], [0, 2]),
        ([b"1", b"3", b"2"], "a,b,c", ["a", "b", "c"], [0, 2, 1]),
        ([b"1", b"2"], "a,b,c", ["a", "b", "c"], [1, 2]),
        ([b"0", b"-1", b"1"], None, ["0", "1"], [0, -1, 1]),
        ([b"-1", b"tumor"], None, ["tumor"], [-1, 0]),
        ([b"-1", b"-1"], None, [], [-1, -1]),
    ],
)
def test_labels_from_any_number_and_minus_one(
    texts: list[bytes], names: str | None, classes: list[str], numbers: list[int], tmp_path: Path
) -> None:
    opened = indexed_labels(tmp_path, texts, names)
    assert opened.metadata.classes == classes
    assert opened.split("train").labels.tolist() == numbers
    assert verify(tmp_path / "out", duplicates=False).problem_count == 0


@pytest.mark.parametrize(
    ("shards", "expected"),
    [
        ([b"012", b"123"], "some tars seem to count the classes from 0, others from 1"),
        ([b"012", b"012", b"123"], "those of train-2.tar 1 to 3"),
        ([[b"-1", b"1"]], "every label is 1 or -1"),
        ([[b"0", b"1", b"255"]], "'255' (1) may mean that there is no label"),
        ([[b"0", b"1", b"255"]], "253 of 256 classes have no sample"),
        ([[b"tumor", b"Tumor", b"normal"]], "write each in one way"),
        ([[b"nan", b"tumor"]], "'nan' (1) may mean that there is no label"),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_warned_of(
    shards: list[list[bytes] | bytes], expected: str, tmp_path: Path
) -> None:
    for i, labels in enumerate(shards):
        texts = labels if isinstance(labels, list) else [bytes([label]) for label in labels]
        content = [member for k, text in enumerate(texts) for member in labelled(f"s{i}_{k}", text)]
        write_tar(tmp_path / f"train-{i}.tar", content)
    with collected_messages() as messages:
        index_tars(str(tmp_path), tmp_path / "out")
    (message,) = [message for message in messages if expected in message]
    assert len(message) < 300


def labelled(key: str, label: bytes, suffix: str = "cls") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", image_of(key)), (f"{key}.{suffix}", label)]


@pytest.mark.parametrize("shards", ["012 012", "123 123", "0 1", "0 1 2", "012 01"])
def test_usual_labels_are_not_warned_of(shards: str, tmp_path: Path) -> None:
    for i, labels in enumerate(shards.split()):
        content = [m for k, a in enumerate(labels) for m in labelled(f"s{i}_{k}", a.encode())]
        write_tar(tmp_path / f"train-{i}.tar", content)
    with collected_messages() as messages:
        index_tars(str(tmp_path), tmp_path / "out")
    doubts = ("seem to count", "may mean", "differ in", "have no sample", "-1")
    assert not any(doubt in message for message in messages for doubt in doubts)


def test_labels_in_other_members_are_named_and_taken(tmp_path: Path) -> None:
    content = [*labelled("S1__0", b"tumor\n", "txt"), *labelled("S2__0", b"normal\n", "txt")]
    write_tar(tmp_path / "train.tar", content)
    with collected_messages() as messages:
        assert index_tars(str(tmp_path), tmp_path / "none").classes == []
    assert any("unlabelled" in m and "--label-suffix txt takes KEY.txt" in m for m in messages)
    index_tars(str(tmp_path), tmp_path / "out", IndexOptions(label_suffix="txt"))
    split = open_dataset(tmp_path / "out").split("train")
    assert split.labels.tolist() == [1, 0] and verify(tmp_path / "out").problem_count == 0
    write_tar(tmp_path / "json/train.tar", labelled("S1__0", json_body(diagnosis="tumor"), "json"))
    with collected_messages() as messages:
        index_tars(str(tmp_path / "json"), tmp_path / "json" / "out")
    assert any("--label-field FIELD" in message for message in messages)
    for suffix in ("png", "json", "", "TXT"):
        with pytest.raises(ValueError, match="--label-suffix"):
            IndexOptions(label_suffix=suffix)


def test_a_binary_class_is_refused(tmp_path: Path) -> None:
    write_labelled_tar(tmp_path / "train.tar", [(1).to_bytes(8, "little")])
    with pytest.raises(DataError, match="expected a number or a name as text"):
        index_tars(str(tmp_path), tmp_path / "out")


def test_the_same_index_again_is_complete(tmp_path: Path) -> None:
    tar, out = tmp_path / "tars/train-0.tar", tmp_path / "out"
    write_tar(tar, members(samples(6)))
    metadata = index_tars(str(tmp_path / "tars"), out)
    with collected_messages() as messages:
        assert index_tars(str(tmp_path / "tars"), out) == metadata
        assert index_tars(str(tmp_path / "tars"), out, IndexOptions(workers=2)) == metadata
    assert len(messages) == 2 and all("complete already" in message for message in messages)
    for changed in (IndexOptions(classes="a,b,c"), IndexOptions(group_regex="(s)")):
        with pytest.raises(DataError, match="already holds a data set, of other tars or other"):
            index_tars(str(tmp_path / "tars"), out, changed)
    write_tar(tmp_path / "tars/train-1.tar", members(samples(6, "t")))
    with pytest.raises(DataError, match="already holds a data set"):
        index_tars(str(tmp_path / "tars"), out)
    (tmp_path / "tars/train-1.tar").unlink()
    write_tar(tar, members(samples(6, "u")))
    with pytest.raises(DataError, match="tars have changed since"):
        index_tars(str(tmp_path / "tars"), out)
