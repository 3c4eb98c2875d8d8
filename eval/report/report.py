"""Composes a report and writes it in every format.

For every data set the verdicts come first, then what they rest on.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.files import read_json, write_atomically
from eval.measure.metrics import PSNR_CAP
from eval.report import charts, efficiency, ranking, svg, tables, verdicts, writers
from eval.report.atlas import atlas
from eval.report.document import (
    Bullets,
    Chart,
    Code,
    Document,
    Part,
    Picture,
    Section,
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
    load_runs,
    near,
)
from eval.results import RESULTS
from eval.transfer import tables as transfer_tables

REPORT, PAGE, TABLES, NUMBERS = "report.md", "report.html", "tables.tex", "report.json"
VERSION = 1  # of report.json
MAX_PNG_BYTES = 32 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PICTURES = {
    "reconstructions": "Clean patches, what the encoder sees, and what it reconstructs, three "
    "patches per corruption kind; PSNR to the clean patch below.",
    "orbit": "A patch moved by every element of the group. Second row: the moved patch encoded and "
    "decoded. Third row: the code of the unmoved patch moved, then decoded. Fourth row: their "
    "difference, 0 for an equivariant model.",
    "traversals": "The latent dimensions with the largest KL, each moved by -3 to 3 standard "
    "deviations from the code of one patch and decoded.",
    "neighbours": "Patches of test and their eight nearest in test by the cosine of the code. "
    "Patches of the same source image are marked: their nearness says little.",
    "embedding": "The first two principal components of the embeddings of the test split.",
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


def write_report(
    run_folders: Iterable[Path],
    out: Path,
    transfers: Sequence[Path] = (),
    measured: Path | None = None,
) -> Path:
    """Write report.html, report.md, tables.tex, report.json and figures/ to the folder `out`.

    Args:
        transfers: folders that eval.transfer wrote, whose tables are included.
        measured: JSON that bench/throughput.py model wrote.

    Returns: the path of report.md.

    Raises:
        DataError: there is no run, one was not evaluated, or a file cannot be read.
    """
    runs = load_runs(run_folders)
    sections = [section for folder in transfers for section in transfer_tables.load(folder)]
    sizes = None if measured is None else efficiency.load(measured)
    options = [word for folder in transfers for word in ("--transfer", near(folder))]
    if measured is not None:
        options += ["--efficiency", near(measured)]
    document = compose(runs, sections, sizes, options)
    for part in document.parts:
        if isinstance(part, Chart):
            write_atomically(out / "figures" / part.name, svg.standalone(part.svg).encode())
        elif isinstance(part, Picture):
            write_atomically(out / "figures" / part.name, part.file.read_bytes())
    texts = {
        PAGE: writers.to_html(document),
        TABLES: writers.to_latex(document),
        NUMBERS: _numbers(runs, document),
        REPORT: writers.to_markdown(document),
    }
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    return out / REPORT


def _numbers(runs: Iterable[EvaluatedRun], document: Document) -> str:
    """The verdicts, and results.json of every run without its longest list, as JSON."""
    numbers: dict[str, Any] = {
        "version": VERSION,
        "verdicts": [asdict(part) for part in document.parts if isinstance(part, Verdict)],
        "runs": {},
    }
    for run in runs:
        results = read_json(run.folder / RESULTS)
        latent = results.get("latent") and results["latent"] | {"kl_per_dimension": None}
        data = {"hash": run.results.data.hash, "root": near(run.root)}
        numbers["runs"][run.label] = results | {"latent": latent, "data": data}
    return json.dumps(numbers, ensure_ascii=False, separators=(",", ":")) + "\n"


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
    groups = by_data_set(runs)
    sections: list[Section] = []
    for i, group in enumerate(groups):
        sections += _data_set(group, f"data{i}", measured)
    sections += transfers
    sections.append(Section(2, "How the numbers are made", [Text(PROTOCOL)]))
    sections.append(Section(2, "To reproduce", [Code(_commands(runs, options)), Text(NOTE)]))
    sections.append(Section(2, "Environment", [tables.environment(runs)]))
    many = f" on {len(groups)} data sets, compared only within one" if len(groups) > 1 else ""
    lead = (
        f"{len(runs)} run{'s' * (len(runs) > 1)}{many}. Scores are on the test split, from the "
        "posterior mean (384 numbers) of the EMA weights. Intervals and verdicts state what they "
        "resample; a number without an interval settles nothing."
    )
    return Document("Evaluation report", lead, sections)


def _data_set(
    runs: Sequence[EvaluatedRun], slug: str, measured: Efficiency | None
) -> list[Section]:
    """One data set: the verdicts first, then what they rest on."""
    compared = compare_runs(runs)
    arms = list(compared.arms.values())
    root = shown("/".join(runs[0].root.parts[-2:]))  # many folders are called shards
    untrained = baselines(runs)
    intervals = verdicts.intervals(compared, untrained)
    scores = [
        tables.headlines(intervals),
        charts.headlines(intervals, slug),
        *tables.over_seeds(arms),
        tables.summary(runs),
        tables.readouts(arms),
        tables.other_probes(arms),
    ]
    if sentences := ranking.sentences(compared, untrained):
        scores.insert(0, Bullets(sentences))
    labels_and_corruption = [
        charts.labels(compared, slug),
        *tables.budgets(arms),
        *charts.robustness(arms, slug),
        *tables.robustness(arms),
    ]
    metrics = [
        *charts.rates(arms, slug),
        charts.equivariance(arms, slug),
        tables.denoising(arms),
        tables.by_element(arms),
        *tables.by_readout(arms),
    ]
    sections = [
        Section(2, f"Data set {root}, {shown(runs[0].results.data.hash)}", []),
        Section(3, "Verdicts", _verdicts(compared, slug)),
        Section(3, "Scores", scores),
        Section(3, "Efficiency", [efficiency.table(arms, measured)]),
        Section(3, "Labels and corruption", labels_and_corruption),
        Section(3, "Reconstruction, rate and equivariance", metrics),
        Section(3, "Training", charts.training(arms, slug)),
        Section(3, "Data, and what to beware of", [tables.composition(runs[0]), _notices(runs)]),
    ]
    pictured = first_of_each(runs)
    if (embeddings := atlas(pictured, f"{slug}-map")) is not None:
        sections.append(Section(3, "Map of the embeddings", [embeddings]))
    pictures = [Section(3, f"Pictures of {run.label}", _pictures(run)) for run in pictured]
    return sections + [section for section in pictures if section.parts]


def _verdicts(compared: ComparedArms, slug: str) -> list[Part]:
    planned = verdicts.primary(compared)
    table, exploratory = verdicts.exploratory(compared)
    parts: list[Part] = [verdict for verdict, _ in planned]
    rows = [(verdict.question, contrast) for verdict, contrast in planned if contrast is not None]
    rows += [(f"exploratory: {name}", contrast) for name, contrast in exploratory]
    if rows:
        parts.append(charts.differences(rows, slug))
    if table is not None:
        parts.append(table)
    if compared.dropped:
        parts += [Text("Left out of the verdicts:"), Bullets(compared.dropped)]
    return parts


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


def _pictures(run: EvaluatedRun) -> list[Part]:
    pictures: list[Part] = []
    for name, caption in PICTURES.items():
        path = run.folder / "figures" / f"{name}.png"
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PNG_BYTES:
            continue
        with path.open("rb") as file:
            is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        if is_png:
            pictures.append(Picture(f"{run.slug}-{name}.png", path, caption))
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
