"""What verification finds: problems by file, and what it counts on the way."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shards.codec.png import Pixels
from shards.schema import CHANNELS
from shards.verify.duplicates import Prints, prints

_PER_FILE = 20  # problems listed of one file; all are counted


@dataclass(frozen=True)
class Problem:
    file: str
    offset: int | None  # byte in the file, where there is one
    what: str

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.file}{place}: {self.what}"


@dataclass
class Findings:
    """What the checks found, and what they counted on the way."""

    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # problems by file
    labels: Counter[tuple[str, int]] = field(default_factory=Counter)  # samples by split and label
    sums: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # of RGB values, by split
    keys: dict[str, list[int]] = field(default_factory=dict)  # by shard
    groups: dict[str, set[tuple[str, str]]] = field(default_factory=dict)  # (split, value)
    prints: dict[str, list[Prints]] | None = None  # by split; None: duplicates are not looked for

    def add(self, file: str, offset: int | None, what: str) -> None:
        self.counts[file] += 1
        if self.counts[file] <= _PER_FILE:
            self.problems.append(Problem(file, offset, what))

    def count(self, split: str, keys: list[int], pixels: Pixels) -> None:
        """Add up the channels of (n, 32, 32, 3) decoded patches, and keep their prints."""
        summed = np.add.reduce(pixels, axis=0, dtype=np.int64).reshape(-1, CHANNELS).sum(axis=0)
        self.sums[split] = self.sums.get(split, np.zeros(CHANNELS, np.int64)) + summed
        if self.prints is not None and keys:
            self.prints.setdefault(split, []).append(prints(keys, pixels))
