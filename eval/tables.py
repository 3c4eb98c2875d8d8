"""The tables of a report, from results.json files that are not trusted."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from eval.bootstrap import Interval
from eval.document import MISSING, NOT_MEASURED, Part, Table, Text, number, shown
from eval.entries import Entry, baselines
from eval.figures import KIND_TITLES
from eval.metrics import ELEMENTS
from eval.readouts import PRIMARY
from pipeline.corrupt import KINDS

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


def over_seeds(group: list[Entry]) -> list[Part]:
    """Mean and standard deviation where an arm was run with several seeds."""
    arms: dict[str, list[Entry]] = {}
    for entry in group:
        arms.setdefault(repr(sorted(entry.settings.items(), key=str)), []).append(entry)
    rows = []
    for members in arms.values():
        if len({entry.seed for entry in members}) > 1:
            cells = [_mean_sd(members, path, digits) for path, digits in SCORES.values()]
            images = number(members[0].at("run", "images_seen"), 0)
            rows.append([members[0].preset, images, str(len(members)), *cells])
    header = ["preset", "images", "seeds", *SCORES]
    return [Table("Mean ± standard deviation over seeds", header, rows)] if rows else []


def _mean_sd(members: list[Entry], path: tuple[str, ...], digits: int) -> str:
    values = [entry.at(*path) for entry in members]
    if not all(isinstance(value, int | float) for value in values):
        return MISSING
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


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


def readouts(group: list[Entry]) -> Part:
    """AUROC of every readout and baseline of every run."""
    probes = [entry.section("probe") for entry in group]
    names = list(dict.fromkeys(name for found in probes for name in found))
    if not names:
        return Text(f"Linear probes: {NOT_MEASURED}; the notices say why.")
    rows = []
    for name in names:
        size = next((found[name].get("dimensions") for found in probes if name in found), None)
        cells = [_setting(found.get(name, {})) for found in probes]
        rows.append([shown(name), number(size, 0), *cells])
    header = ["features", "numbers", *(entry.label for entry in group)]
    caption = "AUROC on test and, in brackets, the C that val selected; baselines at the end."
    return Table("Linear probe by features", header, rows, caption)


def other_probes(group: list[Entry]) -> Part:
    """AUROC of the other classifiers."""
    pairs = dict.fromkeys(
        (name, probe)
        for entry in group
        for name in entry.section("other_probes")
        for probe in entry.section("other_probes", name)
    )
    rows = [
        [f"{shown(name)}, {shown(probe)}",
         *(_setting(entry.section("other_probes", name).get(probe, {})) for entry in group)]
        for name, probe in pairs
    ]  # fmt: skip
    if not rows:
        return Text(f"Other probes (MLP, nearest neighbours): {NOT_MEASURED}.")
    header = ["features, probe", *(entry.label for entry in group)]
    return Table("Other probes", header, rows, "AUROC on test and the setting that val selected.")


def _setting(probe: Mapping[str, Any]) -> str:
    setting = probe.get("setting")
    chosen = f" ({setting:g})" if isinstance(setting, int | float) else ""
    return f"{number(probe.get('auroc'))}{chosen}"


def denoising(group: list[Entry]) -> Part:
    """PSNR and SSIM by corruption kind: of the input, and of every run's output."""
    at = ("reconstruction", "by_kind")
    there = [entry for entry in group if entry.section(*at)]
    if not there:
        return Text(f"Denoising: {NOT_MEASURED}.")
    header = ["corruption", "input PSNR", "input SSIM"]
    header += [f"{entry.label} {score}" for entry in there for score in ("PSNR", "SSIM")]
    rows = []
    for kind in KINDS:
        row = _pair(there[0].section(*at).get(kind, {}), "input_")
        row += [cell for entry in there for cell in _pair(entry.section(*at).get(kind, {}))]
        rows.append([KIND_TITLES[kind], *row])
    caption = (
        "Against the clean patch, in dB and SSIM; `input` is the corrupted patch itself, the same "
        "for every run with the same ranges."
    )
    return Table("Reconstruction of corrupted patches", header, rows, caption)


def _pair(found: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [number(found.get(f"{prefix}psnr"), 2), number(found.get(f"{prefix}ssim"))]


def by_element(group: list[Entry]) -> Part:
    """The relative equivariance error by group element."""
    if all(entry.at("equivariance") is None for entry in group):
        return Text(f"Equivariance: {NOT_MEASURED}.")
    places: Iterable[tuple[str, tuple[str, ...]]] = [
        *((name, ("equivariance", "by_element", name)) for name in ELEMENTS[1:]),
        *((f"over {name}", ("equivariance", "by_group", name)) for name in ("D4", "C4")),
    ]
    rows = [[name, *(number(entry.at(*path)) for entry in group)] for name, path in places]
    caption = "Relative error of the code: 0 exact, about 1 unrelated."
    header = ["element", *(entry.label for entry in group)]
    return Table("Equivariance by group element", header, rows, caption)


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
