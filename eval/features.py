"""Other formats of finished embeddings: one npy array, an HDF5 file a slide."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.errors import DataError
from common.files import atomic_path
from eval.measure.readouts import Features, read_embeddings

Format = Literal["npy", "h5"]
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def file_name(name: str) -> str:
    """A name that is safe as that of a file."""
    return UNSAFE.sub("_", name)


def check(formats: tuple[Format, ...]) -> None:
    """Raise a DataError, before the work, where a format needs a library that is not there."""
    if "h5" in formats:
        h5py_module()


def write(out: Path, parts: list[Path], formats: tuple[Format, ...]) -> None:
    """From the Parquet parts: OUT/embeddings.npy (n, d) and OUT/h5/SLIDE.h5."""
    if "npy" in formats:
        with atomic_path(out / "embeddings.npy") as temp:
            np.save(temp, np.concatenate([read_embeddings(path)[0] for path in parts]))
    if "h5" in formats:
        _write_h5(out / "h5", parts)


def _write_h5(folder: Path, parts: list[Path]) -> None:
    """A file a slide: `features` (n, d) float32 and `coords` (n, 2) x, y, in the order of paths."""
    h5py = h5py_module()
    slides: dict[str, tuple[list[Features], list[tuple[int, int]]]] = {}
    for path in parts:
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


def h5py_module() -> Any:
    """The library, imported only where it is needed."""
    try:
        import h5py
    except ImportError:
        raise DataError("the format h5 needs h5py: pip install 'eqdvae[h5]'") from None
    return h5py
