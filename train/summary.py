"""The paragraph at the start of a run: what was found, what will be done, what to mend."""

from eval.stats.grouping import MIN_GROUPS
from pipeline.index import Dataset, groups
from shards.schema import PATCH_BYTES
from train.config import Config
from train.schedule import plan

MEGABYTE = 1e6


def found(dataset: Dataset, config: Config) -> list[str]:
    """The data set in lines: size, groups, classes, and where the train split is kept."""
    metadata = dataset.metadata
    sizes = ", ".join(
        f"{name} {len(split):,} from {split.group_count:,} groups"
        for name, split in dataset.splits.items()
    )
    train = len(dataset.split("train")) * PATCH_BYTES / MEGABYTE
    where = {"host": "in memory", "device": "on the GPU", "stream": "streamed from the shards"}
    classes = f"{len(metadata.classes)} classes" if metadata.labelled else "no classes"
    return [f"  patches: {sizes}; {classes}; train, {train:,.0f} MB, {where[config.storage]}"]


def planned(preset: str, config: Config, device: str, threads: int, processes: int) -> str:
    """The work in a line."""
    steps = plan(config)
    on = f"{device} ({threads} threads)" if device == "cpu" else device
    several = f" x {processes} processes" if processes > 1 else ""
    compiled = ", compiled" if config.compile else ""
    return (
        f"  {preset}: {steps.images:,} images in {steps.steps:,} steps of {steps.batch}, on "
        f"{on}{several}, {config.precision}{compiled}; seed {config.seed}"
    )


def warnings(dataset: Dataset) -> list[str]:
    """What makes results weaker than they look, each with what to do."""
    metadata, lines = dataset.metadata, []
    if "val" not in dataset.splits:
        lines.append(
            "no val split: nothing is validated and probes are skipped; "
            "pack again with --val 0.15 --test 0.2"
        )
    if not metadata.labelled:
        lines.append(
            "no labels: probes are skipped; evaluate on labelled patches with "
            "python -m eval.main RUN --data DIR"
        )
    if len(metadata.classes) == 1:
        lines.append(f"one class ({metadata.classes[0]}): probes have nothing to tell apart")
    if all(split.group_count == len(split) > 1 for split in dataset.splits.values()):
        lines.append(
            "every patch is a group of its own: if several come from one slide, say so when "
            "packing (--group-regex or --manifest), or splits leak"
        )
    elif metadata.labelled:
        lines += _few_groups(dataset)
    return lines


def read(images: int, samples: int) -> str:
    """What became of the samples of train, at the end: the order loses none."""
    epochs, rest = divmod(images, samples)
    times = f"each {epochs:,} times" if epochs != 1 else "each once"
    whole = f"{times}, {rest:,} of them once more" if epochs and rest else times
    return (
        f"samples read: {images:,} of {samples:,} in train: "
        f"{whole if epochs else f'{rest:,} of them once'}; none skipped"
    )


def _few_groups(dataset: Dataset) -> list[str]:
    split = dataset.splits.get("test")
    if split is None or not len(split):
        return []
    rows = split.table
    table = rows.select(["label"]).append_column("group", groups(rows))
    counted = table.group_by("label").aggregate([("group", "count_distinct")]).to_pylist()
    few = {
        dataset.metadata.classes[row["label"]]: row["group_count_distinct"]
        for row in counted
        if row["label"] >= 0 and row["group_count_distinct"] < MIN_GROUPS
    }
    if not few:
        return []
    named = ", ".join(f"{name} {count}" for name, count in sorted(few.items()))
    return [
        f"few groups a class in test ({named}; fewer than {MIN_GROUPS}): error bars are wide, and "
        "small differences between models mean nothing"
    ]
