"""Composes the document of a report.

For every data set: what was compared, pictures, scores, differences; then, folded, what they rest
on. What was not measured is told once, at the end.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eval.measure.metrics import PSNR_CAP
from eval.report import charts, efficiency, ranking, strips, summary, tables, verdicts
from eval.report.atlas import atlas
from eval.report.document import (
    Bullets,
    Code,
    Document,
    Estimate,
    Missing,
    Part,
    Picture,
    Section,
    Strips,
    Table,
    Text,
    Verdict,
    shown,
)
from eval.report.efficiency import Efficiency
from eval.report.runs import (
    ComparedArms,
    EvaluatedRun,
    baselines,
    by_data_set,
    compare_runs,
    first_of_each,
    near,
)
from eval.report.verdicts import Headlines

MAX_PNG_BYTES = 32 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PICTURES = {
    "reconstructions": (
        "Reconstructions",
        "Clean patches, what the encoder sees, and what it reconstructs, three patches per "
        "corruption kind; PSNR to the clean patch below.",
    ),
    "orbit": (
        "Orbit of a patch",
        "A patch moved by every element of the group. Second row: the moved patch encoded and "
        "decoded. Third row: the code of the unmoved patch moved, then decoded. Fourth row: their "
        "difference, 0 for an equivariant model.",
    ),
    "traversals": (
        "Traversals of the code",
        "The latent dimensions with the largest KL, each moved by -3 to 3 standard deviations from "
        "the code of one patch and decoded.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Patches of test and their eight nearest in test by the cosine of the code. Patches of the "
        "same source image are marked: their nearness says little.",
    ),
    "embedding": (
        "Embeddings",
        "The first two principal components of the embeddings of the test split.",
    ),
}
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
            sections.append(Section(2, summary.title(arms), [Text(summary.sentence(arms))]))
        planned, estimates, lacking = verdicts.planned(arms)
        judged += planned
        table, exploratory = verdicts.exploratory(arms)
        intervals = verdicts.intervals(arms, baselines(arms.runs))
        ranked = [*ranking.against_untrained(arms), *ranking.against_baseline(arms, intervals)]
        rows = [*estimates, *ranked, *exploratory]
        parts: dict[str, list[Part]] = {
            "Pictures": _pictured(arms, f"data{i}"),
            "Scores on test": _scores(arms, intervals, f"data{i}"),
            "Differences": [*_differences(arms, rows, f"data{i}"), *lacking],
        }
        details = _details(arms, intervals, table, parts["Pictures"], f"data{i}", measured)
        level = 2 if single else 3
        sections += [Section(level, title, content) for title, content in parts.items()]
        sections += [Section(level, title, content, True) for title, content in details.items()]
    sections += [replace(section, folded=True) for section in transfers]
    sections += [
        Section(2, "How the numbers are made", [Text(PROTOCOL)], folded=True),
        Section(2, "To reproduce", [Code(_commands(runs, options)), Text(NOTE)], folded=True),
        Section(2, "Environment", [tables.environment(runs)], folded=True),
    ]
    lead = f"{len(runs)} runs on {len(compared)} data sets, compared only within one."
    if single:
        lead = summary.sentence(compared[0])
    return Document("Evaluation report", lead, _missing_last(sections, runs), judged)


def _pictured(compared: ComparedArms, slug: str) -> list[Part]:
    """Patches and codes; of runs that have none, the figures of the evaluation."""
    first, second = summary.pictured(compared)
    parts, problems = strips.parts(list(compared.arms.values()), first, second, slug)
    if not any(isinstance(part, Strips) for part in parts):
        runs = [arm.first for arm in (first, second) if arm is not None]
        for run in runs:
            parts += _figures(run, ("reconstructions", "orbit"))
    if problems:
        parts += [Text("Left out of the pictures:"), Bullets(problems)]
    return parts


def _scores(compared: ComparedArms, intervals: Headlines, slug: str) -> list[Part]:
    gaps = ranking.gaps(compared, baselines(compared.runs))
    parts = [*tables.absent_classes(compared.runs), charts.scores(compared, intervals, slug)]
    return [*parts, Bullets(gaps)] if gaps else parts


def _differences(compared: ComparedArms, rows: Sequence[Estimate], slug: str) -> list[Part]:
    absent = tables.absent_classes(compared.runs)
    parts: list[Part] = [*absent, charts.differences(rows, slug)] if rows else []
    if compared.dropped:
        parts += [Text("Left out of the differences:"), Bullets(compared.dropped)]
    return parts


def _details(
    compared: ComparedArms,
    intervals: Headlines,
    exploratory: Table | None,
    pictures: Sequence[Part],
    slug: str,
    measured: Efficiency | None,
) -> dict[str, Sequence[Part]]:
    """What the first sections rest on, by title; without the `pictures` shown there."""
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
        figures = [figure for figure in _figures(run, PICTURES) if figure not in pictures]
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


def _figures(run: EvaluatedRun, names: Iterable[str]) -> list[Part]:
    pictures: list[Part] = []
    for name in names:
        title, caption = PICTURES[name]
        path = run.folder / "figures" / f"{name}.png"
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PNG_BYTES:
            continue
        with path.open("rb") as file:
            is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        if is_png:
            pictures.append(
                Picture(f"{run.slug}-{name}.png", path, f"{title}: {run.label}", caption)
            )
    return pictures


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
