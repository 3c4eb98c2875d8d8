"""What the report says: for every data set the verdicts first, then what they rest on."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.measure.metrics import PSNR_CAP
from eval.report import arms as of_runs
from eval.report import charts as comparisons
from eval.report import conditions, efficiency, ranking, tables, verdicts
from eval.report import runs as entries
from eval.report.arms import Compared
from eval.report.atlas import atlas
from eval.report.document import (
    NOT_MEASURED,
    Bullets,
    Chart,
    Code,
    Document,
    Part,
    Picture,
    Section,
    Text,
    shown,
)
from eval.report.efficiency import Efficiency
from eval.report.runs import Entry

MAX_PNG_BYTES = 32 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PICTURES = {
    "reconstructions": "Clean patches, what the encoder sees, and what it reconstructs, three "
    "patches a corruption kind; PSNR to the clean patch below.",
    "orbit": "A patch moved by every element of the group. Second row: the moved patch encoded and "
    "decoded. Third row: the code of the unmoved patch moved, then decoded. Fourth row: their "
    "difference, 0 for an equivariant model.",
    "traversals": "The latent dimensions with the largest KL, each moved by -3 to 3 standard "
    "deviations from the code of one patch and decoded.",
    "neighbours": "Patches of test and their eight nearest in test by the cosine of the code. "
    "Patches of the same source image are marked: that they are near says little.",
    "embedding": "The first two principal components of the embeddings of the test split.",
}


def compose(
    found: list[Entry],
    carried: Iterable[Section] = (),
    measured: Efficiency | None = None,
    options: Sequence[str] = (),
) -> Document:
    """All that the report says, of every writer.

    Args:
        carried: what transfers have to say.
        measured: size and speed of the models.
        options: of the command of this report, beside the runs.
    """
    groups = entries.by_data_set(found)
    sections = [
        section
        for i, group in enumerate(groups)
        for section in _data_set(group, f"data{i}", measured)
    ]
    sections += carried
    sections.append(Section(2, "How the numbers are made", [Text(_protocol())]))
    sections.append(Section(2, "To reproduce", [Code(_commands(found, options)), Text(_NOTE)]))
    sections.append(Section(2, "Environment", [tables.environment(found)]))
    many = f" on {len(groups)} data sets, compared only within one" if len(groups) > 1 else ""
    lead = (
        f"{len(found)} run{'s' * (len(found) > 1)}{many}. Scores are of the test split, of the "
        "posterior mean (384 numbers) of the EMA weights. Intervals and verdicts say what they "
        "resample; a number without an interval settles nothing."
    )
    return Document("Evaluation report", lead, sections)


def _data_set(group: list[Entry], slug: str, measured: Efficiency | None) -> list[Section]:
    """One data set: the verdicts first, then what they rest on."""
    compared = of_runs.gather(group)
    root = shown("/".join(group[0].root.parts[-2:]))  # many folders are called shards
    pictured = entries.first_of_each(group)
    sections = [
        Section(2, f"Data set {root}, {shown(group[0].at('data', 'hash'))}", []),
        Section(3, "Verdicts", _verdicts(compared, slug)),
        Section(3, "Scores", _scores(group, compared, slug)),
        Section(3, "Efficiency", [efficiency.table(compared.arms.values(), measured)]),
        Section(3, "Labels and corruption", _curves(compared, slug)),
        Section(3, "Reconstruction, rate and equivariance", _metrics(compared, slug)),
        Section(3, "Training", comparisons.training(compared.arms.values(), slug)),
        Section(3, "Data, and what to beware of", [tables.composition(group[0]), *_notices(group)]),
    ]
    if (found := atlas(pictured, f"{slug}-map")) is not None:
        sections.append(Section(3, "Map of the embeddings", [found]))
    drawn = [(entry, _pictures(entry)) for entry in pictured]
    sections += [Section(3, f"Pictures of {e.label}", parts) for e, parts in drawn if parts]
    return [Section(s.level, s.title, _drawn(s.parts)) for s in sections]


def _drawn(parts: Iterable[Part]) -> list[Part]:
    """The parts; of charts that nothing was measured for, the words."""
    kept: list[Part] = []
    for part in parts:
        if isinstance(part, Chart) and not part.svg:
            kept.append(Text(f"{part.title}: {NOT_MEASURED}."))
        else:
            kept.append(part)
    return kept


def _verdicts(compared: Compared, slug: str) -> list[Part]:
    judged = verdicts.primary(compared)
    table, explored = verdicts.exploratory(compared)
    measured = [(said.question, found) for said, found in judged if found is not None]
    parts: list[Part] = [said for said, _ in judged]
    if measured or explored:
        rows = measured + [(f"exploratory: {name}", found) for name, found in explored]
        parts.append(comparisons.differences(rows, f"{slug}-differences.svg"))
    if table is not None:
        parts.append(table)
    if compared.dropped:
        parts += [Text("Left out of the verdicts:"), Bullets(tuple(compared.dropped))]
    return parts


def _scores(group: list[Entry], compared: Compared, slug: str) -> list[Part]:
    arms = compared.arms.values()
    named = entries.baselines(group)
    owner = {id(run): arm.name for arm in arms for run in arm.runs.values()}
    places = {name: (key, owner[id(run)]) for name, key, run in named if id(run) in owner}
    found = verdicts.intervals(compared, places)
    scores = {name: run.at("probe", key, "auroc") for name, key, run in named}
    known = {name: score for name, score in scores.items() if isinstance(score, float)}
    top = max(known, key=lambda name: known[name], default=None)
    lines = ranking.sentences(compared, None if top is None else (top, known[top]))
    parts: list[Part] = [Bullets(tuple(lines))] if lines else []
    return [
        *parts, tables.headlines(found), comparisons.headlines(found, f"{slug}-auroc.svg"),
        *tables.over_seeds(arms), tables.summary(group), tables.readouts(arms),
        tables.other_probes(arms),
    ]  # fmt: skip


def _curves(compared: Compared, slug: str) -> list[Part]:
    arms = compared.arms.values()
    return [
        comparisons.labels(compared, f"{slug}-labels.svg"), *conditions.budgets(arms),
        *comparisons.robustness(arms, slug), *conditions.robustness(arms),
    ]  # fmt: skip


def _metrics(compared: Compared, slug: str) -> list[Part]:
    arms = compared.arms.values()
    return [
        comparisons.rate_distortion(arms, f"{slug}-rate-distortion.svg"),
        comparisons.rate_and_probe(arms, f"{slug}-rate-probe.svg"),
        comparisons.equivariance(arms, f"{slug}-equivariance.svg"),
        tables.denoising(arms),
        tables.by_element(arms),
        *tables.by_readout(arms),
    ]


def _notices(group: list[Entry]) -> list[Part]:
    """What an evaluation had to say of its data: leaks between splits, subsets, missing parts."""
    lines: dict[str, list[str]] = {}
    for entry in group:
        found = entry.at("notices")
        for text in found if isinstance(found, list) else []:
            lines.setdefault(shown(text), []).append(entry.label)
    said = tuple(
        text if len(labels) == len(group) else f"{', '.join(labels)}: {text}"
        for text, labels in lines.items()
    )
    return [Bullets(said)] if said else [Text("The evaluations gave no notice.")]


def _pictures(entry: Entry) -> list[Part]:
    found: list[Part] = []
    for name, caption in PICTURES.items():
        source = entry.folder / "figures" / f"{name}.png"
        if _is_png(source):
            found.append(Picture(f"{entry.slug}-{name}.png", source, caption))
    return found


def _is_png(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PNG_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(8) == PNG_SIGNATURE


def _protocol() -> str:
    return (
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


_NOTE = (
    "A run's config.json holds every setting, and where its data set lay. Of a preset as it is, "
    "train/main.py PRESET --data DIR --seed S --images N does the same."
)


def _commands(found: list[Entry], options: Sequence[str]) -> str:
    lines = [line for entry in found for line in _run_again(entry)]
    folders = [entries.near(entry.folder) for entry in found]
    report = ["python", "-m", "eval.report", *folders, *options, "--out", "report"]
    return "\n".join([*lines, shlex.join(report)])


def _run_again(entry: Entry) -> list[str]:
    """The commands that make a run beside this one, or the scores of embeddings from elsewhere."""
    folder, data = entries.near(entry.folder), entries.near(entry.root)
    again = f"{folder}-again"
    if (features := entry.at("external", "features")) is not None:
        named = ["--data", data, "--name", entry.preset, "--seed", str(entry.seed), "--out", again]
        return [
            shlex.join(["python", "-m", "eval.external", entries.near(Path(str(features))), *named])
        ]
    train = ["accelerate", "launch", "train/main.py", f"{folder}/config.json", "--out", again]
    return [shlex.join(train), shlex.join(["python", "-m", "eval.main", again, "--data", data])]
