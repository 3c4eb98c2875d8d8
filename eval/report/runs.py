"""The runs of a report: their results, and the baselines that were measured with them.

results.json is not trusted: names in it are shown as plain text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import DataError
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.readouts import PRIMARY
from eval.report.document import shown
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
    as_json,
    load_own_results,
)

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
    def metrics_split(self) -> str:
        """The split of all scores but those of probes: test, where there is one."""
        return shown(self.results.protocol.metrics_split or "test")

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
        runs.append(EvaluatedRun(folder, label, f"{len(runs)}-{slug}", load_own_results(folder)))
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
