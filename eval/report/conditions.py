"""Tables of the probe in other conditions: few labels, corrupted patches."""

from collections.abc import Iterable

from eval.measure.readouts import PRIMARY
from eval.report.arms import Arm
from eval.report.document import MISSING, Part, Table, mean_sd, number, shown
from eval.report.tables import column, mean_of
from pipeline.corruptions import GRADED, CorruptionConfig, extents

SEVERITY_SCORES = (("auroc", 3), ("psnr", 2))


def budgets(arms: Iterable[Arm]) -> list[Part]:
    """AUROC with few labels, and how few they were."""
    arms = list(arms)
    runs = [run for arm in arms for run in arm.runs.values()]
    found = {name: about for run in runs for name, about in run.section("budgets", PRIMARY).items()}
    rows = []
    for name, about in found.items():
        counts = about.get("groups_per_class")
        groups = ", ".join(str(count) for count in counts) if isinstance(counts, list) else MISSING
        patches = about.get("patches")
        ends = [
            number(patches.get(end) if isinstance(patches, dict) else None, 0)
            for end in ("min", "max")
        ]
        facts = [shown(groups), f"{ends[0]} to {ends[1]}", number(about.get("draws"), 0)]
        cells = [mean_of(arm, ("budgets", PRIMARY, name, "auroc")) for arm in arms]
        rows.append([shown(name), *facts, *cells])
    header = ["labels of", "groups a class", "patches", "draws", *map(column, arms)]
    caption = "AUROC on test, mean over draws of the labelled groups, then over seeds."
    return [Table("Few labels", header, rows, caption)] if rows else []


def robustness(arms: Iterable[Arm]) -> list[Part]:
    """AUROC of every severity, and PSNR of the reconstruction to the clean patch."""
    arms = [arm for arm in arms if any(run.section("robustness") for run in arm.runs.values())]
    rows = []
    for kind, about in GRADED.items():
        for i, level in enumerate(about.levels):
            cells = [_severity(arm, kind, i, *score) for arm in arms for score in SEVERITY_SCORES]
            rows.append([f"{kind} {i + 1}", f"{level:g}", *cells])
    area = [mean_of(arm, ("robustness", "area")) for arm in arms]
    rows.append(["area", "", *(cell for one in area for cell in (one, ""))])
    header = [
        "corruption",
        "level",
        *(f"{column(a)} {s}" for a in arms for s in ("AUROC", "PSNR")),
    ]
    *first, last = extents(CorruptionConfig())
    caption = (
        "The probe was fitted on clean patches. PSNR (dB) of the reconstruction to the clean "
        "patch, on 512 patches. The area is the mean AUROC of all rows. The default corruption "
        f"trains {', '.join(first)} and {last}: milder rows are not beyond it."
    )
    return [Table("Robustness by severity", header, rows, caption)] if arms else []


def _severity(arm: Arm, kind: str, i: int, score: str, digits: int) -> str:
    levels = [run.at("robustness", "kinds", kind, "levels") for run in arm.runs.values()]
    rows = [found[i] for found in levels if isinstance(found, list) and len(found) > i]
    return mean_sd((row.get(score) for row in rows if isinstance(row, dict)), digits)
