"""A map of test patches: two principal components of the embeddings, and thumbnails to hover.

Every run of a data set shows the same seeded subset of patches. Without access to the data set the
map has no thumbnails.
"""

import base64
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from eval.drawing.figures import principal_plane
from eval.features import read_embeddings
from eval.report.document import Atlas, AtlasPoints, RunMap, shown
from eval.report.runs import EvaluatedRun
from eval.session import subset
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.schema import NO_LABEL, PATCH

POINTS = 3000
GRID = 4095  # coordinates are whole numbers from 0 to this
COLUMNS = 60  # thumbnails in a row of the sheet
QUALITY = 80  # of the sheet, a JPEG: 3 MB for 3000 patches


def atlas(runs: Sequence[EvaluatedRun], name: str) -> Atlas | None:
    """The map of runs on one data set; None where none has embeddings."""
    rows, maps, owner = None, [], runs[0]
    for run in runs:
        split = run.results.protocol.metrics_split
        path = run.folder / "embeddings" / f"{split}.parquet"
        if split not in ("train", "val", "test") or not path.is_file():
            continue
        try:
            features, table = read_embeddings(path, {"split": split, **run.results.hashes})
        except (OSError, pa.ArrowException, KeyError):
            continue
        indices = subset(len(table), POINTS)
        table = table.take(pa.array(indices))
        if rows is not None and rows["key"].to_pylist() != table["key"].to_pylist():
            continue  # of another subset of the split
        rows, owner = table, run
        xy, shares = components(features[indices])
        maps.append(RunMap(name=run.label, shares=shares, xy=xy.ravel().tolist()))
    if rows is None or len(rows) < 3:
        return None
    classes = [shown(name) for name in owner.results.protocol.classes or []]
    labels = rows["label"].to_pylist()
    if any(label == NO_LABEL or label >= len(classes) for label in labels):
        labels = [label if 0 <= label < len(classes) else len(classes) for label in labels]
        classes.append("no label")
    sites = ["unknown site" if site is None else shown(site) for site in rows["site"].to_pylist()]
    site_names = sorted(set(sites))
    points = AtlasPoints(
        runs=maps,
        grid=GRID,
        key=rows["key"].to_pylist(),
        source=[shown(source) for source in rows["source"].to_pylist()],
        labels=labels,
        classes=classes,
        site_indices=[site_names.index(site) for site in sites],
        sites=site_names,
        sheet=_sheet(owner, rows),
        columns=COLUMNS,
    )
    caption = (
        f"The first two principal components of the code (raw mu) of {len(rows):,} patches of "
        f"{owner.results.protocol.metrics_split}, the same for every run. Distances in two of many "
        "dimensions are a sketch, not a measurement."
    )
    return Atlas(name, points, caption + (" Thumbnails are lossy." if points.sheet else ""))


def components(features: NDArray[np.floating]) -> tuple[NDArray[np.int64], list[float]]:
    """Coordinates (n, 2) in 0..GRID of features (n, d), and the share of both components."""
    xy, shares = principal_plane(features)
    low, high = xy.min(0), xy.max(0)
    scaled = (xy - low) / np.maximum(high - low, np.finfo(float).tiny) * GRID
    return scaled.round().astype(np.int64), shares.round(4).tolist()


def _sheet(run: EvaluatedRun, rows: pa.Table) -> str | None:
    """The patches as one JPEG in a data URL; None without the data set they came from."""
    try:
        data = open_dataset(run.root)
        split = data.split(str(run.results.protocol.metrics_split))
    except (DataError, OSError):
        return None
    if data.hash != run.results.data.hash:
        return None
    positions = {key: i for i, key in enumerate(split.table["key"].to_pylist())}
    indices = [positions[key] for key in rows["key"].to_pylist() if key in positions]
    if len(indices) < len(rows):
        return None
    sheet = io.BytesIO()
    image = Image.fromarray(tiled(read_split(split, np.array(indices))))
    image.save(sheet, "JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(sheet.getvalue()).decode()}"


def tiled(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patches (n, 32, 32, 3) side by side, COLUMNS in a row, as one image (H, W, 3)."""
    lines = -(-len(pixels) // COLUMNS)
    sheet = np.zeros((lines * COLUMNS, PATCH, PATCH, 3), np.uint8)
    sheet[: len(pixels)] = pixels
    grid = sheet.reshape(lines, COLUMNS, PATCH, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(lines * PATCH, COLUMNS * PATCH, 3))
