"""`shards.known` on files that are damaged, made to do harm, or not of the set."""

import gzip
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from common.errors import DataError
from shards.known import arrays, pcam
from shards.known.__main__ import Command
from shards.known.sets import SetName
from shards.schema import load_metadata
from tests.helpers import known

h5py = pytest.importorskip("h5py", reason="the extra h5 is not installed")

STEM = "camelyonpatch_level_2_split_train"
Attack = Callable[[Path], Any]


def pack(name: SetName, folder: Path, **options: Any) -> None:
    convert = "resize" if name == "nct-crc" else None
    defaults: dict[str, Any] = {"partial": True, "convert": convert, "workers": 1}
    Command(name=name, paths=(folder, folder.parent / "out"), **{**defaults, **options})()


def refuse(name: SetName, folder: Path, case: tuple[Attack, str], **options: Any) -> None:
    """Attack the files of a set; packing them is then an error with the message of the case."""
    attack, message = case
    attack(folder)
    with pytest.raises(DataError, match=message):
        pack(name, folder, **options)


def rewrite(name: str, make: Callable[[Any], Any]) -> Attack:
    """Replace an HDF5 file by one that `make` writes."""

    def attack(folder: Path) -> None:
        with h5py.File(folder / name, "w") as file:
            make(file)

    return attack


def cut(name: str, size: int) -> Attack:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def flip(name: str, place: int) -> Attack:
    def attack(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 255
        (folder / name).write_bytes(data)

    return attack


def write(name: str, text: str) -> Attack:
    return lambda folder: (folder / name).write_text(text)


def replace_text(name: str, old: str, new: str) -> Attack:
    def attack(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return attack


def labels(values: Any) -> Attack:
    return rewrite(f"{STEM}_y.h5", lambda file: file.create_dataset("y", data=values))


def images(*shape: int, kind: str = "u1", **options: Any) -> Attack:
    return rewrite(
        f"{STEM}_x.h5", lambda file: file.create_dataset("x", shape=shape, dtype=kind, **options)
    )


PCAM: dict[str, tuple[Attack, str]] = {
    "cut": (cut(f"{STEM}_x.h5", 100_000), "train_x.h5 cannot be read as HDF5: .*truncated"),
    "empty": (cut(f"{STEM}_x.h5", 0), "train_x.h5 is not an HDF5 file"),
    "text": (write(f"{STEM}_y.h5", "<html>quota exceeded"), "train_y.h5 is not an HDF5 file"),
    "float": (images(12, 96, 96, 3, kind="f4"), r"x is float32 \(12, 96, 96, 3\), expected uint8"),
    "size": (images(12, 64, 64, 3), r"x is uint8 \(12, 64, 64, 3\), expected"),
    "flat": (images(12), r"x is uint8 \(12,\), expected"),
    "bomb": (
        images(1 << 20, 96, 96, 3, chunks=(1 << 16, 96, 96, 3), compression="gzip"),
        "x has chunks of .*: too large",
    ),
    "group": (rewrite(f"{STEM}_x.h5", lambda f: f.create_group("x")), "x is no plain dataset"),
    "no array": (rewrite(f"{STEM}_x.h5", lambda f: f.create_group("y")), "has no dataset x"),
    "link": (
        rewrite(f"{STEM}_x.h5", lambda f: f.update({"x": h5py.ExternalLink("/etc/passwd", "x")})),
        "has no dataset x",
    ),
    "external": (
        images(12, 96, 96, 3, external=[("/etc/passwd", 0, 1 << 20)]),
        "x is no plain dataset",
    ),
    "label": (labels([[0]] * 11 + [[2]]), "train_y.h5: label 11 is 2, expected 0 or 1"),
    "labels": (labels(np.zeros((12, 2), int)), r"y is int64 \(12, 2\), expected"),
    "reals": (labels(np.zeros(12)), r"y is float64 \(12,\), expected integers"),
    "many": (
        rewrite(
            f"{STEM}_y.h5",
            lambda f: f.create_dataset("y", shape=(1 << 40,), dtype="u1", chunks=(1024,)),
        ),
        "y has 1,099,511,627,776 labels",
    ),
    "fewer": (labels([0] * 11), "has 12 patches, .* 11 labels and .* 12 rows"),
    "table": (write(f"{STEM}_meta.csv", ",wsi\n0,a\n"), "12 labels and .* 1 rows"),
    "column": (write(f"{STEM}_meta.csv", ",slide\n0,a\n"), "with the columns wsi"),
    "cell": (
        replace_text(f"{STEM}_meta.csv", "camelyon16_train_000", ""),
        "_meta.csv row 2, column 'wsi': it is empty",
    ),
    "no table": (lambda folder: (folder / f"{STEM}_meta.csv").unlink(), "_meta.csv is missing in"),
    "not gzip": (
        lambda folder: (folder / f"{STEM}_y.h5").rename(folder / f"{STEM}_y.h5.gz"),
        "_y.h5.gz cannot be unpacked: Not a gzipped file",
    ),
    "two": (
        lambda folder: shutil.copytree(folder, folder / "copy"),
        "are both there: name the file or folder to pack",
    ),
}


def compress(folder: Path, size: int | None = None, more: int = 0) -> None:
    """Replace the images by a .gz file of them, cut to `size` bytes, with zeros after them."""
    path = folder / f"{STEM}_x.h5"
    data = gzip.compress(path.read_bytes() + bytes(more), 1)
    path.with_suffix(".h5.gz").write_bytes(data[:size])
    path.unlink()


PCAM_GZ: dict[str, tuple[Attack, str]] = {
    "cut": (partial(compress, size=50_000), "train_x.h5.gz cannot be unpacked: .*ended before"),
    "bomb": (partial(compress, more=1 << 20), "train_x.h5.gz is more than 1,000,000 bytes"),
    "checksum": (
        lambda folder: [compress(folder), flip(f"{STEM}_x.h5.gz", -8)(folder)],
        "train_x.h5.gz cannot be unpacked: CRC check failed",
    ),
    "fewer": (
        lambda folder: [images(11, 96, 96, 3)(folder), compress(folder)],
        "unpacked-.*train_x.h5 has 11 patches, and there are more labels",
    ),
    "size": (
        lambda folder: [images(12, 64, 64, 3)(folder), compress(folder)],
        r"unpacked-.*train_x.h5: x is uint8 \(12, 64, 64, 3\), expected",
    ),
}


@pytest.mark.parametrize("name", PCAM_GZ)
def test_compressed_pcam_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcam, "MAX_BYTES", 1_000_000)
    known.write_pcam(tmp_path / "in")
    refuse("pcam", tmp_path / "in", PCAM_GZ[name])
    assert not [*(tmp_path / "out").glob(".unpacked*")]


@pytest.mark.parametrize("name", PCAM)
def test_pcam_is_refused(name: str, tmp_path: Path) -> None:
    known.write_pcam(tmp_path / "in")
    refuse("pcam", tmp_path / "in", PCAM[name])
    assert not (tmp_path / "out").exists()


def write_arrays(**changes: Any) -> Attack:
    """Rewrite `pathmnist.npz` with other arrays; None leaves one out."""

    def attack(folder: Path) -> None:
        with np.load(folder / "pathmnist.npz", allow_pickle=False) as file:
            contents = {**file, **changes}
        np.savez(folder / "pathmnist.npz", **{k: v for k, v in contents.items() if v is not None})

    return attack


def announce_more_rows(folder: Path) -> None:
    """Write an array whose header says that it has 9 rows more, with labels for them."""
    write_arrays(train_labels=np.arange(27).reshape(-1, 1) % 9)(folder)
    with zipfile.ZipFile(folder / "pathmnist.npz") as file:
        members = {name: file.read(name) for name in file.namelist()}
    assert b"(18, 28" in members["train_images.npy"][:128]
    members["train_images.npy"] = members["train_images.npy"].replace(b"(18, 28", b"(27, 28", 1)
    with zipfile.ZipFile(folder / "pathmnist.npz", "w") as file:
        for name, data in members.items():
            file.writestr(name, data)


PATHMNIST: dict[str, tuple[Attack, str]] = {
    "cut": (cut("pathmnist.npz", 50_000), r"pathmnist.npz cannot be read as .npz: .*zip"),
    "text": (write("pathmnist.npz", "<html>"), r"pathmnist.npz cannot be read as .npz"),
    "pickle": (
        write_arrays(train_labels=np.array([{"a": 1}] * 18, dtype=object)),
        r"train_labels is object \(18,\), expected integers",
    ),
    "reals": (
        write_arrays(val_images=np.zeros((9, 28, 28, 3))),
        r"val_images is float64 \(9, 28, 28, 3\), expected integers",
    ),
    "signed": (
        write_arrays(val_images=np.zeros((9, 28, 28, 3), np.int16)),
        r"val_images is int16 .*, expected uint8",
    ),
    "order": (
        write_arrays(val_images=np.asfortranarray(np.zeros((9, 28, 28, 3), np.uint8))),
        "expected integers by row",
    ),
    "size": (write_arrays(val_images=np.zeros((9, 32, 32, 3), np.uint8)), "expected uint8"),
    "grey": (write_arrays(val_images=np.zeros((9, 28, 28), np.uint8)), "expected uint8"),
    "label": (write_arrays(val_labels=np.full((9, 1), 9)), "val_labels: label 0 is 9, expected 0"),
    "negative": (write_arrays(val_labels=np.full((9, 1), -1)), "val_labels: label 0 is -1"),
    "fewer": (write_arrays(val_labels=np.zeros((8, 1), int)), r"is \(8, 1\), expected \(9, 1\)"),
    "no array": (write_arrays(test_images=None), "has no array test_images"),
    "rows": (announce_more_rows, "train_images ends before its 27 rows"),
}


@pytest.mark.parametrize("name", PATHMNIST)
def test_pathmnist_is_refused(name: str, tmp_path: Path) -> None:
    known.write_pathmnist(tmp_path / "in/pathmnist.npz")
    refuse("pathmnist", tmp_path / "in", PATHMNIST[name])


def test_damage_at_the_end_of_an_array_is_found_each_time(tmp_path: Path) -> None:
    """Also where all blocks but the last were read before."""
    file = tmp_path / "in/pathmnist.npz"
    known.write_pathmnist(file)
    write_arrays()(tmp_path / "in")  # not compressed
    last = known.noise(0, 18, 28, 28, 3)[17].tobytes()[-8:]
    flip("pathmnist.npz", file.read_bytes().index(last))(tmp_path / "in")
    for _ in range(2):
        with pytest.raises(DataError, match=r"cannot be read as .npz: Bad CRC-32.*train_images"):
            pack("pathmnist", tmp_path / "in")


def points(values: Any) -> Attack:
    return lambda folder: known.write_points(folder / "Classification/img1/img1_others.mat", values)


def detection(value: Any) -> Attack:
    return lambda folder: scipy.io.savemat(
        folder / "Classification/img1/img1_others.mat", {"detection": value}
    )


MAT, BMP = "Classification/img1/img1_others.mat", "Classification/img1/img1.bmp"
CRCHISTO: dict[str, tuple[Attack, str]] = {
    "nan": (points([[1, 2], [np.nan, 3]]), r"others.mat: point 2 is \[nan, 3.0\], outside"),
    "infinite": (points([[np.inf, 2]]), r"point 1 is \[inf, 2.0\], outside"),
    "outside": (points([[600, 2]]), r"point 1 is \[600.0, 2.0\], outside of the image"),
    "columns": (points([[1, 2, 3]]), r"detection is \(1, 3\), expected x and y"),
    "text": (detection("points"), "detection is not a matrix of real numbers"),
    "cells": (detection(np.array([[{}, {}]], object)), "detection is not a matrix of real numbers"),
    "no array": (
        lambda folder: scipy.io.savemat(folder / MAT, {"other": np.zeros((1, 2))}),
        "others.mat has no matrix detection",
    ),
    "cut": (cut(MAT, 150), "others.mat cannot be read as .mat"),
    "empty": (cut(MAT, 0), "others.mat is not a .mat file of MATLAB 5 to 7.2"),
    "hdf5": (
        rewrite(MAT, lambda f: f.create_dataset("detection", data=[[1.0, 2.0]])),
        "is not a .mat file",
    ),
    "missing": (lambda folder: (folder / MAT).unlink(), "others.mat cannot be read: No such file"),
    "image": (cut(BMP, 5_000), "img1.bmp cannot be read as BMP: .*truncated"),
    "header": (cut(BMP, 10), "img1.bmp cannot be read as BMP"),
    "other image": (
        lambda folder: Image.new("RGB", (500, 500)).save(folder / BMP, format="PNG"),
        "img1.bmp cannot be read as BMP",
    ),
    "size": (
        lambda folder: Image.new("RGB", (512, 500)).save(folder / BMP),
        "img1.bmp is 512x500 RGB, expected 500x500 RGB",
    ),
    "no folder": (
        lambda folder: (folder / "Classification").rename(folder / "images"),
        "Classification is missing in .*: download CRCHistoPhenotypes from https",
    ),
    "archive": (
        lambda folder: (
            (folder / "Classification").rename(folder.parent / "other")
            and (folder / "CRCHistoPhenotypes_2016_04_28.zip").write_bytes(b"PK")
        ),
        "is an archive: unpack it .unzip /",
    ),
}


@pytest.mark.parametrize("name", CRCHISTO)
def test_crchisto_is_refused(name: str, tmp_path: Path) -> None:
    known.write_crchisto(tmp_path / "in", (1,))
    refuse("crchisto", tmp_path / "in", CRCHISTO[name])


TABLE = "metadata.csv"
PATCH = known.wilds_files()[0][0]
WILDS: dict[str, tuple[Attack, str]] = {
    "label": (replace_text(TABLE, "2000,0,0", "2000,2,0"), "row 2, column 'tumor': '2', not 0 or"),
    "center": (replace_text(TABLE, ",0,0,0\n", ",0,5,0\n"), "column 'center': '5', not 0 or 1"),
    "split": (replace_text(TABLE, ",0,0,0\n", ",0,0,3\n"), "column 'split': '3', not 0 or 1"),
    "outside": (
        replace_text(TABLE, "0,004,4", "0,../../004,4"),
        "row 2, column 'patient': '../../004', not digits",
    ),
    "column": (replace_text(TABLE, "x_coord", "x"), "not the table of this set, with the columns"),
    "twice": (replace_text(TABLE, "1032", "1000"), "metadata.csv lists patches/.* more than once"),
    "ragged": (write(TABLE, "patient,node\n1\n2,3,4\n"), "metadata.csv is not the table"),
    "damage": (cut(PATCH, 5_000), "1 file cannot be used as patches\n.*truncated"),
    "size": (
        lambda folder: Image.new("RGB", (100, 96)).save(folder / PATCH),
        "1 file cannot be used as patches\n.*100x96 pixels, expected 96x96",
    ),
    "link": (
        lambda folder: (
            (folder / PATCH).rename(folder.parent / "elsewhere.png"),
            (folder / PATCH).symlink_to(folder.parent / "elsewhere.png"),
        ),
        "elsewhere.png, outside .*: refused",
    ),
}


@pytest.mark.parametrize("name", WILDS)
def test_camelyon17_is_refused(name: str, tmp_path: Path) -> None:
    known.write_wilds(tmp_path / "in")
    refuse("camelyon17-wilds", tmp_path / "in", WILDS[name])


def test_missing_patches_are_an_error_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.write_wilds(tmp_path / "in")
    (tmp_path / "in" / PATCH).unlink()
    counts = {"train": 9, "id_val": 3, "val": 3, "test": 3}
    monkeypatch.setattr("shards.known.inputs.Inputs.check_count", lambda *_: None)
    with pytest.raises(DataError, match=f"1 of 15 files are missing, as {PATCH}") as error:
        pack("camelyon17-wilds", tmp_path / "in", partial=False)
    assert "--partial" in str(error.value)
    pack("camelyon17-wilds", tmp_path / "in")
    metadata = load_metadata(tmp_path / "out")
    assert metadata.splits["train"].count == counts["train"] - 1
    assert metadata.provenance["known"]["left_out"]["files that are missing"] == 1


CLASS = "NCT-CRC-HE-100K/ADI"
NCT: dict[str, tuple[Attack, str]] = {
    "class": (
        lambda folder: (folder / "NCT-CRC-HE-100K/FAT").mkdir(),
        "NCT-CRC-HE-100K holds the folder FAT, expected ADI",
    ),
    "damage": (
        lambda folder: next((folder / CLASS).glob("*.tif")).write_bytes(b"II*\0"),
        "1 file cannot be used as patches\n.*not a PNG, JPEG or TIFF",
    ),
    "size": (
        lambda folder: Image.new("RGB", (50, 60)).save(next((folder / CLASS).glob("*.tif"))),
        "1 file cannot be used as patches\n.*50x60 pixels, expected 224x224",
    ),
    "two": (
        lambda folder: shutil.copytree(
            folder / "NCT-CRC-HE-100K", folder / "NCT-CRC-HE-100K-NONORM"
        ),
        "NCT-CRC-HE-100K and .*-NONORM are both there",
    ),
}


@pytest.mark.parametrize("convert", ["crop", "resize", "tile"])
@pytest.mark.parametrize("name", NCT)
def test_nct_crc_is_refused(name: str, convert: str, tmp_path: Path) -> None:
    known.write_nct_crc(tmp_path / "in", train=2)
    refuse("nct-crc", tmp_path / "in", NCT[name], convert=convert)


def test_a_file_that_changes_while_it_is_packed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known.write_pcam(tmp_path / "in")
    blocks = arrays._blocks

    def change(patches: Any) -> Any:
        (tmp_path / "in" / f"{STEM}_x.h5").touch()
        return blocks(patches)

    monkeypatch.setattr(arrays, "_blocks", change)
    with pytest.raises(DataError, match="changed while it was packed"):
        pack("pcam", tmp_path / "in")


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("pcam", "other.h5", "other.h5 is no file of PatchCamelyon: expected camelyonpatch_"),
        ("nct-crc", "NCT-CRC-HE-100K.zip", "is an archive: unpack it .unzip"),
        ("camelyon17-wilds", "camelyon17_v1.0.tar.gz", "is an archive: unpack it .tar -xzf"),
        ("pathmnist", "breastmnist.npz", "is no file of PathMNIST: expected pathmnist"),
    ],
)
def test_other_files_are_refused_by_name(
    name: SetName, file: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        pack(name, tmp_path / file)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9")
    known.write_pcam(tmp_path / "in")
    known.write_nct_crc(tmp_path / "nct", train=1)
    next((tmp_path / "nct" / CLASS).glob("*.tif")).rename(
        tmp_path / "nct" / CLASS / f"{strange}.tif"
    )
    with pytest.raises(DataError, match="not UTF-8"):
        pack("nct-crc", tmp_path / "nct")
    with pytest.raises(DataError, match="not UTF-8"):
        Command(name="pcam", paths=(tmp_path / "in", tmp_path / strange), partial=True)()
    (tmp_path / "in").rename(tmp_path / strange)
    with pytest.raises(DataError, match="not UTF-8"):
        pack("pcam", tmp_path / strange)


def test_a_forgotten_output_folder_is_no_file_of_the_set(tmp_path: Path) -> None:
    known.write_pcam(tmp_path / "in")
    with pytest.raises(DataError, match="is a file: name the new folder for the data set last"):
        Command(name="pcam", paths=tuple(sorted((tmp_path / "in").iterdir())), partial=True)()
    with pytest.raises(ValueError, match="FILES or OUT is missing"):
        Command(name="pcam", paths=(tmp_path / "in",))


def test_what_is_there_already_is_not_replaced(tmp_path: Path) -> None:
    known.write_pcam(tmp_path / "in")
    pack("pcam", tmp_path / "in")
    known.write_pathmnist(tmp_path / "in/pathmnist.npz")
    with pytest.raises(DataError, match="already holds a data set, of another source"):
        pack("pathmnist", tmp_path / "in")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known.write_pcam(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"is read by h5py: pip install 'eqdvae\[h5\]'"):
        pack("pcam", tmp_path / "in")
