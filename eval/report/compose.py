"""Composes the document of a report.

For every data set: what was compared, in one sentence, then pictures, scores, differences and,
folded, what they rest on. What was not measured is told once, at the end.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eval.measure.metrics import PSNR_CAP
from eval.report import charts, efficiency, pictures, ranking, tables, verdicts
from eval.report.arms import ComparedArms, compare_runs
from eval.report.atlas import atlas
from eval.report.document import (
    Bullets,
    Code,
    Document,
    Missing,
    Part,
    Section,
    Table,
    Text,
    Verdict,
    number,
    shown,
)
from eval.report.efficiency import Efficiency
from eval.report.runs import EvaluatedRun, baselines, by_data_set, first_of_each, near
from eval.report.verdicts import Headlines
from eval.results import SplitCounts

MOST_NAMED = 8  # models that the summary names
PROTOCOL = (
    f"PSNR and SSIM are computed per patch and averaged, data range 1, PSNR capped at "
    f"{PSNR_CAP:.0f} dB. Corruptions are drawn once per patch from a fixed seed, so every run "
    "sees the same. The equivariance error is sqrt(E‖μ(gx) − ρ(g)μ(x)‖² / (2 E‖μ − E μ‖²)), "
    "over g ≠ e and the first 2048 patches; shrinking the code does not lower it. Probes are "
    "standardised logistic regression fitted on train, with C selected on val and test scored "
    "once. Baselines are features without training (PCA is fitted on train). Intervals "
    "resample whole groups within class, crossed with the effect of seeds; a class with fewer "
    "than 10 groups gives none. Patches of one patient or slide may be in two splits where "
    "the data do not name them. Pictures and the map are of the first seed of every preset."
)
NOTE = (
    "A run's config.json holds every setting, and where its data set lay. For an unchanged preset, "
    "train/main.py PRESET --data DIR --seed S --images N does the same."
)


def compose(
    runs: Sequence[EvaluatedRun],
    transfers: Iterable[Section] = (),
    measured: Efficiency | None = None,
    options: Sequence[str] = (),
) -> Document:
    """The content of the report, whatever the format.

    Args:
        transfers: sections on transfers to other sites.
        measured: size and speed of the models.
        options: the options of this report's command, beside the runs.
    """
    compared = [compare_runs(group) for group in by_data_set(runs)]
    single = len(compared) == 1
    sections: list[Section] = []
    judged: list[Verdict] = []
    for i, arms in enumerate(compared):
        if not single:
            sections.append(Section(2, title(arms), [Text(summary(arms))]))
        planned, estimates, lacking = verdicts.planned(arms)
        judged += planned
        table, exploratory = verdicts.exploratory(arms)
        intervals = verdicts.intervals(arms, baselines(arms.runs))
        ranked = [*ranking.against_untrained(arms), *ranking.against_baseline(arms, intervals)]
        rows = [*estimates, *ranked, *exploratory]
        gaps = ranking.gaps(arms, baselines(arms.runs))
        absent = tables.absent_classes(arms.runs)
        differences = [*absent, charts.differences(rows, f"data{i}")] if rows else []
        if arms.dropped:
            differences += [Text("Left out of the differences:"), Bullets(arms.dropped)]
        scores = [*absent, charts.scores(arms, intervals, f"data{i}")]
        parts: dict[str, list[Part]] = {
            "Pictures": pictures.side_by_side(arms, f"data{i}"),
            "Scores on test": [*scores, Bullets(gaps)] if gaps else scores,
            "Differences": [*differences, *lacking],
        }
        details = _details(arms, intervals, table, parts["Pictures"], f"data{i}", measured)
        level = 2 if single else 3
        sections += [Section(level, name, content) for name, content in parts.items()]
        sections += [Section(level, name, content, True) for name, content in details.items()]
    sections += [replace(section, folded=True) for section in transfers]
    sections += [
        Section(2, "How the numbers are made", [Text(PROTOCOL)], folded=True),
        Section(2, "To reproduce", [Code(_commands(runs, options)), Text(NOTE)], folded=True),
        Section(2, "Environment", [tables.environment(runs)], folded=True),
    ]
    lead = f"{len(runs)} runs on {len(compared)} data sets, compared only within one."
    if single:
        lead = summary(compared[0])
    return Document("Evaluation report", lead, _missing_last(sections, runs), judged)


def title(compared: ComparedArms) -> str:
    """The data set by its folder and hash."""
    run = compared.runs[0]
    return f"Data set {_folder(compared)}, {shown(run.results.data.hash)}"


def _folder(compared: ComparedArms) -> str:
    run = compared.runs[0]
    return shown("/".join(run.root.parts[-2:]))  # many folders are called shards


def summary(compared: ComparedArms) -> str:
    """The models with their seeds and training, and the test patches of the data set."""
    arms = list(compared.arms.values())
    run = arms[0].first
    names = []
    for arm in arms[:MOST_NAMED]:
        ceiling = "ceiling trained on labels" if arm.kind == "ceiling" else ""
        seeds = f"{len(arm.runs)} seeds" if len(arm.runs) > 1 else ""
        remarks = ", ".join(filter(None, (ceiling, seeds)))
        names.append(f"{arm.name} ({remarks})" if remarks else arm.name)
    if len(arms) > MOST_NAMED:
        names.append(f"{len(arms) - MOST_NAMED} more models")
    images = {arm.images for arm in arms if arm.images is not None}
    training = f", trained on {number(max(images), 0)} images each," if len(images) == 1 else ""
    if len(arms) == 1:
        training = training.replace(" each", "")
    protocol = run.results.protocol
    split = protocol.metrics_split or "test"
    counts = protocol.splits.get(split, SplitCounts())
    what = _folder(compared)
    if counts.patches is not None:
        what += f": {number(counts.patches, 0)} {shown(split)} patches"
        if counts.groups is not None:
            what += f" of {number(counts.groups, 0)} group{'s' * (counts.groups != 1)}"
    classes = [shown(name) for name in protocol.classes or []]
    if classes:
        what += f", in {len(classes)} classes ({_listed(classes)})"
    return f"{_listed(names)}{training} on {what}."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _details(
    compared: ComparedArms,
    intervals: Headlines,
    exploratory: Table | None,
    shown_above: Sequence[Part],
    slug: str,
    measured: Efficiency | None,
) -> dict[str, Sequence[Part]]:
    """What the first sections rest on, by title; without the pictures `shown_above`."""
    arms, runs = list(compared.arms.values()), compared.runs
    absent = tables.absent_classes(runs)
    scores = [
        *absent,
        tables.headlines(intervals),
        *tables.over_seeds(arms),
        tables.summary(runs),
        tables.readouts(arms),
        tables.other_probes(arms),
        *([] if exploratory is None else [exploratory]),
    ]
    labels_and_corruption = [
        *absent,
        charts.labels(compared, slug),
        *tables.budgets(arms),
        *charts.robustness(arms, slug),
        *tables.robustness(arms),
    ]
    metrics = [
        *absent,
        *charts.rates(arms, slug),
        charts.equivariance(arms, slug),
        tables.denoising(arms),
        tables.by_element(arms),
        *tables.by_readout(arms),
    ]
    pictured = first_of_each(runs)
    embeddings = atlas(pictured, f"{slug}-map")
    contents: dict[str, Sequence[Part]] = {
        "Map of the embeddings": [] if embeddings is None else [embeddings],
        "Tables of scores": scores,
        "Labels and corruption": labels_and_corruption,
        "Reconstruction, rate and equivariance": metrics,
        "Training": charts.training(arms, slug),
        "Efficiency": efficiency.parts(arms, measured),
        "Data, and what to beware of": [tables.composition(runs[0]), _notices(runs)],
    }
    for run in pictured:
        figures = [figure for figure in pictures.figures(run) if figure not in shown_above]
        contents[f"Figures of {run.label}"] = figures
    return {title: parts for title, parts in contents.items() if parts}


def _missing_last(sections: Iterable[Section], runs: Sequence[EvaluatedRun]) -> list[Section]:
    """The sections without what is missing: it is told in one at the end, a line per command."""
    full: list[Section] = []
    by_command: dict[str, list[str]] = {}
    for section in sections:
        for part in section.parts:
            if isinstance(part, Missing):
                by_command.setdefault(part.command, []).append(part.what)
        parts = [part for part in section.parts if not isinstance(part, Missing)]
        if parts:
            full.append(replace(section, parts=parts))
    if by_command:
        evaluate = shlex.join(["python", "-m", "eval.main", near(runs[0].folder)])
        lines = [
            Missing(", ".join(dict.fromkeys(what)), command or evaluate)
            for command, what in by_command.items()
        ]
        full.append(Section(2, "Not measured", lines))
    return full


def _notices(runs: Sequence[EvaluatedRun]) -> Part:
    """Notices of the evaluations: leaks between splits, subsets, missing parts."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        for notice in run.results.notices:
            labels.setdefault(shown(notice), []).append(run.label)
    if not labels:
        return Text("The evaluations gave no notice.")
    return Bullets(
        [
            notice if len(names) == len(runs) else f"{', '.join(names)}: {notice}"
            for notice, names in labels.items()
        ]
    )


def _commands(runs: Iterable[EvaluatedRun], options: Sequence[str]) -> str:
    """The commands that repeat every run beside it, or its scores of embeddings, and the report."""
    commands: list[list[str]] = []
    for run in runs:
        data, again = near(run.root), f"{near(run.folder)}-again"
        external = run.results.external
        if external is not None:
            name = ["--name", run.preset, "--seed", str(run.seed)]
            features = near(Path(external.features))
            commands.append(
                ["python", "-m", "eval.external", features, "--data", data, *name, "--out", again]
            )
            continue
        config = f"{near(run.folder)}/config.json"
        commands += [
            ["accelerate", "launch", "train/main.py", config, "--out", again],
            ["python", "-m", "eval.main", again, "--data", data],
        ]
    folders = [near(run.folder) for run in runs]
    commands.append(["python", "-m", "eval.report", *folders, *options, "--out", "report"])
    return "\n".join(map(shlex.join, commands))
