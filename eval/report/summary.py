"""What was compared on what, in one sentence; which models are pictured."""

from collections.abc import Sequence

from eval.report.document import number, shown
from eval.report.runs import Arm, ComparedArms
from eval.report.verdicts import EXPLORATORY, REFERENCE, pairs, planned_contrasts
from eval.results import SplitCounts

MOST = 8  # models that the sentence names


def title(compared: ComparedArms) -> str:
    """The data set by its folder and hash."""
    run = compared.runs[0]
    return f"Data set {_folder(compared)}, {shown(run.results.data.hash)}"


def _folder(compared: ComparedArms) -> str:
    run = compared.runs[0]
    return shown("/".join(run.root.parts[-2:]))  # many folders are called shards


def sentence(compared: ComparedArms) -> str:
    """The models with their seeds and training, and the test patches of the data set."""
    arms = list(compared.arms.values())
    run = arms[0].first
    names = [arm.name + _seeds(arm) for arm in arms[:MOST]]
    if len(arms) > MOST:
        names.append(f"{len(arms) - MOST} more models")
    images = {arm.images for arm in arms if arm.images is not None}
    training = f", trained on {number(max(images), 0)} images each," if len(images) == 1 else ""
    if len(arms) == 1:
        training = training.replace(" each", "")
    protocol = run.results.protocol
    split = protocol.metrics_split or "test"
    counts = protocol.splits.get(split, SplitCounts())
    what = _folder(compared)
    if counts.patches is not None:
        what += f": {number(counts.patches, 0)} {shown(split)} patches"
        what += f" of {number(counts.groups, 0)} groups" if counts.groups is not None else ""
    classes = [shown(name) for name in protocol.classes or []]
    if classes:
        what += f", in {len(classes)} classes ({_listed(classes)})"
    return f"{_listed(names)}{training} on {what}."


def _seeds(arm: Arm) -> str:
    ceiling = "ceiling trained on labels" if arm.kind == "ceiling" else ""
    seeds = f"{len(arm.runs)} seeds" if len(arm.runs) > 1 else ""
    remarks = ", ".join(filter(None, (ceiling, seeds)))
    return f" ({remarks})" if remarks else ""


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def pictured(compared: ComparedArms) -> tuple[Arm, Arm | None]:
    """The arms of H1 where both are here; else the best one and its partner in a contrast.

    The partner is a predefined one, else the reference.
    """
    h1 = planned_contrasts(compared.arms)[0]
    if {h1.first, h1.second} <= compared.arms.keys():
        return compared.arms[h1.second], compared.arms[h1.first]
    best, presets = compared.best, {arm.name: arm.preset for arm in compared.arms.values()}
    own = [pair for pair in pairs(presets) if best.name in pair]
    predefined = [pair for pair in own if pair in EXPLORATORY]
    if not predefined and REFERENCE in presets and best.name != REFERENCE:
        return best, compared.arms[REFERENCE]
    others = [name for pair in [*predefined, *own] for name in pair if name != best.name]
    return best, compared.arms[others[0]] if others else None
