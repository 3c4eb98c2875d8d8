"""Our files of embeddings: Parquet, and .npy and HDF5 for other programs."""

import glob
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path, remove_unfinished, write_atomically
from eval.parquet import ROW_GROUP, read_table, write_tables

Features = NDArray[np.float32]  # (n, d)
Format = Literal["npy", "h5"]

PARTS = "part-*.parquet"  # of eval.embed
PART = "part"  # metadata of each: which of how many
EMBEDDED_COLUMNS = ("path", "source", "slide", "patient", "site", "x", "y", "mpp")  # there
MAX_NAME_BYTES = 215  # of a file without .h5: the hidden name while it is written is longer
SLIDE_TABLE = "slides.tsv"
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
    returned: list[Features] = []

    def groups() -> Iterator[pa.Table]:
        done = 0
        for group in _row_groups(batches):
            yield with_embeddings(rows.slice(done, len(group)), group)
            returned.append(group[mask[done : done + len(group)]])
            done += len(group)
        if done != len(rows):
            raise ValueError(f"{path}: {done} embeddings for {len(rows)} samples")

    write_tables(path, groups(), facts)
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


def read_embeddings(
    path: Path, expected: Mapping[str, str | None] | None = None
) -> tuple[Features, pa.Table]:
    """Read the embeddings (n, d) of a file of `write_embeddings`, and its other columns.

    Args:
        expected: facts that the file must have, as far as it says; None for one that is unknown.

    Raises:
        DataError: the file is damaged, or of something else than expected.
    """
    table, facts = read_table(path)
    for name, value in (expected or {}).items():
        if None not in (value, facts.get(name)) and facts[name] != value:
            raise DataError(
                f"{path} holds embeddings of {name} {facts[name]!r}, expected {value!r}: evaluate "
                "the run again"
            )
    if "embedding" not in table.column_names:
        raise DataError(f"{path} has no column 'embedding': evaluate the run again")
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
    """Write Parquet files of embeddings as OUT.npy (n, d) or OUT-h5/SLIDE.h5, beside OUT."""
    if "npy" in formats:
        with atomic_path(beside(out, ".npy")) as temp:
            np.save(temp, np.concatenate([read_embeddings(path)[0] for path in files]))
    if "h5" in formats:
        _write_h5(beside(out, "-h5"), files)


def remove_unfinished_formats(out: Path) -> None:
    """Remove what a killed `write_formats` left, which no other process writes now."""
    remove_unfinished(beside(out, "-h5"))
    remove_unfinished(beside(out, ".npy").parent, glob.escape(beside(out, ".npy").stem))


def beside(folder: Path, ending: str) -> Path:
    """Return the path beside a folder whose name has this ending more."""
    folder = folder.resolve()
    return folder.with_name(folder.name + ending)


def slides_of(samples: pa.Table) -> list[str]:
    """Return the slide of every sample, or the source image where it names none."""
    names: list[str] = pc.coalesce(samples["slide"], samples["source"]).to_pylist()
    return names


def slide_files(slides: Iterable[str]) -> dict[str, str]:
    """Map slides to the names of their .h5 files: their own, where those can name a file.

    What cannot stand in the name of a file is replaced by `_`: slashes and control characters, a
    dot at the start (a hidden file), what is more than 255 bytes long with the suffix.

    Raises:
        DataError: two slides have the same file.
    """
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for slide in sorted(set(slides)):
        safe = "".join("_" if c == "/" or not c.isprintable() else c for c in slide)
        safe = "_" + safe[1:] if safe[:1] in ("", ".") else safe
        name = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore") + ".h5"
        if name in owners:
            raise DataError(
                f"the slides {owners[name]!r} and {slide!r} would both be written to {name}: "
                "rename one of them, or leave out the format h5"
            )
        owners[name] = slide
        names[slide] = name
    return names


def _write_h5(folder: Path, files: list[Path]) -> None:
    """Write a file per slide: `features` (n, d) float32 and `coords` (n, 2), x and y in pixels.

    Patches are in the order of their paths; unknown coordinates are -1.
    FOLDER/slides.tsv lists the slides whose names differ from those of their files, if any.
    """
    slides: dict[str, tuple[list[Features], list[tuple[int, int]]]] = {}
    for path in files:
        features, table = read_embeddings(path)
        columns = (table[name].to_pylist() for name in ("x", "y"))
        for vector, slide, x, y in zip(features, slides_of(table), *columns, strict=True):
            vectors, places = slides.setdefault(slide, ([], []))
            vectors.append(vector)
            places.append((-1 if x is None else x, -1 if y is None else y))
    names = slide_files(slides)
    for slide, (vectors, places) in slides.items():
        with hdf5_file(folder / names[slide]) as file:
            file["features"] = np.stack(vectors)
            file["coords"] = np.array(places, np.int64)
            file.attrs["slide"] = slide
    renamed = [(slide, name) for slide, name in names.items() if name != f"{slide}.h5"]
    if renamed:
        lines = [("slide", "file"), *((json.dumps(slide), name) for slide, name in renamed)]
        text = "".join("\t".join(line) + "\n" for line in lines)
        write_atomically(folder / SLIDE_TABLE, text.encode())


@contextmanager
def hdf5_file(path: Path) -> Iterator[Any]:
    """Yield an open `h5py.File` that becomes `path`, whole or not at all, when the block ends.

    It is built in memory: where a disk fails, libhdf5 fails once more while it closes the file,
    which prints tracebacks and may end the process.

    Raises:
        DataError: the disk is full, or h5py is not installed.
    """
    buffer = io.BytesIO()
    with import_h5py().File(buffer, "w") as file:
        yield file
    write_atomically(path, buffer.getbuffer())


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
