"""Embeddings for other programs: AnnData, HDF5 as TRIDENT writes it, and a table of slides."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path
from eval.export.table import EmbeddedTable, tile_side
from eval.features import hdf5_file, import_h5py, with_embeddings
from eval.parquet import ROW_GROUP
from shards.schema import PATCH

MAGNIFICATION = 10.0  # times microns per pixel: 20x is 0.5


def import_anndata() -> Any:
    """Import anndata.

    Raises:
        DataError: it is not installed.
    """
    try:
        import anndata.io
    except ImportError:
        raise DataError("the format h5ad needs anndata: pip install 'eqdvae[anndata]'") from None
    return anndata


def write_h5ad(table: EmbeddedTable, out: Path) -> Path:
    """Write OUT/embeddings.h5ad: X the embeddings, obs the columns, obsm['spatial'] x and y.

    `spatial` is absent where a patch has no place. The names of obs are the paths; patches that
    were cut from one file are told apart by their place, PATH_x0_y32, or else by a number.
    """
    anndata = import_anndata()
    import pandas as pd  # anndata brings it

    rows = table.rows
    observed = {}
    for name in ("split", "class", "slide", "source", "patient", "site", "mpp", "x", "y"):
        if rows[name].null_count < len(rows):
            values = rows[name].to_pandas()
            observed[name] = values if values.dtype.kind in "fi" else pd.Categorical(values)
    names = pd.Index(_patch_names(rows), dtype=object)
    frame = pd.DataFrame(observed).set_index(anndata.utils.make_index_unique(names))
    data = anndata.AnnData(table.features, obs=frame, uns=dict(table.facts))
    data.var_names = [f"z{i}" for i in range(table.features.shape[1])]
    if not rows["x"].null_count + rows["y"].null_count:
        places = [rows[name].to_numpy().astype(np.float64) for name in ("x", "y")]
        data.obsm["spatial"] = np.stack(places, axis=1)
    path = out / "embeddings.h5ad"
    with hdf5_file(path) as file:
        anndata.io.write_elem(file, "/", data)
    return path


def _patch_names(rows: pa.Table) -> list[str]:
    """Return the path of every patch, with its place where several share the path."""
    paths, places = rows["path"].to_pylist(), zip(*(rows[c].to_pylist() for c in "xy"), strict=True)
    counts = Counter(paths)
    return [
        path if counts[path] == 1 or x is None or y is None else f"{path}_x{x}_y{y}"
        for path, (x, y) in zip(paths, places, strict=True)
    ]


def write_trident(table: EmbeddedTable, out: Path) -> Path:
    """Write OUT/trident/SLIDE.h5: `features` (n, d), `coords` (n, 2) and attributes as TRIDENT.

    Magnifications are 10 / mpp, and absent where mpp is not known; so are level0_width and
    level0_height, as a table of patches does not hold the size of the slide. Source of the names:
    trident/IO.py `coords_to_h5`, trident/wsi_objects/WSI.py `extract_patch_features`.
    """
    folder = out / "trident"
    for slide in table.slides:
        places = table.places(slide)
        side, mpp = tile_side(places), table.mpp(slide)
        shared = {"name": slide.name, "savetodir": str(folder)}
        coords: dict[str, int | float | str] = {
            **shared,
            "patch_size": PATCH,
            "patch_size_level0": side,
            "overlap": 0,
        }
        if mpp:
            # TRIDENT reads patches by the ratio of the two: it is that of the sizes
            coords["target_magnification"] = magnification = round(MAGNIFICATION / mpp, 2)
            coords["level0_magnification"] = magnification * side / PATCH
        features = table.features[slide.rows]
        encoder = f"eqdvae-{table.facts['snapshot_xxh3']}"
        arrays: dict[str, tuple[NDArray[Any], dict[str, int | float | str]]] = {
            "features": (features, {**shared, "encoder": encoder}),
            "coords": (places, coords),
        }
        with hdf5_file(folder / f"{slide.stem}.h5") as file:
            for name, (array, attributes) in arrays.items():
                width, chunk = array.shape[1], min(len(array), ROW_GROUP)
                stored = file.create_dataset(
                    name, data=array, maxshape=(None, width), chunks=(chunk, width)
                )
                stored.attrs.update(attributes)
    return folder


def write_slides(table: EmbeddedTable, out: Path) -> Path:
    """Write OUT/slides.parquet: a row per slide with `mean` and `std` (d,) over its patches."""
    slides = table.slides
    columns = {
        "slide": [slide.name for slide in slides],
        **{
            name: pa.array([table.text(slide, name) for slide in slides], pa.string())
            for name in ("patient", "site", "class", "split")
        },
        "patches": [len(slide.rows) for slide in slides],
    }
    of_slides = [table.features[slide.rows].astype(np.float64) for slide in slides]
    rows = pa.table(columns)
    for name, pool in (("mean", np.mean), ("std", np.std)):
        pooled = np.stack([pool(features, axis=0) for features in of_slides])
        rows = with_embeddings(rows, pooled.astype(np.float32), name)
    path = out / "slides.parquet"
    with atomic_path(path) as temp:
        pq.write_table(rows.replace_schema_metadata(table.facts), temp, compression="zstd")
    return path


FORMATS: dict[str, Callable[[EmbeddedTable, Path], Path]] = {
    "h5ad": write_h5ad,
    "trident": write_trident,
    "slides": write_slides,
}
LIBRARIES: dict[str, Callable[[], Any]] = {"trident": import_h5py, "h5ad": import_anndata}
