"""A map of test patches: two principal components of the embeddings, and thumbnails to hover.

The same seeded subset of patches for every run of a data set. Without the data set at hand the
map has no thumbnails.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from eval.measure.readouts import read_embeddings
from eval.report.document import Atlas, shown
from eval.report.runs import Entry
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.schema import NO_LABEL, PATCH

POINTS = 3000
GRID = 4095  # coordinates are whole numbers from 0 to this
COLUMNS = 60  # thumbnails in a row of the sheet
QUALITY = 80  # of the sheet, a JPEG: 3 MB for 3000 patches
SEED = 0


def atlas(group: Sequence[Entry], name: str) -> Atlas | None:
    """The map of some runs on one data set; None where none has embeddings.

    The fields of its data: `runs` (name, share of the variance of both components, x and y in
    turns), and by point `key`, `source`, and indices `class` into `classes`, `site` into `sites`;
    `sheet` is a data URL of the thumbnails in rows of `columns`, or None.
    """
    rows, found = None, []
    for entry in group:
        split = entry.at("protocol", "metrics_split")
        path = entry.folder / "embeddings" / f"{split}.parquet"
        if split not in ("train", "val", "test") or not path.is_file():
            continue
        try:
            features, table = read_embeddings(path)
        except (OSError, pa.ArrowException, KeyError):
            continue
        chosen = subset(len(table))
        table = table.take(pa.array(chosen))
        if rows is not None and rows["key"].to_pylist() != table["key"].to_pylist():
            continue  # of another subset of the split
        rows = table
        xy, shares = components(features[chosen])
        found.append({"name": entry.label, "shares": shares, "xy": xy.ravel().tolist()})
    if rows is None or len(rows) < 3:
        return None
    sheet = _sheet(group[0], rows)
    data = {"runs": found, "sheet": sheet, "columns": COLUMNS, "grid": GRID, **_facts(group, rows)}
    caption = (
        f"The first two principal components of the code (raw mu) of {len(rows):,} patches of "
        f"{shown(split)}, the same for every run. Distances in two of many dimensions are a "
        "sketch, not a measurement."
    )
    return Atlas(name, data, caption + (" Thumbnails are lossy." if sheet else ""))


def subset(count: int) -> NDArray[np.int64]:
    """At most POINTS rows, in order, the same for an equal count."""
    if count <= POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, POINTS, replace=False))


def components(features: NDArray[np.floating]) -> tuple[NDArray[np.int64], list[float]]:
    """(n, 2) whole numbers in 0..GRID, and the share of the variance of both components.

    The sign of a component is that its largest loading is positive.
    """
    centred = features.astype(np.float64) - features.mean(0)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    two = axes[:, [-1, -2]]
    two = two * np.sign(two[np.abs(two).argmax(0), [0, 1]])
    xy = centred @ two
    low, high = xy.min(0), xy.max(0)
    scaled = (xy - low) / np.maximum(high - low, np.finfo(float).tiny) * GRID
    shares = variance[[-1, -2]] / max(float(variance.sum()), np.finfo(float).tiny)
    return scaled.round().astype(np.int64), [round(float(share), 4) for share in shares]


def _facts(group: Sequence[Entry], rows: pa.Table) -> dict[str, Any]:
    names = group[0].at("protocol", "classes")
    classes = [shown(name) for name in names] if isinstance(names, list) else []
    labels = rows["label"].to_pylist()
    if any(label == NO_LABEL or label >= len(classes) for label in labels):
        labels = [label if 0 <= label < len(classes) else len(classes) for label in labels]
        classes.append("no label")
    of_site = ["unknown site" if site is None else shown(site) for site in rows["site"].to_pylist()]
    sites = sorted(set(of_site))
    return {
        "key": rows["key"].to_pylist(),
        "source": [shown(source) for source in rows["source"].to_pylist()],
        "class": labels,
        "classes": classes,
        "site": [sites.index(site) for site in of_site],
        "sites": sites,
    }


def _sheet(entry: Entry, rows: pa.Table) -> str | None:
    """The patches side by side as a data URL; None without the data set they came from."""
    try:
        data = open_dataset(entry.root)
        split = data.split(str(entry.at("protocol", "metrics_split")))
    except (DataError, OSError):
        return None
    if data.hash != entry.at("data", "hash"):
        return None
    place = {key: i for i, key in enumerate(split.table["key"].to_pylist())}
    wanted = [place[key] for key in rows["key"].to_pylist() if key in place]
    if len(wanted) < len(rows):
        return None
    pixels = read_split(split, np.array(wanted))
    return _data_url(_tiled(pixels))


def _tiled(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 32, 32, 3) to a sheet of COLUMNS a row."""
    lines = -(-len(pixels) // COLUMNS)
    sheet = np.zeros((lines * COLUMNS, PATCH, PATCH, 3), np.uint8)
    sheet[: len(pixels)] = pixels
    grid = sheet.reshape(lines, COLUMNS, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(lines * PATCH, COLUMNS * PATCH, 3))


def _data_url(pixels: NDArray[np.uint8]) -> str:
    """A JPEG as a data URL."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"
