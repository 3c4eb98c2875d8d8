"""Which numbers of the runs are charted against which; `eval.report.svg` draws."""

from collections.abc import Iterable, Sequence

from eval.drawing.figures import CURVES
from eval.measure.metrics import ELEMENTS
from eval.measure.readouts import PRIMARY
from eval.measure.scores import Condition
from eval.report.arms import ALL_LABELS, Arm, ComparedArms, Measure
from eval.report.document import Chart, Estimate, Forest, Kind, Missing, Part, shown
from eval.report.svg import Axis, Point, Series, plot
from eval.report.verdicts import CURVE, Headlines, arm_interval
from eval.results import RobustnessCurve
from eval.run import load_metrics
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import MARGIN
from pipeline.corruptions import GRADED, trained

SPACING = 1.05  # factor between the points of arms at one budget
SHORT = ("90°", "180°", "270°", "mirror ↔", "transp.", "mirror ↕", "anti-tr.")  # elements
TEST_AUROC = Axis("macro AUROC on test")
KL = Axis("KL (nats per patch)")
EVALUATE = ""  # the command of `Missing`: eval.main of a run
MOST = 24  # rows of the chart of scores, before readouts other than the primary one are left out


def _chart(name: str, title: str, remark: str, svg: str) -> Part:
    """The chart with a caption; what is missing where nothing was measured."""
    return Chart(name, svg, title, remark) if svg else Missing(title, EVALUATE)


def differences(rows: Sequence[Estimate], slug: str) -> Forest:
    """Every contrast with its interval, no difference, and the margin of H1."""
    caption = (
        "Macro AUROC of the linear probe on test, the first minus the second, paired: the same "
        "groups and seeds in both. The margin is that of non-inferiority, half a point of AUROC."
    )
    marks = {0.0: "no difference", -MARGIN: f"margin of non-inferiority, -{MARGIN}"}
    return Forest(
        f"{slug}-differences.svg",
        "Differences of AUROC with 95 % intervals",
        "difference of macro AUROC",
        rows,
        marks,
        caption,
        signed=True,
    )


def scores(compared: ComparedArms, intervals: Headlines, slug: str) -> Part:
    """AUROC with all labels of every arm, readout and baseline, the highest first."""
    measured = {
        name: cells[ALL_LABELS.name]
        for name, cells in intervals.items()
        if ALL_LABELS.name in cells
    }
    kinds: dict[str, Kind] = {arm.name: arm.kind for arm in compared.arms.values()}
    readouts = _readouts(compared)
    if len(measured) + len(readouts) <= MOST:
        measured |= readouts
        kinds |= {name: kinds[name.rpartition(", ")[0]] for name in readouts}
    rows = [
        Estimate(
            name.removeprefix("baseline "),
            cell.estimate,
            cell.ends,
            kinds.get(name, "baseline"),
        )
        for name, cell in measured.items()
    ]
    title = "Linear probe with all labels: macro AUROC on test, with 95 % intervals"
    if not rows:
        return Missing(title, EVALUATE)
    caption = (
        "A standardised logistic regression per row, fitted on train, selected on val, tested "
        "once; mean over seeds. Intervals of two rows may overlap where their paired difference is "
        f"clear. {_resampled(measured.values())}"
    )
    rows.sort(key=lambda row: -row.value)
    return Forest(f"{slug}-auroc.svg", title, "macro AUROC on test", rows, {0.5: "chance"}, caption)


def _readouts(compared: ComparedArms) -> dict[str, Interval]:
    """The intervals of all readouts but the primary one, by arm and readout."""
    cells = {}
    for arm in compared.arms.values():
        first = arm.first
        for name in first.results.probe:
            if name == PRIMARY or first.is_baseline(name):
                continue
            cell = arm_interval(compared, arm, ALL_LABELS, features=name)
            if cell is not None:
                cells[f"{arm.name}, {shown(name)}"] = cell
    return cells


def _resampled(intervals: Iterable[Interval]) -> str:
    words = sorted({interval.resampled for interval in intervals if interval.low is not None})
    return f"Resampled: {'; or '.join(words)}." if words else ""


def labels(compared: ComparedArms, slug: str) -> Part:
    """AUROC against the number of labelled groups per class."""
    series = []
    intervals: list[Interval] = []
    for i, arm in enumerate(compared.arms.values()):
        run = arm.first
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
            cell = arm_interval(compared, arm, measure, replicates=CURVE) if groups else None
            if cell is not None:
                intervals.append(cell)
                mean = sum(groups) / len(groups)
                points.append(Point(mean * spacing, cell.estimate, cell.ends))
        series.append(Series(arm.name, sorted(points, key=lambda point: point.x), i))
    x = Axis("labelled groups per class (mean)", log=True)
    title = "Linear probe against labels"
    remark = (
        "Mean over seeds and draws of the labelled subset, bars are 95 % intervals "
        f"({CURVE:,} replicates). The last point has all labels; "
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
        remark = f"Mean over seeds. {kind.unit}: {levels}; {training}."
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
        "A point per run. Up and to the left is better; arms at different rates are not at "
        "equal conditions."
    )
    svg = plot(distortion, KL, psnr, title)
    rate_distortion = _chart(f"{slug}-rate-distortion.svg", title, remark, svg)
    title = "Rate and probe"
    remark = (
        "A point per run. A term that lowers the rate is compared fairly where arms of other "
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
    remark = "0 exact, about 1 (dashed) unrelated."
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
        remark = "Against images seen; a line per run."
        charts.append(_chart(f"{slug}-{kind}-{field.replace('_', '-')}.svg", title, remark, svg))
    return charts
