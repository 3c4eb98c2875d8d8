"""Arms: runs that differ in their seed only, with what their probes said of every test patch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.readouts import PRIMARY
from eval.measure.scores import CLEAN, SCORES, Condition, ScoreBook, Scores, read_scores
from eval.report.document import shown
from eval.report.runs import Entry
from pipeline.corruptions import GRADED

TWO_GROUPS = "k=2"  # the label budget of the verdicts
CORRUPTED = [
    f"{name}-{severity}" for name, kind in GRADED.items()
    for severity in range(1, len(kind.levels) + 1)
]  # fmt: skip
Stacked = Scores | list[Scores]  # (S, n, K), (S, D, n, K), or a list of conditions
Pick = Callable[[ScoreBook], Stacked | None]  # without the first axis


@dataclass
class Arm:
    """Runs by seed; `books` holds those whose scores can be compared."""

    name: str
    preset: str
    images: Any
    runs: dict[int, Entry] = field(default_factory=dict)
    books: dict[int, ScoreBook] = field(default_factory=dict)

    def scores(self, pick: Pick, seeds: Sequence[int]) -> Stacked | None:
        """The scores of some seeds; None where one was not measured."""
        found = [pick(self.books[seed]) for seed in seeds if seed in self.books]
        kept = [scores for scores in found if scores is not None]
        if not kept or len(kept) < len(seeds):
            return None
        if isinstance(kept[0], list):
            return [np.stack(list(parts)) for parts in zip(*kept, strict=True)]
        draws = {scores.shape for scores in kept if not isinstance(scores, list)}
        return np.stack(kept) if len(draws) == 1 else None


@dataclass(frozen=True)
class TestSet:
    """The test patches that all books share."""

    labels: NDArray[np.int64]
    groups: NDArray[np.object_]


@dataclass
class Compared:
    """The arms of one data set; `dropped` says what was left out, and why."""

    arms: dict[str, Arm]
    test: TestSet | None
    dropped: list[str]


def clean(features: str = PRIMARY) -> Pick:
    """All labels, uncorrupted."""
    return lambda book: book.scores.get(Condition(features, PRIMARY_PROBE, CLEAN))


def budget(name: str, features: str = PRIMARY) -> Pick:
    """Every draw (D, n, K) of a label budget such as `k=2`."""

    def pick(book: ScoreBook) -> Stacked | None:
        found = sorted(
            (key for key in book.scores if key[:3] == (features, PRIMARY_PROBE, name)),
            key=lambda key: key.draw,
        )
        return np.stack([book.scores[key] for key in found]) if found else None

    return pick


def corrupted(features: str = PRIMARY) -> Pick:
    """Every kind and severity of the robustness curve."""
    keys = [Condition(features, PRIMARY_PROBE, name) for name in CORRUPTED]

    def pick(book: ScoreBook) -> Stacked | None:
        found = [book.scores[key] for key in keys if key in book.scores]
        return list(found) if len(found) == len(keys) else None

    return pick


def gather(group: list[Entry]) -> Compared:
    """The arms of runs on one data set, their scores read and matched."""
    compared = Compared(_arms(group), None, [])
    keys: list[str] = []
    for arm in compared.arms.values():
        for seed, entry in list(arm.runs.items()):
            try:
                book = _book(entry)
            except DataError as error:
                compared.dropped.append(f"{entry.label}: {shown(error)}")
                continue
            if compared.test is None:
                keys, compared.test = book.rows["key"].to_pylist(), _test_set(book)
            if book.rows["key"].to_pylist() != keys:
                compared.dropped.append(f"{entry.label}: its scores are of other test patches")
                continue
            arm.books[seed] = book
    placed = {id(entry) for arm in compared.arms.values() for entry in arm.runs.values()}
    compared.dropped += [
        f"{entry.label}: the seed and settings of another run of this report"
        for entry in group
        if id(entry) not in placed
    ]
    return compared


def _arms(group: list[Entry]) -> dict[str, Arm]:
    """By name: the preset, and where runs of it differ, in what."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for entry in group:
        known = variants.setdefault(entry.preset, [])
        if entry.settings not in known:
            known.append(entry.settings)
    arms: dict[str, Arm] = {}
    for entry in group:
        name = entry.preset + _difference(entry.settings, variants[entry.preset])
        images = entry.at("run", "images_seen")
        arm = arms.setdefault(name, Arm(name, entry.preset, images))
        arm.runs.setdefault(entry.seed, entry)
    return {name: Arm(arm.name, arm.preset, arm.images, dict(sorted(arm.runs.items())))
            for name, arm in arms.items()}  # fmt: skip


def _difference(settings: dict[str, Any], known: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for one in known for name in one)
    differing = [name for name in names if len({repr(one.get(name)) for one in known}) > 1]
    words = [f"{shown(name)} {shown(settings.get(name))}" for name in differing]
    return f" ({', '.join(words)})" if words else ""


def _book(entry: Entry) -> ScoreBook:
    """The scores that verdicts need, of the model that results.json speaks of."""
    book, about = read_scores(entry.folder / SCORES)
    wrong = [
        name
        for name, value in (
            ("snapshot_xxh3", entry.at("model", "snapshot")),
            ("dataset_hash", entry.at("data", "hash")),
        )
        if about.get(name) != value
    ]
    if wrong:
        raise DataError(f"{SCORES} is of another {' and '.join(wrong)}; evaluate the run again")
    of_baselines = {CLEAN, TWO_GROUPS, *CORRUPTED}
    kept = {
        condition: scores
        for condition, scores in book.scores.items()
        if condition.probe == PRIMARY_PROBE
        and (condition.features == PRIMARY or condition.condition in of_baselines)
    }
    return ScoreBook(book.rows, book.classes, kept)


def _test_set(book: ScoreBook) -> TestSet:
    return TestSet(
        book.rows["label"].to_numpy().astype(np.int64),
        np.array(book.rows["group"].to_pylist(), dtype=object).astype(str).astype(object),
    )


def paired(arms: Iterable[Arm]) -> tuple[list[int], list[str]]:
    """The seeds that every arm has, and a line an arm on those that were dropped."""
    arms = list(arms)
    common = sorted(set.intersection(*(set(arm.books) for arm in arms)))
    alone = {arm.name: sorted(set(arm.books) - set(common)) for arm in arms}
    return common, [f"seeds {s} of {name} have no partner" for name, s in alone.items() if s]
