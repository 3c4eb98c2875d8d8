"""Whether a data set can rank models at all: against the untrained encoder and the baselines."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from eval.measure.readouts import PRIMARY
from eval.measure.scores import Scores
from eval.report.arms import ALL_LABELS, MEASURES, ROBUSTNESS, Arm, ComparedArms, Measure
from eval.report.document import Estimate, Kind
from eval.report.runs import Baseline, baselines
from eval.report.verdicts import Headlines, shortcomings
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import describe

UNTRAINED = "random_init"


@dataclass(frozen=True)
class Words:
    """The heading of a group of differences, and a word and a sentence for each outcome."""

    group: str
    better: tuple[str, str]
    worse: tuple[str, str]
    level: tuple[str, str]


UNTRAINED_ROWS = Words(
    "Trained against untrained: does training show in this probe?",
    ("training shows", "The probe is better than untrained."),
    ("training hurts", "Training made this probe worse."),
    ("within noise of untrained", "This data set cannot rank models by this probe."),
)
BASELINE_ROWS = Words(
    "Codes against the best features without an encoder",
    ("above the baseline", "The code is worth more than these features to this probe."),
    ("below the baseline", "These features, which need no training, are better for this probe."),
    ("within noise of the baseline", "Neither is shown to be better for this probe."),
)


def against_untrained(compared: ComparedArms) -> list[Estimate]:
    """A row per arm and measure: its AUROC minus that of its untrained encoder, of one seed."""
    rows = []
    for measure in MEASURES:
        for arm in compared.arms.values():
            untrained = _untrained_scores(compared, arm, measure)
            difference = _difference(compared, arm.scores(measure), untrained)
            if difference is not None:
                rows.append(_row(UNTRAINED_ROWS, arm.name, "untrained", measure, difference))
    return rows


def against_baseline(compared: ComparedArms, headlines: Headlines) -> list[Estimate]:
    """A row per arm and readout: its AUROC minus that of the best features without an encoder.

    The readouts are the raw mean and, with all labels, the one with the highest AUROC on val. The
    baseline is the best on test, the hardest to be better than.
    """
    rows = []
    for measure in (ALL_LABELS, ROBUSTNESS):
        measured = [
            (headlines[name][measure.name].estimate, baseline)
            for baseline in baselines(compared.runs)
            if not baseline.features.startswith(UNTRAINED)
            and measure.name in headlines.get(name := f"baseline {baseline.label}", {})
        ]
        if not measured:
            continue
        _, best = max(measured, key=lambda pair: pair[0])
        owner = compared.arm_of(best.run)
        assert owner is not None
        first = owner.seeds_with(measure, best.features)[0]
        reference = measure.scores(owner.books[first], best.features)
        for arm in compared.arms.values():
            readouts = {PRIMARY: arm.name}
            if measure is ALL_LABELS and (readout := arm.best_readout) is not None:
                readouts.setdefault(readout, f"{arm.name}, {readout}")
            for readout, name in readouts.items() if arm.kind == "ours" else ():
                difference = _difference(compared, arm.scores(measure, readout), reference)
                if difference is not None:
                    rows.append(_row(BASELINE_ROWS, name, best.label, measure, difference))
    return rows


def _difference(
    compared: ComparedArms, trained: list[Scores] | None, reference: list[Scores] | None
) -> Interval | None:
    """Scores (S, D, n, K) per condition minus those of a reference (D, n, K) without seeds.

    None where either was not measured, or not alike.
    """
    if trained is None or reference is None or compared.test is None:
        return None
    repeated = [np.stack([scores] * len(trained[0])) for scores in reference]
    if [a.shape for a in trained] != [a.shape for a in repeated]:
        return None
    return compared.test.compare({"trained": trained, "reference": repeated}).difference


def gaps(compared: ComparedArms, measured_baselines: Iterable[Baseline]) -> list[str]:
    """The best baseline, and the share of the gap from it to labels that each arm closes.

    The share is (model - best baseline) / (ceiling - best baseline), where the latter is above 0.
    """
    aurocs = {baseline.label: baseline.scores.auroc for baseline in measured_baselines}
    measured = {label: auroc for label, auroc in aurocs.items() if auroc is not None}
    if not measured:
        return []
    label, best = max(measured.items(), key=lambda item: item[1])
    lines = [f"The best baseline without training is {label}, AUROC {best:.3f}."]
    means = {arm.name: mean for arm in compared.arms.values() if (mean := arm.auroc) is not None}
    supervised = {arm.name for arm in compared.arms.values() if arm.kind == "ceiling"}
    ceiling = max((means[name] for name in means if name in supervised), default=None)
    if ceiling is None:
        return lines
    if ceiling <= best:
        why = f"supervised {ceiling:.3f} is not above the baseline"
        return [*lines, f"Gap closure: undefined, {why}."]
    return lines + [
        f"{name} closes {(mean - best) / (ceiling - best):+.2f} of the gap from the best "
        f"baseline {best:.3f} to supervised {ceiling:.3f} (a ratio of means, without interval)."
        for name, mean in means.items()
        if name not in supervised
    ]


def _untrained_scores(compared: ComparedArms, arm: Arm, measure: Measure) -> list[Scores] | None:
    """Scores (D, n, K) per condition from any run of the arm's architecture.

    The untrained encoder is the same for all of them, so a sweep evaluates it once.
    """
    architectures = [run.architecture for run in arm.runs.values()]
    for other in compared.arms.values():
        for seed, book in other.books.items():
            if other.runs[seed].architecture in architectures:
                scores = measure.scores(book, UNTRAINED)
                if scores is not None:
                    return scores
    return None


def _row(
    words: Words, name: str, reference: str, measure: Measure, difference: Interval
) -> Estimate:
    kind: Kind = "open"
    if difference.ends is None:
        word = "no interval"
        sentence = f"Whether this data set can rank models stays open: {difference.resampled}."
    elif reasons := shortcomings(difference):
        word, sentence = "decides nothing", f"Reason: {'; '.join(reasons)}."
    elif difference.ends[0] > 0:
        kind, word, sentence = "good", *words.better
    elif difference.ends[1] < 0:
        kind, word, sentence = "bad", *words.worse
    else:
        word, sentence = words.level
    title = f"{name} - {reference}"
    return Estimate(
        title if measure is ALL_LABELS else f"{title}, {measure.name}",
        difference.estimate,
        difference.ends,
        kind,
        words.group,
        word,
        sentence,
        f"{describe(difference)}.",
    )
