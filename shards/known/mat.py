"""A matrix of numbers in a MATLAB file of level 5 (MATLAB 5 to 7.2), compressed or not.

Written out because `scipy.io.loadmat` (1.17) ends the process where a damaged file names a type of
numbers that does not exist. The format: "MAT-File Format", MathWorks, chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError

_HEADER = 128
_MAX_BYTES = 1 << 20  # of the file, and of what is compressed in it
_MATRIX, _COMPRESSED = 14, 15
_INTEGERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 12: "i8", 13: "u8"}
_DTYPES = {7: "f4", 9: "f8", **_INTEGERS}
_CLASSES = range(6, 16)  # double, single and the integers
_IS_COMPLEX = 0x800
_MOST_DIMENSIONS = 8


def read_matrix(path: Path, name: str) -> NDArray[np.float64]:
    """Read the matrix `name`.

    Raises:
        DataError: unreadable, not such a file, damaged, no such matrix or not one of real numbers.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None or len(data) > _MAX_BYTES:
        raise DataError(f"{path} is not a .mat file of MATLAB 5 to 7.2, or was cut")
    try:
        for kind, body in _elements(data[_HEADER:], order):
            if kind == _COMPRESSED:
                stream = zlib.decompressobj()
                body = stream.decompress(body, _MAX_BYTES)
                if not stream.eof:
                    raise ValueError(
                        f"a compressed element is cut, or larger than {_MAX_BYTES} bytes"
                    )
                ((kind, body),) = _elements(body, order)
            if kind == _MATRIX and (matrix := _matrix(body, order, name)) is not None:
                return matrix
    except (ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} cannot be read as .mat: {error}; download it again") from None
    raise DataError(f"{path} has no matrix {name}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each data element; a ValueError is raised where one is cut."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind >> 16:  # a small element: size and type share a word, the content follows it
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
        if start + size > len(data) or (start == place + 4 and size > 4):
            raise ValueError(f"an element of {size} bytes at byte {place} is cut")
        yield kind, data[start : start + size]
        padding = 0 if kind == _COMPRESSED else -size % 8
        place = place + 8 if start == place + 4 else start + size + padding


def _matrix(body: bytes, order: str, name: str) -> NDArray[np.float64] | None:
    """Return the matrix in the content of an element, or None where it has another name."""
    elements = _elements(body, order)
    (_, flags), (_, sizes), (_, title) = (next(elements, (0, b"")) for _ in range(3))
    if title != name.encode():
        return None
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if flag & 0xFF not in _CLASSES or flag & _IS_COMPLEX:
        raise ValueError(f"{name} is not a matrix of real numbers")
    if not 8 <= len(sizes) <= 4 * _MOST_DIMENSIONS or len(sizes) % 4:
        raise ValueError(f"{name} has {len(sizes) // 4} dimensions")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    kind, numbers = next(elements, (0, b""))
    if kind not in _DTYPES:
        raise ValueError(f"{name} has numbers of the type {kind}, which there is not")
    dtype = np.dtype(f"{order}{_DTYPES[kind]}")
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"{name} is {shape}, and has {len(numbers)} bytes of numbers")
    return np.frombuffer(numbers, dtype).reshape(shape, order="F").astype(np.float64)
