"""Arrays of an .npz file, read a block at a time: neither the memory nor a pickle is at risk."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from common.errors import DataError

Shape = tuple[int, ...]


class NpyFile:
    """One array of integers, open for reading from its first row on."""

    def __init__(self, path: Path, name: str, file: IO[bytes]) -> None:
        self.place = f"{path}: {name}"
        self._file = file
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        version = npy.read_magic(file)
        if version not in readers:
            raise DataError(f"{self.place} has version {version} of the format, expected 1.0")
        self.shape: Shape
        self.shape, fortran_order, self.dtype = readers[version](file)
        if self.dtype.kind not in "iu" or fortran_order or not self.shape:
            raise DataError(f"{self.place} is {self.dtype} {self.shape}, expected integers by row")

    def rows(self, count: int) -> NDArray[np.generic]:
        """Read the next rows.

        Raises:
            DataError: the array ends before.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize * count
        data = self._file.read(size)
        if len(data) < size:
            raise DataError(f"{self.place} ends before its {self.shape[0]} rows: download it again")
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


@contextmanager
def open_arrays(path: Path, *names: str) -> Iterator[list[NpyFile]]:
    """Open arrays of an .npz file.

    Raises:
        DataError: not such a file, damaged, an array that is missing or not of integers.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if missing := {f"{name}.npy" for name in names} - {*archive.namelist()}:
                raise DataError(f"{path} has no array {min(missing).removesuffix('.npy')}")
            yield [NpyFile(path, name, archive.open(f"{name}.npy")) for name in names]
    except DataError:
        raise
    except Exception as error:  # of libraries that parse a damaged file
        raise DataError(f"{path} cannot be read as .npz: {error}; download it again") from None
