"""What each public set is: where it is published, under which licence, and how much of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

ArraySet = Literal["pcam", "pathmnist", "crchisto"]  # arrays, or images that hold many patches
FileSet = Literal["camelyon17-wilds", "nct-crc"]  # a file per patch
SetName = Literal[ArraySet, FileSet]


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """Facts about a set; `docs/known-data.md` has its references and what is known of its bias."""

    title: str
    url: str
    licence: str
    counts: Mapping[str, int]  # what was published; the keys are those of the set's own module
    files: tuple[str, ...] = ()  # patterns of the files that may be named one by one
    archives: Mapping[str, str] | None = None  # pattern to the command that unpacks such a file


SETS: Mapping[SetName, KnownSet] = {
    "pcam": KnownSet(
        title="PatchCamelyon",
        url="https://github.com/basveeling/pcam",
        licence="CC0 1.0",
        counts={"train": 262_144, "valid": 32_768, "test": 32_768},
        files=(
            "camelyonpatch_level_2_split_*.h5",
            "camelyonpatch_level_2_split_*.h5.gz",
            "camelyonpatch_level_2_split_*_meta.csv",
        ),
    ),
    "camelyon17-wilds": KnownSet(
        title="Camelyon17-WILDS 1.0",
        url="https://wilds.stanford.edu/datasets/#camelyon17",
        licence="CC0 1.0",
        counts={"train": 302_436, "id_val": 33_560, "val": 34_904, "test": 85_054},
        files=("metadata.csv",),
        archives={"camelyon17*.tar.gz": "tar -xzf", "camelyon17*.tar": "tar -xf"},
    ),
    "nct-crc": KnownSet(
        title="NCT-CRC-HE-100K and CRC-VAL-HE-7K",
        url="https://zenodo.org/records/1214456",
        licence="CC BY 4.0",
        counts={
            "100K/ADI": 10_407,
            "100K/BACK": 10_566,
            "100K/DEB": 11_512,
            "100K/LYM": 11_557,
            "100K/MUC": 8_896,
            "100K/MUS": 13_536,
            "100K/NORM": 8_763,
            "100K/STR": 10_446,
            "100K/TUM": 14_317,
            "7K/ADI": 1_338,
            "7K/BACK": 847,
            "7K/DEB": 339,
            "7K/LYM": 634,
            "7K/MUC": 1_035,
            "7K/MUS": 592,
            "7K/NORM": 741,
            "7K/STR": 421,
            "7K/TUM": 1_233,
        },
        archives={"NCT-CRC-HE-100K*.zip": "unzip", "CRC-VAL-HE-7K*.zip": "unzip"},
    ),
    "pathmnist": KnownSet(
        title="PathMNIST",
        url="https://zenodo.org/records/10519652",
        licence="CC BY 4.0",
        counts={"train": 89_996, "val": 10_004, "test": 7_180},
        files=("pathmnist*.npz",),
    ),
    "crchisto": KnownSet(
        title="CRCHistoPhenotypes",
        url="https://warwick.ac.uk/fac/cross_fac/tia/data/crchistolabelednucleihe",
        licence="none is stated: research use",
        counts={"epithelial": 7_722, "fibroblast": 5_712, "inflammatory": 6_971, "others": 2_039},
        archives={"CRCHistoPhenotypes*.zip": "unzip"},
    ),
}
assert set(SETS) == set(get_args(SetName))
