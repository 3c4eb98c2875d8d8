"""Arrays of an HDF5 file, which may be damaged or made to do harm."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from common.errors import DataError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_CHUNK_BYTES = 256 << 20


@contextmanager
def open_array(path: Path, name: str, content: bytes | None = None) -> Iterator[Any]:
    """Open the dataset `name` of a file, an `h5py.Dataset`.

    Args:
        content: of the file; None: it is read from `path`.

    Raises:
        DataError: h5py is not installed; not such a file, or damaged; the dataset is missing, in
            another file, or in chunks that are too large to be read one at a time.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path} is read by h5py: pip install 'eqdvae[h5]'") from None
    try:
        with open(path, "rb") if content is None else BytesIO(content) as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                raise DataError(f"{path} is not an HDF5 file, or was cut or compressed twice")
        source = path if content is None else BytesIO(content)
        with h5py.File(source, "r") as opened:
            if not isinstance(opened.get(name, getlink=True), h5py.HardLink):
                raise DataError(f"{path} has no dataset {name}")  # or one in another file
            array = opened[name]
            if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
                raise DataError(f"{path}: {name} is no plain dataset")
            if array.chunks and math.prod(array.chunks) * array.dtype.itemsize > _MAX_CHUNK_BYTES:
                raise DataError(f"{path}: {name} has chunks of {array.chunks}: too large")
            yield array
    except DataError:
        raise
    except Exception as error:  # of a library that parses a damaged file
        raise DataError(f"{path} cannot be read as HDF5: {error}; download it again") from None
