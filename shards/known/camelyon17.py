"""Camelyon17-WILDS: 96x96 PNG patches of five hospitals, labelled by their centre 32x32.

    metadata.csv    patient, node, x_coord, y_coord, tumor, slide, center, split; a row per patch
    patches/patient_P_node_N/patch_patient_P_node_N_x_X_y_Y.png

The centre 32x32 is packed. X and Y are its corner in pixels of the patch: the authors' script reads
the 96x96 from 32 pixels before. Splits are the official ones for another hospital
(`Camelyon17Dataset` of the package wilds): center 1 is val, center 2 test, and of the other centers
the rows of split 0 are train. Those of split 1, `id_val`, are from the slides of train, and are
left out.
"""

import re
from collections import Counter
from typing import Any

from common.errors import DataError
from shards.known.inputs import Inputs, read_table
from shards.schema import PATCH

RULE = "the slide: patient and node in the file's name"

_NUMBER = re.compile(r"[0-9]{1,7}")
_CLASSES = {"0": "normal", "1": "tumor"}
_CENTERS = {"0": "", "1": "val", "2": "test", "3": "", "4": ""}  # split, where it is of the center
_SPLITS = {"0": "train", "1": "id_val"}  # of the other centers
_COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")


def list_files(inputs: Inputs) -> tuple[dict[str, list[Any]], dict[str, int]]:
    """Return a value per patch by field, and the number of those left out by reason.

    Raises:
        DataError: the table is missing or not as described above; another number of patches.
    """
    file = inputs.require("metadata.csv")
    folder = inputs.relative(file.parent / "patches")
    rows = zip(*read_table(file, _COLUMNS).values(), strict=True)
    names = ("path", "label", "split", "slide", "patient", "site", "x", "y")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    counts: Counter[str] = Counter()
    for i, (patient, node, x, y, tumor, center, part) in enumerate(rows):
        for column, value, expected in (
            ("tumor", tumor, _CLASSES),
            ("center", center, _CENTERS),
            ("split", part, _SPLITS),
            ("patient", patient, None),
            ("node", node, None),
            ("x_coord", x, None),
            ("y_coord", y, None),
        ):
            if value not in expected if expected else not _NUMBER.fullmatch(value):
                shown = " or ".join(expected) if expected else "digits"
                raise DataError(f"{file} row {i + 2}, column {column!r}: {value!r}, not {shown}")
        split = _CENTERS[center] or _SPLITS[part]
        counts[split] += 1
        if split == "id_val":
            continue
        slide = f"patient_{patient}_node_{node}"
        row = (
            f"{folder}/{slide}/patch_{slide}_x_{x}_y_{y}.png",
            _CLASSES[tumor],
            split,
            slide,
            f"patient_{patient}",
            f"center-{center}",
            int(x) - PATCH,  # of the 96x96; the crop adds it again
            int(y) - PATCH,
        )
        for values, value in zip(columns.values(), row, strict=True):
            values.append(value)
    for split, count in inputs.facts.counts.items():
        inputs.check_count(file, f"patches of {split}", counts[split], count)
    if len({*columns["path"]}) < len(columns["path"]):
        repeated = Counter(columns["path"]).most_common(1)[0][0]
        raise DataError(f"{file} lists {repeated} more than once")
    return columns, {"patches of id_val, from the slides of train": counts["id_val"]}
