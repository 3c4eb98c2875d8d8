"""The tables of a report, as Markdown, from results.json files that are not trusted."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.figures import KIND_TITLES
from eval.markdown import MISSING, escape, number, table
from eval.metrics import ELEMENTS
from eval.readouts import PRIMARY
from pipeline.corrupt import KINDS

PROBE_SCORES = ("auroc", "balanced_accuracy", "accuracy")
CLOSE_AUROC = 0.02  # nearer to the untrained encoder than this, a data set ranks no models
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


@dataclass(frozen=True)
class Entry:
    """A run in the report."""

    folder: Path
    label: str  # unique; untrusted
    slug: str  # unique and safe in a file name
    results: dict[str, Any]

    def at(self, *path: str) -> Any:
        """The value there in results.json, or None."""
        value: Any = self.results
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def composition(entry: Entry) -> str:
    """Patches and, in brackets, source images of every class and split."""
    splits = entry.at("protocol", "splits") or {}
    classes = list(dict.fromkeys(name for split in splits.values() for name in split["classes"]))
    rows = [["all", *(_counted(split) for split in splits.values())]]
    for name in classes:
        cells = [_counted(split["classes"].get(name, {})) for split in splits.values()]
        rows.append([escape(name), *cells])
    crossing = entry.at("protocol", "groups_in_several_splits") or {}
    shared = [f"{column} {number(count, 0)}" for column, count in crossing.items()]
    caption = "Patches and, in brackets, source images. In more than one split: "
    return table(["class", *map(escape, splits)], rows) + "\n\n" + caption + ", ".join(shared) + "."


def _counted(counts: Any) -> str:
    counts = counts if isinstance(counts, dict) else {}
    return f"{number(counts.get('patches'), 0)} ({number(counts.get('groups'), 0)})"


def summary(group: list[Entry]) -> str:
    """A row a run with its scores, the baselines beneath."""
    header = ["run", "preset", "seed", "images", *SCORES]
    rows = []
    for entry in group:
        about = [escape(entry.at("run", "preset")), number(entry.at("run", "seed"), 0)]
        about.append(number(entry.at("run", "images_seen"), 0))
        scores = [number(entry.at(*path), digits) for path, digits in SCORES.values()]
        rows.append([escape(entry.label), *about, *scores])
    for shown, name, source in baselines(group):
        values = [number(source.at("probe", name, key)) for key in PROBE_SCORES]
        blank = [""] * (len(header) - 1 - len(values))
        rows.append([f"*baseline* {shown}", *blank, *values])
    caption = (
        "Reconstruction is from the posterior mean of clean patches. KL is per patch; a dimension "
        "is active above 0.05 nats. The equivariance error is relative: 0 exact, about 1 "
        "unrelated. AUROC (macro one-vs-rest) and the accuracies are of a linear probe."
    )
    return table(header, rows) + "\n\n" + caption


def baselines(group: list[Entry]) -> list[tuple[str, str, Entry]]:
    """(name as shown, name in results, a run that has it): once, random init by architecture."""
    found: dict[str, tuple[str, str, Entry]] = {}
    for entry in group:
        for name, probe in entry.results["probe"].items():
            if probe.get("features") != "baseline":
                continue
            architecture = f" ({entry.at('model', 'architecture')})"
            shown = escape(name + (architecture if name == "random_init" else ""))
            found.setdefault(shown, (shown, name, entry))
    return list(found.values())


def over_seeds(group: list[Entry]) -> str:
    """Mean and standard deviation where a preset was run with several seeds."""
    arms: dict[tuple[str, Any], list[Entry]] = {}
    for entry in group:
        key = (escape(entry.at("run", "preset")), entry.at("run", "images_seen"))
        arms.setdefault(key, []).append(entry)
    rows = []
    for (preset, images), members in arms.items():
        if len({entry.at("run", "seed") for entry in members}) > 1:
            cells = [_mean_sd(members, path, digits) for path, digits in SCORES.values()]
            rows.append([preset, number(images, 0), str(len(members)), *cells])
    if not rows:
        return ""
    title = "Mean ± standard deviation over seeds:\n\n"
    return title + table(["preset", "images", "seeds", *SCORES], rows)


def _mean_sd(members: list[Entry], path: tuple[str, ...], digits: int) -> str:
    values = [entry.at(*path) for entry in members]
    if not all(isinstance(value, int | float) for value in values):
        return MISSING
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def verdict(group: list[Entry]) -> str:
    """What the probes can and cannot say, in so many words."""
    best = {name: source.at("probe", entry, "auroc") for name, entry, source in baselines(group)}
    best = {name: value for name, value in best.items() if isinstance(value, float)}
    if not best:
        return ""
    top = max(best, key=lambda name: best[name])
    lines = [f"The best baseline is {top}, AUROC {best[top]:.3f}."]
    for entry in group:
        model = entry.at("probe", PRIMARY, "auroc")
        untrained = entry.at("probe", "random_init", "auroc")
        if not isinstance(model, float) or not isinstance(untrained, float):
            continue
        sign = "above" if model > best[top] else "not above"
        line = f"- {escape(entry.label)}: {model:.3f}, {sign} it; untrained {untrained:.3f}."
        if abs(model - untrained) < CLOSE_AUROC:
            line += (
                f" Within {CLOSE_AUROC} of untrained: this probe on this data cannot rank models."
            )
        lines.append(line)
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def readouts(group: list[Entry]) -> str:
    """AUROC of every readout and baseline of every run."""
    names = list(dict.fromkeys(name for entry in group for name in entry.results["probe"]))
    rows = []
    for name in names:
        probes = [entry.results["probe"].get(name, {}) for entry in group]
        size = number(next((p.get("dimensions") for p in probes if p), None), 0)
        cells = [f"{number(p.get('auroc'))} ({_power(p.get('C'))})" for p in probes]
        rows.append([escape(name), size, *cells])
    if not rows:
        return "No probes: see the notices."
    header = ["features", "numbers", *(escape(entry.label) for entry in group)]
    caption = "AUROC on test and, in brackets, the C that val selected; baselines at the end."
    return table(header, rows) + "\n\n" + caption


def _power(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else MISSING


def denoising(group: list[Entry]) -> str:
    """PSNR and SSIM by corruption kind: of the input, and of every run's output."""
    header = ["corruption", "input PSNR", "input SSIM"]
    header += [f"{escape(entry.label)} {score}" for entry in group for score in ("PSNR", "SSIM")]
    rows = []
    for kind in KINDS:
        at = ("reconstruction", "by_kind", kind)
        row = [number(group[0].at(*at, "input_psnr"), 2), number(group[0].at(*at, "input_ssim"))]
        for entry in group:
            row += [number(entry.at(*at, "psnr"), 2), number(entry.at(*at, "ssim"))]
        rows.append([KIND_TITLES[kind], *row])
    caption = (
        "Against the clean patch, in dB and SSIM; `input` is the corrupted patch itself, the same "
        "for every run with the same ranges."
    )
    return table(header, rows) + "\n\n" + caption


def by_element(group: list[Entry]) -> str:
    """The relative equivariance error by group element."""
    rows = [
        [element, *(number(e.at("equivariance", "by_element", element)) for e in group)]
        for element in ELEMENTS[1:]
    ]
    for name in ("D4", "C4"):
        mean = (number(entry.at("equivariance", "by_group", name)) for entry in group)
        rows.append([f"over {name}", *mean])
    return table(["element", *(escape(entry.label) for entry in group)], rows)


def environment(entries: list[Entry]) -> str:
    """What each evaluation ran on."""
    rows = []
    for entry in entries:
        packages = entry.at("environment", "packages")
        packages = packages if isinstance(packages, dict) else {}
        versions = ", ".join(f"{name} {version}" for name, version in packages.items())
        facts = [entry.at("environment", k) for k in ("device", "threads", "python", "commit")]
        dirty = " (modified)" if entry.at("environment", "dirty") else ""
        cells = [escape(facts[0]), escape(facts[1]), escape(facts[2]), escape(facts[3]) + dirty]
        seconds = number(entry.at("seconds"), 0)
        rows.append([escape(entry.label), *cells, escape(versions), seconds])
    header = ["run", "device", "threads", "python", "commit", "packages", "evaluation (s)"]
    return table(header, rows)
