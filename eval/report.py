"""Runs side by side: `python -m eval.report RUN... --out DIR` writes DIR/report.md and its figures.

Runs are compared only where they were evaluated on one data set: a section each. Names of runs
and classes are untrusted and escaped.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import tyro

from eval import comparisons, figures, tables
from eval import run as runs
from eval.markdown import code_block, escape
from eval.metrics import PSNR_CAP
from eval.tables import Entry
from pipeline.corrupt import KINDS
from shards.command import run_command
from shards.schema import DataError

REPORT = "report.md"
MAX_PNG_BYTES = 32 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PICTURES = {
    "reconstructions": "Clean patches, what the encoder sees, and what it reconstructs, three "
    "patches a corruption kind; PSNR to the clean patch below.",
    "orbit": "A patch moved by every element of the group. Second row: the moved patch encoded and "
    "decoded. Third row: the code of the unmoved patch moved, then decoded. Fourth row: their "
    "difference, 0 for an equivariant model.",
    "embedding": "The first two principal components of the embeddings of the test split.",
}


def write_report(run_folders: Iterable[Path], out: Path) -> Path:
    """Write OUT/report.md and OUT/figures; the path of the report.

    Raises:
        DataError: no run, or one that was not evaluated or whose results cannot be read.
    """
    entries = _load([Path(folder) for folder in run_folders])
    if not entries:
        raise DataError("no run to report: name one or more run folders")
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(str(entry.at("data", "hash")), []).append(entry)
    parts = ["# Evaluation report", _introduction(entries, groups)]
    for i, (name, group) in enumerate(groups.items()):
        parts += _section(name, group, Path(out), f"data{i}")
    parts += ["## How the numbers are made", _protocol(), "## To reproduce", _commands(entries)]
    parts += ["## Environment", tables.environment(entries)]
    path = Path(out) / REPORT
    with runs.whole_file(path) as temp:
        temp.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _load(folders: list[Path]) -> list[Entry]:
    entries: list[Entry] = []
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        results = runs.load_results(folder)
        if not _readable(results):
            raise DataError(
                f"{folder / runs.RESULTS} was not written by this version: "
                f"evaluate again with: python -m eval.main {folder}"
            )
        taken = {entry.label for entry in entries}
        label = folder.name if folder.name not in taken else f"{folder.parent.name}/{folder.name}"
        slug = re.sub(r"[^a-z0-9-]+", "-", label.lower()).strip("-")[:40]
        entries.append(Entry(folder, label, f"{len(entries)}-{slug}", results))
    return entries


def _readable(results: dict[str, Any]) -> bool:
    """Whether the parts that are walked are the objects they should be."""
    entry = Entry(Path(), "", "", results)
    probes, kinds = entry.at("probe"), entry.at("reconstruction", "by_kind")
    splits = entry.at("protocol", "splits")
    return (
        isinstance(splits, dict)
        and all(isinstance(split, dict) for split in splits.values())
        and all(isinstance(split.get("classes"), dict) for split in splits.values())
        and isinstance(probes, dict)
        and all(isinstance(found, dict) for found in probes.values())
        and isinstance(kinds, dict)
        and all(isinstance(kinds.get(kind), dict) for kind in KINDS)
        and isinstance(entry.at("equivariance", "by_element"), dict)
    )


def _introduction(entries: list[Entry], groups: dict[str, list[Entry]]) -> str:
    many = f" on {len(groups)} data sets, compared only within one" if len(groups) > 1 else ""
    return (
        f"{len(entries)} run{'s' * (len(entries) > 1)}{many}. Scores are of the test split, of the "
        f"posterior mean (384 numbers) of the EMA weights. Every number is one fit on one split: "
        "differences between runs carry no interval here, and between single seeds they settle "
        "nothing."
    )


def _section(name: str, group: list[Entry], out: Path, slug: str) -> list[str]:
    """One data set: its composition, the tables, and the pictures."""
    root = Path(str(group[0].at("data", "root"))).name
    return [
        f"## Data set {escape(root)}, {escape(name)}",
        tables.composition(group[0]),
        "### Summary",
        tables.summary(group),
        tables.over_seeds(group),
        tables.verdict(group),
        *_comparison_pictures(group, out, slug),
        "### Readouts",
        tables.readouts(group),
        "### Denoising",
        tables.denoising(group),
        "### Equivariance by group element",
        tables.by_element(group),
        "### Pictures",
        *(_pictures(entry, out) for entry in group),
        _notices(group),
    ]


def _comparison_pictures(group: list[Entry], out: Path, slug: str) -> list[str]:
    named = {entry.label: entry.results for entry in group}
    logs = {entry.label: log for entry in group if (log := runs.load_metrics(entry.folder))}
    folder, parts = out / "figures", []
    if any(results["probe"] for results in named.values()):
        found = {n: source.at("probe", e, "auroc") for n, e, source in tables.baselines(group)}
        baselines = {name.replace("\\", ""): value for name, value in found.items()}
        comparisons.probes(named, baselines, folder / f"{slug}-probes.png")
        parts.append(_picture(f"{slug}-probes.png", "Linear probes on test, by readout."))
    comparisons.denoising(named, folder / f"{slug}-denoising.png")
    parts.append(_picture(f"{slug}-denoising.png", "PSNR to the clean patch by corruption kind."))
    comparisons.equivariance(named, folder / f"{slug}-equivariance.png")
    parts.append(_picture(f"{slug}-equivariance.png", "Relative equivariance error by element."))
    if logs:
        figures.curves(logs, folder / f"{slug}-curves.png")
        parts.append(_picture(f"{slug}-curves.png", "Training against images seen."))
    return parts


def _pictures(entry: Entry, out: Path) -> str:
    parts = [f"#### {escape(entry.label)}"]
    for name, caption in PICTURES.items():
        source = entry.folder / "figures" / f"{name}.png"
        if not _is_png(source):
            continue
        target = f"{entry.slug}-{name}.png"
        with runs.whole_file(out / "figures" / target) as temp:
            shutil.copyfile(source, temp)
        parts.append(_picture(target, caption))
    return "\n\n".join(parts) if len(parts) > 1 else f"{parts[0]}\n\nNo figures were drawn."


def _is_png(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PNG_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(8) == PNG_SIGNATURE


def _picture(name: str, caption: str) -> str:
    return f"![{Path(name).stem}](figures/{name})\n\n*{caption}*"


def _notices(group: list[Entry]) -> str:
    lines = [
        f"- {escape(entry.label)}: {escape(text)}"
        for entry in group
        for text in entry.at("notices") or []
    ]
    return "### Notices\n\n" + "\n".join(lines) if lines else ""


def _protocol() -> str:
    return (
        f"PSNR and SSIM are computed per patch and averaged, data range 1, PSNR capped at "
        f"{PSNR_CAP:.0f} dB. Corruptions are drawn once per patch from a fixed seed, so every run "
        "sees the same. The equivariance error is sqrt(E‖μ(gx) − ρ(g)μ(x)‖² / (2 E‖μ − E μ‖²)), "
        "over g ≠ e and the first 2048 patches; shrinking the code does not lower it. Probes are "
        "standardised logistic regression fitted on train, with C selected on val and test scored "
        "once. Baselines are features without training (PCA is fitted on train). Patches of one "
        "patient or slide may be in two splits where the data do not name them."
    )


def _commands(entries: list[Entry]) -> str:
    lines = []
    for entry in entries:
        seed, images = entry.at("run", "seed"), entry.at("run", "images_seen")
        words = ["accelerate", "launch", "train/main.py", str(entry.at("run", "preset"))]
        words += ["--data", str(entry.at("data", "root")), "--seed", str(seed)]
        words += ["--images", str(images), "--out", str(entry.folder)]
        lines.append(shlex.join(words))
        lines.append(shlex.join(["python", "-m", "eval.main", str(entry.folder)]))
    note = "Options beyond these are in each run's config.json."
    return code_block("\n".join(lines)) + "\n\n" + note


_Runs = Annotated[list[Path], tyro.conf.arg(metavar="RUN...", help="folders of evaluated runs")]


def _command(run_folders: tyro.conf.Positional[_Runs], out: Path) -> Callable[[], None]:
    """Compare evaluated runs in one report."""
    return lambda: print(write_report(run_folders, out))


def main() -> int:
    return run_command("eval.report", _command)


if __name__ == "__main__":
    sys.exit(main())
