"""Whether a data set can rank models at all: against the untrained encoder and the baselines."""

from collections.abc import Iterable

import numpy as np

from eval.measure.scores import Scores
from eval.report.runs import ALL_LABELS, Arm, Baseline, ComparedArms
from eval.report.verdicts import shortcomings
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import compare

UNTRAINED = "random_init"
CEILING = "supervised"


def sentences(compared: ComparedArms, baselines: Iterable[Baseline]) -> list[str]:
    """A line per arm against the untrained encoder, then the gap to labels that each closes.

    Args:
        baselines: the gap is counted from the one with the highest AUROC.
    """
    lines: list[str] = []
    resampled: set[str] = set()
    for arm in compared.arms.values():
        trained = arm.scores(ALL_LABELS, list(arm.books))
        untrained = _untrained_scores(compared, arm)
        if trained is None or untrained is None or compared.test is None:
            continue
        repeated = [np.stack([scores] * len(arm.books)) for scores in untrained]
        scores = {arm.name: trained, "untrained": repeated}
        difference = compare(scores, compared.test.labels, compared.test.groups).difference
        lines.append(_sentence(arm, difference))
        if difference.low is not None:
            resampled.add(difference.resampled)
    if resampled:
        lines.append(f"Resampled in these intervals: {'; or '.join(sorted(resampled))}.")
    aurocs = {baseline.label: baseline.scores.auroc for baseline in baselines}
    measured = {label: auroc for label, auroc in aurocs.items() if auroc is not None}
    if not measured:
        return lines
    best, auroc = max(measured.items(), key=lambda item: item[1])
    first = f"The best baseline without training is {best}, AUROC {auroc:.3f}."
    return [first, *lines, *_gaps(compared, auroc)]


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
    means: dict[str, float] = {}
    for arm in compared.arms.values():
        aurocs = [run.probe().auroc for run in arm.runs.values()]
        measured = [auroc for auroc in aurocs if auroc is not None]
        if measured:
            means[arm.name] = sum(measured) / len(measured)
    supervised = {arm.name for arm in compared.arms.values() if arm.preset == CEILING}
    ceiling = max((means[name] for name in means if name in supervised), default=None)
    if ceiling is None:
        return ["Gap closure: not measured, no run of the preset supervised."]
    if ceiling <= best:
        return [f"Gap closure: undefined, supervised {ceiling:.3f} is not above the baseline."]
    return [
        f"{name} closes {(mean - best) / (ceiling - best):+.2f} of the gap from the best baseline "
        f"{best:.3f} to supervised {ceiling:.3f} (a ratio of means, without interval)."
        for name, mean in means.items()
        if name not in supervised
    ]
