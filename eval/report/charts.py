"""Which numbers of the runs are charted against which; `eval.report.svg` draws."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.figures import CURVES
from eval.measure.metrics import ELEMENTS
from eval.measure.readouts import PRIMARY
from eval.measure.scores import Condition
from eval.report.document import NOT_MEASURED, Chart, Part, Text
from eval.report.runs import ALL_LABELS, Arm, ComparedArms, Measure
from eval.report.svg import Axis, Point, Series, forest, plot
from eval.report.verdicts import CURVE, Headlines, arm_interval
from eval.results import RobustnessCurve
from eval.run import load_metrics
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import MARGIN, Contrast
from pipeline.corruptions import GRADED, trained

SPACING = 1.05  # factor between the points of arms at one budget
SHORT = ("90°", "180°", "270°", "mirror ↔", "transp.", "mirror ↕", "anti-tr.")  # elements
TEST_AUROC = Axis("macro AUROC on test")
KL = Axis("KL (nats per patch)")


def _chart(name: str, title: str, remark: str, svg: str) -> Part:
    """The chart, captioned by its title and a remark; words where nothing was measured."""
    return Chart(name, svg, title + remark) if svg else Text(f"{title}: {NOT_MEASURED}.")


def differences(contrasts: Sequence[tuple[str, Contrast]], slug: str) -> Part:
    """Every contrast with its interval; dashed: no difference, and the margin of H1."""
    rows = [(title, _point(contrast.difference)) for title, contrast in contrasts]
    axis = Axis("difference of AUROC", marks=(0.0, -MARGIN))
    title = "Differences between arms with 95 % intervals"
    remark = (
        f". Dashed: no difference, and {MARGIN} below it, the margin of non-inferiority. "
        f"{_resampled(contrast.difference for _, contrast in contrasts)}"
    )
    return _chart(f"{slug}-differences.svg", title, remark, forest(rows, axis, title))


def headlines(intervals: Headlines, slug: str) -> Part:
    """AUROC with all labels of every arm and baseline."""
    measured = {
        arm: cells[ALL_LABELS.name] for arm, cells in intervals.items() if ALL_LABELS.name in cells
    }
    rows = [(arm, _point(cell)) for arm, cell in measured.items()]
    title = "Linear probe with all labels: arms and baselines with 95 % intervals"
    axis = replace(TEST_AUROC, marks=(0.5,))
    remark = f". Dashed: chance. {_resampled(measured.values())}"
    return _chart(f"{slug}-auroc.svg", title, remark, forest(rows, axis, title))


def _resampled(intervals: Iterable[Interval]) -> str:
    words = sorted({interval.resampled for interval in intervals if interval.low is not None})
    return f"Resampled: {'; or '.join(words)}." if words else ""


def _point(interval: Interval, x: float = 0.0) -> Point:
    return Point(x, interval.estimate, interval.low, interval.high)


def labels(compared: ComparedArms, slug: str) -> Part:
    """AUROC against the number of labelled groups per class."""
    series = []
    intervals: list[Interval] = []
    for i, arm in enumerate(compared.arms.values()):
        run = next(iter(arm.runs.values()))
        counts = [
            (budget.groups_per_class, Measure(n, (Condition(PRIMARY, budget=n),)))
            for n, budget in run.budgets.items()
        ]
        if "train" in run.results.protocol.splits:
            classes = run.results.protocol.splits["train"].classes.values()
            counts.append(([c.groups for c in classes if c.groups], ALL_LABELS))
        spacing = SPACING ** (i - (len(compared.arms) - 1) / 2)
        points = []
        for groups, measure in counts:
            cell = arm_interval(compared, arm, measure, resampling=CURVE) if groups else None
            if cell is not None:
                intervals.append(cell)
                points.append(_point(cell, sum(groups) / len(groups) * spacing))
        series.append(Series(arm.name, sorted(points, key=lambda point: point.x), i))
    x = Axis("labelled groups per class (mean)", log=True)
    title = "Linear probe against labels"
    remark = (
        ": mean over seeds and draws of the labelled subset, bars are 95 % intervals "
        f"({CURVE.replicates:,} replicates). The last point has all labels; "
        f"arms are drawn side by side. {_resampled(intervals)}"
    )
    svg = plot(series, x, TEST_AUROC, title)
    return _chart(f"{slug}-labels.svg", title, remark, svg)


def robustness(arms: Sequence[Arm], slug: str) -> list[Part]:
    """A chart per corruption: AUROC against its severity, where 0 is clean."""
    charts: list[Part] = []
    for name, kind in GRADED.items():
        series = [Series(arm.name, _severities(arm, name), i) for i, arm in enumerate(arms)]
        levels = ", ".join(f"{level:g}" for level in kind.levels)
        training = "a milder range is trained" if trained(name) else "never trained"
        title = f"Robustness to {name}"
        x = Axis("severity", names=("clean", *(str(i + 1) for i in range(len(kind.levels)))))
        svg = plot(series, x, TEST_AUROC, title)
        remark = f" ({kind.unit}: {levels}; {training}): mean over seeds."
        charts.append(_chart(f"{slug}-robustness-{name}.svg", title, remark, svg))
    return charts


def _severities(arm: Arm, kind: str) -> list[Point]:
    """The mean AUROC over the runs of an arm, by severity."""
    aurocs: dict[int, list[float]] = {}
    for run in arm.runs.values():
        levels = run.robustness.kinds.get(kind, RobustnessCurve()).levels
        by_severity = {level.severity: level.auroc for level in levels}
        for severity, auroc in {0: run.robustness.clean, **by_severity}.items():
            if auroc is not None:
                aurocs.setdefault(severity, []).append(auroc)
    return [Point(severity, sum(values) / len(values)) for severity, values in aurocs.items()]


def rates(arms: Iterable[Arm], slug: str) -> list[Part]:
    """A point per run: its KL and its PSNR, then its KL and the AUROC of a probe of its code."""
    distortion, probe = [], []
    for i, arm in enumerate(arms):
        runs = arm.runs.values()
        distortion.append(_scatter(arm, i, [(r.latent.kl, r.reconstruction.psnr) for r in runs]))
        probe.append(_scatter(arm, i, [(r.latent.kl, r.probe().auroc) for r in runs]))
    psnr = Axis("PSNR of clean patches (dB)")
    title = "Rate and distortion"
    remark = (
        ": a point per run. Up and to the left is better; arms at different rates are not at "
        "equal conditions."
    )
    svg = plot(distortion, KL, psnr, title)
    rate_distortion = _chart(f"{slug}-rate-distortion.svg", title, remark, svg)
    title = "Rate and probe"
    remark = (
        ": a point per run. A term that lowers the rate is compared fairly where arms of other "
        "beta or lambda reach the same rate: look along the vertical."
    )
    svg = plot(probe, KL, TEST_AUROC, title)
    return [rate_distortion, _chart(f"{slug}-rate-probe.svg", title, remark, svg)]


def equivariance(arms: Sequence[Arm], slug: str) -> Part:
    """The relative error of every element of D4, a point per run."""
    series = []
    for i, arm in enumerate(arms):
        shift = 0.6 * ((i + 0.5) / len(arms) - 0.5)
        points = [
            (position + shift, run.equivariance.by_element.get(element))
            for run in arm.runs.values()
            for position, element in enumerate(ELEMENTS[1:])
        ]
        series.append(_scatter(arm, i, points))
    title = "Equivariance error of the code by group element"
    error = Axis("relative error", marks=(0.0, 1.0))
    svg = plot(series, Axis("", names=SHORT), error, title)
    remark = ": 0 exact, about 1 (dashed) unrelated."
    return _chart(f"{slug}-equivariance.svg", title, remark, svg)


def _scatter(arm: Arm, colour: int, values: Iterable[tuple[float | None, float | None]]) -> Series:
    points = [Point(x, y) for x, y in values if x is not None and y is not None]
    return Series(arm.name, points, colour, joined=False)


def training(arms: Iterable[Arm], slug: str) -> list[Part]:
    """Curves of training and validation against images seen, a line per run."""
    logs = [
        (i, arm.name, load_metrics(run.folder))
        for i, arm in enumerate(arms)
        for run in arm.runs.values()
    ]
    charts: list[Part] = []
    for kind, field, title in CURVES:
        series = []
        for colour, name, lines in logs:
            points = [
                Point(line.images / 1000, value)
                for line in lines
                if line.kind == kind and (value := getattr(line, field)) is not None
            ]
            series.append(Series(name, points, colour, marked=kind == "val"))
        svg = plot(series, Axis("images seen (thousands)"), Axis(title), title)
        remark = " against images seen; a line per run."
        charts.append(_chart(f"{slug}-{kind}-{field.replace('_', '-')}.svg", title, remark, svg))
    return charts
