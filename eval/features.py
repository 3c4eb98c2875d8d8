"""Our files of embeddings: Parquet, and .npy and HDF5 for other programs."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path

Features = NDArray[np.float32]  # (n, d)
Format = Literal["npy", "h5"]

ROW_GROUP = 16_384
COLUMNS = ("key", "label", "source", "slide", "patient", "site", "path")
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def file_name(name: str) -> str:
    """Replace characters that are not safe in the name of a file."""
    return UNSAFE.sub("_", name)


def write_embeddings(
    path: Path,
    samples: pa.Table,
    batches: Iterable[Features],
    facts: Mapping[str, str],
    selected: NDArray[np.bool_] | None = None,
) -> Features:
    """Write embeddings and COLUMNS of `samples`, rows of a sidecar, to a Parquet file.

    The column `embedding` holds fixed-size lists of float32. Rows are written in groups, so that
    memory does not grow with the split.

    Args:
        batches: the embeddings (b, d), in the order of `samples`.
        facts: metadata of the file.
        selected: mask (n,) of the rows whose embeddings are returned; none by default.
    """
    rows = samples.select(COLUMNS)
    mask = np.zeros(len(rows), bool) if selected is None else selected
    returned = []
    with atomic_path(path) as temp:
        writer, done = None, 0
        for group in _row_groups(batches):
            table = with_embeddings(rows.slice(done, len(group)), group)
            if writer is None:
                schema = table.schema.with_metadata(dict(facts))
                writer = pq.ParquetWriter(temp, schema, compression="zstd")
            writer.write_table(table.replace_schema_metadata(dict(facts)), ROW_GROUP)
            returned.append(group[mask[done : done + len(group)]])
            done += len(group)
        if writer is None or done != len(rows):
            raise ValueError(f"{path}: {done} embeddings for {len(rows)} samples")
        writer.close()
    return np.concatenate(returned)


def _row_groups(batches: Iterable[Features]) -> Iterator[Features]:
    """Join batches into groups of at least ROW_GROUP rows."""
    pending: list[Features] = []
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) >= ROW_GROUP:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


def read_embeddings(path: Path) -> tuple[Features, pa.Table]:
    """Read the embeddings (n, d) of a file of `write_embeddings`, and its other columns."""
    table = pq.read_table(path)
    return vectors_of(table["embedding"]), table.drop_columns(["embedding"])


def with_embeddings(rows: pa.Table, features: Features, name: str = "embedding") -> pa.Table:
    """Append the features (n, d) to a table as a column of fixed-size lists of float32."""
    values = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    return rows.append_column(name, column)


def vectors_of(column: pa.ChunkedArray) -> Features:
    """Read a column of `with_embeddings` as an array (n, d)."""
    whole = column.combine_chunks()
    flat: Features = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(whole), -1)


def require_libraries(formats: tuple[Format, ...]) -> None:
    """Check, before any work, that the libraries of the formats are installed.

    Raises:
        DataError: one is missing.
    """
    if "h5" in formats:
        import_h5py()


def write_formats(out: Path, files: list[Path], formats: tuple[Format, ...]) -> None:
    """Write Parquet files of embeddings as OUT/embeddings.npy (n, d) or OUT/h5/SLIDE.h5."""
    if "npy" in formats:
        with atomic_path(out / "embeddings.npy") as temp:
            np.save(temp, np.concatenate([read_embeddings(path)[0] for path in files]))
    if "h5" in formats:
        _write_h5(out / "h5", files)


def _write_h5(folder: Path, files: list[Path]) -> None:
    """Write a file per slide: `features` (n, d) float32 and `coords` (n, 2), x and y in pixels.

    Patches are in the order of their paths; unknown coordinates are -1.
    """
    h5py = import_h5py()
    slides: dict[str, tuple[list[Features], list[tuple[int, int]]]] = {}
    for path in files:
        features, table = read_embeddings(path)
        columns = (table[name].to_pylist() for name in ("slide", "source", "x", "y"))
        for vector, slide, source, x, y in zip(features, *columns, strict=True):
            vectors, places = slides.setdefault(slide or source, ([], []))
            vectors.append(vector)
            places.append((-1 if x is None else x, -1 if y is None else y))
    names = {slide: file_name(slide).lstrip(".") or "_" for slide in slides}
    if len(set(names.values())) < len(names):
        raise DataError(
            "two slides get the same file name when unsafe characters are replaced: rename one"
        )
    for slide, (vectors, places) in slides.items():
        with atomic_path(folder / f"{names[slide]}.h5") as temp, h5py.File(temp, "w") as file:
            file["features"] = np.stack(vectors)
            file["coords"] = np.array(places, np.int64)
            file.attrs["slide"] = slide


def import_h5py() -> Any:
    """Import h5py.

    Raises:
        DataError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise DataError("the format h5 needs h5py: pip install 'eqdvae[h5]'") from None
    return h5py
