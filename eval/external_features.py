"""Embeddings made elsewhere, in files that are not trusted:

Parquet   `embedding` (lists of equal length) and `key`, `path` or both, as in the data set
.npy      (n, d), rows in the order of the data set: the splits as in dataset.json, then the samples
          in the order of their shards
.h5       `features` (n, d), and `keys` (n,) or `coords` (n, 2), x and y on a slide; the slide is
          the attribute `slide`, else the name of the file, with or without a slide file's suffix

Parquet and .h5 may also be folders of such files.
"""

import io
import tokenize
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import DataError
from eval.features import PARTS, Features, import_h5py, slides_of
from pipeline.index import Dataset, Split
from shards.sources.names import slide_stem
from shards.sources.spelling import NearestPaths

Name = str | tuple[str | int, ...]  # identifies a patch

MAX_HEADER_BYTES = 10_000  # of a .npy file; an honest one has 128
MAX_DIMENSIONS = 65_536
MAX_GROWTH = 64  # size of an array to that of its .h5 file: embeddings hardly compress
SHOWN = 3  # names in an error
PLACE = "slide and place"


@dataclass(frozen=True)
class ExternalFeatures:
    """Embeddings made elsewhere, and what identifies the patch of each."""

    vectors: Features  # (n, d)
    names: list[Name]  # of the patches; empty where `named_by` is "order"
    named_by: str  # "key", "path", "key and path", "slide and place" or "order"


def read_external(path: Path) -> ExternalFeatures:
    """Read the embeddings of a file or a folder of files.

    Raises:
        DataError: the format is unknown, or the contents are not as stated in this module.
    """
    readers = {".parquet": read_parquet, ".npy": read_npy, ".h5": read_h5}
    if path.is_dir():
        for suffix in (".parquet", ".h5"):
            if files := sorted(path.glob(f"*{suffix}")):
                return _concatenated(path, [readers[suffix](file) for file in files])
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file or a folder of embeddings")
    if path.suffix not in readers:
        raise DataError(f"{path} is no .parquet, .npy or .h5 file, nor a folder of such files")
    return readers[path.suffix](path)


def match_samples(
    external: ExternalFeatures, data: Dataset, splits: Sequence[str]
) -> tuple[dict[str, Features], int]:
    """Bring embeddings (n, d) into the order of the samples of each split.

    Returns:
        Embeddings by split, and the number of embeddings that belong to no sample of the splits.

    Raises:
        DataError: a sample has no embedding or several, or one that is not finite; the message
            counts and names such samples.
    """
    if external.named_by == "order":
        total = sum(map(len, data.splits.values()))
        if len(external.vectors) != total:
            raise DataError(
                f"there are {len(external.vectors):,} embeddings for the {total:,} patches of "
                f"{data.root}; without names there must be one for each, in the order of the "
                f"splits {list(data.splits)} and of the samples in their shards"
            )
        keys = [key for split in data.splits.values() for key in _names(split, "key")]
        external = replace(external, names=keys, named_by="key")
    names = {split: _names(data.splits[split], external.named_by) for split in splits}
    if external.named_by == PLACE:
        external = replace(external, names=_with_slides_of(external.names, data))
    elif external.named_by == "path":
        external = replace(external, names=_with_paths_of(external.names, data))
    rows_by_split = _find_rows(external.names, names, data)
    embedded = {split: external.vectors[rows] for split, rows in rows_by_split.items()}
    for split, vectors in embedded.items():
        if len(not_finite := np.flatnonzero(~np.isfinite(vectors).all(1))):
            shown = data.splits[split].keys(not_finite[:SHOWN])
            raise DataError(
                f"{len(not_finite):,} embeddings of {split} are not finite ({', '.join(shown)}, "
                "...): embed these patches again"
            )
    return embedded, len(external.vectors) - sum(map(len, embedded.values()))


def _find_rows(
    names: Sequence[Name], samples: dict[str, list[Name]], data: Dataset
) -> dict[str, NDArray[np.int64]]:
    """Find the row of every sample, by split, among the names of embeddings."""
    row_of = {name: row for row, name in enumerate(names)}
    sample_names = [name for split in samples.values() for name in split]
    _require_none(_repeated(sample_names), f"patches of {data.root} share a name; match by key")
    several = set(_repeated(names)) & set(sample_names)
    _require_none(sorted(several, key=str), "patches have several embeddings; keep one of each")
    missing = [name for name in sample_names if name not in row_of]
    total = f"{len(sample_names):,} patches of {data.root}"
    shown = ", ".join(map(str, names[:SHOWN]))
    more = f"; the first embeddings are of {shown}"
    _require_none(missing, f"of {total} have no embedding", more)
    return {
        split: np.array([row_of[n] for n in split_names], int)
        for split, split_names in samples.items()
    }


def _with_slides_of(names: Sequence[Name], data: Dataset) -> list[Name]:
    """Replace the slides of embeddings by those of the data that differ in a file's suffix, in
    case, or in folders in front alone.

    Raises:
        DataError: two slides of the data differ in nothing else.
    """
    slides = {slide for split in data.splits.values() for slide in slides_of(split.table)}
    by_stem: dict[str, str] = {}
    ambiguous: dict[str, str] = {}
    for slide in sorted(slides):
        stem = slide_stem(slide).casefold()
        if by_stem.setdefault(stem, slide) != slide:
            ambiguous[stem] = slide
    matched_names: list[Name] = []
    for name in names:
        slide = str(name[0])
        stem = slide_stem(slide.rpartition("/")[2]).casefold()
        if slide not in slides and stem in by_stem:
            if stem in ambiguous:
                raise DataError(
                    f"embeddings of {slide!r} fit the slides {by_stem[stem]!r} and "
                    f"{ambiguous[stem]!r} of {data.root}: name the slide with its suffix"
                )
            slide = by_stem[stem]
        matched_names.append((slide, *name[1:]))
    return matched_names


def _with_paths_of(names: Sequence[Name], data: Dataset) -> list[Name]:
    """Replace the paths of embeddings by those of the data that differ in the suffix, case, or
    folders in front alone."""
    paths = {name for split in data.splits.values() for name in _names(split, "path")}
    if paths.issuperset(names):
        return list(names)
    nearest = NearestPaths(map(str, paths))
    return [name if name in paths else nearest.same(str(name)) or name for name in names]


def _repeated(names: Sequence[Name]) -> list[Name]:
    return [name for name, count in Counter(names).items() if count > 1]


def _require_none(names: Sequence[Name], problem: str, more: str = "") -> None:
    if names:
        shown = ", ".join(map(str, names[:SHOWN]))
        raise DataError(f"{len(names):,} {problem} (the first: {shown}){more}")


def _names(split: Split, named_by: str) -> list[Name]:
    """List what identifies the samples of a split."""
    table = split.table
    if named_by != PLACE:
        return _column_values(table, named_by)
    slides = slides_of(table)
    places = [pc.fill_null(table[name], -1).to_pylist() for name in ("x", "y")]
    return list(zip(slides, *places, strict=True))


def _column_values(table: pa.Table, named_by: str) -> list[Name]:
    """List the values of a column, or for "key and path" tuples of both."""
    columns = [table[name].to_pylist() for name in named_by.split(" and ")]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def read_parquet(path: Path) -> ExternalFeatures:
    """Read a Parquet file; errors as in `read_external`."""
    try:
        columns = pq.read_schema(path).names
        names = [name for name in ("key", "path") if name in columns]
        if not names or "embedding" not in columns:
            raise DataError(f"{path} has the columns {columns}; needs embedding, and key or path")
        table = pq.read_table(path, columns=[*names, "embedding"], page_checksum_verification=True)
        table.validate(full=True)  # names that are not UTF-8
        column = table["embedding"].combine_chunks()
        sizes = pc.unique(pc.list_value_length(column)).to_pylist()
        flat = column.flatten().to_numpy(zero_copy_only=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None
    if len(sizes) != 1 or not sizes[0]:
        raise DataError(f"{path}: embeddings have the lengths {sizes[:SHOWN]}, expected one length")
    named_by, vectors = " and ".join(names), _floats(path, flat).reshape(-1, sizes[0])
    return ExternalFeatures(vectors, _column_values(table, named_by), named_by)


def read_npy(path: Path) -> ExternalFeatures:
    """Read a .npy file, whose header is checked first; errors as in `read_external`."""
    folders = (path.with_suffix(""), path.parent)
    if parts := next((folder for folder in folders if any(folder.glob(PARTS))), None):
        raise DataError(
            f"{path} was written by eval.embed in the order of paths: name the folder "
            f"{parts} instead, whose Parquet files have the path of each row"
        )
    with path.open("rb") as file:  # the header only: it is checked before any data is read
        head = io.BytesIO(file.read(MAX_HEADER_BYTES))
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(head)](head)
    except (ValueError, KeyError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{path} is not a .npy file that can be used: {error!r}") from None
    if len(shape) != 2 or dtype.kind != "f" or not 0 < shape[1] <= MAX_DIMENSIONS:
        raise DataError(f"{path} holds {dtype} of shape {shape}, expected floats (n, d)")
    if head.tell() + shape[0] * shape[1] * dtype.itemsize != path.stat().st_size:
        raise DataError(f"{path} is truncated: its shape is {shape}; copy it again")
    return ExternalFeatures(_floats(path, np.load(path, allow_pickle=False)), [], "order")


def read_h5(path: Path) -> ExternalFeatures:
    """Read an HDF5 file; errors as in `read_external`."""
    h5py = import_h5py()
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
            named_by = "key" if "keys" in file else PLACE
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as HDF5 embeddings: {error}") from None
    if vectors.ndim != 2 or len(vectors) != len(names):
        raise DataError(f"{path}: features of shape {vectors.shape} for {len(names)} names")
    return ExternalFeatures(_floats(path, vectors), names, named_by)


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
        raise ValueError(f"{name} claims {array.nbytes:,} bytes, far more than its file has")
    return array[()]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _floats(path: Path, values: Any) -> Features:
    if values.dtype.kind != "f":
        raise DataError(f"{path}: embeddings are {values.dtype}, expected floats")
    return np.asarray(values, np.float32)


def _concatenated(path: Path, files: list[ExternalFeatures]) -> ExternalFeatures:
    dimensions = {file.vectors.shape[1] for file in files}
    named_by = {file.named_by for file in files}
    if len(dimensions) > 1 or len(named_by) > 1:
        raise DataError(f"the files of {path} differ: dimensions {dimensions}, named by {named_by}")
    vectors = np.concatenate([file.vectors for file in files])
    names = [name for file in files for name in file.names]
    return ExternalFeatures(vectors, names, named_by.pop())
