"""Whether a data set can rank models at all: against the untrained encoder and the baselines."""

import numpy as np

from eval.measure.scores import Scores
from eval.report.runs import ALL_LABELS, Arm, Baseline, ComparedArms
from eval.report.verdicts import shortcomings
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import compare

UNTRAINED = "random_init"
CEILING = "supervised"


def sentences(compared: ComparedArms, best: Baseline | None) -> list[str]:
    """A line per arm against the untrained encoder, then the gap to labels that each closes.

    Args:
        best: the baseline with the highest AUROC; None where none was measured.
    """
    lines: list[str] = []
    resampled: set[str] = set()
    for arm in compared.arms.values():
        if difference := _minus_untrained(compared, arm):
            lines.append(_sentence(arm, difference))
            if difference.low is not None:
                resampled.add(difference.resampled)
    if resampled:
        lines.append(f"Resampled in these intervals: {'; or '.join(sorted(resampled))}.")
    if best is None or best.scores.auroc is None:
        return lines
    auroc = best.scores.auroc
    first = f"The best baseline without training is {best.label}, AUROC {auroc:.3f}."
    return [first, *lines, *_gaps(compared, auroc)]


def _minus_untrained(compared: ComparedArms, arm: Arm) -> Interval | None:
    """An arm minus the untrained encoder, where both were scored."""
    seeds = list(arm.books)
    trained = arm.scores(ALL_LABELS, seeds)
    untrained = _untrained_scores(compared, arm)
    if trained is None or untrained is None or compared.test is None:
        return None
    scores = {arm.name: trained, "untrained": [np.stack([s] * len(seeds)) for s in untrained]}
    return compare(scores, compared.test.labels, compared.test.groups).difference


def _untrained_scores(compared: ComparedArms, arm: Arm) -> list[Scores] | None:
    """Scores (D, n, K) per condition from any run of the arm's architecture.

    The untrained encoder is the same for all of them, so a sweep evaluates it once.
    """
    architectures = [run.architecture for run in arm.runs.values()]
    for other in compared.arms.values():
        for seed, book in other.books.items():
            if other.runs[seed].architecture in architectures:
                scores = ALL_LABELS.scores(book, UNTRAINED)
                if scores is not None:
                    return scores
    return None


def _sentence(arm: Arm, difference: Interval) -> str:
    words = f"{arm.name} - untrained: {difference.estimate:+.4f}"
    if difference.low is None or difference.high is None:
        return (
            f"{words}, no interval ({difference.resampled}): "
            "whether this data set can rank models stays open."
        )
    words += f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    if reasons := shortcomings(difference):
        return f"{words}: decides nothing, {'; '.join(reasons)}."
    if difference.low > 0:
        return f"{words}: training shows in this probe."
    if difference.high < 0:
        return f"{words}: training made this probe worse."
    return f"{words}: within noise of untrained, so this data set cannot rank models by this probe."


def _gaps(compared: ComparedArms, best: float) -> list[str]:
    """G = (model - best baseline) / (supervised - best baseline), where the latter is above 0."""
    means = {arm.name: mean_auroc(arm) for arm in compared.arms.values()}
    supervised = {arm.name for arm in compared.arms.values() if arm.preset == CEILING}
    ceiling = max(filter(None, (means[name] for name in supervised)), default=None)
    if ceiling is None:
        return ["Gap closure: not measured, no run of the preset supervised."]
    if ceiling <= best:
        return [f"Gap closure: undefined, supervised {ceiling:.3f} is not above the baseline."]
    return [
        f"{name} closes {(mean - best) / (ceiling - best):+.2f} of the gap from the best baseline "
        f"{best:.3f} to supervised {ceiling:.3f} (a ratio of means, without interval)."
        for name, mean in means.items()
        if name not in supervised and mean is not None
    ]


def mean_auroc(arm: Arm) -> float | None:
    """Mean AUROC in results.json over the runs of an arm."""
    aurocs = [run.probe().auroc for run in arm.runs.values()]
    measured = [auroc for auroc in aurocs if auroc is not None]
    return sum(measured) / len(measured) if measured else None
