"""The runs of a report, and the arms they form: runs that differ only in their seed.

results.json and scores.parquet are not trusted: names in them are shown as plain text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from eval.json_records import as_json
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.readouts import PRIMARY
from eval.measure.scores import SCORES, Condition, ScoreBook, Scores, read_scores
from eval.report.document import Kind, shown
from eval.results import (
    BudgetScores,
    Equivariance,
    FeatureScores,
    Latent,
    ProbeScores,
    Reconstruction,
    ReconstructionScores,
    Results,
    Robustness,
    RobustnessCurve,
    SeverityScores,
    load_results,
)
from eval.stats.bootstrap import DEFAULT, Resampling
from pipeline.corruptions import GRADED

CEILING = "supervised"  # the preset that is trained on labels
# facts of a run that runs of one arm may differ in
UNEQUAL = ("seed", "noise_var", "dataset_hash")


@dataclass(frozen=True)
class EvaluatedRun:
    """A run in the report. Sections that were not measured are empty."""

    folder: Path
    label: str  # unique; the name under which it is shown
    slug: str  # unique and safe in a file name
    results: Results

    @property
    def preset(self) -> str:
        """The training preset; the label for embeddings of other encoders without a name."""
        return shown(self.results.run.preset or self.label)

    @property
    def seed(self) -> int:
        return self.results.run.seed or 0

    @property
    def is_ceiling(self) -> bool:
        """Whether it was trained on the labels: the preset, or an arm of a sweep named after it."""
        return self.preset == CEILING or self.preset.startswith(f"{CEILING}-")

    @property
    def root(self) -> Path:
        """The data set it was evaluated on."""
        return Path(str(self.results.data.root))

    @property
    def reconstruction(self) -> Reconstruction:
        return self.results.reconstruction or Reconstruction()

    @property
    def latent(self) -> Latent:
        return self.results.latent or Latent()

    @property
    def equivariance(self) -> Equivariance:
        return self.results.equivariance or Equivariance()

    @property
    def robustness(self) -> Robustness:
        return self.results.robustness or Robustness()

    def probe(self, features: str = PRIMARY, family: str = PRIMARY_PROBE) -> ProbeScores:
        """The scores of a probe."""
        if family == PRIMARY_PROBE:
            return self.results.probe.get(features, ProbeScores())
        return (self.results.other_probes or {}).get(features, {}).get(family, ProbeScores())

    def is_baseline(self, features: str) -> bool:
        return self.results.probe.get(features, FeatureScores()).features == "baseline"

    def denoised(self, kind: str) -> ReconstructionScores:
        """The reconstruction of patches under one kind of corruption."""
        return self.reconstruction.by_kind.get(kind, ReconstructionScores())

    def severity(self, kind: str, severity: int) -> SeverityScores:
        """The probe under one kind of corruption; `severity` from 1."""
        levels = self.robustness.kinds.get(kind, RobustnessCurve()).levels
        by_severity = {level.severity: level for level in levels}
        return by_severity.get(severity, SeverityScores(severity=severity))

    @property
    def budgets(self) -> dict[str, BudgetScores]:
        """The primary readout with few labels, by budget."""
        return (self.results.budgets or {}).get(PRIMARY, {})

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """The model's configuration as in results.json."""
        facts = as_json(self.results.model)
        return {name: facts[name] for name in facts if name not in ("snapshot", "parameters")}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all runs of one arm have in common, as in results.json."""
        facts = as_json(self.results.run)
        settings = {name: facts[name] for name in facts if name not in UNEQUAL}
        if (normalisation := self.results.run.normalisation) is not None:
            settings["normalisation"] = normalisation.unit
        return settings | self.architecture

    @property
    def staining(self) -> str:
        """How staining was normalised, as the end of a label; empty if it was not."""
        normalisation = self.results.run.normalisation
        return "" if normalisation is None else f" (staining by {normalisation.unit})"


def load_runs(folders: Iterable[Path]) -> list[EvaluatedRun]:
    """Load the results of runs, each folder once.

    Raises:
        DataError: there is no run, one was not evaluated, or its results cannot be read.
    """
    runs: list[EvaluatedRun] = []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        label = shown(folder.name)
        if label in {run.label for run in runs}:
            label = shown(f"{folder.parent.name}/{folder.name}")
        slug = re.sub(r"[^a-z0-9-]+", "-", label.lower()).strip("-")[:40]
        runs.append(EvaluatedRun(folder, label, f"{len(runs)}-{slug}", load_results(folder)))
    if not runs:
        raise DataError("no run to report: name one or more run folders")
    return runs


def near(path: Path) -> str:
    """`path` relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def by_data_set(runs: Iterable[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """Runs by the data set they were evaluated on: they are compared only within one."""
    sets: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        sets.setdefault(run.results.data.hash, []).append(run)
    return list(sets.values())


def first_of_each(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """The run with the lowest seed of every preset and budget."""
    first: dict[str, EvaluatedRun] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        first.setdefault(repr(sorted(run.settings.items(), key=str)), run)
    return [run for run in runs if run in first.values()]


@dataclass(frozen=True)
class Baseline:
    """Features without training, and the first run that measured them."""

    label: str
    features: str  # name in results.json and scores.parquet
    run: EvaluatedRun

    @property
    def scores(self) -> ProbeScores:
        return self.run.probe(self.features)


def baselines(runs: Iterable[EvaluatedRun]) -> list[Baseline]:
    """Every baseline once per normalisation, the untrained encoder once per architecture."""
    by_label: dict[str, Baseline] = {}
    for run in runs:
        for name in run.results.probe:
            if not run.is_baseline(name) or name == PRIMARY:
                continue
            architecture = f" ({run.results.model.architecture})" if name == "random_init" else ""
            label = shown(name + architecture + run.staining)
            by_label.setdefault(label, Baseline(label, name, run))
    return list(by_label.values())


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

    def scores(
        self, measure: Measure, seeds: Sequence[int], features: str = PRIMARY
    ) -> list[Scores] | None:
        """Scores (S, D, n, K) per condition; None unless measured alike with all of the seeds."""
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

    @cached_property
    def strata(self) -> NDArray[np.int64] | None:
        """One stratum where most groups hold several classes; None: groups are drawn by class."""
        pairs = np.unique(np.stack([self.groups.astype(str), self.labels.astype(str)]), axis=1)
        counts = np.unique(pairs[0], return_counts=True)[1]
        return np.zeros(len(self.labels), np.int64) if (counts > 1).mean() > 0.5 else None


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
    def resampling(self) -> Resampling:
        """How intervals are made, with the names of the classes."""
        return replace(DEFAULT, classes=self.test.classes if self.test else ())

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
                labels = book.rows["label"].to_numpy().astype(np.int64)
                groups = np.array(book.rows["group"].to_pylist(), dtype=object)
                classes = tuple(map(shown, run.results.protocol.classes or ()))
                compared.test = TestSet(labels, groups.astype(str).astype(object), classes)
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
