"""The tables of a report, from results.json files that are not trusted."""

from collections.abc import Iterable, Mapping
from typing import Any

from eval.measure.metrics import ELEMENTS
from eval.measure.readouts import PRIMARY
from eval.report.arms import Arm
from eval.report.document import MISSING, NOT_MEASURED, Part, Table, Text, mean_sd, number, shown
from eval.report.runs import Entry, baselines
from eval.stats.bootstrap import Interval
from pipeline.corruptions import KINDS, TRAINABLE

PROBE_SCORES = ("auroc", "balanced_accuracy", "accuracy")
SCORES = {  # column, where it stands in results.json, digits
    "PSNR (dB)": (("reconstruction", "psnr"), 2),
    "SSIM": (("reconstruction", "ssim"), 3),
    "KL (nats)": (("latent", "kl"), 1),
    "active units": (("latent", "active_units"), 0),
    "noise variance": (("run", "noise_var"), 5),
    "equivariance error": (("equivariance", "error"), 3),
    "AUROC": (("probe", PRIMARY, "auroc"), 3),
    "balanced accuracy": (("probe", PRIMARY, "balanced_accuracy"), 3),
    "accuracy": (("probe", PRIMARY, "accuracy"), 3),
}


def composition(entry: Entry) -> Part:
    """Patches and, in brackets, source images of every class and split."""
    splits = entry.section("protocol", "splits")
    if not splits:
        return Text(f"Composition of the data: {NOT_MEASURED}.")
    by_class = {name: entry.section("protocol", "splits", name, "classes") for name in splits}
    classes = list(dict.fromkeys(name for found in by_class.values() for name in found))
    rows = [["all", *(_counted(split) for split in splits.values())]]
    for i, name in enumerate(classes):
        cells = [_counted(found.get(name)) for found in by_class.values()]
        rows.append([f"class {i}: {shown(name)}", *cells])
    crossing = entry.at("protocol", "groups_in_several_splits") or {}
    shared = [f"{column} {number(count, 0)}" for column, count in crossing.items()]
    caption = "Patches and, in brackets, source images."
    if shared:
        caption += f" In more than one split: {', '.join(shared)}."
    return Table("Composition", ["", *map(shown, splits)], rows, caption)


def _counted(counts: Any) -> str:
    counts = counts if isinstance(counts, dict) else {}
    return f"{number(counts.get('patches'), 0)} ({number(counts.get('groups'), 0)})"


def summary(group: list[Entry]) -> Table:
    """A row a run with its scores, the baselines beneath."""
    header = ["run", "preset", "seed", "images", *SCORES]
    rows = []
    for entry in group:
        counts = [number(entry.at("run", name), 0) for name in ("seed", "images_seen")]
        scores = [number(entry.at(*path), digits) for path, digits in SCORES.values()]
        rows.append([entry.label, entry.preset, *counts, *scores])
    for name, key, source in baselines(group):
        values = [number(source.at("probe", key, score)) for score in PROBE_SCORES]
        rows.append([f"baseline {name}", *[""] * (len(header) - 1 - len(values)), *values])
    caption = (
        "Reconstruction is from the posterior mean of clean patches. KL is per patch; a dimension "
        "is active above 0.05 nats. The equivariance error is relative: 0 exact, about 1 "
        "unrelated. AUROC (macro one-vs-rest) and the accuracies are of a linear probe."
    )
    return Table("Every run", header, rows, caption)


def over_seeds(arms: Iterable[Arm]) -> list[Part]:
    """Mean and standard deviation where an arm was run with several seeds."""
    rows = []
    for arm in arms:
        if len(arm.runs) > 1:
            cells = [mean_of(arm, path, digits) for path, digits in SCORES.values()]
            rows.append([arm.name, number(arm.images, 0), str(len(arm.runs)), *cells])
    header = ["preset", "images", "seeds", *SCORES]
    return [Table("Mean ± standard deviation over seeds", header, rows)] if rows else []


def mean_of(arm: Arm, path: tuple[str, ...], digits: int = 3) -> str:
    """Of the runs that have it, with the standard deviation, and how many where that is not all."""
    values = [entry.at(*path) for entry in arm.runs.values()]
    measured = sum(value is not None for value in values)
    cell = mean_sd(values, digits)
    return f"{cell} ({measured} of {len(values)})" if 0 < measured < len(values) else cell


def column(arm: Arm) -> str:
    """A run alone under its own name, runs of several seeds under that of their arm."""
    runs = list(arm.runs.values())
    return runs[0].label if len(runs) == 1 else arm.name


def headlines(found: Mapping[str, Mapping[str, Interval]]) -> Part:
    """AUROC and its 95 % interval, of arms and baselines (rows) in conditions (columns)."""
    columns = list(dict.fromkeys(name for cells in found.values() for name in cells))
    if not columns:
        return Text(f"AUROC with intervals: {NOT_MEASURED}.")
    rows = [[name, *(ranged(cells.get(c)) for c in columns)] for name, cells in found.items()]
    words = {cell.resampled for cells in found.values() for cell in cells.values()}
    caption = (
        "Macro AUROC of the linear probe on test, mean over seeds, and in brackets the 95 % "
        f"interval. Resampled: {'; or '.join(sorted(words))}. Intervals of two arms may overlap "
        "where their paired difference is clear: the verdicts are of differences."
    )
    return Table("AUROC with intervals", ["features", *columns], rows, caption)


def ranged(interval: Interval | None) -> str:
    if interval is None:
        return NOT_MEASURED
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.3f} (no interval)"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def readouts(arms: Iterable[Arm]) -> Part:
    """AUROC of every readout and baseline of every arm."""
    arms = list(arms)
    probes = [entry.section("probe") for arm in arms for entry in arm.runs.values()]
    names = list(dict.fromkeys(name for found in probes for name in found))
    if not names:
        return Text(f"Linear probes: {NOT_MEASURED}; the notices say why.")
    rows = []
    for name in names:
        size = next((found[name].get("dimensions") for found in probes if name in found), None)
        rows.append([shown(name), number(size, 0), *(_probe(arm, "probe", name) for arm in arms)])
    header = ["features", "numbers", *map(column, arms)]
    return Table("Linear probe by features", header, rows, f"{_PROBED} Baselines at the end.")


def other_probes(arms: Iterable[Arm]) -> Part:
    """AUROC of the other classifiers."""
    arms = list(arms)
    pairs = dict.fromkeys(
        (name, probe)
        for arm in arms
        for entry in arm.runs.values()
        for name in entry.section("other_probes")
        for probe in entry.section("other_probes", name)
    )
    rows = [
        [f"{shown(name)}, {shown(probe)}",
         *(_probe(arm, "other_probes", name, probe) for arm in arms)]
        for name, probe in pairs
    ]  # fmt: skip
    if not rows:
        return Text(f"Other probes (MLP, nearest neighbours): {NOT_MEASURED}.")
    header = ["features, probe", *map(column, arms)]
    return Table("Other probes", header, rows, _PROBED)


_PROBED = (
    "AUROC on test, mean ± standard deviation over seeds; of a run alone, in brackets, the setting "
    "that val selected."
)


def _probe(arm: Arm, *path: str) -> str:
    """Of a baseline, any run's: it is the same for all."""
    if (same := _baseline(arm, *path)) is not None:
        return number(same)
    settings = [entry.at(*path, "setting") for entry in arm.runs.values()]
    alone = settings[0] if len(settings) == 1 else None
    chosen = f" ({alone:g})" if isinstance(alone, int | float) else ""
    return mean_of(arm, (*path, "auroc")) + chosen


def _baseline(arm: Arm, *path: str) -> Any:
    for entry in arm.runs.values():
        if entry.at("probe", path[1], "features") == "baseline":
            return entry.at(*path, "auroc")
    return None


def denoising(arms: Iterable[Arm]) -> Part:
    """PSNR and SSIM by corruption kind: of the input, and of every arm's output."""
    at = ("reconstruction", "by_kind")
    there = [arm for arm in arms if any(run.section(*at) for run in arm.runs.values())]
    if not there:
        return Text(f"Denoising: {NOT_MEASURED}.")
    header = ["corruption", "input PSNR", "input SSIM"]
    header += [f"{column(arm)} {score}" for arm in there for score in ("PSNR", "SSIM")]
    scores = (("psnr", 2), ("ssim", 3))
    source = next(run for run in there[0].runs.values() if run.section(*at))
    rows = []
    for kind in TRAINABLE:
        row = [number(source.at(*at, kind, f"input_{score}"), digits) for score, digits in scores]
        row += [
            mean_of(arm, (*at, kind, score), digits) for arm in there for score, digits in scores
        ]
        rows.append([KINDS[kind].title, *row])
    caption = (
        "Against the clean patch, in dB and SSIM; `input` is the corrupted patch itself, the same "
        "for every run with the same ranges."
    )
    return Table("Reconstruction of corrupted patches", header, rows, caption)


def by_element(arms: Iterable[Arm]) -> Part:
    """The relative equivariance error by group element."""
    arms = list(arms)
    if all(run.at("equivariance") is None for arm in arms for run in arm.runs.values()):
        return Text(f"Equivariance: {NOT_MEASURED}.")
    places: Iterable[tuple[str, tuple[str, ...]]] = [
        *((name, ("equivariance", "by_element", name)) for name in ELEMENTS[1:]),
        *((f"over {name}", ("equivariance", "by_group", name)) for name in ("D4", "C4")),
    ]
    rows = [[name, *(mean_of(arm, path) for arm in arms)] for name, path in places]
    caption = "Relative error of the code: 0 exact, about 1 unrelated."
    return Table("Equivariance by group element", ["element", *map(column, arms)], rows, caption)


def by_readout(arms: Iterable[Arm]) -> list[Part]:
    """The relative equivariance error of every readout, over the group of the run."""
    arms = list(arms)
    runs = [run for arm in arms for run in arm.runs.values()]
    at = ("equivariance", "by_readout")
    names = dict.fromkeys(name for run in runs for name in run.section(*at))
    rows = [[shown(name), *(mean_of(arm, (*at, name, "error")) for arm in arms)] for name in names]
    caption = (
        "Relative error over the group of the run, on 256 patches: averages over an orbit are "
        "exact by construction, channel statistics may only change places."
    )
    header = ["readout", *map(column, arms)]
    return [Table("Equivariance by readout", header, rows, caption)] if rows else []


def environment(entries: list[Entry]) -> Table:
    """What each evaluation ran on."""
    rows = []
    for entry in entries:
        packages = entry.at("environment", "packages")
        packages = packages if isinstance(packages, dict) else {}
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        facts = [entry.at("environment", k) for k in ("device", "threads", "python", "commit")]
        cells = [MISSING if fact is None else shown(fact) for fact in facts]
        cells[-1] += " (modified)" if entry.at("environment", "dirty") else ""
        rows.append([entry.label, *cells, shown(versions), number(entry.at("seconds"), 0)])
    header = ["run", "device", "threads", "python", "commit", "packages", "evaluation (s)"]
    return Table("Environment", header, rows)
