"""Embeddings in files: Parquet, .npy and HDF5, written for others and read from others.

Files from elsewhere are not trusted. They are

Parquet   `embedding` (lists of equal length) and `key`, `path` or both, as in the data set
.npy      (n, d), rows in the order of the data set: the splits as in dataset.json, then the samples
          in the order of their shards
.h5       `features` (n, d), and `keys` (n,) or `coords` (n, 2), x and y on a slide; the slide is
          the attribute `slide`, else the name of the file

Parquet and .h5 may be folders of such files.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path
from pipeline.index import Dataset, Split

Features = NDArray[np.float32]  # (n, d)
Format = Literal["npy", "h5"]
Name = str | tuple[str | int, ...]

ROW_GROUP = 16_384
COLUMNS = ("key", "label", "source", "slide", "patient", "site", "path")
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
MAX_HEADER_BYTES = 10_000  # of a .npy file; an honest one has 128
MAX_DIMENSIONS = 65_536
MAX_GROWTH = 64  # size of an array to that of its .h5 file: embeddings hardly compress
SHOWN = 3  # names in an error
PLACE = "slide and place"


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
    """Stream the embeddings of `samples`, rows of a sidecar, in their order to a Parquet file.

    It has COLUMNS of the sidecar and `embedding`, a fixed-size list of float32. Rows are written in
    groups, so that memory does not grow with the split.

    Args:
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
    """Raise a DataError, before any work, where a format needs a library that is missing."""
    if "h5" in formats:
        _h5py()


def write_formats(out: Path, files: list[Path], formats: tuple[Format, ...]) -> None:
    """Write Parquet files of embeddings as OUT/embeddings.npy (n, d) or OUT/h5/SLIDE.h5."""
    if "npy" in formats:
        with atomic_path(out / "embeddings.npy") as temp:
            np.save(temp, np.concatenate([read_embeddings(path)[0] for path in files]))
    if "h5" in formats:
        _write_h5(out / "h5", files)


def _write_h5(folder: Path, files: list[Path]) -> None:
    """Write a file per slide: `features` (n, d) float32 and `coords` (n, 2), x and y, by path."""
    h5py = _h5py()
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
        raise DataError("two slides have one file name once unsafe characters are replaced")
    for slide, (vectors, places) in slides.items():
        with atomic_path(folder / f"{names[slide]}.h5") as temp, h5py.File(temp, "w") as file:
            file["features"] = np.stack(vectors)
            file["coords"] = np.array(places, np.int64)
            file.attrs["slide"] = slide


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError("the format h5 needs h5py: pip install 'eqdvae[h5]'") from None
    return h5py


@dataclass(frozen=True)
class External:
    """Embeddings (n, d) from elsewhere, and their names, which are empty where `by` is "order"."""

    vectors: Features
    names: list[Name]
    by: str  # "key", "path", "key and path", "slide and place", "order"


def read_external(path: Path) -> External:
    """Read the embeddings of a file or a folder of files.

    Raises:
        DataError: no known format, or not of the form that this module states.
    """
    readers = {".parquet": _parquet, ".npy": _npy, ".h5": _h5}
    if path.is_dir():
        for suffix in (".parquet", ".h5"):
            if files := sorted(path.glob(f"*{suffix}")):
                return _joined(path, [readers[suffix](file) for file in files])
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file of embeddings or a folder of such")
    if path.suffix not in readers:
        raise DataError(f"{path} is no .parquet, .npy or .h5 file, nor a folder of such")
    return readers[path.suffix](path)


def matched(
    external: External, data: Dataset, splits: Sequence[str]
) -> tuple[dict[str, Features], int]:
    """Put embeddings (n, d) in the order of samples, by split; also count those that are not used.

    Raises:
        DataError: a sample has no embedding or several, or one that is not finite; counts and
            names them.
    """
    if external.by == "order":
        total = sum(map(len, data.splits.values()))
        if len(external.vectors) != total:
            raise DataError(
                f"there are {len(external.vectors):,} embeddings for the {total:,} patches of "
                f"{data.root}; without names they must be all, splits in the order "
                f"{list(data.splits)}, samples in that of the shards"
            )
        keys = [key for split in data.splits.values() for key in _names(split, "key")]
        external = replace(external, names=keys, by="key")
    names = {split: _names(data.splits[split], external.by) for split in splits}
    rows_by_split = _rows_of(external.names, names, data)
    embedded = {split: external.vectors[rows] for split, rows in rows_by_split.items()}
    for split, vectors in embedded.items():
        if len(bad := np.flatnonzero(~np.isfinite(vectors).all(1))):
            shown = data.splits[split].keys(bad[:SHOWN])
            raise DataError(
                f"{len(bad):,} embeddings of {split} are not finite ({', '.join(shown)}, ...): "
                "embed these patches again"
            )
    return embedded, len(external.vectors) - sum(map(len, embedded.values()))


def _rows_of(
    names: Sequence[Name], samples: dict[str, list[Name]], data: Dataset
) -> dict[str, NDArray[np.int64]]:
    """Find the row of every sample, by split, among the names of embeddings."""
    row_of = {name: row for row, name in enumerate(names)}
    every = [name for split in samples.values() for name in split]
    _refuse(_twice(every), f"patches of {data.root} share their name; match them by key")
    twice = set(_twice(names)) & set(every)
    _refuse(sorted(twice, key=str), "patches have several embeddings; keep one of each")
    missing = [name for name in every if name not in row_of]
    _refuse(missing, f"of {len(every):,} patches of {data.root} have no embedding")
    return {
        split: np.array([row_of[n] for n in split_names], int)
        for split, split_names in samples.items()
    }


def _twice(names: Sequence[Name]) -> list[Name]:
    return [name for name, count in Counter(names).items() if count > 1]


def _refuse(names: Sequence[Name], why: str) -> None:
    if names:
        shown = ", ".join(map(str, names[:SHOWN]))
        raise DataError(f"{len(names):,} {why} (the first: {shown})")


def _names(split: Split, by: str) -> list[Name]:
    table = split.table
    if by != PLACE:
        return _together(table, by)
    slides = pc.coalesce(table["slide"], table["source"]).to_pylist()
    places = [pc.fill_null(table[name], -1).to_pylist() for name in ("x", "y")]
    return list(zip(slides, *places, strict=True))


def _together(table: pa.Table, by: str) -> list[Name]:
    """List the values of a column, or tuples of those of `key and path`."""
    columns = [table[name].to_pylist() for name in by.split(" and ")]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _parquet(path: Path) -> External:
    try:
        columns = pq.read_schema(path).names
        names = [name for name in ("key", "path") if name in columns]
        if not names or "embedding" not in columns:
            raise DataError(f"{path} has the columns {columns}; needs embedding, and key or path")
        table = pq.read_table(path, columns=[*names, "embedding"])
        column = table["embedding"].combine_chunks()
        sizes = pc.unique(pc.list_value_length(column)).to_pylist()
        flat = column.flatten().to_numpy(zero_copy_only=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None
    if len(sizes) != 1 or not sizes[0]:
        raise DataError(f"{path}: embeddings have the lengths {sizes[:SHOWN]}, expected one length")
    by = " and ".join(names)
    return External(_floats(path, flat).reshape(-1, sizes[0]), _together(table, by), by)


def _npy(path: Path) -> External:
    if list(path.parent.glob("part-*.parquet")):
        raise DataError(
            f"{path} was written by eval.embed in the order of paths: name its folder "
            f"{path.parent} instead, whose Parquet parts say the path of each row"
        )
    with path.open("rb") as file:  # the header alone, before anything that it claims is believed
        head = io.BytesIO(file.read(MAX_HEADER_BYTES))
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(head)](head)
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} is not a .npy file that can be used: {error!r}") from None
    if len(shape) != 2 or dtype.kind != "f" or not 0 < shape[1] <= MAX_DIMENSIONS:
        raise DataError(f"{path} holds {dtype} of shape {shape}, expected floats (n, d)")
    if head.tell() + shape[0] * shape[1] * dtype.itemsize != path.stat().st_size:
        raise DataError(f"{path} claims the shape {shape}, which is not its size: it was truncated")
    return External(_floats(path, np.load(path, allow_pickle=False)), [], "order")


def _h5(path: Path) -> External:
    h5py = _h5py()
    names: list[Name]
    try:
        with h5py.File(path, "r") as file:
            vectors = _h5_array(h5py, file, "features")
            vectors = vectors[0] if vectors.ndim == 3 and len(vectors) == 1 else vectors
            if "keys" in file:
                names = [_text(key) for key in _h5_array(h5py, file, "keys").tolist()]
            else:
                slide = _text(file.attrs.get("slide", path.stem))
                places = _h5_array(h5py, file, "coords").reshape(-1, 2).tolist()
                names = [(slide, int(x), int(y)) for x, y in places]
            by = "key" if "keys" in file else PLACE
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as HDF5 embeddings: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise DataError(f"{path}: features of shape {vectors.shape} for {len(names)} names")
    return External(_floats(path, vectors), names, by)


def _h5_array(h5py: Any, file: Any, name: str) -> Any:
    """Read an array that is stored in the file itself.

    Links and names of other files are not followed, and no array may be far larger than the file.
    """
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is missing, or a link")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
        raise ValueError(f"{name} is not an array in this file")
    if array.nbytes > MAX_GROWTH * Path(file.filename).stat().st_size:
        raise ValueError(f"{name} claims {array.nbytes:,} bytes, far more than the file has")
    return array[()]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _floats(path: Path, values: Any) -> Features:
    if values.dtype.kind != "f":
        raise DataError(f"{path}: embeddings are {values.dtype}, expected floats")
    return np.asarray(values, np.float32)


def _joined(path: Path, files: list[External]) -> External:
    widths, by = {file.vectors.shape[1] for file in files}, {file.by for file in files}
    if len(widths) > 1 or len(by) > 1:
        raise DataError(f"the files of {path} differ: dimensions {widths}, named by {by}")
    vectors = np.concatenate([file.vectors for file in files])
    return External(vectors, [name for file in files for name in file.names], by.pop())
