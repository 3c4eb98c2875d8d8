"""The tables of a report."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from eval.measure.metrics import ELEMENTS
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.probing import describe_absent, describe_single
from eval.report.arms import Arm
from eval.report.charts import EVALUATE
from eval.report.document import (
    MISSING,
    NOT_MEASURED,
    Missing,
    Part,
    Table,
    Text,
    mean_sd,
    number,
    shown,
    with_interval,
)
from eval.report.runs import EvaluatedRun, baselines
from eval.results import BudgetScores, ClassCounts, ProbeScores, Range, SplitCounts
from eval.stats.bootstrap import Interval
from pipeline.config import TRAINABLE, CorruptionConfig
from pipeline.corruptions import GRADED, KINDS, extents

# columns of the tables of all runs: the value and its decimals
RUN_SCORES: dict[str, tuple[Callable[[EvaluatedRun], float | None], int]] = {
    "PSNR (dB)": (lambda run: run.reconstruction.psnr, 2),
    "SSIM": (lambda run: run.reconstruction.ssim, 3),
    "KL (nats)": (lambda run: run.latent.kl, 1),
    "active units": (lambda run: run.latent.active_units, 0),
    "noise variance": (lambda run: run.results.run.noise_var, 5),
    "equivariance error": (lambda run: run.equivariance.error, 3),
}
# those that baselines have too
PROBE_SCORES: dict[str, tuple[Callable[[ProbeScores], float | None], int]] = {
    "AUROC": (lambda probe: probe.auroc, 3),
    "balanced accuracy": (lambda probe: probe.balanced_accuracy, 3),
    "accuracy": (lambda probe: probe.accuracy, 3),
}
PROBED = (
    "AUROC on test, mean ± standard deviation over seeds; for a single run, in brackets, the "
    "setting selected on val."
)


def _mean(values: Iterable[float | None], digits: int = 3) -> str:
    """Mean and standard deviation over runs, and how many have the value where not all do."""
    values = list(values)
    measured = sum(value is not None for value in values)
    cell = mean_sd(values, digits)
    return f"{cell} ({measured} of {len(values)})" if 0 < measured < len(values) else cell


def _runs(arms: Iterable[Arm]) -> list[EvaluatedRun]:
    return [run for arm in arms for run in arm.runs.values()]


def composition(run: EvaluatedRun) -> Part:
    """Patches and, in brackets, source images of every class and split."""
    splits = run.results.protocol.splits
    if not splits:
        return Missing("composition of the data", EVALUATE)
    rows = [["all", *map(_counted, splits.values())]]
    classes = dict.fromkeys(name for split in splits.values() for name in split.classes)
    for name in classes:
        counts = [split.classes.get(name, ClassCounts()) for split in splits.values()]
        rows.append([shown(name), *map(_counted, counts)])
    crossing = run.results.protocol.groups_in_several_splits
    shared = [f"{column} {number(count, 0)}" for column, count in crossing.items()]
    caption = "Patches and, in brackets, source images."
    if unknown := run.results.protocol.unknown_sources:
        caption += f" The source of {number(unknown, 0)} patches is unknown: each counts as one."
    if shared:
        caption += f" In more than one split: {', '.join(shared)}."
    return Table("Composition", ["", *map(shown, splits)], rows, caption)


def absent_classes(runs: Sequence[EvaluatedRun]) -> list[Part]:
    """State which classes val or test lacks or has of one group, beside scores that show them."""
    protocol = runs[0].results.protocol  # they are of one data set
    absent, classes = protocol.absent_classes or {}, len(protocol.classes or [])
    sentences = [shown(describe_absent(split, names, classes)) for split, names in absent.items()]
    single = protocol.single_group_classes or {}
    sentences += [shown(describe_single(split, names)) for split, names in single.items()]
    return [Text(f"{sentence}.") for sentence in sentences]


def _counted(counts: SplitCounts | ClassCounts) -> str:
    return f"{number(counts.patches, 0)} ({number(counts.groups, 0)})"


def summary(runs: Sequence[EvaluatedRun]) -> Table:
    """A row per run with its scores, the baselines beneath."""
    header = ["run", "preset", "seed", "images", *RUN_SCORES, *PROBE_SCORES]
    rows = []
    for run in runs:
        facts = run.results.run
        counts = [number(facts.seed, 0), number(facts.images_seen, 0)]
        scores = [number(value(run), digits) for value, digits in RUN_SCORES.values()]
        rows.append([run.label, run.preset, *counts, *scores, *_probed(run.probe())])
    for baseline in baselines(runs):
        cells = dict.fromkeys(header, "") | dict(
            zip(PROBE_SCORES, _probed(baseline.scores), strict=True)
        )
        rows.append([f"baseline {baseline.label}", *list(cells.values())[1:]])
    caption = (
        "Reconstruction is from the posterior mean of clean patches. KL is per patch; a dimension "
        "is active above 0.05 nats. The equivariance error is relative: 0 exact, about 1 "
        "unrelated. AUROC (macro one-vs-rest) and the accuracies are of a linear probe."
    )
    return Table("Every run", header, rows, caption)


def _probed(probe: ProbeScores) -> list[str]:
    return [number(value(probe), digits) for value, digits in PROBE_SCORES.values()]


def over_seeds(arms: Iterable[Arm]) -> list[Part]:
    """Mean and standard deviation of arms that were run with several seeds."""
    rows = []
    for arm in arms:
        if len(arm.runs) > 1:
            runs = arm.runs.values()
            cells = [_mean(map(value, runs), digits) for value, digits in RUN_SCORES.values()]
            probes = [run.probe() for run in runs]
            cells += [_mean(map(value, probes), digits) for value, digits in PROBE_SCORES.values()]
            rows.append([arm.name, number(arm.images, 0), str(len(runs)), *cells])
    header = ["preset", "images", "seeds", *RUN_SCORES, *PROBE_SCORES]
    return [Table("Mean ± standard deviation over seeds", header, rows)] if rows else []


def headlines(intervals: Mapping[str, Mapping[str, Interval]]) -> Part:
    """AUROC and its 95 % interval, by arm or baseline (rows) and measure (columns)."""
    measures = list(dict.fromkeys(name for cells in intervals.values() for name in cells))
    if not measures:
        return Missing("AUROC with intervals", EVALUATE)
    rows = []
    for name, cells in intervals.items():
        row = [name]
        for measure in measures:
            if (cell := cells.get(measure)) is None:
                row.append(NOT_MEASURED)
            else:
                row.append(with_interval(cell.estimate, cell.ends))
        rows.append(row)
    resampled = {cell.resampled for cells in intervals.values() for cell in cells.values()}
    caption = (
        "Macro AUROC of the linear probe on test, mean over seeds, and in brackets the 95 % "
        f"interval. Resampled: {'; or '.join(sorted(resampled))}. Intervals of two arms may "
        "overlap where their paired difference is clear: the verdicts are of differences."
    )
    return Table("AUROC with intervals", ["features", *measures], rows, caption)


def readouts(arms: Sequence[Arm]) -> Part:
    """AUROC of every readout and baseline of every arm."""
    probes = [run.results.probe for run in _runs(arms)]
    names = dict.fromkeys(name for probe in probes for name in probe)
    if not names:
        return Missing("linear probes (the notices say why)", EVALUATE)
    rows = []
    for name in names:
        size = next(probe[name].dimensions for probe in probes if name in probe)
        rows.append([shown(name), number(size, 0), *(_probe_cell(arm, name) for arm in arms)])
    header = ["features", "numbers", *(arm.label for arm in arms)]
    return Table("Linear probe by features", header, rows, f"{PROBED} Baselines at the end.")


def other_probes(arms: Sequence[Arm]) -> Part:
    """AUROC of the other classifiers."""
    pairs = dict.fromkeys(
        (features, family)
        for run in _runs(arms)
        for features, families in (run.results.other_probes or {}).items()
        for family in families
    )
    if not pairs:
        return Missing("other probes (MLP, nearest neighbours)", EVALUATE)
    rows = []
    for features, family in pairs:
        cells = [_probe_cell(arm, features, family) for arm in arms]
        rows.append([f"{shown(features)}, {shown(family)}", *cells])
    return Table("Other probes", ["features, probe", *(arm.label for arm in arms)], rows, PROBED)


def _probe_cell(arm: Arm, features: str, family: str = PRIMARY_PROBE) -> str:
    """The AUROC of an arm; for a baseline that of any run, since it is the same for all."""
    runs = list(arm.runs.values())
    for run in runs:
        if run.is_baseline(features):
            auroc = run.probe(features, family).auroc
            if auroc is not None:
                return number(auroc)
            break
    cell = _mean(run.probe(features, family).auroc for run in runs)
    setting = runs[0].probe(features, family).setting if len(runs) == 1 else None
    return cell if setting is None else f"{cell} ({setting:g})"


def budgets(arms: Sequence[Arm]) -> list[Part]:
    """AUROC with few labels, and how few they were."""
    by_name = {name: budget for run in _runs(arms) for name, budget in run.budgets.items()}
    rows = []
    for name, budget in by_name.items():
        groups = ", ".join(map(str, budget.groups_per_class)) or MISSING
        patches = budget.patches or Range()
        ends = f"{number(patches.min, 0)} to {number(patches.max, 0)}"
        row = [shown(name), groups, ends, number(budget.draws, 0)]
        for arm in arms:
            budgets_of_arm = [run.budgets.get(name, BudgetScores()) for run in arm.runs.values()]
            row.append(_mean(scores.auroc for scores in budgets_of_arm))
        rows.append(row)
    header = ["labels of", "groups per class", "patches", "draws", *(arm.label for arm in arms)]
    caption = "AUROC on test, mean over draws of the labelled groups, then over seeds."
    return [Table("Few labels", header, rows, caption)] if rows else []


def robustness(arms: Iterable[Arm]) -> list[Part]:
    """AUROC of every severity, and PSNR of the reconstruction to the clean patch."""
    tested = [arm for arm in arms if any(run.results.robustness for run in arm.runs.values())]
    if not tested:
        return []
    header = ["corruption", "level"]
    area = ["area", ""]
    for arm in tested:
        header += [f"{arm.label} AUROC", f"{arm.label} PSNR"]
        area += [_mean(run.robustness.area for run in arm.runs.values()), ""]
    rows = []
    for name, kind in GRADED.items():
        for severity, level in enumerate(kind.levels, 1):
            row = [f"{name} {severity}", f"{level:g}"]
            for arm in tested:
                scores = [run.severity(name, severity) for run in arm.runs.values()]
                row.append(mean_sd(score.auroc for score in scores))
                row.append(mean_sd((score.psnr for score in scores), 2))
            rows.append(row)
    *first, last = extents(CorruptionConfig())
    caption = (
        "The probe was fitted on clean patches. PSNR (dB) of the reconstruction to the clean "
        "patch, on 512 patches. The area is the mean AUROC of all rows. The default corruption "
        f"trains {', '.join(first)} and {last}: milder rows are not beyond it."
    )
    return [Table("Robustness by severity", header, [*rows, area], caption)]


def denoising(arms: Iterable[Arm]) -> Part:
    """PSNR and SSIM by corruption kind: of the input, and of every arm's output."""
    measured = [arm for arm in arms if any(run.reconstruction.by_kind for run in _runs([arm]))]
    if not measured:
        return Missing("denoising", EVALUATE)
    header = ["corruption", "input PSNR", "input SSIM"]
    for arm in measured:
        header += [f"{arm.label} PSNR", f"{arm.label} SSIM"]
    first = next(run for run in _runs(measured) if run.reconstruction.by_kind)
    rows = []
    for kind in TRAINABLE:
        source = first.denoised(kind)
        row = [KINDS[kind].title, number(source.input_psnr, 2), number(source.input_ssim, 3)]
        for arm in measured:
            scores = [run.denoised(kind) for run in arm.runs.values()]
            row.append(_mean((score.psnr for score in scores), 2))
            row.append(_mean(score.ssim for score in scores))
        rows.append(row)
    caption = (
        "Against the clean patch, in dB and SSIM; `input` is the corrupted patch itself, the same "
        "for every run with the same ranges."
    )
    return Table("Reconstruction of corrupted patches", header, rows, caption)


def by_element(arms: Sequence[Arm]) -> Part:
    """The relative equivariance error by group element."""
    if all(run.results.equivariance is None for run in _runs(arms)):
        return Missing("equivariance", EVALUATE)
    columns = [[*ELEMENTS[1:], "over D4", "over C4"]]
    for arm in arms:
        errors = [run.equivariance for run in arm.runs.values()]
        cells = [_mean(e.by_element.get(name) for e in errors) for name in ELEMENTS[1:]]
        cells += [_mean(e.by_group.get(name) for e in errors) for name in ("D4", "C4")]
        columns.append(cells)
    rows = list(zip(*columns, strict=True))
    caption = "Relative error of the code: 0 exact, about 1 unrelated."
    header = ["element", *(arm.label for arm in arms)]
    return Table("Equivariance by group element", header, rows, caption)


def by_readout(arms: Sequence[Arm]) -> list[Part]:
    """The relative equivariance error of every readout, over the group of the run."""
    names = dict.fromkeys(name for run in _runs(arms) for name in run.equivariance.by_readout)
    rows = []
    for name in names:
        row = [shown(name)]
        for arm in arms:
            by_name = [run.equivariance.by_readout for run in arm.runs.values()]
            row.append(_mean(e[name].error if name in e else None for e in by_name))
        rows.append(row)
    caption = (
        "Relative error over the group of the run, on 256 patches: averages over an orbit are "
        "exact by construction, channel statistics may only change places."
    )
    header = ["readout", *(arm.label for arm in arms)]
    return [Table("Equivariance by readout", header, rows, caption)] if rows else []


def environment(runs: Iterable[EvaluatedRun]) -> Table:
    """What each evaluation ran on."""
    rows = []
    for run in runs:
        facts = run.results.environment
        versions = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
        cells = [
            MISSING if fact is None else shown(fact)
            for fact in (facts.device, facts.threads, facts.python, facts.commit)
        ]
        cells[-1] += " (modified)" if facts.dirty else ""
        rows.append([run.label, *cells, shown(versions), number(run.results.seconds, 0)])
    header = ["run", "device", "threads", "python", "commit", "packages", "evaluation (s)"]
    return Table("Environment", header, rows)
