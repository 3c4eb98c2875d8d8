"""The probes of an evaluation: every readout and baseline on the same rows, in every condition."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.console import log, printable
from common.errors import DataError
from eval.features import Features
from eval.measure import readouts, robustness
from eval.measure.budgets import probe_budgets
from eval.measure.probe import PRIMARY_PROBE, PROBES, Labelled, Probe, ProbeResult, fit
from eval.measure.readouts import BASELINES, PRIMARY, Transform
from eval.measure.scores import Condition, ScoreBook
from eval.results import (
    BaselineCurves,
    BudgetScores,
    ClassCounts,
    FeatureScores,
    ProbeScores,
    Protocol,
    Robustness,
    SplitCounts,
)
from eval.session import RunSession, Session, timed
from models.vae import VAE
from pipeline.index import Dataset, Split, groups
from pipeline.reader import read_split
from shards.codec.png import Pixels
from shards.schema import NO_LABEL
from shards.sources.splits import GROUPS, SPLITS, leak_warning, leaks, unknown_sources

HEADLINES = (PRIMARY, *BASELINES)  # also probed with few labels and on corrupted patches
ORBIT_PROBE = "mean_full_orbit"  # the mean, its probe fitted on every moved train image
SCORED_COLUMNS = ("key", "label", "source", "slide", "patient", "site")
PROTOCOL = (
    "standardised logistic regression with an L2 penalty, fitted on train; C selected on val by "
    "macro one-vs-rest AUROC; test scored once with the selected probe"
)


class FeatureSet(NamedTuple):
    """Features (n, d) to probe, by split."""

    name: str
    kind: str  # readout or baseline
    by_split: dict[str, Features]


@dataclass(frozen=True)
class Rows:
    """The rows that every probe of an evaluation works on, by split."""

    labels: dict[str, NDArray[np.int64]]
    tables: dict[str, pa.Table]  # SCORED_COLUMNS and group
    pixels: dict[str, Pixels]
    classes: int

    def groups(self, split: str) -> list[str]:
        """Group of every row of a split."""
        names: list[str] = self.tables[split]["group"].to_pylist()
        return names

    def labelled(self, features: dict[str, Features]) -> dict[str, Labelled]:
        """Pair features with labels, which are tiled where the features make several passes."""
        return {
            name: Labelled(features[name], np.tile(labels, len(features[name]) // len(labels)))
            for name, labels in self.labels.items()
        }


@dataclass
class Probed:
    """What the probes gave: sections of results.json, and the scores of every test patch."""

    book: ScoreBook
    probe: dict[str, FeatureScores] = field(default_factory=dict)
    other_probes: dict[str, dict[str, ProbeScores]] | None = None
    budgets: dict[str, dict[str, BudgetScores]] | None = None
    robustness: Robustness | None = None
    headlines: dict[str, Probe] = field(default_factory=dict)  # primary probes of HEADLINES


def probe_run(session: RunSession, embedded: dict[str, Features]) -> Probed | None:
    """Probe a run in every condition; None, with a notice, where its data cannot be probed.

    Args:
        embedded: primary features of `session.probe_rows`, by split.
    """
    if reason := obstacle(session):
        session.notice(f"no probes: {reason}")
        return None
    rows = read_rows(session)
    probed = probe_sets(session, rows, _feature_sets(session, embedded, rows.pixels))
    if PRIMARY in probed.headlines and session.config.robustness:
        probed.robustness = _robustness(session, rows, probed)
    return probed


def probe_sets(session: Session, rows: Rows, sets: Iterable[FeatureSet]) -> Probed:
    """Fit the probes of every feature set and score them on test."""
    probed = Probed(ScoreBook(rows.tables["test"], rows.classes))
    for name, kind, features in sets:
        data = rows.labelled(features)
        primary = _probe(session, data, name, PRIMARY_PROBE, probed.book)
        if primary is None:
            continue
        probe, result = primary
        dimensions = features["train"].shape[1]
        probed.probe[name] = FeatureScores(features=kind, dimensions=dimensions, **asdict(result))
        if kind == "baseline" or name == PRIMARY:
            others = {
                family: ProbeScores(**asdict(fitted[1]))
                for family in session.config.probes
                if family != PRIMARY_PROBE
                and (fitted := _probe(session, data, name, family, probed.book))
            }
            probed.other_probes = (probed.other_probes or {}) | {name: others}
        if name in HEADLINES:
            probed.headlines[name] = probe
        if name in HEADLINES and session.config.budgets:
            scores = probe_budgets(data, rows.groups("train"), name, probed.book)
            probed.budgets = (probed.budgets or {}) | {name: scores}
    return probed


def obstacle(session: Session) -> str | None:
    """Say why the data cannot be probed, if so."""
    if not session.data.metadata.labelled:
        return "the data set has no labels"
    missing = [name for name in SPLITS if name not in session.splits]
    if missing:
        return f"there is no {' and no '.join(missing)} split; C is selected on val, never on test"
    return None


def read_rows(session: Session) -> Rows:
    """Read at most `probe_images` patches of each split."""
    splits = {name: session.splits[name] for name in SPLITS}
    rows = {name: session.probe_rows(split) for name, split in splits.items()}
    tables = {
        name: split.table.select(SCORED_COLUMNS)
        .append_column("group", groups(split.table))
        .take(pa.array(rows[name]))
        for name, split in splits.items()
    }
    return Rows(
        labels={name: split.labels[rows[name]] for name, split in splits.items()},
        tables=tables,
        pixels={name: read_split(split, rows[name]) for name, split in splits.items()},
        classes=len(session.data.metadata.classes),
    )


def probe_protocol(session: Session) -> Protocol:
    """Describe how the probes are made and what the splits hold.

    Notices leaking groups, patches whose source is unknown, and classes that a split lacks.
    """
    if warning := session.data.unknown_sources:
        session.notice(warning)
    composition = {
        name: _composition(split, session.data) for name, split in session.splits.items()
    }
    absent = _classes_with(composition, lambda count: not count.patches)
    for split, names in absent.items():
        session.notice(describe_absent(split, names, len(session.data.metadata.classes)))
    single = _classes_with(composition, lambda count: count.groups == 1, SPLITS)
    for split, names in single.items():
        session.notice(describe_single(split, names))
    return Protocol(
        probe=PROTOCOL,
        probe_C_grid=PROBES[PRIMARY_PROBE].grid,
        probe_images=session.config.probe_images,
        classes=session.data.metadata.classes,
        splits=composition,
        groups_in_several_splits=_crossing(session),
        absent_classes=absent or None,
        single_group_classes=single or None,
        unknown_sources=unknown_sources(session.data.metadata.provenance)[0] or None,
    )


def _classes_with(
    composition: dict[str, SplitCounts],
    has: Callable[[ClassCounts], bool],
    splits: Sequence[str] = ("val", "test"),
) -> dict[str, list[str]]:
    """List the classes of each split whose counts have a property, where any is labelled."""
    classes = {}
    for split in splits:
        counts = composition[split].classes if split in composition else {}
        names = [name for name, count in counts.items() if has(count)]
        if names and any(count.patches for count in counts.values()):
            classes[split] = names
    return classes


def describe_absent(split: str, names: list[str], classes: int) -> str:
    """Describe in one sentence what the classes that a split lacks mean for scores."""
    effect = "probe settings are selected" if split == "val" else "AUROC and accuracies are scored"
    return (
        f"{split} has no patch of {', '.join(map(printable, names))}: {effect} over "
        f"{classes - len(names)} of {classes} classes"
    )


def describe_single(split: str, names: list[str]) -> str:
    """Describe in one sentence what classes mean for scores whose patches are of one group."""
    effect = "a probe learns that one alone" if split == "train" else "scores hold for that one"
    return (
        f"all patches of {', '.join(map(printable, names))} in {split} are of one patient, slide, "
        f"source image or patch each: {effect}, and intervals say nothing of others"
    )


def _composition(split: Split, data: Dataset) -> SplitCounts:
    """Count patches and groups of a split, by class."""
    table = split.table
    rows = table.select(["label"]).append_column("group", groups(table))
    by_label = rows.group_by("label").aggregate([("group", "count"), ("group", "count_distinct")])
    counts = {
        row["label"]: ClassCounts(patches=row["group_count"], groups=row["group_count_distinct"])
        for row in by_label.to_pylist()
    }
    empty = ClassCounts(patches=0, groups=0)
    return SplitCounts(
        patches=len(split),
        groups=pc.count_distinct(rows["group"]).as_py(),
        unlabelled=counts.get(NO_LABEL, empty).patches,
        classes={name: counts.get(i, empty) for i, name in enumerate(data.metadata.classes)},
    )


def _crossing(session: Session) -> dict[str, int]:
    """Count source images, slides and patients that are in more than one split."""
    tables = {name: split.table.select(GROUPS) for name, split in session.splits.items()}
    counts = {}
    for column in GROUPS:
        members = {
            (name, group)
            for name, table in tables.items()
            for group in table[column].unique().to_pylist()
            if group is not None
        }
        if members:
            crossing = leaks(members)
            counts[column] = len(crossing)
            if crossing:
                session.notice(leak_warning(column, crossing))
    return counts


def _feature_sets(
    session: RunSession, embedded: dict[str, Features], pixels: dict[str, Pixels]
) -> Iterator[FeatureSet]:
    """Make the feature sets of a run one by one; the primary one is first."""
    model, symmetry = session.model, session.symmetry
    primary = {split: embedded[split] for split in SPLITS}
    yield FeatureSet(PRIMARY, "readout", primary)
    if session.config.orbit_probe:
        with timed("codes of the whole orbit of train"):
            orbit = readouts.embed_orbit(model, pixels["train"], symmetry)
        yield FeatureSet(ORBIT_PROBE, "readout", primary | {"train": orbit})
    others = [name for name in session.config.readouts if name != PRIMARY]
    if others:
        with timed(f"other readouts ({', '.join(others)})"):
            codes = {s: readouts.embed_pixels(model, pixels[s], others, symmetry) for s in SPLITS}
        for name in others:
            yield FeatureSet(name, "readout", {s: codes[s][name] for s in SPLITS})
    yield from baseline_sets(session, pixels, model)


def baseline_sets(session: Session, pixels: dict[str, Pixels], model: VAE) -> Iterator[FeatureSet]:
    """Make the baselines of a configuration one by one."""
    for name in session.config.baselines:
        with timed(f"baseline {name}"):
            transform = BASELINES[name](pixels["train"], model)
            features = {split: transform(pixels[split]) for split in SPLITS}
        yield FeatureSet(name, "baseline", features)


def _probe(
    session: Session, data: dict[str, Labelled], name: str, family: str, book: ScoreBook
) -> tuple[Probe, ProbeResult] | None:
    """Fit a probe and add its scores on test to the book; None, with a notice, where it fails."""
    start = time.monotonic()
    try:
        probe = fit(data["train"], data["val"], family)
        result = probe.test(data["test"])
    except DataError as error:
        session.notice(f"no {family} probe of {name}: {error}")
        return None
    if not result.converged:
        session.notice(f"probe of {name}: the solver stopped before it converged for some setting")
    book.add(Condition(name, family), probe.scores(data["test"].features), probe.classes)
    classes = len(session.data.metadata.classes)
    is_partial = result.n_classes < classes
    of_classes = f" over {result.n_classes} of {classes} classes" if is_partial else ""
    log.info(
        f"{family} probe of {name}: AUROC {result.auroc:.3f}, balanced accuracy "
        f"{result.balanced_accuracy:.3f}{of_classes}, {PROBES[family].setting} {result.setting:g}: "
        f"{time.monotonic() - start:.1f} s"
    )
    return probe, result


def _robustness(session: RunSession, rows: Rows, probed: Probed) -> Robustness:
    """Measure the curves of the primary features, and AUROC and area of the baselines.

    Adds the scores of every corruption and severity to the book.
    """
    transforms: dict[str, Transform] = {
        PRIMARY: lambda pixels: readouts.embed_mean(session.model, pixels)
    }
    for name in probed.headlines:
        if name != PRIMARY:
            transforms[name] = BASELINES[name](rows.pixels["train"], session.model)
    by_baseline: dict[str, dict[str, list[float]]] = {}

    def auroc(name: str, pixels: Pixels) -> tuple[float, NDArray[np.float64]]:
        test = Labelled(transforms[name](pixels), rows.labels["test"])
        return probed.headlines[name].auroc(test)

    def score(kind: str, severity: int, pixels: Pixels) -> float:
        aurocs = {}
        for name, probe in probed.headlines.items():
            aurocs[name], scores = auroc(name, pixels)
            condition = Condition(name, corruption=kind, severity=severity)
            probed.book.add(condition, scores, probe.classes)
            if name != PRIMARY:
                by_baseline.setdefault(name, {}).setdefault(kind, []).append(aurocs[name])
        return aurocs[PRIMARY]

    with timed("robustness"):
        clean, _ = auroc(PRIMARY, rows.pixels["test"])
        curves = robustness.curves(session.model, rows.pixels["test"], score, clean)
    kinds = curves.kinds
    if not session.info.decodes:
        kinds = {
            name: replace(curve, levels=[replace(level, psnr=None) for level in curve.levels])
            for name, curve in kinds.items()
        }
    baselines = {
        name: BaselineCurves(area=float(np.mean(list(by_kind.values()))), kinds=by_kind)
        for name, by_kind in by_baseline.items()
    }
    return replace(curves, kinds=kinds, baselines=baselines)
