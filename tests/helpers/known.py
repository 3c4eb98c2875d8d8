"""Small files in the layouts of the public sets that `shards.known` packs."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

NCT_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
NUCLEI = ("epithelial", "fibroblast", "inflammatory", "others")
PCAM_COUNTS = {"train": 12, "valid": 6, "test": 6}
PATHMNIST_COUNTS = {"train": 18, "val": 9, "test": 9}
# patient, node, center, split of the rows of a slide
WILDS_SLIDES = (
    ("004", "4", "0", "0"),
    ("022", "1", "1", "0"),
    ("042", "3", "2", "1"),
    ("067", "2", "3", "0"),
    ("067", "2", "3", "1"),
    ("099", "0", "4", "0"),
)


def noise(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_pcam(folder: Path, counts: Mapping[str, int] = PCAM_COUNTS, **options: Any) -> None:
    """Write the nine files of PatchCamelyon; three patches per slide, labels in turn.

    Args:
        options: of `h5py.Group.create_dataset` for x.
    """
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(counts.items()):
        stem = f"{folder}/camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file.create_dataset("x", data=noise(seed, count, 96, 96, 3), **options)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count, dtype=np.uint8) % 2).reshape(-1, 1, 1, 1)
        with open(f"{stem}_meta.csv", "w", newline="") as meta:
            rows = csv.writer(meta)
            rows.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
            for i in range(count):
                tumor = bool(i % 2)
                rows.writerow([i, 9 * i, 7 * i, tumor, tumor, f"camelyon16_{split}_{i // 3:03d}"])


def wilds_files() -> list[tuple[str, Pixels]]:
    """Path and pixels of the patches, three per row of WILDS_SLIDES."""
    files = []
    for seed, (patient, node, _, split) in enumerate(WILDS_SLIDES):
        for i in range(3):
            slide = f"patient_{patient}_node_{node}"
            name = f"patch_{slide}_x_{1000 + 32 * i}_y_{2000 + 32 * int(split)}.png"
            files.append((f"patches/{slide}/{name}", noise(10 * seed + i, 96, 96, 3)))
    return files


def write_wilds(folder: Path) -> None:
    """Write `metadata.csv` and the patches, RGBA as OpenSlide gave them."""
    rows = []
    for i, (path, pixels) in enumerate(wilds_files()):
        patient, node, center, split = WILDS_SLIDES[i // 3]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.dstack([pixels, np.full((96, 96), 255, np.uint8)])).save(folder / path)
        x, y = 1000 + 32 * (i % 3), 2000 + 32 * int(split)
        rows.append([i, patient, node, x, y, i % 2, i // 3, center, split])
    with open(folder / "metadata.csv", "w", newline="") as file:
        header = ["", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]
        csv.writer(file).writerows([header, *rows])


def write_nct_crc(folder: Path, train: int = 3, test: int = 1) -> None:
    """Write both folders, `train` and `test` files per class."""
    for name, count in (("NCT-CRC-HE-100K", train), ("CRC-VAL-HE-7K", test)):
        for seed, label in enumerate(NCT_CLASSES):
            (folder / name / label).mkdir(parents=True)
            for i in range(count):
                code = f"{'TCGA-' if count == test else ''}{'ABCDEFGHIJKLMNOP'[i]}AAQYHGN"
                pixels = np.kron(noise(100 * seed + i, 32, 32, 3), np.ones((7, 7, 1), np.uint8))
                Image.fromarray(pixels).save(folder / name / label / f"{label}-{code}.tif")


def write_pathmnist(file: Path, counts: Mapping[str, int] = PATHMNIST_COUNTS) -> None:
    """Write the .npz file; labels in turn."""
    arrays: dict[str, NDArray[Any]] = {}
    for seed, (split, count) in enumerate(counts.items()):
        arrays[f"{split}_images"] = noise(seed, count, 28, 28, 3)
        arrays[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 9).reshape(-1, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, allow_pickle=False, **arrays)


def write_points(file: Path, points: Any) -> None:
    scipy.io.savemat(file, {"detection": np.asarray(points, float)})


def write_crchisto(folder: Path, numbers: tuple[int, ...] = (1, 2, 25, 45)) -> None:
    """Write images with three nuclei of each class, one of them at the border; image 2 has no
    `others`."""
    for number in numbers:
        of_image = folder / "Classification" / f"img{number}"
        of_image.mkdir(parents=True)
        Image.fromarray(noise(number, 500, 500, 3)).save(of_image / f"img{number}.bmp")
        for i, label in enumerate(NUCLEI):
            points = [[100.4 + 20 * i, 200.6], [484.9, 16 + i], [3.5, 250 + i]]
            empty = number == 2 and label == "others"
            write_points(of_image / f"img{number}_{label}.mat", [] if empty else points)
