"""Whether a data set can rank models at all: against the untrained encoder and the baselines."""

from collections.abc import Iterable

import numpy as np

from eval.measure.scores import Scores
from eval.report.document import Estimate, Kind
from eval.report.runs import ALL_LABELS, MEASURES, Arm, Baseline, ComparedArms, Measure
from eval.report.verdicts import shortcomings
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import compare, describe

UNTRAINED = "random_init"
GROUP = "Trained against untrained: does training show in this probe?"


def against_untrained(compared: ComparedArms) -> list[Estimate]:
    """A row per arm and measure: its AUROC minus that of its untrained encoder, of one seed."""
    return [
        _row(arm, measure, difference)
        for measure in MEASURES
        for arm in compared.arms.values()
        if (difference := _gain(compared, arm, measure)) is not None
    ]


def _gain(compared: ComparedArms, arm: Arm, measure: Measure) -> Interval | None:
    """The arm minus its untrained encoder; None where either was not measured."""
    trained = arm.scores(measure, list(arm.books))
    untrained = _untrained_scores(compared, arm, measure)
    if trained is None or untrained is None or compared.test is None:
        return None
    repeated = [np.stack([scores] * len(arm.books)) for scores in untrained]
    if [a.shape for a in trained] != [a.shape for a in repeated]:
        return None
    test = compared.test
    return compare(
        {arm.name: trained, "untrained": repeated},
        test.labels,
        test.groups,
        strata=test.strata,
        resampling=compared.resampling,
    ).difference


def gaps(compared: ComparedArms, baselines: Iterable[Baseline]) -> list[str]:
    """The best baseline, and the share of the gap from it to labels that each arm closes."""
    aurocs = {baseline.label: baseline.scores.auroc for baseline in baselines}
    measured = {label: auroc for label, auroc in aurocs.items() if auroc is not None}
    if not measured:
        return []
    best, auroc = max(measured.items(), key=lambda item: item[1])
    first = f"The best baseline without training is {best}, AUROC {auroc:.3f}."
    return [first, *_gaps(compared, auroc)]


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


def _row(arm: Arm, measure: Measure, difference: Interval) -> Estimate:
    kind: Kind = "open"
    if difference.low is None or difference.high is None:
        word = "no interval"
        sentence = f"Whether this data set can rank models stays open: {difference.resampled}."
    elif reasons := shortcomings(difference):
        word, sentence = "decides nothing", f"Reason: {'; '.join(reasons)}."
    elif difference.low > 0:
        kind, word, sentence = "good", "training shows", "The probe is better than untrained."
    elif difference.high < 0:
        kind, word, sentence = "bad", "training hurts", "Training made this probe worse."
    else:
        word = "within noise of untrained"
        sentence = "This data set cannot rank models by this probe."
    name = f"{arm.name} - untrained"
    return Estimate(
        name if measure is ALL_LABELS else f"{name}, {measure.name}",
        difference.estimate,
        difference.low,
        difference.high,
        kind,
        GROUP,
        word,
        sentence,
        f"{describe(difference)}.",
    )


def _gaps(compared: ComparedArms, best: float) -> list[str]:
    """G = (model - best baseline) / (ceiling - best baseline), where the latter is above 0."""
    aurocs = {name: arm.auroc for name, arm in compared.arms.items()}
    means = {name: auroc for name, auroc in aurocs.items() if auroc is not None}
    supervised = {arm.name for arm in compared.arms.values() if arm.kind == "ceiling"}
    ceiling = max((means[name] for name in means if name in supervised), default=None)
    if ceiling is None:
        return []
    if ceiling <= best:
        return [f"Gap closure: undefined, supervised {ceiling:.3f} is not above the baseline."]
    return [
        f"{name} closes {(mean - best) / (ceiling - best):+.2f} of the gap from the best baseline "
        f"{best:.3f} to supervised {ceiling:.3f} (a ratio of means, without interval)."
        for name, mean in means.items()
        if name not in supervised
    ]
