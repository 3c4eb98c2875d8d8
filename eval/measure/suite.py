"""The probes of a run: every readout and baseline on the same rows, in every condition."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import DataError
from eval import run as runs
from eval.measure import budgets, readouts, robustness
from eval.measure.baselines import BASELINES
from eval.measure.probe import PRIMARY_PROBE, PROBES, Labelled, Probe, fit
from eval.measure.readouts import PRIMARY, Features, Pixels
from eval.measure.scores import SCORES, Condition, ScoreBook
from eval.session import Job, Session
from pipeline.index import groups
from pipeline.reader import read_split

SPLITS = ("train", "val", "test")
HEADLINES = (PRIMARY, *BASELINES)  # also with few labels, and of corrupted patches
ORBIT_PROBE = "mean_full_orbit"  # the mean, its probe fitted on every moved train image
SCORED = ("key", "label", "source", "slide", "patient", "site")

Transform = Callable[[Pixels], Features]
FeatureSet = tuple[str, str, dict[str, Features]]  # name, readout or baseline, features by split


@dataclass(frozen=True)
class Rows:
    """What every probe of a run works on, by split."""

    labels: dict[str, NDArray[np.int64]]
    tables: dict[str, pa.Table]  # columns SCORED and group
    pixels: dict[str, Pixels]
    book: ScoreBook  # of test

    def groups(self, split: str) -> list[str]:
        found: list[str] = self.tables[split]["group"].to_pylist()
        return found

    def labelled(self, features: dict[str, Features]) -> dict[str, Labelled]:
        """With the labels of the rows, again and again where there are several passes over them."""
        return {
            name: Labelled(features[name], np.tile(labels, len(features[name]) // len(labels)))
            for name, labels in self.labels.items()
        }


def probe_all(job: Job, embedded: dict[str, Features]) -> dict[str, Any]:
    """Sections of results.json by name, and RUN/scores.parquet; empty, with a notice, where
    probing is impossible."""
    if reason := obstacle(job):
        job.notice(f"no probes: {reason}")
        return {"probe": {}}
    rows = rows_of(job)
    sections, probes = probe_sets(job, rows, _feature_sets(job, embedded, rows.pixels))
    if PRIMARY in probes and job.config.robustness:
        sections["robustness"] = _robustness(job, rows, probes)
    about = {"snapshot_xxh3": runs.snapshot_hash(job.run), "dataset_hash": job.data.hash}
    rows.book.write(job.run / SCORES, about)
    return sections


def probe_sets(
    job: Session, rows: Rows, sets: Iterable[FeatureSet]
) -> tuple[dict[str, Any], dict[str, Probe]]:
    """Sections of results.json by name, and the linear probes of HEADLINES; scores go to
    `rows.book`."""
    sections: dict[str, Any] = {"probe": {}}
    headlines = {}
    for name, kind, features in sets:
        data = rows.labelled(features)
        primary = _probe(job, rows, data, name, PRIMARY_PROBE)
        if primary is None:
            continue
        dimensions = features["train"].shape[1]
        found = {"features": kind, "dimensions": dimensions, **asdict(primary.test(data["test"]))}
        sections["probe"][name] = found
        if kind == "baseline" or name == PRIMARY:
            others = _other_probes(job, rows, data, name)
            sections.setdefault("other_probes", {})[name] = others
        if name in HEADLINES:
            headlines[name] = primary
        if name in HEADLINES and job.config.budgets:
            sections.setdefault("budgets", {})[name] = _budgets(job, rows, data, name)
    return sections, headlines


def obstacle(job: Session) -> str | None:
    """Why the data cannot be probed, if so."""
    if not job.data.metadata.labelled:
        return "the data set has no labels"
    missing = [name for name in SPLITS if name not in job.splits]
    if missing:
        return f"there is no {' and no '.join(missing)} split; C is selected on val, never on test"
    return None


def rows_of(job: Session) -> Rows:
    """At most `probe_images` of each split, their pixels read."""
    splits = {name: job.splits[name] for name in SPLITS}
    chosen = {name: job.probe_rows(split) for name, split in splits.items()}
    tables = {name: _scored(split.table, chosen[name]) for name, split in splits.items()}
    return Rows(
        {name: split.labels[chosen[name]] for name, split in splits.items()},
        tables,
        {name: read_split(split, chosen[name]) for name, split in splits.items()},
        ScoreBook(tables["test"], len(job.data.metadata.classes)),
    )


def _scored(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    return table.select(SCORED).append_column("group", groups(table)).take(pa.array(rows))


def _feature_sets(
    job: Job, embedded: dict[str, Features], pixels: dict[str, Pixels]
) -> Iterator[FeatureSet]:
    """Made one by one; the primary one first."""
    yield PRIMARY, "readout", {s: embedded[s] for s in SPLITS}
    if job.config.orbit_probe:
        with job.timed("codes of the whole orbit of train"):
            orbit = readouts.embed_orbit(job.model, pixels["train"], job.symmetry)
        yield ORBIT_PROBE, "readout", {s: embedded[s] for s in SPLITS} | {"train": orbit}
    others = [name for name in job.config.readouts if name != PRIMARY]
    if others:
        with job.timed(f"other readouts ({', '.join(others)})"):
            codes = {
                s: readouts.embed_pixels(job.model, pixels[s], others, job.symmetry) for s in SPLITS
            }
        for name in others:
            yield name, "readout", {s: codes[s][name] for s in SPLITS}
    for name in job.config.baselines:
        with job.timed(f"baseline {name}"):
            transform: Transform = BASELINES[name](pixels["train"], job.model)
            made = {s: transform(pixels[s]) for s in SPLITS}
        yield name, "baseline", made


def _probe(
    job: Session, rows: Rows, data: dict[str, Labelled], name: str, family: str
) -> Probe | None:
    """Fit one probe, keep its scores on test, and tell; None, with a notice, where it fails."""
    start = time.monotonic()
    try:
        probe = fit(data["train"], data["val"], family)
        result = probe.test(data["test"])
    except DataError as error:
        job.notice(f"no {family} probe of {name}: {error}")
        return None
    if not result.converged:
        job.notice(f"probe of {name}: the solver stopped before it converged for some setting")
    scores = probe.scores(data["test"].features)
    rows.book.add(Condition(name, family), scores, probe.classes)
    job.say(
        f"{family} probe of {name}: AUROC {result.auroc:.3f}, balanced accuracy "
        f"{result.balanced_accuracy:.3f}, {PROBES[family].setting} {result.setting:g}: "
        f"{time.monotonic() - start:.1f} s"
    )
    return probe


def _other_probes(
    job: Session, rows: Rows, data: dict[str, Labelled], name: str
) -> dict[str, dict[str, Any]]:
    found = {}
    for family in job.config.probes:
        if family == PRIMARY_PROBE:
            continue
        if probe := _probe(job, rows, data, name, family):
            found[family] = asdict(probe.test(data["test"]))
    return found


def _budgets(
    job: Session, rows: Rows, data: dict[str, Labelled], name: str
) -> dict[str, dict[str, Any]]:
    """By budget: the mean AUROC over draws; the scores of every draw are kept."""
    train, groups, found = data["train"], rows.groups("train"), {}
    for budget in budgets.budgets(train.labels, groups):
        with job.timed(f"{name}, labels of {budget.name}"):
            aurocs, patches = [], []
            fits = budgets.fits(train, data["val"], groups, budget)
            for number, (probe, count) in enumerate(fits):
                auroc, scores = budgets.auroc(probe, data["test"])
                condition = Condition(name, PRIMARY_PROBE, budget.name, number)
                rows.book.add(condition, scores, probe.classes)
                aurocs.append(auroc)
                patches.append(count)
            found[budget.name] = budgets.summary(budget, aurocs, patches)
    return found


def _robustness(job: Job, rows: Rows, probes: Mapping[str, Probe]) -> dict[str, Any]:
    """Curves of the primary features; of the baselines among `probes`, AUROC and area."""
    transforms: dict[str, Transform] = {
        PRIMARY: lambda x: readouts.embed_pixels(job.model, x, [PRIMARY])[PRIMARY]
    }
    for name in probes:
        if name != PRIMARY:
            transforms[name] = BASELINES[name](rows.pixels["train"], job.model)
    baselines: dict[str, dict[str, list[float]]] = {}

    def auroc(name: str, pixels: Pixels) -> tuple[float, NDArray[np.float64]]:
        features = transforms[name](pixels)
        return budgets.auroc(probes[name], Labelled(features, rows.labels["test"]))

    def score(kind: str, severity: int, pixels: Pixels) -> float:
        found = {}
        for name, probe in probes.items():
            found[name], scores = auroc(name, pixels)
            condition = Condition(name, PRIMARY_PROBE, f"{kind}-{severity}")
            rows.book.add(condition, scores, probe.classes)
            if name != PRIMARY:
                baselines.setdefault(name, {}).setdefault(kind, []).append(found[name])
        return found[PRIMARY]

    with job.timed("robustness"):
        clean, _ = auroc(PRIMARY, rows.pixels["test"])
        found = robustness.curves(job.model, rows.pixels["test"], score, clean)
    found["baselines"] = {
        name: {"area": float(np.mean(list(kinds.values()))), "kinds": kinds}
        for name, kinds in baselines.items()
    }
    if not job.about.decodes:
        for row in (row for kind in found["kinds"].values() for row in kind["levels"]):
            row["psnr"] = None
    return found
