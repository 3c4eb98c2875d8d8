"""Finds patches that are in two splits: the same pixels, or nearly the same.

Nearly the same means: the low frequencies of the grey image agree, as they do after JPEG, noise,
resampling, another brightness or stain. 63 bits (each DCT coefficient of the lowest 8x8, without
the mean, above or below their median; Zauner 2010, "pHash") find candidates by banding; the
coefficients themselves decide. Shifted and turned copies are not found. Patches with hardly any
contrast resemble each other by nature: they are counted, not compared.
"""

from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import numpy.typing as npt
import xxhash

from shards.codec.png import Pixels
from shards.schema import PATCH

LOW_CONTRAST = 4.0  # standard deviation of the grey values, of 255
MAX_BITS = 6  # that differ in a candidate
MAX_DISTANCE = 0.25  # of the coefficients; JPEG at quality 75 gives 0.02, unrelated patches 1
EXAMPLES = 5

_SIDE = 8
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Pairs that agree in 2 of 5 bands are candidates: certain up to 3 bits, likely up to 6.
_BANDS = [sum(1 << bit for bit in range(start, 64, 5)) for start in range(5)]
_MASKS = [np.uint64(a | b) for a, b in combinations(_BANDS, 2)]
# A hash that thousands share must not cost their square: of one patch and mask are looked at
_MOST_BITS = 128  # candidates, and
_MOST_LOW = 8  # of these, with few enough differing bits, coefficients.
_CHUNK = 1 << 19  # candidate pairs at once

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prints:
    """What is kept of n patches: 150 bytes each."""

    keys: Indices  # (n,) numbers of the sample keys
    exact: Hashes  # (n,) hash of the pixels
    bits: Hashes  # (n,) perceptual hash
    low: npt.NDArray[np.float16]  # (n, 63) DCT coefficients
    flat: npt.NDArray[np.bool_]  # (n,) contrast below LOW_CONTRAST

    def __getitem__(self, index: npt.NDArray[np.generic]) -> "Prints":
        return Prints(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Crossing:
    """Patches of one split that are in an earlier one too."""

    kind: str  # "the same pixels" or "nearly the same"
    first: str  # split
    second: str
    count: int  # patches of the second split
    examples: list[tuple[int, int]]  # key numbers in the first and the second split


@dataclass(frozen=True)
class Duplicates:
    compared: dict[str, int]  # patches by split
    flat: dict[str, int]  # patches with too little contrast, by split
    crossings: list[Crossing]


def prints(keys: list[int], pixels: Pixels) -> Prints:
    """The prints of (n, 32, 32, 3) pixels."""
    grey = pixels.astype(np.float32) @ _LUMA
    low = (_DCT @ grey @ _DCT.T).reshape(len(pixels), _SIDE * _SIDE)[:, 1:]
    above = np.zeros((len(pixels), 64), bool)
    above[:, 1:] = low > np.median(low, axis=1, keepdims=True)
    return Prints(
        np.array(keys, np.int64),
        np.array([xxhash.xxh3_64_intdigest(patch.data) for patch in pixels], np.uint64),
        np.packbits(above, axis=1).view(np.uint64).reshape(-1),
        low.astype(np.float16),
        grey.std(axis=(1, 2)) < LOW_CONTRAST,
    )


def join(parts: list[Prints]) -> Prints:
    columns = ([getattr(part, field.name) for part in parts] for field in fields(Prints))
    return Prints(*(np.concatenate(column) for column in columns))


def find_duplicates(splits: dict[str, Prints]) -> Duplicates:
    """Compare every split with those before it."""
    compared = {name: part[~part.flat] for name, part in splits.items()}
    crossings = []
    for first, second in combinations(compared, 2):
        one = compared[first]
        one = one[np.unique(one.exact, return_index=True)[1]]
        two = compared[second]
        same = _same(one, two)
        near = np.full(len(two.keys), -1)
        rest = np.flatnonzero(same < 0)
        near[rest] = _near(one, two[rest])
        for kind, match in (("the same pixels", same), ("nearly the same", near)):
            found = np.flatnonzero(match >= 0)
            pairs = zip(one.keys[match[found]].tolist(), two.keys[found].tolist(), strict=True)
            if len(found):
                examples = sorted(pairs, key=lambda pair: pair[1])[:EXAMPLES]
                crossings.append(Crossing(kind, first, second, len(found), examples))
    return Duplicates(
        {name: len(part.keys) for name, part in compared.items()},
        {name: int(part.flat.sum()) for name, part in splits.items()},
        crossings,
    )


def _same(one: Prints, two: Prints) -> Indices:
    """For every patch of `two` one of `one` with the same pixels, or -1; `one` is sorted."""
    if not len(one.keys):
        return np.full(len(two.keys), -1)
    place = np.searchsorted(one.exact, two.exact).clip(max=len(one.keys) - 1)
    return np.where(one.exact[place] == two.exact, place, -1)


def _near(one: Prints, two: Prints) -> Indices:
    """For every patch of `two` one of `one` that is nearly the same, or -1."""
    match = np.full(len(two.keys), -1)
    for mask in _MASKS:
        order = np.argsort(one.bits & mask, kind="stable")
        bands = (one.bits & mask)[order]
        left = np.flatnonzero(match < 0)
        wanted = two.bits[left] & mask
        start = np.searchsorted(bands, wanted, "left")
        count = np.minimum(np.searchsorted(bands, wanted, "right") - start, _MOST_BITS)
        ends = np.cumsum(count)
        for begin in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
            pair = np.arange(begin, min(begin + _CHUNK, ends[-1]))
            row = np.searchsorted(ends, pair, "right")
            other = order[start[row] + pair - (ends[row] - count[row])]
            close = _close(one, other, two, left[row])
            # Reversed, so that the first candidate of a patch is the one that stays.
            match[left[row][close][::-1]] = other[close][::-1]
    return match


def _close(one: Prints, i: Indices, two: Prints, j: Indices) -> Indices:
    """Which pairs are nearly the same: few bits differ, and the coefficients differ little."""
    differ = (one.bits[i] ^ two.bits[j]).view(np.uint8).reshape(-1, 8)
    kept = np.flatnonzero(np.unpackbits(differ, axis=1).sum(axis=1) <= MAX_BITS)
    begins = np.searchsorted(j[kept], j[kept])  # pairs lie patch by patch
    kept = kept[np.arange(len(kept)) - begins < _MOST_LOW]
    a, b = (part.low[k[kept]].astype(np.float32) for part, k in ((one, i), (two, j)))
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return kept[np.square(a - b).sum(axis=1) <= MAX_DISTANCE**2 * size]


def _dct() -> npt.NDArray[np.float32]:
    """(8, 32): the lowest rows of the orthonormal DCT-II."""
    k, n = np.arange(_SIDE)[:, None], np.arange(PATCH)[None]
    rows = np.cos(np.pi * (n + 0.5) * k / PATCH) * np.sqrt(2 / PATCH)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


_DCT = _dct()
