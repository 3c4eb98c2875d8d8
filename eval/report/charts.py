"""The charts of a report: which numbers of the runs stand against which."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval import run as runs
from eval.measure.metrics import ELEMENTS
from eval.measure.readouts import PRIMARY
from eval.report import arms as of_runs
from eval.report import svg as charts
from eval.report.arms import Arm, Compared
from eval.report.document import Chart
from eval.report.runs import Entry
from eval.report.svg import Axis, Point, Series
from eval.report.verdicts import ALL_LABELS, CURVE, of_arm
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import MARGIN, Contrast
from pipeline.corruptions import GRADED, trained

Headlines = Mapping[str, Mapping[str, Interval]]
BESIDE = 1.05  # factor between arms of one budget
SHORT = ("90°", "180°", "270°", "mirror ↔", "transp.", "mirror ↕", "anti-tr.")  # elements
CURVES = (  # kind of line, field, title with unit
    ("train", "loss", "Training loss (nats per value)"),
    ("val", "psnr", "Validation PSNR (dB)"),
    ("val", "kl", "Validation KL (nats per patch)"),
    ("val", "equivariance_error", "Relative equivariance error"),
)


def differences(found: Sequence[tuple[str, Contrast]], name: str) -> Chart:
    """Every contrast with its interval; dashed: no difference, and the margin of H1."""
    rows = [(title, _point(contrast.difference)) for title, contrast in found]
    axis = Axis("difference of AUROC", marks=(0.0, -MARGIN))
    title = "Differences between arms with 95 % intervals"
    caption = (
        f"{title}. Dashed: no difference, and {MARGIN} below it, the margin of non-inferiority. "
        f"{resampled(contrast.difference for _, contrast in found)}"
    )
    return Chart(name, title, charts.forest(rows, axis, title), caption)


def headlines(found: Headlines, name: str) -> Chart:
    """AUROC with all labels of every arm and baseline."""
    measured = {arm: cells[ALL_LABELS.name] for arm, cells in found.items()
                if ALL_LABELS.name in cells}  # fmt: skip
    rows = [(arm, _point(cell)) for arm, cell in measured.items()]
    title = "Linear probe with all labels: arms and baselines with 95 % intervals"
    axis = Axis("macro AUROC on test", marks=(0.5,))
    caption = f"{title}. Dashed: chance. {resampled(measured.values())}"
    return Chart(name, title, charts.forest(rows, axis, title), caption)


def resampled(found: Iterable[Interval]) -> str:
    """What the intervals of a chart resample."""
    words = sorted({interval.resampled for interval in found if interval.low is not None})
    return f"Resampled: {'; or '.join(words)}." if words else ""


def _point(found: Interval, x: float = 0.0) -> Point:
    return Point(x, found.estimate, found.low, found.high)


def labels(compared: Compared, name: str) -> Chart:
    """AUROC against how many groups a class are labelled."""
    series, cells = [], list[Interval]()
    for i, arm in enumerate(compared.arms.values()):
        apart = BESIDE ** (i - (len(compared.arms) - 1) / 2)
        found = [*_budgets(compared, arm), *_all_labels(compared, arm)]
        cells += [cell for _, cell in found]
        points = [_point(cell, x * apart) for x, cell in found]
        series.append(Series(arm.name, sorted(points, key=lambda p: p.x), i))
    x = Axis("labelled groups a class (mean)", log=True)
    title = "Linear probe against labels"
    caption = (
        f"{title}: mean over seeds and draws of the labelled subset, bars are 95 % intervals "
        f"({CURVE.replicates:,} replicates). The last point has all labels; "
        f"arms are drawn side by side. {resampled(cells)}"
    )
    return Chart(name, title, charts.plot(series, x, Axis("macro AUROC on test"), title), caption)


def _budgets(compared: Compared, arm: Arm) -> Iterable[tuple[float, Interval]]:
    first = next(iter(arm.runs.values()))
    for budget, found in first.section("budgets", PRIMARY).items():
        cell = of_arm(compared, arm, of_runs.budget(budget), plan=CURVE)
        counts = found.get("groups_per_class")
        if cell is not None and isinstance(counts, list) and counts:
            yield sum(counts) / len(counts), cell


def _all_labels(compared: Compared, arm: Arm) -> Iterable[tuple[float, Interval]]:
    first = next(iter(arm.runs.values()))
    classes = first.section("protocol", "splits", "train", "classes").values()
    counts = [count for found in classes if isinstance(count := found.get("groups"), int) and count]
    cell = of_arm(compared, arm, ALL_LABELS.pick, plan=CURVE)
    if counts and cell is not None:
        yield sum(counts) / len(counts), cell


def robustness(arms: Iterable[Arm], slug: str) -> list[Chart]:
    """A chart a corruption: AUROC against its severity, 0 is clean."""
    found, arms = [], list(arms)
    for kind, about in GRADED.items():
        series = [
            Series(arm.name, _severities(arm, kind), i) for i, arm in enumerate(arms)
        ]  # fmt: skip
        levels = ", ".join(f"{level:g}" for level in about.levels)
        training = "a milder range is trained" if trained(kind) else "never trained"
        title = f"Robustness to {kind}"
        x = Axis("severity", names=("clean", *(str(i + 1) for i in range(len(about.levels)))))
        svg = charts.plot(series, x, Axis("macro AUROC on test"), title)
        caption = f"{title} ({about.unit}: {levels}; {training}): mean over seeds."
        found.append(Chart(f"{slug}-robustness-{kind}.svg", title, svg, caption))
    return found


def _severities(arm: Arm, kind: str) -> list[Point]:
    values: dict[int, list[float]] = {}
    for run in arm.runs.values():
        rows = run.at("robustness", "kinds", kind, "levels")
        clean = {"severity": 0, "auroc": run.at("robustness", "clean")}
        for row in [clean, *(rows if isinstance(rows, list) else [])]:
            if isinstance(row, dict) and isinstance(row.get("auroc"), float):
                values.setdefault(int(row["severity"]), []).append(row["auroc"])
    return [Point(severity, sum(v) / len(v)) for severity, v in values.items()]


def rate_distortion(arms: Iterable[Arm], name: str) -> Chart:
    """A point a run: the KL it spends and the PSNR it gets."""
    series = [
        Series(arm.name, [Point(_of(run, "latent", "kl"), _of(run, "reconstruction", "psnr"))
                          for run in arm.runs.values()], i, joined=False)
        for i, arm in enumerate(arms)
    ]  # fmt: skip
    title = "Rate and distortion"
    svg = charts.plot(
        series, Axis("KL (nats per patch)"), Axis("PSNR of clean patches (dB)"), title
    )
    caption = (
        f"{title}: a point a run. Up and to the left is better; arms at different rates are not "
        "at equal conditions."
    )
    return Chart(name, title, svg, caption)


def rate_and_probe(arms: Iterable[Arm], name: str) -> Chart:
    """A point a run: the KL it spends and what a probe reads off its code."""
    series = [
        Series(arm.name, [Point(_of(run, "latent", "kl"), _of(run, "probe", PRIMARY, "auroc"))
                          for run in arm.runs.values()], i, joined=False)
        for i, arm in enumerate(arms)
    ]  # fmt: skip
    title = "Rate and probe"
    svg = charts.plot(series, Axis("KL (nats per patch)"), Axis("macro AUROC on test"), title)
    caption = (
        f"{title}: a point a run. A term that lowers the rate is compared fairly where arms of "
        "other beta or lambda reach the same rate: look along the vertical."
    )
    return Chart(name, title, svg, caption)


def equivariance(arms: Iterable[Arm], name: str) -> Chart:
    """The relative error of every element of D4, a point a run."""
    arms, elements, series = list(arms), ELEMENTS[1:], []
    for i, arm in enumerate(arms):
        shift = 0.6 * ((i + 0.5) / len(arms) - 0.5)
        points = [
            Point(j + shift, _of(run, "equivariance", "by_element", element))
            for run in arm.runs.values()
            for j, element in enumerate(elements)
        ]
        series.append(Series(arm.name, points, i, joined=False))
    title = "Equivariance error of the code by group element"
    svg = charts.plot(
        series, Axis("", names=SHORT), Axis("relative error", marks=(0.0, 1.0)), title
    )
    return Chart(name, title, svg, f"{title}: 0 exact, about 1 (dashed) unrelated.")


def training(arms: Iterable[Arm], slug: str) -> list[Chart]:
    """Curves of training and validation against images seen, a line a run."""
    logs = [
        (i, arm.name, runs.load_metrics(run.folder))
        for i, arm in enumerate(arms)
        for run in arm.runs.values()
    ]
    found = []
    for kind, field, title in CURVES:
        series = [
            Series(name, _logged(rows, kind, field), i, marked=kind == "val")
            for i, name, rows in logs
        ]
        svg = charts.plot(series, Axis("images seen (thousands)"), Axis(title), title)
        caption = f"{title} against images seen; a line a run."
        found.append(Chart(f"{slug}-{kind}-{field.replace('_', '-')}.svg", title, svg, caption))
    return found


def _logged(rows: Iterable[Mapping[str, Any]], kind: str, field: str) -> list[Point]:
    return [
        Point(row["images"] / 1000, row[field])
        for row in rows
        if row.get("kind") == kind and isinstance(row.get(field), int | float)
    ]


def _of(run: Entry, *path: str) -> float:
    value = run.at(*path)
    return float(value) if isinstance(value, int | float) else float("nan")
