"""What was measured: spreads of repeated measurements, and the records of the JSON file."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from msgspec import Struct

K = TypeVar("K", bound=Hashable)
R = TypeVar("R", bound="Record")

CELL = "median (low..high)"  # how tables show a spread


class Record(Struct, frozen=True, tag_field="kind"):
    """One thing that was measured. A subclass is a kind of record; its fields are those in JSON."""


class Spread(Struct, frozen=True):
    """Repeated measurements of one thing: the median, and the smallest and largest."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], reference: Sequence[float]) -> "Spread":
        """Ratio of each value to the reference of the same round."""
        return cls.of([value / base for value, base in zip(values, reference, strict=True)])

    def times(self, factor: float) -> "Spread":
        """Multiply by a factor, to change the unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.repeats)

    def __format__(self, form: str) -> str:
        form = form or ",.0f"
        return f"{self.median:{form}} ({self.low:{form}}..{self.high:{form}})"


class NotMeasured(Struct, frozen=True):
    """The reason why there is no number, in its place."""

    not_measured: str

    def __format__(self, form: str) -> str:
        return "not measured"


def grouped(records: Iterable[R], key: Callable[[R], K]) -> dict[K, list[R]]:
    """Group records by key, keys in the order of their first record."""
    groups: dict[K, list[R]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups
