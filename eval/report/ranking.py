"""Whether a data set can rank models at all: against the untrained encoder and the baselines."""

from typing import Any

import numpy as np

from eval.measure.scores import Scores
from eval.report import arms as of_runs
from eval.report.arms import Arm, Compared
from eval.report.runs import Entry
from eval.report.verdicts import ALL_LABELS, PLAN, shortcomings
from eval.stats.bootstrap import Interval
from eval.stats.contrasts import compare

UNTRAINED = "random_init"
CEILING = "supervised"


def sentences(compared: Compared, best: tuple[str, float] | None) -> list[str]:
    """A line an arm on the untrained encoder, then how much of the gap to labels it closes.

    Args:
        best: the name and AUROC of the best baseline.
    """
    found = [(arm, d) for arm in compared.arms.values() if (d := _untrained(compared, arm))]
    lines = [_sentence(arm, difference) for arm, difference in found]
    if resampled := sorted({d.resampled for _, d in found if d.low is not None}):
        lines.append(f"Resampled in these intervals: {'; or '.join(resampled)}.")
    if best is None:
        return lines
    lines.insert(0, f"The best baseline without training is {best[0]}, AUROC {best[1]:.3f}.")
    return lines + gaps(compared, best[1])


def _untrained(compared: Compared, arm: Arm) -> Interval | None:
    """An arm minus the untrained encoder, where both were scored."""
    seeds = list(arm.books)
    trained = arm.scores(ALL_LABELS.pick, seeds) if seeds else None
    untrained = _scores_of_untrained(compared, arm)
    if trained is None or untrained is None or compared.test is None:
        return None
    scores = {arm.name: trained, "untrained": np.stack([untrained] * len(seeds))}
    return compare(scores, compared.test.labels, compared.test.groups, plan=PLAN).difference


def _sentence(arm: Arm, found: Interval) -> str:
    if found.low is None or found.high is None:
        return (
            f"{arm.name} - untrained: {found.estimate:+.4f}, no interval ({found.resampled}): "
            "whether this data set can rank models cannot be said."
        )
    words = f"{arm.name} - untrained: {found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    if reasons := shortcomings(found):
        return f"{words}: decides nothing, {'; '.join(reasons)}."
    if found.low > 0:
        return f"{words}: training shows in this probe."
    if found.high < 0:
        return f"{words}: training made this probe worse."
    return f"{words}: within noise of untrained, so this data set cannot rank models by this probe."


def _scores_of_untrained(compared: Compared, arm: Arm) -> Scores | None:
    """Of any run of the architecture: the untrained encoder is the same for all, so that a sweep
    evaluates it once."""
    wanted = {repr(_architecture(entry)) for entry in arm.runs.values()}
    for other in compared.arms.values():
        for seed, book in other.books.items():
            found = of_runs.clean(UNTRAINED)(book)
            known = repr(_architecture(other.runs[seed])) in wanted
            if known and found is not None and not isinstance(found, list):
                return found
    return None


def _architecture(entry: Entry) -> dict[str, Any]:
    about = entry.at("model")
    facts = about if isinstance(about, dict) else {}
    return {k: v for k, v in facts.items() if k not in ("snapshot", "parameters")}


def gaps(compared: Compared, best: float) -> list[str]:
    """G = (model - best baseline) / (supervised - best baseline), where that is above 0."""
    ceilings = [arm for arm in compared.arms.values() if arm.preset == CEILING]
    ceiling = max(filter(None, map(mean_auroc, ceilings)), default=None)
    if ceiling is None:
        return ["Gap closure: not measured, no run of the preset supervised."]
    if ceiling <= best:
        return [f"Gap closure: undefined, supervised {ceiling:.3f} is not above the baseline."]
    lines = []
    for arm in compared.arms.values():
        found = mean_auroc(arm)
        if arm.preset != CEILING and found is not None:
            share = (found - best) / (ceiling - best)
            lines.append(
                f"{arm.name} closes {share:+.2f} of the gap from the best baseline {best:.3f} to "
                f"supervised {ceiling:.3f} (a ratio of means, without interval)."
            )
    return lines


def mean_auroc(arm: Arm) -> float | None:
    """The mean over the runs of an arm of the AUROC in results.json."""
    values = [run.at("probe", "mean", "auroc") for run in arm.runs.values()]
    kept = [value for value in values if isinstance(value, float)]
    return sum(kept) / len(kept) if kept else None
