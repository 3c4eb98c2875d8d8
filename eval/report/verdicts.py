"""What the runs of one data set say of the hypotheses, in words with the numbers behind them.

Primary contrasts are a family under Holm's correction. All others are exploratory: numbers and
intervals without a word of judgement. docs/statistics.md has the method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from eval.measure.readouts import PRIMARY as PRIMARY_FEATURES
from eval.report import arms as of_runs
from eval.report.arms import Arm, Compared, Pick
from eval.report.document import NOT_MEASURED, Table, Verdict
from eval.stats.bootstrap import Interval, Plan, interval
from eval.stats.contrasts import Contrast, Question, compare, judge
from eval.stats.grouping import MIN_GROUPS

UNDECIDABLE = "cannot be decided"
Headlines = dict[str, dict[str, Interval]]  # by arm or baseline, then by measure
PLAN = Plan()
CURVE = Plan(replicates=2_000)  # of the curves: their bars are drawn, not quoted


@dataclass(frozen=True)
class Measure:
    name: str
    of: Callable[[str], Pick]  # features

    @property
    def pick(self) -> Pick:
        return self.of(PRIMARY_FEATURES)


ALL_LABELS = Measure("AUROC, all labels", of_runs.clean)
TWO_GROUPS = Measure(
    "AUROC, labels of 2 groups a class", partial(of_runs.budget, of_runs.TWO_GROUPS)
)
ROBUSTNESS = Measure("area under the robustness curve", of_runs.corrupted)
MEASURES = (ALL_LABELS, TWO_GROUPS, ROBUSTNESS)


@dataclass(frozen=True)
class Planned:
    """A primary contrast: the first preset minus the second."""

    hypothesis: str
    first: str
    second: str
    measure: Measure
    question: Question


PRIMARY = (
    Planned("H1", "eq-dvae", "dvae", ALL_LABELS, "non-inferiority"),
    Planned("H1", "eq-dvae", "dvae", TWO_GROUPS, "non-inferiority"),
    Planned("H2", "dvae", "vae", ROBUSTNESS, "superiority"),
    Planned("H2", "eq-dvae", "dvae", ROBUSTNESS, "superiority"),
)
EXPLORATORY = (  # arms that differ in one thing, or are meant for each other
    ("vae", "ae"), ("dvae", "vae"), ("eq-dvae", "dvae"),
    ("eq-dvae-c4", "eq-dvae"), ("eq-dvae-refined", "eq-dvae"),
    ("d4-dvae", "eq-dvae-refined"), ("d4-dvae", "dvae-refined"), ("c4-dvae", "d4-dvae"),
    ("d4-dvae-wide", "dvae-refined"), ("c4-dvae-wide", "dvae-refined"),
    ("eq-dvae", "dvae-equal-compute"), ("eq-dvae", "dvae-2x"),
)  # fmt: skip
REFERENCE = "dvae"  # of an arm that is a variant of no other
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
    """Two arms on one measure: a contrast, or why there is none or it decides nothing."""

    first: str
    second: str
    contrast: Contrast | None
    reasons: tuple[str, ...]  # why nothing can be decided
    notes: tuple[str, ...]  # what was left out


def contrast(compared: Compared, first: str, second: str, measure: Measure) -> Comparison:
    """The first arm minus the second over the seeds that both have."""
    there = [compared.arms[name] for name in (first, second) if name in compared.arms]
    if len(there) < 2 or compared.test is None:
        lacking = [name for name in (first, second) if name not in compared.arms]
        why = f"no run of {' and of '.join(lacking)}" if lacking else "no run has usable scores"
        return Comparison(first, second, None, (why,), ())
    seeds, dropped = of_runs.paired(there)
    if there[0].images != there[1].images:
        dropped.append(f"unequal budgets: {there[0].images} and {there[1].images} images")
    scores = {arm.name: arm.scores(measure.pick, seeds) for arm in there}
    usable = {name: found for name, found in scores.items() if found is not None}
    if not seeds or len(usable) < 2:
        why = "no seed is in both" if not seeds else f"no scores of the {measure.name}"
        return Comparison(first, second, None, (why,), tuple(dropped))
    found = compare(usable, compared.test.labels, compared.test.groups, plan=PLAN)
    reasons = tuple(shortcomings(found.difference))
    return Comparison(first, second, found, reasons, tuple(dropped))


def shortcomings(found: Interval) -> list[str]:
    """Why an interval of a difference decides nothing, if so."""
    reasons = []
    if found.seeds < MIN_SEEDS:
        counted = "one seed" if found.seeds == 1 else f"{found.seeds} seeds"
        reasons.append(f"{counted}; three are the least that show how much seeds matter")
    fewest = min((count for groups in found.groups for count in groups.values()), default=0)
    if fewest < MIN_GROUPS:
        reasons.append(f"a class with {fewest} groups in test, fewer than {MIN_GROUPS}")
    return reasons


def primary(compared: Compared) -> list[tuple[Verdict, Contrast | None]]:
    """The verdicts on the planned contrasts; Holm's correction over those that were measured."""
    found = [contrast(compared, p.first, p.second, p.measure) for p in PRIMARY]
    family: dict[str, Contrast] = {}
    for i, one in enumerate(found):
        if one.contrast is not None:  # undecidable ones stay in the family, with p = 1
            family[str(i)] = replace(one.contrast, p=None) if one.reasons else one.contrast
    judged = judge(family, {str(i): plan.question for i, plan in enumerate(PRIMARY)})
    verdicts = []
    for i, (plan, one) in enumerate(zip(PRIMARY, found, strict=True)):
        question = f"{plan.hypothesis}, {plan.first} - {plan.second}, {plan.measure.name}"
        if one.contrast is None:
            because = "; ".join((*one.reasons, *one.notes))
            said = Verdict(question, "", NOT_MEASURED, f"Reason: {because}.", "")
        else:
            p_holm = judged[str(i)].p_holm
            word = UNDECIDABLE if one.reasons else judged[str(i)].word
            meaning = f"Reason: {'; '.join(one.reasons)}." if one.reasons else _meaning(word, one)
            told = numbers(one, None if one.reasons else p_holm)
            said = Verdict(question, _detectable(one.contrast), word, meaning, told)
        verdicts.append((said, one.contrast))
    return verdicts


def _meaning(word: str, one: Comparison) -> str:
    return MEANING[word].format(first=one.first, second=one.second)


def _detectable(found: Contrast) -> str:
    if found.detectable is None:
        return ""
    return f"Minimal detectable difference: {found.detectable:.4f}."


def numbers(one: Comparison, p_holm: float | None) -> str:
    """The estimate and its interval, what was resampled."""
    assert one.contrast is not None
    found = one.contrast.difference
    parts = [f"Difference {found.estimate:+.4f}, no interval"]
    if found.low is not None:
        ends = f"[{found.low:+.4f}, {found.high:+.4f}]"
        parts = [f"Difference {found.estimate:+.4f}, 95 % interval {ends}"]
    if p_holm is not None:
        parts.append(f"Holm's p {p_holm:.4f}")
    resampled = f"resampled: {found.resampled}; {found.replicates:,} replicates"
    return "; ".join([*parts, resampled, *one.notes]) + "."


def exploratory(compared: Compared) -> tuple[Table | None, list[tuple[str, Contrast]]]:
    """Every arm against a partner, all labels: no correction, no word of judgement."""
    partners = pairs(compared.arms)
    planned = {(p.first, p.second) for p in PRIMARY if p.measure is ALL_LABELS}
    rows, found = [], []
    for first, second in (pair for pair in partners if pair not in planned):
        one = contrast(compared, first, second, ALL_LABELS)
        name = f"{first} - {second}"
        if one.contrast is None:
            rows.append([name, NOT_MEASURED, "", "", "", "; ".join((*one.reasons, *one.notes))])
            continue
        found.append((name, one.contrast))
        rows.append([name, *cells(one.contrast), "; ".join((*one.reasons, *one.notes))])
    header = ["contrast", "difference", "95 % interval", "detectable", "seeds", "beware"]
    caption = (
        "Macro AUROC, raw mu, all labels, paired as above. Not planned beforehand and not "
        "corrected for their number: they suggest questions and answer none. Resampled: "
        f"{'; or '.join(sorted({one.difference.resampled for _, one in found})) or 'nothing'}."
    )
    return (Table("Exploratory contrasts", header, rows, caption) if rows else None), found


def pairs(arms: Mapping[str, Arm]) -> list[tuple[str, str]]:
    """The known pairs that are there; every variant with what it is a variant of."""
    found = [pair for pair in EXPLORATORY if all(name in arms for name in pair)]
    paired = {name for pair in found for name in pair}
    for arm in arms.values():
        partner = _base(arm, arms)
        if partner is None and arm.name not in paired:
            partner = next((name for name in (REFERENCE, *arms) if name in arms), None)
        if partner not in (None, arm.name) and (arm.name, partner) not in found:
            found.append((arm.name, str(partner)))
    return found


def _base(arm: Arm, arms: Mapping[str, Arm]) -> str | None:
    """`dvae` of `dvae-blur`, the longest that there is; else the first arm of the preset."""
    begun = [name for name in arms if arm.name.startswith((f"{name}-", f"{name} "))]
    alike = [other.name for other in arms.values() if other.preset == arm.preset]
    return max(begun, key=len) if begun else next((n for n in alike[:1] if n != arm.name), None)


def cells(found: Contrast) -> list[str]:
    """The difference, its interval, what could have been detected, the seeds."""
    difference = found.difference
    if difference.low is None or found.detectable is None:
        return [f"{difference.estimate:+.4f}", "no interval", "", str(difference.seeds)]
    ends = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return [f"{difference.estimate:+.4f}", ends, f"{found.detectable:.4f}", str(difference.seeds)]


def intervals(compared: Compared, baselines: Mapping[str, tuple[str, str]]) -> Headlines:
    """By arm and baseline: the interval of every headline AUROC that was measured.

    Args:
        baselines: by the name shown, the features and the arm that has them.
    """
    found: Headlines = {}
    for name, arm in compared.arms.items():
        measured = {m.name: of_arm(compared, arm, m.pick) for m in MEASURES}
        kept = {measure: cell for measure, cell in measured.items() if cell is not None}
        if kept:
            found[name] = kept
    for name, (features, arm_name) in baselines.items():
        arm = compared.arms[arm_name]
        measured = {m.name: _of_baseline(compared, arm, m.of(features)) for m in MEASURES}
        kept = {measure: cell for measure, cell in measured.items() if cell is not None}
        if kept:
            found[f"baseline {name}"] = kept
    return found


def _of_baseline(compared: Compared, arm: Arm, pick: Pick) -> Interval | None:
    """A baseline knows no seed: the first run that has it says it all."""
    seed = next((seed for seed, book in arm.books.items() if pick(book) is not None), None)
    return None if seed is None else of_arm(compared, arm, pick, [seed])


def of_arm(
    compared: Compared, arm: Arm, pick: Pick, seeds: list[int] | None = None, plan: Plan = PLAN
) -> Interval | None:
    """The interval of an arm's AUROC; None where it was not measured."""
    scores = arm.scores(pick, list(arm.books) if seeds is None else seeds)
    if scores is None or compared.test is None:
        return None
    return interval(scores, compared.test.labels, compared.test.groups, plan=plan)
