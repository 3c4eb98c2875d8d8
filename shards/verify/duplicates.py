"""Find patches that are in two splits: with the same pixels, or nearly the same.

Two patches are nearly the same when the low frequencies of their grey images agree, as they do
after JPEG, noise, resampling, another brightness or stain. 63 bits (each DCT coefficient of the
lowest 8x8, without the mean, above or below their median; Zauner 2010, "pHash") find candidates by
banding; the coefficients decide. Shifted and rotated copies are not found. Patches with hardly any
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
_FREQUENCIES, _PIXELS = np.arange(_SIDE)[:, None], np.arange(PATCH)[None]
# the lowest rows of the orthonormal DCT-II, (8, 32)
_DCT = np.cos(np.pi * (_PIXELS + 0.5) * _FREQUENCIES / PATCH) * np.sqrt(2 / PATCH)
_DCT[0] /= np.sqrt(2)
_DCT = _DCT.astype(np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# pairs that agree in 2 of 5 bands are candidates: certain up to 3 differing bits, likely up to 6
_BANDS = [sum(1 << bit for bit in range(start, 64, 5)) for start in range(5)]
_MASKS = [np.uint64(a | b) for a, b in combinations(_BANDS, 2)]
# a hash that n patches share must not cost n squared: limits per patch and mask
_MOST_BITS = 128  # candidates whose bits are compared
_MOST_LOW = 8  # candidates, with few enough differing bits, whose coefficients are compared
_CHUNK = 1 << 19  # candidate pairs at once

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of n patches: 150 bytes each."""

    keys: Indices  # (n,) numbers of the sample keys
    exact: Hashes  # (n,) hash of the pixels
    bits: Hashes  # (n,) perceptual hash
    low: npt.NDArray[np.float16]  # (n, 63) DCT coefficients
    flat: npt.NDArray[np.bool_]  # (n,) contrast below LOW_CONTRAST

    def __getitem__(self, index: npt.NDArray[np.generic]) -> "Fingerprints":
        return Fingerprints(*(getattr(self, field.name)[index] for field in fields(self)))


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


def fingerprints(keys: list[int], pixels: Pixels) -> Fingerprints:
    """Take the fingerprints of (n, 32, 32, 3) pixels."""
    grey = pixels.astype(np.float32) @ _LUMA
    low = (_DCT @ grey @ _DCT.T).reshape(len(pixels), _SIDE * _SIDE)[:, 1:]
    above = np.zeros((len(pixels), 64), bool)
    above[:, 1:] = low > np.median(low, axis=1, keepdims=True)
    return Fingerprints(
        np.array(keys, np.int64),
        np.array([xxhash.xxh3_64_intdigest(patch.data) for patch in pixels], np.uint64),
        np.packbits(above, axis=1).view(np.uint64).reshape(-1),
        low.astype(np.float16),
        grey.std(axis=(1, 2)) < LOW_CONTRAST,
    )


def join(batches: list[Fingerprints]) -> Fingerprints:
    """Concatenate batches of fingerprints."""
    columns = ([getattr(batch, field.name) for batch in batches] for field in fields(Fingerprints))
    return Fingerprints(*(np.concatenate(column) for column in columns))


def find_duplicates(splits: dict[str, Fingerprints]) -> Duplicates:
    """Compare every split with those before it."""
    compared = {name: split[~split.flat] for name, split in splits.items()}
    crossings = []
    for first, second in combinations(compared, 2):
        a, b = compared[first], compared[second]
        a = a[np.unique(a.exact, return_index=True)[1]]
        same = np.full(len(b.keys), -1)  # for every patch of b one of a with its pixels
        if len(a.keys):
            place = np.searchsorted(a.exact, b.exact).clip(max=len(a.keys) - 1)
            same = np.where(a.exact[place] == b.exact, place, -1)
        near = np.full(len(b.keys), -1)
        others = np.flatnonzero(same < 0)
        near[others] = _near(a, b[others])
        for kind, match in (("the same pixels", same), ("nearly the same", near)):
            copies = np.flatnonzero(match >= 0)
            if len(copies):
                pairs = zip(a.keys[match[copies]].tolist(), b.keys[copies].tolist(), strict=True)
                examples = sorted(pairs, key=lambda pair: pair[1])[:EXAMPLES]
                crossings.append(Crossing(kind, first, second, len(copies), examples))
    return Duplicates(
        {name: len(split.keys) for name, split in compared.items()},
        {name: int(split.flat.sum()) for name, split in splits.items()},
        crossings,
    )


def _near(a: Fingerprints, b: Fingerprints) -> Indices:
    """Find for every patch of `b` one of `a` that is nearly the same, or -1."""
    match = np.full(len(b.keys), -1)
    for mask in _MASKS:
        order = np.argsort(a.bits & mask, kind="stable")
        bands = (a.bits & mask)[order]
        left = np.flatnonzero(match < 0)
        bits = b.bits[left] & mask
        start = np.searchsorted(bands, bits, "left")
        count = np.minimum(np.searchsorted(bands, bits, "right") - start, _MOST_BITS)
        ends = np.cumsum(count)
        for begin in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
            pair = np.arange(begin, min(begin + _CHUNK, ends[-1]))
            row = np.searchsorted(ends, pair, "right")
            other = order[start[row] + pair - (ends[row] - count[row])]
            close = _close(a, other, b, left[row])
            # reversed, so that the first candidate of a patch stays
            match[left[row][close][::-1]] = other[close][::-1]
    return match


def _close(a: Fingerprints, i: Indices, b: Fingerprints, j: Indices) -> Indices:
    """Return the pairs that are nearly the same: few other bits, and close coefficients."""
    differ = (a.bits[i] ^ b.bits[j]).view(np.uint8).reshape(-1, 8)
    pairs = np.flatnonzero(np.unpackbits(differ, axis=1).sum(axis=1) <= MAX_BITS)
    begins = np.searchsorted(j[pairs], j[pairs])  # pairs are ordered by patch
    pairs = pairs[np.arange(len(pairs)) - begins < _MOST_LOW]
    low_a = a.low[i[pairs]].astype(np.float32)
    low_b = b.low[j[pairs]].astype(np.float32)
    size = np.linalg.norm(low_a, axis=1) * np.linalg.norm(low_b, axis=1)
    return pairs[np.square(low_a - low_b).sum(axis=1) <= MAX_DISTANCE**2 * size]
