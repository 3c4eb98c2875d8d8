"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: 224x224 TIFF patches in nine folders of classes.

    NCT-CRC-HE-100K/{ADI,BACK,DEB,LYM,MUC,MUS,NORM,STR,TUM}/*.tif    or ...-100K-NONORM
    CRC-VAL-HE-7K/{ADI,BACK,DEB,LYM,MUC,MUS,NORM,STR,TUM}/*.tif

The 7K, of other patients, are test. Of the 100K those are val whose file name, without the folder,
has an xxh3 hash (64 bits) divisible by ten; slides and patients were not published, so the patches
of one slide are in both. What becomes of the 224x224 is for the user to say.
"""

import os
from typing import Any

import xxhash

from common.errors import DataError
from shards.known.inputs import Inputs
from shards.known.pathmnist import CLASSES
from shards.sources.files import is_junk_file
from shards.sources.names import require_utf8

MPP = 0.5
RULE = "none: slides and patients were not published"

_FOLDERS = {
    "100K": ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM"),
    "7K": ("CRC-VAL-HE-7K",),
}


def split_of(name: str) -> str:
    """Return the split of a file of the 100K by its name."""
    return "train" if xxhash.xxh3_64_intdigest(name.encode()) % 10 else "val"


def list_files(inputs: Inputs) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Return a value per patch by field, and the number of files left out by reason.

    Raises:
        DataError: a folder is missing or holds others than those above; another number of patches.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("path", "label", "split", "mpp")}
    others = 0
    for part, names in _FOLDERS.items():
        if inputs.partial and inputs.find(*names) is None:
            continue
        folder = inputs.require(*names)
        entries = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if unknown := [name for name in entries if name not in CLASSES and name[0] not in "._"]:
            raise DataError(
                f"{folder} holds the folder {unknown[0]}, expected {', '.join(CLASSES)}"
            )
        for label in CLASSES:
            files = [e.name for e in os.scandir(folder / label)] if label in entries else []
            images = sorted(name for name in files if name.lower().endswith(".tif"))
            images = [name for name in images if not is_junk_file(name)]
            for name in images:
                require_utf8(name)
            others += len(files) - len(images)
            expected = inputs.facts.counts[f"{part}/{label}"]
            inputs.check_count(folder / label, "TIFF files", len(images), expected)
            relative = inputs.relative(folder / label)
            columns["path"] += [f"{relative}/{name}" for name in images]
            columns["label"] += [label] * len(images)
            columns["split"] += ["test" if part == "7K" else split_of(name) for name in images]
            columns["mpp"] += [MPP] * len(images)
    if not columns["path"]:
        inputs.require(_FOLDERS["100K"][0])
    return columns, {"files that are not TIFF": others}
