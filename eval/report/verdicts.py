"""Contrasts between the arms of one data set, in words with the numbers behind them.

The planned contrasts are a family under Holm's correction and end in a verdict. All others are
exploratory: numbers and intervals without a verdict. docs/statistics.md describes the method.
"""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from eval.measure.readouts import PRIMARY as PRIMARY_FEATURES
from eval.report.arms import (
    ALL_LABELS,
    MEASURES,
    ROBUSTNESS,
    TWO_GROUPS,
    Arm,
    ComparedArms,
    Measure,
)
from eval.report.document import NOT_MEASURED, Estimate, Kind, Missing, Table, Verdict
from eval.report.runs import Baseline, near
from eval.stats.bootstrap import DEFAULT, Interval
from eval.stats.contrasts import Contrast, Judgement, Question, describe, judge
from eval.stats.grouping import MIN_GROUPS

UNDECIDABLE = "cannot be decided"
Headlines = dict[str, dict[str, Interval]]  # by arm or baseline, then by measure
CURVE = 2_000  # replicates for the bars of curves, which are drawn and not quoted
KINDS: dict[str, Kind] = {"holds": "good", "superior": "good", "non-inferior": "good"}


@dataclass(frozen=True)
class PlannedContrast:
    """A primary contrast: the first preset minus the second."""

    hypothesis: str
    first: str
    second: str
    measure: Measure
    question: Question

    @property
    def title(self) -> str:
        return f"{self.hypothesis}, {self.first} - {self.second}, {self.measure.name}"


FAMILIES = (  # VAE, DVAE and EQ-DVAE that the hypotheses compare, on one architecture each
    ("vae", "dvae", "eq-dvae"),
    ("vae-refined", "dvae-refined", "eq-dvae-relaxed"),  # arms of the recipe `relaxed`
)


def planned_contrasts(arms: Collection[str]) -> tuple[PlannedContrast, ...]:
    """Return the primary contrasts of the family with the most arms here, by default the first."""
    vae, dvae, eq_dvae = max(FAMILIES, key=lambda family: len(set(family) & set(arms)))
    return (
        PlannedContrast("H1", eq_dvae, dvae, ALL_LABELS, "non-inferiority"),
        PlannedContrast("H1", eq_dvae, dvae, TWO_GROUPS, "non-inferiority"),
        PlannedContrast("H2", dvae, vae, ROBUSTNESS, "superiority"),
        PlannedContrast("H2", eq_dvae, dvae, ROBUSTNESS, "superiority"),
    )


EXPLORATORY = (  # arms that differ in one thing, or are meant for each other
    ("vae", "ae"),
    ("dvae", "vae"),
    ("eq-dvae", "dvae"),
    ("eq-dvae-c4", "eq-dvae"),
    ("eq-dvae-refined", "eq-dvae"),
    ("d4-dvae", "eq-dvae-refined"),
    ("d4-dvae", "dvae-refined"),
    ("dvae-refined", "vae-refined"),
    ("eq-dvae-relaxed", "dvae-refined"),
    ("eq-dvae-relaxed", "dvae-relaxed"),
    ("d4-dvae", "eq-dvae-relaxed"),
    ("c4-dvae", "d4-dvae"),
    ("d4-dvae-wide", "dvae-refined"),
    ("c4-dvae-wide", "dvae-refined"),
    ("eq-dvae", "dvae-equal-compute"),
    ("eq-dvae", "dvae-2x"),
)
REFERENCE = "dvae"  # partner of an arm that is a variant of no other
MIN_SEEDS = 3
MEANING = {
    "holds": "{first} is better than {second} on this measure.",
    "superior": "{first} is better than {second} on this measure.",
    "non-inferior": "{first} is not worse than {second} by half a point of AUROC or more; "
    "that it is better is not shown.",
    "inferior": "{first} is worse than {second} by more than half a point of AUROC.",
    "undecided": "These runs show neither that {first} is better than {second} nor that it is not.",
}


@dataclass(frozen=True)
class Comparison:
    """Two arms on one measure: a contrast, or the reasons why there is none."""

    contrast: Contrast | None
    reasons: Sequence[str]  # why nothing can be decided
    notes: Sequence[str]  # what was left out

    @property
    def remarks(self) -> str:
        return "; ".join((*self.reasons, *self.notes))


def compare_arms(compared: ComparedArms, first: str, second: str, measure: Measure) -> Comparison:
    """The first arm minus the second over the seeds with which both were measured."""
    lacking = [name for name in (first, second) if name not in compared.arms]
    if lacking or compared.test is None:
        reason = f"no run of {' and of '.join(lacking)}" if lacking else "no run has usable scores"
        return Comparison(None, [reason], [])
    arms = [compared.arms[name] for name in (first, second)]
    measured = [set(arm.seeds_with(measure)) for arm in arms]
    seeds = sorted(measured[0] & measured[1])
    notes = []
    for arm, own in zip(arms, measured, strict=True):
        if unpaired := sorted(own - set(seeds)):
            notes.append(f"seeds {unpaired} of {arm.name} have no partner")
        if own and (lacking_scores := sorted(arm.books.keys() - own)):
            notes.append(f"seeds {lacking_scores} of {arm.name} lack the {measure.name}")
    if arms[0].images != arms[1].images:
        notes.append(f"unequal budgets: {arms[0].images} and {arms[1].images} images")
    stacked = {arm.name: arm.scores(measure, seeds=seeds) for arm in arms}
    scores = {name: of_arm for name, of_arm in stacked.items() if of_arm is not None}
    if len(scores) < 2:
        is_measured = all(measured) and not seeds
        reason = "no seed is in both" if is_measured else f"no scores of the {measure.name}"
        return Comparison(None, [reason], notes)
    contrast = compared.test.compare(scores)
    return Comparison(contrast, shortcomings(contrast.difference), notes)


def shortcomings(difference: Interval) -> list[str]:
    """Reasons why the interval of a difference decides nothing; empty where it does."""
    reasons = []
    if difference.seeds < MIN_SEEDS:
        counted = "one seed" if difference.seeds == 1 else f"{difference.seeds} seeds"
        reasons.append(f"{counted}; three are the least that show how much seeds matter")
    fewest = min((count for groups in difference.groups for count in groups.values()), default=0)
    if fewest < MIN_GROUPS:
        reasons.append(f"a class with {fewest} groups in test, fewer than {MIN_GROUPS}")
    return reasons


def primary(compared: ComparedArms) -> list[tuple[Verdict, Contrast | None]]:
    """Verdicts on the planned contrasts, with Holm's correction over those that were measured."""
    contrasts = planned_contrasts(compared.arms)
    comparisons = {p.title: compare_arms(compared, p.first, p.second, p.measure) for p in contrasts}
    family: dict[str, Contrast] = {}
    for title, comparison in comparisons.items():
        if comparison.contrast is not None:
            # an undecidable contrast stays in the family, with p = 1
            p = None if comparison.reasons else comparison.contrast.p
            family[title] = replace(comparison.contrast, p=p)
    judgements = judge(family, {planned.title: planned.question for planned in contrasts})
    verdicts = []
    for planned in contrasts:
        comparison = comparisons[planned.title]
        verdict = _verdict(planned, comparison, judgements.get(planned.title))
        verdicts.append((verdict, comparison.contrast))
    return verdicts


def _verdict(
    planned: PlannedContrast, comparison: Comparison, judgement: Judgement | None
) -> Verdict:
    contrast = comparison.contrast
    if contrast is None or judgement is None:
        return Verdict(planned.title, "", NOT_MEASURED, f"Reason: {comparison.remarks}.", "")
    detectable = ""
    if contrast.detectable is not None:
        detectable = f"Minimal detectable difference: {contrast.detectable:.4f}."
    if comparison.reasons:
        word = UNDECIDABLE
        meaning = f"Reason: {'; '.join(comparison.reasons)}."
        numbers = describe(contrast.difference)
    else:
        word = judgement.word
        meaning = MEANING[word].format(first=planned.first, second=planned.second)
        numbers = describe(contrast.difference, judgement.p_holm)
    numbers = "; ".join([numbers, *comparison.notes]) + "."
    return Verdict(planned.title, detectable, word, meaning, numbers)


def planned(compared: ComparedArms) -> tuple[list[Verdict], list[Estimate], list[Missing]]:
    """The planned verdicts: all of them, the measured ones as rows, and the runs that lack."""
    judged = primary(compared)
    estimates, lacking = [], []
    contrasts = planned_contrasts(compared.arms)
    for question, (verdict, contrast) in zip(contrasts, judged, strict=True):
        if contrast is None:
            lacking.append(_missing(compared, question))
            continue
        difference = contrast.difference
        estimates.append(
            Estimate(
                verdict.question,
                difference.estimate,
                difference.ends,
                KINDS.get(verdict.word, "bad" if verdict.word == "inferior" else "open"),
                "Planned contrasts, and their verdicts",
                verdict.word,
                verdict.meaning,
                f"{verdict.before} {verdict.numbers}".strip(),
            )
        )
    return [verdict for verdict, _ in judged], estimates, lacking


def _missing(compared: ComparedArms, planned: PlannedContrast) -> Missing:
    run = compared.runs[0]
    data = ["--data", near(run.root)]
    names = (planned.first, planned.second)
    absent = [name for name in names if name not in compared.arms]
    if not absent:
        command = shlex.join(["python", "-m", "eval.main", near(run.folder)])
    elif set(names) <= set(FAMILIES[0]):  # presets
        start = ["accelerate", "launch", "train/main.py"]
        seed = ["--seed", str(run.seed)]
        command = "; ".join(shlex.join([*start, name, *data, *seed]) for name in absent)
    else:
        command = shlex.join(["python", "-m", "train.sweep", "relaxed", *data])
    return Missing(f"{planned.first} against {planned.second}", command)


def exploratory(compared: ComparedArms) -> tuple[Table | None, list[Estimate]]:
    """Every arm against a partner with all labels: neither corrected nor judged."""
    contrasts = planned_contrasts(compared.arms)
    planned = {(p.first, p.second) for p in contrasts if p.measure is ALL_LABELS}
    rows, estimates, resampled = [], [], set()
    for first, second in pairs({arm.name: arm.preset for arm in compared.arms.values()}):
        if (first, second) in planned:
            continue
        comparison = compare_arms(compared, first, second, ALL_LABELS)
        name = f"{first} - {second}"
        if comparison.contrast is None:
            rows.append([name, NOT_MEASURED, "", "", "", comparison.remarks])
        else:
            difference = comparison.contrast.difference
            resampled.add(difference.resampled)
            estimates.append(
                Estimate(
                    name,
                    difference.estimate,
                    difference.ends,
                    "ours",
                    "Exploratory: neither planned nor corrected for their number",
                    numbers=f"{describe(difference)}.",
                )
            )
            rows.append([name, *contrast_cells(comparison.contrast), comparison.remarks])
    if not rows:
        return None, estimates
    header = ["contrast", "difference", "95 % interval", "detectable", "seeds", "beware"]
    caption = (
        "Macro AUROC, raw mu, all labels, paired as above. Not planned beforehand and not "
        "corrected for their number: they suggest questions and answer none. Resampled: "
        f"{'; or '.join(sorted(resampled)) or 'nothing'}."
    )
    return Table("Exploratory contrasts", header, rows, caption), estimates


def pairs(presets: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of arms to contrast: the predefined ones, and every variant with its base arm.

    The base of an arm is the longest name that its own extends (`dvae` of `dvae-blur`), else the
    first arm of its preset. An arm that has neither and is in no predefined pair meets REFERENCE.

    Args:
        presets: the preset of every arm, by the name of the arm.
    """
    contrasts = [pair for pair in EXPLORATORY if all(name in presets for name in pair)]
    paired = {name for pair in contrasts for name in pair}
    for name, preset in presets.items():
        extended = [base for base in presets if name.startswith((f"{base}-", f"{base} "))]
        first = next(arm for arm in presets if presets[arm] == preset)
        if extended:
            partner = max(extended, key=len)
        elif first != name or name in paired:
            partner = first
        else:
            partner = REFERENCE if REFERENCE in presets else next(iter(presets))
        if partner != name and (name, partner) not in contrasts:
            contrasts.append((name, partner))
    return contrasts


def contrast_cells(contrast: Contrast) -> list[str]:
    """Table cells: the difference, its interval, the detectable difference and the seeds."""
    difference = contrast.difference
    estimate, seeds = f"{difference.estimate:+.4f}", str(difference.seeds)
    if difference.ends is None or contrast.detectable is None:
        return [estimate, "no interval", "", seeds]
    ends = " to ".join(f"{end:+.4f}" for end in difference.ends)
    return [estimate, ends, f"{contrast.detectable:.4f}", seeds]


def intervals(compared: ComparedArms, baselines: Iterable[Baseline]) -> Headlines:
    """The interval of every headline AUROC that was measured, by arm or baseline.

    Those of a baseline have no effect of seeds, on which it does not depend: they are from the
    first run that measured it.
    """
    cells: list[tuple[str, str, Interval | None]] = []
    for arm in compared.arms.values():
        cells += [(arm.name, m.name, arm_interval(compared, arm, m)) for m in MEASURES]
    for baseline in baselines:
        owner = compared.arm_of(baseline.run)
        if owner is None:
            continue
        features = baseline.features
        for measure in MEASURES:
            if first := owner.seeds_with(measure, features)[:1]:
                cell = arm_interval(compared, owner, measure, seeds=first, features=features)
                cells.append((f"baseline {baseline.label}", measure.name, cell))
    headlines: Headlines = {}
    for name, column, cell in cells:
        if cell is not None:
            headlines.setdefault(name, {})[column] = cell
    return headlines


def arm_interval(
    compared: ComparedArms,
    arm: Arm,
    measure: Measure,
    *,
    seeds: Sequence[int] | None = None,
    features: str = PRIMARY_FEATURES,
    replicates: int = DEFAULT.replicates,
) -> Interval | None:
    """The interval of an arm's AUROC over seeds; None where it was not measured.

    Args:
        seeds: by default all with which it was measured.
    """
    scores = arm.scores(measure, features, seeds)
    if scores is None or compared.test is None:
        return None
    return compared.test.interval(scores, replicates)
