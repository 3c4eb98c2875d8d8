"""Write the tar members `KEY.png` and `KEY.cls` of a batch of samples as arrays of bytes.

Headers are ustar and equal those that Python's tarfile writes for the same name and size (mode
0644, user, group and time 0), at a tenth of the time.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shards.codec.png import STORED_PNG_BYTES, Pixels

BLOCK = 512
_RECORD = 20 * BLOCK  # a tar ends on a multiple of this
_KEY_DIGITS = 9

Ints = npt.NDArray[np.int64]


def padded(size: int) -> int:
    """Round `size` bytes up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


# bytes from sample to sample in the stored layout: header and PNG; and header and class
STORED_STRIDE_UNLABELLED = BLOCK + padded(STORED_PNG_BYTES)
STORED_STRIDE_LABELLED = STORED_STRIDE_UNLABELLED + 2 * BLOCK


def ending(size: int) -> bytes:
    """Return the end of a tar of `size` bytes: two zero blocks, and zeros up to a whole record."""
    return bytes(-(-(size + 2 * BLOCK) // _RECORD) * _RECORD - size)


def headers(keys: Ints, suffix: bytes, sizes: Ints) -> Pixels:
    """Write the headers of members `s{key:09d}{suffix}` of `sizes` bytes as (n, 512) uint8."""
    template = np.frombuffer(_template(suffix), np.uint8)
    key, size = _digits(keys, 10, _KEY_DIGITS), _digits(sizes, 8, 11)
    checksum = template.sum(dtype=np.int64) + key.sum(axis=1, dtype=np.int64)
    checksum += size.sum(axis=1, dtype=np.int64)
    out = np.empty((len(keys), BLOCK), np.uint8)
    out[:] = template
    out[:, 1 : 1 + _KEY_DIGITS] = key
    out[:, 124:135] = size
    out[:, 148:154] = _digits(checksum, 8, 6)
    out[:, 154] = 0
    return out


def stored_members(keys: Ints, pngs: Pixels, labels: Ints | None) -> Pixels:
    """Write whole samples as (n, stride) uint8.

    Args:
        keys: (n,) numbers of the sample keys.
        pngs: (n, STORED_PNG_BYTES) PNGs in the stored layout.
        labels: (n,) class indices, or None in an unlabelled data set.
    """
    stride = STORED_STRIDE_UNLABELLED if labels is None else STORED_STRIDE_LABELLED
    out = np.zeros((len(keys), stride), np.uint8)
    out[:, :BLOCK] = headers(keys, b".png", np.full(len(keys), STORED_PNG_BYTES))
    out[:, BLOCK : BLOCK + STORED_PNG_BYTES] = pngs
    if labels is not None:
        out[:, STORED_STRIDE_UNLABELLED:] = _class_members(keys, labels)
    return out


def kept_members(keys: Ints, pngs: Sequence[bytes], labels: Ints | None) -> bytes:
    """Write whole samples, one after the other, of PNGs of any size.

    Args:
        keys, labels: as `stored_members`.
    """
    heads = headers(keys, b".png", np.array([len(png) for png in pngs])).tobytes()
    tails = b"" if labels is None else _class_members(keys, labels).tobytes()
    pieces: list[bytes] = []
    for i, png in enumerate(pngs):
        pieces += (heads[BLOCK * i : BLOCK * (i + 1)], png, bytes(-len(png) % BLOCK))
        pieces.append(tails[2 * BLOCK * i : 2 * BLOCK * (i + 1)])
    return b"".join(pieces)


def _class_members(keys: Ints, labels: Ints) -> Pixels:
    """Write header and body, the class index in ASCII without a newline, as (n, 1024) uint8."""
    bodies, sizes = _bodies(int(labels.max()) + 1)
    return np.concatenate([headers(keys, b".cls", sizes[labels]), bodies[labels]], axis=1)


@lru_cache(maxsize=16)
def _bodies(classes: int) -> tuple[Pixels, Ints]:
    """Make the body of each class index, (classes, 512) uint8, and its length, (classes,)."""
    texts = [str(label).encode("ascii") for label in range(classes)]
    blocks = np.frombuffer(b"".join(text.ljust(BLOCK, b"\0") for text in texts), np.uint8)
    return blocks.reshape(classes, BLOCK), np.array([len(text) for text in texts])


def _template(suffix: bytes) -> bytes:
    """Make a header with the name's first letter and suffix, but no key, size or checksum."""
    out = bytearray(BLOCK)
    name = b"s" + bytes(_KEY_DIGITS) + suffix
    out[: len(name)] = name
    out[100:124] = b"0000644\0" + b"0000000\0" * 2  # mode, user, group
    out[135:148] = b"\0" + b"00000000000\0"  # end of the size, time
    out[148:156] = b" " * 8  # the checksum counts itself as spaces
    out[156:157] = b"0"  # a regular file
    out[257:265] = b"ustar\x0000"
    return bytes(out)


def _digits(values: Ints, base: int, count: int) -> Pixels:
    """Write `values` as (n, count) ASCII digits with leading zeros."""
    powers = base ** np.arange(count - 1, -1, -1, dtype=np.int64)
    return (values[:, None] // powers % base + ord("0")).astype(np.uint8)
