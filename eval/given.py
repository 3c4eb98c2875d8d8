"""Embeddings from elsewhere, read and put in the order of a data set. The files are not trusted.

Parquet   `embedding` (lists of equal length) and `key`, `path` or both, as in the data set
.npy      (n, d), rows in the order of the data set: the splits as in dataset.json, then the samples
          in the order of their shards
.h5       `features` (n, d), and `keys` (n,) or `coords` (n, 2), x and y of a slide; the slide is
          the attribute `slide`, else the file's name

Parquet and .h5 may be folders of such files.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.errors import DataError
from eval.features import h5py_module
from eval.measure.readouts import Features
from pipeline.index import Dataset, Split

MAX_HEADER_BYTES = 10_000  # of a .npy file; an honest one has 128
MAX_DIMENSIONS = 65_536
MAX_GROWTH = 64  # an array of a .h5 file to the size of the file: embeddings hardly compress
SHOWN = 3
PLACE = "slide and place"
Name = str | tuple[str | int, ...]


@dataclass(frozen=True)
class Given:
    """Vectors (n, d) and their names: what `by` says, or none where their order is their name."""

    vectors: Features
    names: list[Name]
    by: str  # "key", "path", "key and path", "slide and place", "order"


def read_given(path: Path) -> Given:
    """Read whatever embeddings lie at `path`.

    Raises:
        DataError: nothing of a known format, or not of the form that this module states.
    """
    if path.is_dir():
        for suffix, reader in ((".parquet", _parquet), (".h5", _h5)):
            if files := sorted(path.glob(f"*{suffix}")):
                return _joined(path, [reader(file) for file in files])
    reader = {".parquet": _parquet, ".npy": _npy, ".h5": _h5}.get(path.suffix, _unknown)
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file of embeddings or a folder of such")
    return reader(path)


def matched(given: Given, data: Dataset, splits: Sequence[str]) -> tuple[dict[str, Features], int]:
    """Embeddings (n, d) of some splits in sample order, and how many of those given were not used.

    Raises:
        DataError: a sample has no embedding or several, or one that is not finite; in counts, and
            by name.
    """
    if given.by == "order":
        total = sum(map(len, data.splits.values()))
        if len(given.vectors) != total:
            raise DataError(
                f"there are {len(given.vectors):,} embeddings for the {total:,} patches of "
                f"{data.root}; without names they must be all, splits in the order "
                f"{list(data.splits)}, samples in that of the shards"
            )
        given = replace(given, names=[key for split in data.splits.values() for key in
                                      _names(split, "key")], by="key")  # fmt: skip
    wanted = {split: _names(data.splits[split], given.by) for split in splits}
    found = _rows_of(given.names, wanted, data)
    embedded = {split: given.vectors[rows] for split, rows in found.items()}
    for split, vectors in embedded.items():
        if len(bad := np.flatnonzero(~np.isfinite(vectors).all(1))):
            shown = data.splits[split].keys(bad[:SHOWN])
            raise DataError(
                f"{len(bad):,} embeddings of {split} are not finite ({', '.join(shown)}, ...): "
                "embed these patches again"
            )
    return embedded, len(given.vectors) - sum(map(len, embedded.values()))


def _rows_of(
    names: Sequence[Name], wanted: dict[str, list[Name]], data: Dataset
) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    place = {name: row for row, name in enumerate(names)}
    every = [name for split in wanted.values() for name in split]
    _refuse(_twice(every), f"patches of {data.root} share their name; match them by key")
    twice = set(_twice(names)) & set(every)
    _refuse(sorted(twice, key=str), "patches have several embeddings; keep one of each")
    missing = [name for name in every if name not in place]
    _refuse(missing, f"of {len(every):,} patches of {data.root} have no embedding")
    return {split: np.array([place[n] for n in there], int) for split, there in wanted.items()}


def _twice(names: Sequence[Any]) -> list[Any]:
    seen: set[Any] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _refuse(names: Sequence[Any], why: str) -> None:
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
    """The values of a column, or tuples of those of `key and path`."""
    columns = [table[name].to_pylist() for name in by.split(" and ")]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _parquet(path: Path) -> Given:
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
    return Given(_floats(path, flat).reshape(-1, sizes[0]), _together(table, by), by)


def _npy(path: Path) -> Given:
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
    return Given(_floats(path, np.load(path, allow_pickle=False)), [], "order")


def _h5(path: Path) -> Given:
    h5py = h5py_module()
    try:
        with h5py.File(path, "r") as file:
            vectors = _h5_array(h5py, file, "features")
            vectors = vectors[0] if vectors.ndim == 3 and len(vectors) == 1 else vectors
            by, names = _h5_names(h5py, file, path)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as HDF5 embeddings: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise DataError(f"{path}: features of shape {vectors.shape} for {len(names)} names")
    return Given(_floats(path, vectors), names, by)


def _h5_names(h5py: Any, file: Any, path: Path) -> tuple[str, list[Name]]:
    if "keys" in file:
        return "key", [_text(key) for key in _h5_array(h5py, file, "keys").tolist()]
    slide = _text(file.attrs.get("slide", path.stem))
    places = _h5_array(h5py, file, "coords").reshape(-1, 2).tolist()
    return PLACE, [(slide, int(x), int(y)) for x, y in places]


def _h5_array(h5py: Any, file: Any, name: str) -> Any:
    """A whole array that lies in the file itself: links and stored names of other files are not
    followed, and none grows far beyond the size of the file.
    """
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{name} is missing, or a link")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{name} is not an array in this file")
    if found.nbytes > MAX_GROWTH * Path(file.filename).stat().st_size:
        raise ValueError(f"{name} claims {found.nbytes:,} bytes, far more than the file has")
    return found[()]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _floats(path: Path, values: Any) -> Features:
    if values.dtype.kind != "f":
        raise DataError(f"{path}: embeddings are {values.dtype}, expected floats")
    return np.asarray(values, np.float32)


def _joined(path: Path, parts: list[Given]) -> Given:
    widths, by = {part.vectors.shape[1] for part in parts}, {part.by for part in parts}
    if len(widths) > 1 or len(by) > 1:
        raise DataError(f"the files of {path} differ: dimensions {widths}, named by {by}")
    vectors = np.concatenate([part.vectors for part in parts])
    return Given(vectors, [name for part in parts for name in part.names], by.pop())


def _unknown(path: Path) -> Given:
    raise DataError(f"{path} is no .parquet, .npy or .h5 file, nor a folder of such")
