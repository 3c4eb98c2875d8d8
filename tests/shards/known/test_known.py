"""`shards.known`: each public set from files of its layout to a data set."""

import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.known import arrays
from shards.known.__main__ import Command
from shards.known.crchisto import split_of as split_of_image
from shards.known.nct_crc import split_of as split_of_tile
from shards.known.sets import SETS, SetName
from shards.schema import load_metadata
from shards.verify.check import verify
from tests.helpers import known
from tests.helpers.packing import file_hashes, sidecar_rows
from tests.helpers.patches import real_archive

WRITERS: dict[SetName, Callable[[Path], None]] = {
    "pcam": known.write_pcam,
    "camelyon17-wilds": known.write_wilds,
    "nct-crc": known.write_nct_crc,
    "pathmnist": lambda folder: known.write_pathmnist(folder / "pathmnist.npz"),
    "crchisto": known.write_crchisto,
}
ARRAY_SETS: tuple[SetName, ...] = ("pcam", "pathmnist", "crchisto")
Pixels = NDArray[np.uint8]


class Packed(NamedTuple):
    """A packed set: its folder, the rows of its sidecars with split, class and pixels."""

    out: Path
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[SetName, Path]:
    pytest.importorskip("h5py", reason="needs the extra h5")
    root = tmp_path_factory.mktemp("known")
    for name, write in WRITERS.items():
        write(root / name)
    return {name: root / name for name in WRITERS}


@pytest.fixture(scope="module")
def packed(
    folders: dict[SetName, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[SetName, Packed]:
    root = tmp_path_factory.mktemp("packed")
    for name, folder in folders.items():
        command(name, folder, out=root / name)()
    return {name: Packed(root / name, rows_of(root / name)) for name in folders}


def command(name: SetName, *files: Path, out: Path, **options: Any) -> Command:
    convert = "resize" if name == "nct-crc" else None
    defaults: dict[str, Any] = {"partial": True, "convert": convert, "workers": 1, "shard_size": 7}
    return Command(name=name, paths=(*files, out), **{**defaults, **options})


def rows_of(out: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(out)
    by_key: dict[str, dict[str, Any]] = {row["key"]: row for row in sidecar_rows(out)}
    for name, split in dataset.splits.items():
        keys = split.keys(np.arange(len(split)))
        for key, label, pixels in zip(keys, split.labels, read_split(split), strict=True):
            by_key[key] |= {
                "split": name,
                "class": dataset.metadata.classes[label],
                "pixels": pixels,
            }
    return list(by_key.values())


@pytest.mark.parametrize("name", WRITERS)
def test_the_data_set_is_sound_and_says_where_it_is_from(
    packed: dict[SetName, Packed], name: SetName
) -> None:
    report = verify(packed[name].out)
    assert report.problem_count == 0
    origin = report.metadata.provenance["known"]
    facts = SETS[name]
    assert (origin["name"], origin["title"], origin["licence"], origin["partial"]) == (
        name,
        facts.title,
        facts.licence,
        True,
    )
    assert not [entry for entry in packed[name].out.iterdir() if entry.name.startswith(".staged")]


def test_pcam_is_the_centre_of_each_patch_with_its_slide(packed: dict[SetName, Packed]) -> None:
    rows = packed["pcam"].rows
    assert Counter(row["split"] for row in rows) == {"train": 12, "val": 6, "test": 6}
    for seed, (name, split) in enumerate((("train", "train"), ("valid", "val"), ("test", "test"))):
        images = known.noise(seed, known.PCAM_COUNTS[name], 96, 96, 3)
        of_split = [row for row in rows if row["split"] == split]
        assert len(of_split) == len(images)
        for row in of_split:
            file, _, number = row["path"].rpartition("/")
            i = int(number)
            assert file == f"camelyonpatch_level_2_split_{name}_x.h5"
            assert (row["pixels"] == images[i, 32:64, 32:64]).all()
            assert row["class"] == ("tumor" if i % 2 else "normal")
            assert row["slide"] == row["source"] == f"camelyon16_{name}_{i // 3:03d}"
            assert (row["mpp"], row["x"], row["y"]) == (pytest.approx(0.972), None, None)


def test_wilds_has_the_official_splits_for_other_hospitals(packed: dict[SetName, Packed]) -> None:
    rows = packed["camelyon17-wilds"].rows
    pixels = dict(known.wilds_files())
    split_of_center = {"center-0": "train", "center-1": "val", "center-2": "test"}
    for row in rows:
        patient, node = row["patient"], row["slide"].rpartition("_")[2]
        assert row["slide"] == row["source"] == f"{patient}_node_{node}"
        assert row["split"] == split_of_center.get(row["site"], "train")
        assert (row["pixels"] == pixels[row["path"]][32:64, 32:64]).all()
        assert f"_x_{row['x']}_y_{row['y']}.png" in row["path"]  # of the centre, not of the 96x96
    assert Counter((row["site"], row["class"]) for row in rows).total() == 15
    assert Counter(row["split"] for row in rows) == {"train": 9, "val": 3, "test": 3}
    left_out = load_metadata(packed["camelyon17-wilds"].out).provenance["known"]["left_out"]
    assert left_out == {"patches of id_val, from the slides of train": 3}


def test_nct_crc_has_drawn_val_and_the_7k_as_test(packed: dict[SetName, Packed]) -> None:
    rows = packed["nct-crc"].rows
    assert {row["class"] for row in rows} == {*known.NCT_CLASSES} and len(rows) == 36
    for row in rows:
        top, label, name = row["path"].split("/")
        assert row["class"] == label
        assert row["split"] == ("test" if top == "CRC-VAL-HE-7K" else split_of_tile(name))
        assert row["slide"] is row["patient"] is row["site"] is None
        assert row["mpp"] == 3.5
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert load_metadata(packed["nct-crc"].out).provenance["sources"]["patches"] == {"patch": 36}


@pytest.mark.parametrize(("convert", "count", "mpp"), [("crop", 36, 0.5), ("tile", 1764, 0.5)])
def test_nct_crc_is_cropped_or_cut_into_tiles(
    folders: dict[SetName, Path], tmp_path: Path, convert: str, count: int, mpp: float
) -> None:
    command("nct-crc", folders["nct-crc"], out=tmp_path / "out", convert=convert, shard_size=999)()
    rows = rows_of(tmp_path / "out")
    assert len(rows) == count and {row["mpp"] for row in rows} == {mpp}
    row = rows[0]
    with Image.open(folders["nct-crc"] / row["path"]) as image:
        y, x = (row["y"], row["x"]) if convert == "tile" else (96, 96)
        assert (row["pixels"] == np.asarray(image)[y : y + 32, x : x + 32]).all()


def test_pathmnist_is_resampled_and_has_no_sources(packed: dict[SetName, Packed]) -> None:
    rows = packed["pathmnist"].rows
    assert Counter(row["split"] for row in rows) == known.PATHMNIST_COUNTS
    for seed, (split, count) in enumerate(known.PATHMNIST_COUNTS.items()):
        images = known.noise(seed, count, 28, 28, 3)
        for row in (row for row in rows if row["split"] == split):
            i = int(row["path"].rpartition("/")[2])
            image = Image.fromarray(images[i]).resize((32, 32), Image.Resampling.LANCZOS)
            assert (row["pixels"] == np.asarray(image)).all()
            assert row["class"] == known.NCT_CLASSES[i % 9]
    assert load_metadata(packed["pathmnist"].out).provenance["sources"]["patches"] == {"patch": 36}


def test_crchisto_is_cut_around_the_nuclei(packed: dict[SetName, Packed]) -> None:
    rows = packed["crchisto"].rows
    assert len(rows) == 30  # two of three nuclei, and image 2 without `others`
    for row in rows:
        number = int(row["source"].removeprefix("img"))
        image = known.noise(number, 500, 500, 3)
        y, x = row["y"], row["x"]
        assert (row["pixels"] == image[y : y + 32, x : x + 32]).all()
        assert row["path"] == f"Classification/img{number}/img{number}.bmp"
        i = known.NUCLEI.index(row["class"])
        assert (x, y) in {(84 + 20 * i, 184), (468, i)}
    assert {(row["source"], row["split"]) for row in rows} == {
        ("img1", "train"),
        ("img2", "train"),
        ("img25", "test"),
        ("img45", "val"),
    }
    left_out = load_metadata(packed["crchisto"].out).provenance["known"]["left_out"]
    assert left_out == {"nuclei within 16 pixels of a border": 15}


@pytest.mark.realdata
def test_real_nuclei_are_in_the_middle_of_their_patches(tmp_path: Path) -> None:
    """Crops of this very set, put back into images of 500x500, are cut out again as they were.

    Nuclei are dark in red. Their centre of mass is that of a patch whose point lies in pixel 15.
    """
    crops: dict[int, dict[tuple[str, int, int], Pixels]] = {}
    name = re.compile(r".*/(\w+)/img(\d+)__y(\d+)_x(\d+)\.png")
    with tarfile.open(real_archive("nuclei_4class.tar")) as tar:
        for member in tar:
            match = name.fullmatch(member.name)
            if match and 11 <= int(match[2]) <= 20:
                pixels = np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))
                label, y, x = match[1], int(match[3]), int(match[4])
                crops.setdefault(int(match[2]), {})[label, y, x] = pixels
    for number, of_image in crops.items():
        image = np.zeros((500, 500, 3), np.uint8)
        for (_, y, x), pixels in of_image.items():
            image[y : y + 32, x : x + 32] = pixels
        folder = tmp_path / "in/Classification" / f"img{number}"
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / f"img{number}.bmp")
        for label in known.NUCLEI:
            points = [(x + 16.3, y + 16.7) for of, y, x in of_image if of == label]
            known.write_points(folder / f"img{number}_{label}.mat", points)
    command("crchisto", tmp_path / "in", out=tmp_path / "out", shard_size=9999)()
    rows = rows_of(tmp_path / "out")
    assert len(rows) == sum(map(len, crops.values())) > 1000
    for row in rows:
        number = int(row["source"].removeprefix("img"))
        assert (row["pixels"] == crops[number][row["class"], row["y"], row["x"]]).all()
    darkness = 255 - np.mean([row["pixels"][:, :, 0] for row in rows], axis=0)
    weights = (darkness - darkness.min()) ** 2
    middle = [np.average(np.arange(32), weights=weights.sum(axis)) for axis in (0, 1)]
    assert np.abs(np.array(middle) - 15).max() < 0.6


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_files_give_the_same_bytes(
    folders: dict[SetName, Path], packed: dict[SetName, Packed], name: SetName, tmp_path: Path
) -> None:
    command(name, folders[name], out=tmp_path / "out")()
    assert file_hashes(tmp_path / "out") == file_hashes(packed[name].out)
    command(name, folders[name], out=tmp_path / "out")()  # complete: nothing to do
    assert file_hashes(tmp_path / "out") == file_hashes(packed[name].out)


@pytest.mark.parametrize("name", ARRAY_SETS)
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_pack_continues(
    folders: dict[SetName, Path],
    packed: dict[SetName, Packed],
    name: SetName,
    after: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    of_set = arrays._SETS[name]
    asked: list[int] = []

    def read(root: Path, file: str, blocks: Any) -> Iterator[Pixels]:
        for i, pixels in enumerate(of_set.read(root, file, blocks)):
            if len(asked) == after:
                raise KeyboardInterrupt
            asked.append(i)
            yield pixels

    monkeypatch.setattr(arrays, "_ROWS", 4)
    monkeypatch.setitem(arrays._SETS, name, replace(of_set, read=read))
    with pytest.raises(KeyboardInterrupt):
        command(name, folders[name], out=out)()
    assert not (out / "dataset.json").exists()
    asked[:] = [-1] * 100
    command(name, folders[name], out=out)()
    assert file_hashes(out) == file_hashes(packed[name].out)
    # what was whole is not read again: files, and of an array all blocks but the last that was read
    blocks, whole = {
        "pcam": ((2, 3, 2), (0, 2)),
        "pathmnist": ((3, 5, 3), (0, 1)),
        "crchisto": ((1, 1, 1, 1), (1, 2)),
    }[name]
    assert len(asked) - 100 == sum(blocks) - whole[after - 1]


def test_files_may_be_named_one_by_one(
    folders: dict[SetName, Path], packed: dict[SetName, Packed], tmp_path: Path
) -> None:
    command("pcam", *sorted(folders["pcam"].iterdir()), out=tmp_path / "out")()
    assert {p.name for p in (tmp_path / "out").glob("*.tar")} == {
        p.name for p in packed["pcam"].out.glob("*.tar")
    }
    hashes = file_hashes(packed["pcam"].out)
    assert {k: v for k, v in file_hashes(tmp_path / "out").items() if k.endswith(".tar")} == {
        k: v for k, v in hashes.items() if k.endswith(".tar")
    }


def test_pcam_is_packed_as_it_is_downloaded(
    folders: dict[SetName, Path], packed: dict[SetName, Packed], tmp_path: Path
) -> None:
    shutil.copytree(folders["pcam"], tmp_path / "pcam")
    for path in (tmp_path / "pcam").glob("*.h5"):
        path.with_suffix(".h5.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        if "valid" not in path.name:  # these are there both ways
            path.unlink()
    command("pcam", tmp_path / "pcam", out=tmp_path / "out")()
    for file in packed["pcam"].out.glob("*.tar"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert {
        row["path"].partition("/")[0].partition("split_")[2] for row in rows_of(tmp_path / "out")
    } == {"test_x.h5.gz", "train_x.h5.gz", "valid_x.h5"}
    assert not [*(tmp_path / "out").glob(".unpacked*")]


def test_the_folder_may_be_in_another(folders: dict[SetName, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        command(name, folder.parent / name, out=tmp_path / name)()
    command("camelyon17-wilds", folders["camelyon17-wilds"] / "metadata.csv", out=tmp_path / "w")()
    assert load_metadata(tmp_path / "w").splits["train"].count == 9


def test_some_splits_alone_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py", reason="needs the extra h5")
    known.write_pcam(tmp_path / "pcam", {"train": 6})
    command("pcam", tmp_path / "pcam", out=tmp_path / "out")()
    assert {*load_metadata(tmp_path / "out").splits} == {"train"}
    whole = replace(SETS["pcam"], counts={"train": 6, "valid": 6, "test": 6})
    monkeypatch.setitem(SETS, "pcam", whole)
    with pytest.raises(DataError, match=r"valid_x.h5 is missing in .*: download PatchCamelyon"):
        command("pcam", tmp_path / "pcam", out=tmp_path / "all", partial=False)()


@pytest.mark.parametrize("name", WRITERS)
def test_the_published_number_is_needed_unless_part_is_asked_for(
    folders: dict[SetName, Path], name: SetName, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"expected [\d,]+.*--partial accepts a subset") as error:
        command(name, folders[name], out=tmp_path / "out", partial=False)()
    assert str(folders[name]) in str(error.value) and SETS[name].url in str(error.value)


@pytest.mark.parametrize("name", WRITERS)
def test_the_whole_is_packed_and_more_is_refused(
    folders: dict[SetName, Path],
    packed: dict[SetName, Packed],
    name: SetName,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: dict[str, int] = {
        "pcam": {"train": 12, "valid": 6, "test": 6},
        "camelyon17-wilds": {"train": 9, "id_val": 3, "val": 3, "test": 3},
        "nct-crc": {key: 3 if key[0] == "1" else 1 for key in SETS["nct-crc"].counts},
        "pathmnist": known.PATHMNIST_COUNTS,
        "crchisto": dict.fromkeys(known.NUCLEI, 12) | {"others": 9},
    }[name]
    if name == "crchisto":
        monkeypatch.setattr("shards.known.crchisto.IMAGES", 4)
        known.write_crchisto(tmp_path / "crchisto", (1, 2, 3, 4))
        folders = {"crchisto": tmp_path / "crchisto"}
    monkeypatch.setitem(SETS, name, replace(SETS[name], counts=counts))
    command(name, folders[name], out=tmp_path / "out", partial=False)()
    if name != "crchisto":
        images = [p.read_bytes() for p in sorted((tmp_path / "out").glob("*.tar"))]
        assert images == [p.read_bytes() for p in sorted(packed[name].out.glob("*.tar"))]
    fewer = {key: count - 1 for key, count in counts.items()}
    monkeypatch.setitem(SETS, name, replace(SETS[name], counts=fewer))
    with pytest.raises(DataError, match=r"expected \d+"):
        command(name, folders[name], out=tmp_path / "more")()


def test_the_published_numbers_are_those_of_the_papers() -> None:
    totals = {name: sum(facts.counts.values()) for name, facts in SETS.items()}
    assert totals == {
        "pcam": 327_680,
        "camelyon17-wilds": 455_954,
        "nct-crc": 107_180,
        "pathmnist": 107_180,
        "crchisto": 22_444,
    }


def test_splits_that_are_drawn_have_their_shares() -> None:
    tiles = Counter(split_of_tile(f"TUM-{i:08d}.tif") for i in range(10_000))
    assert 900 < tiles["val"] < 1100 and tiles.total() == 10_000
    images = Counter(split_of_image(number) for number in range(1, 101))
    assert images == {"train": 70, "val": 10, "test": 20}


def test_the_command_says_what_it_packs(folders: dict[SetName, Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "shards.known", "crchisto", str(folders["crchisto"])]
    words += [str(tmp_path / "out"), "--partial"]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "CRCHistoPhenotypes, https://warwick.ac.uk" in run.stdout
    assert "left out: 15 nuclei within 16 pixels of a border" in run.stdout
    with pytest.raises(ValueError, match="choose --convert resize"):
        command("nct-crc", tmp_path, out=tmp_path / "out", convert=None)
    with pytest.raises(ValueError, match="pcam has one rule"):
        command("pcam", tmp_path, out=tmp_path / "out", convert="crop")
