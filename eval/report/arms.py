"""Arms, which are runs that differ only in their seed, and their scores on shared test patches.

scores.parquet is not trusted: names in it are shown as plain text.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.readouts import PRIMARY
from eval.measure.scores import SCORES, Condition, ScoreBook, Scores, read_scores
from eval.report.document import Kind, shown
from eval.report.runs import EvaluatedRun
from eval.stats.bootstrap import DEFAULT, Interval, interval
from eval.stats.contrasts import Contrast, compare
from eval.stats.grouping import Conditions
from pipeline.corruptions import GRADED


@dataclass(frozen=True)
class Measure:
    """A headline AUROC of the primary probe: the mean over conditions and the draws of each."""

    name: str
    conditions: tuple[Condition, ...]  # of the primary readout; draw 0 stands for all draws

    def scores(self, book: ScoreBook, features: str = PRIMARY) -> list[Scores] | None:
        """Scores (D, n, K) of the draws of every condition; None where one was not measured."""
        stacked = []
        for condition in self.conditions:
            first = replace(condition, features=features)
            draws = sorted(
                (key for key in book.scores if replace(key, draw=0) == first),
                key=lambda key: key.draw,
            )
            if not draws:
                return None
            stacked.append(np.stack([book.scores[key] for key in draws]))
        return stacked


ALL_LABELS = Measure("AUROC, all labels", (Condition(PRIMARY),))
TWO_GROUPS = Measure("AUROC, labels of 2 groups per class", (Condition(PRIMARY, budget="k=2"),))
ROBUSTNESS = Measure(
    "area under the robustness curve",
    tuple(
        Condition(PRIMARY, corruption=name, severity=severity)
        for name, kind in GRADED.items()
        for severity in range(1, len(kind.levels) + 1)
    ),
)
MEASURES = (ALL_LABELS, TWO_GROUPS, ROBUSTNESS)


@dataclass
class Arm:
    """Runs by seed; `books` holds the scores of those that can be compared."""

    name: str
    preset: str
    images: int | None
    runs: dict[int, EvaluatedRun] = field(default_factory=dict)
    books: dict[int, ScoreBook] = field(default_factory=dict)

    @property
    def auroc(self) -> float | None:
        """The mean AUROC of the primary probe over the runs that have it."""
        measured = [a for run in self.runs.values() if (a := run.probe().auroc) is not None]
        return sum(measured) / len(measured) if measured else None

    @property
    def best_readout(self) -> str | None:
        """The readout with the highest AUROC on val, averaged over runs; None without one."""
        means: dict[str, float] = {}
        for readout in self.first.results.probe:
            on_val = [run.probe(readout).val_auroc for run in self.runs.values()]
            if not self.first.is_baseline(readout) and None not in on_val:
                means[readout] = sum(filter(None, on_val)) / len(on_val)
        return max(means, key=lambda readout: means[readout], default=None)

    @property
    def first(self) -> EvaluatedRun:
        """The run of its first seed."""
        return next(iter(self.runs.values()))

    @property
    def kind(self) -> Kind:
        """What it is to a reader: trained here or elsewhere, or on the labels."""
        if self.first.results.external is not None:
            return "other"
        return "ceiling" if self.first.is_ceiling else "ours"

    @property
    def label(self) -> str:
        """The name of its only run, or of the arm where there are several."""
        return self.first.label if len(self.runs) == 1 else self.name

    def seeds_with(self, measure: Measure, features: str = PRIMARY) -> list[int]:
        """The seeds with which a measure was taken."""
        return [s for s, book in self.books.items() if measure.scores(book, features) is not None]

    def scores(
        self, measure: Measure, features: str = PRIMARY, seeds: Sequence[int] | None = None
    ) -> list[Scores] | None:
        """Scores (S, D, n, K) per condition; None unless measured alike with all of the seeds.

        Args:
            seeds: by default all with which it was measured.
        """
        seeds = self.seeds_with(measure, features) if seeds is None else seeds
        by_seed = [measure.scores(self.books[seed], features) for seed in seeds]
        measured = [scores for scores in by_seed if scores is not None]
        if not measured or len(measured) < len(by_seed):
            return None
        stacked = []
        for conditions in zip(*measured, strict=True):
            if len({scores.shape for scores in conditions}) > 1:
                return None
            stacked.append(np.stack(conditions))
        return stacked


@dataclass(frozen=True)
class TestSet:
    """The test patches that all score books share."""

    labels: NDArray[np.int64]  # (n,)
    groups: NDArray[np.object_]  # (n,) names
    classes: tuple[str, ...] = ()  # their names

    @classmethod
    def of(cls, book: ScoreBook, classes: Iterable[str] = ()) -> "TestSet":
        """The test patches of scores."""
        labels = book.rows["label"].to_numpy().astype(np.int64)
        groups = np.array(book.rows["group"].to_pylist(), dtype=object)
        return cls(labels, groups.astype(str).astype(object), tuple(map(shown, classes)))

    @cached_property
    def strata(self) -> NDArray[np.int64] | None:
        """One stratum where most groups hold several classes; None: groups are drawn by class."""
        pairs = np.unique(np.stack([self.groups.astype(str), self.labels.astype(str)]), axis=1)
        counts = np.unique(pairs[0], return_counts=True)[1]
        return np.zeros(len(self.labels), np.int64) if (counts > 1).mean() > 0.5 else None

    def interval(self, scores: Conditions, replicates: int = DEFAULT.replicates) -> Interval:
        """The interval of an arm's AUROC."""
        resampling = replace(DEFAULT, classes=self.classes, replicates=replicates)
        return interval(scores, self.labels, self.groups, strata=self.strata, resampling=resampling)

    def compare(self, scores: Mapping[str, Conditions]) -> Contrast:
        """The AUROC of the first of two arms minus that of the second."""
        resampling = replace(DEFAULT, classes=self.classes)
        return compare(scores, self.labels, self.groups, strata=self.strata, resampling=resampling)


@dataclass
class ComparedArms:
    """The arms of one data set; `dropped` says which runs were left out, and why."""

    arms: dict[str, Arm]
    test: TestSet | None
    dropped: list[str]

    @property
    def runs(self) -> list[EvaluatedRun]:
        """The runs of all arms, arm by arm."""
        return [run for arm in self.arms.values() for run in arm.runs.values()]

    @property
    def best(self) -> Arm:
        """The arm with the highest AUROC, the ceiling only where there is no other."""
        arms = [arm for arm in self.arms.values() if arm.kind != "ceiling"]
        return max(arms or self.arms.values(), key=lambda arm: arm.auroc or 0.0)

    def arm_of(self, run: EvaluatedRun) -> Arm | None:
        """The arm that holds a run; None where it was left out."""
        return next((arm for arm in self.arms.values() if run in arm.runs.values()), None)


def compare_runs(runs: Sequence[EvaluatedRun]) -> ComparedArms:
    """Group runs on one data set into arms, and read the scores that share their test patches."""
    compared = ComparedArms(_arms(runs), None, [])
    keys: list[str] = []
    for arm in compared.arms.values():
        for seed, run in arm.runs.items():
            if not run.results.probe:
                compared.dropped.append(f"{run.label}: no probe was fitted (its notices say why)")
                continue
            try:
                book = _book(run)
            except DataError as error:
                compared.dropped.append(f"{run.label}: {shown(error)}")
                continue
            if compared.test is None:
                keys = book.rows["key"].to_pylist()
                compared.test = TestSet.of(book, run.results.protocol.classes or ())
            if book.rows["key"].to_pylist() != keys:
                compared.dropped.append(f"{run.label}: its scores are of other test patches")
                continue
            arm.books[seed] = book
    compared.dropped += [
        f"{run.label}: the seed and settings of another run of this report"
        for run in runs
        if compared.arm_of(run) is None
    ]
    return compared


def _arms(runs: Iterable[EvaluatedRun]) -> dict[str, Arm]:
    """Arms by name: the preset, and the settings in which arms of one preset differ."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        settings = variants.setdefault(run.preset, [])
        if run.settings not in settings:
            settings.append(run.settings)
    arms: dict[str, Arm] = {}
    for run in runs:
        alternatives = variants[run.preset]
        differing = [
            f"{shown(name)} {shown(run.settings.get(name))}"
            for name in dict.fromkeys(chain.from_iterable(alternatives))
            if len({repr(settings.get(name)) for settings in alternatives}) > 1
        ]
        name = f"{run.preset} ({', '.join(differing)})" if differing else run.preset
        arm = arms.setdefault(name, Arm(name, run.preset, run.results.run.images_seen))
        arm.runs.setdefault(run.seed, run)
    for arm in arms.values():
        arm.runs = dict(sorted(arm.runs.items()))
    return arms


def _book(run: EvaluatedRun) -> ScoreBook:
    """The scores that verdicts need, of the model and data set of results.json."""
    book, origin = read_scores(run.folder / SCORES)
    expected: dict[str, object] = {**run.results.hashes}
    if "image_limits" in origin:  # older scores do not say
        expected["image_limits"] = run.results.protocol.image_limits
    wrong = [name for name, value in expected.items() if origin.get(name) != value]
    if wrong:
        raise DataError(f"{SCORES} is of another {' and '.join(wrong)}; evaluate the run again")
    headlines = {condition for measure in MEASURES for condition in measure.conditions}
    scores = {
        key: scores
        for key, scores in book.scores.items()
        if key.probe == PRIMARY_PROBE
        and (key.features == PRIMARY or replace(key, features=PRIMARY, draw=0) in headlines)
    }
    return ScoreBook(book.rows, book.classes, scores)
