"""Lines that a run logs at its start and end: data, budget, and warnings about its results."""

import torch

from common.console import log
from eval.config import EvalConfig
from eval.stats.grouping import MIN_GROUPS
from pipeline.index import Dataset, groups
from shards.schema import PATCH_BYTES
from train.config import Config
from train.schedule import learning_rate, make_schedule

MEGABYTE = 1e6
# on two cores, of the bare command: figures 3.5 s; embeddings, baselines and probes 9.6 s of 6,400
# train rows; metrics of an image as long as training on 2.7 (587 images/s, 5.9 s for 1,280)
FIGURES_S, PROBE_ROW_S, METRICS_IMAGES = 3.5, 1.5e-3, 2.7
PLACES = {"host": "in memory", "device": "on the GPU", "stream": "streamed from the shards"}


def describe_data(dataset: Dataset, config: Config) -> str:
    """Describe sizes, groups and classes, and where the train split is kept, in one line."""
    sizes = ", ".join(
        f"{name} {len(split):,} from {split.group_count:,} groups"
        for name, split in dataset.splits.items()
    )
    megabytes = len(dataset.split("train")) * PATCH_BYTES / MEGABYTE
    metadata = dataset.metadata
    classes = f"{len(metadata.classes)} classes" if metadata.labelled else "no classes"
    return f"  patches: {sizes}; {classes}; train, {megabytes:,.0f} MB, {PLACES[config.storage]}"


def describe_work(preset: str, config: Config, device: torch.device, processes: int) -> str:
    """Describe the budget and the device in one line."""
    schedule = make_schedule(config)
    place = device.type
    if place == "cpu":
        place += f" ({torch.get_num_threads()} threads)"
    if processes > 1:
        place += f" x {processes} processes"
    compiled = ", compiled" if config.compile else ""
    return (
        f"  {preset}: {schedule.images:,} images in {schedule.steps:,} steps of {schedule.batch}, "
        f"on {place}, {config.precision}{compiled}; seed {config.seed}"
    )


def describe_continuation(config: Config, budget: int, done: int) -> str:
    """Describe what a larger budget changes, in one line."""
    optim, schedule = config.optim, make_schedule(config)
    seen = done * schedule.batch
    before = learning_rate(optim, min(1.0, (seen - schedule.batch / 2) / budget))
    after = learning_rate(optim, schedule.progress(done))
    return (
        f"  the budget of {budget:,} images is now {schedule.images:,}: from here on the learning "
        f"rate follows the schedule of that budget, {after:.2g} after {before:.2g}"
    )


def evaluation_seconds(dataset: Dataset, image_seconds: float) -> float:
    """Estimate the duration of the evaluation that ends a run, by one process.

    Args:
        image_seconds: time that it trains on an image.
    """
    splits = (dataset.splits.get(name) for name in ("test", "val", "train"))
    images = min(next(len(split) for split in splits if split), EvalConfig.test_images)
    seconds = FIGURES_S + METRICS_IMAGES * image_seconds * images
    if "val" not in dataset.splits or not dataset.metadata.labelled:
        return seconds
    rows = min(len(dataset.split("train")), EvalConfig.probe_images)
    return seconds + PROBE_ROW_S * rows


def warn_about(dataset: Dataset) -> None:
    """Warn of weaknesses of the data that limit the results, and say what to do."""
    metadata = dataset.metadata
    if "val" not in dataset.splits:
        log.warning(
            "no val split: nothing is validated and probes are skipped; "
            "pack again with --val 0.15 --test 0.2"
        )
    if not metadata.labelled:
        log.warning(
            "no labels: probes are skipped; evaluate on labelled patches with "
            "python -m eval.main RUN --data DIR"
        )
    if len(metadata.classes) == 1:
        log.warning(f"one class ({metadata.classes[0]}): probes have nothing to tell apart")
    if warning := dataset.unknown_sources:
        log.warning(warning)
    elif all(split.group_count == len(split) > 1 for split in dataset.splits.values()):
        log.warning(
            "every patch is a group of its own: if several come from one slide, name the slide "
            "when packing (--group-regex or --manifest), or splits leak"
        )
    elif few := _classes_of_few_groups(dataset):
        counts = ", ".join(f"{name} {count}" for name, count in sorted(few.items()))
        log.warning(
            f"few groups per class in test ({counts}; fewer than {MIN_GROUPS}): error bars are "
            "wide, and small differences between models mean nothing"
        )


def warn_about_settings(config: Config) -> None:
    """Warn of settings that were changed and have no effect."""
    objective, default = config.objective, Config()
    is_fixed = objective.noise_var != "learned"
    of_learned = (objective.noise_var_init, config.optim.noise_var_lr)
    if is_fixed and of_learned != (default.objective.noise_var_init, default.optim.noise_var_lr):
        log.warning(
            f"objective.noise_var is fixed at {objective.noise_var:g}: objective.noise_var_init "
            f"{of_learned[0]:g} and optim.noise_var_lr {of_learned[1]:g} are about a learned one "
            "and have no effect"
        )


def describe_reading(images: int, samples: int) -> str:
    """Describe in one line how often the train samples were read; the order skips none."""
    epochs, more = divmod(images, samples)
    if not epochs:
        times = f"{more:,} of them once"
    else:
        times = f"each {epochs:,} times" if epochs > 1 else "each once"
        times += f", {more:,} of them once more" if more else ""
    return f"samples read: {images:,} of {samples:,} in train: {times}; none skipped"


def _classes_of_few_groups(dataset: Dataset) -> dict[str, int]:
    """Count the test split's groups per class, for classes with fewer than MIN_GROUPS."""
    split = dataset.splits.get("test")
    if split is None or not len(split) or not dataset.metadata.labelled:
        return {}
    table = split.table.select(["label"]).append_column("group", groups(split.table))
    counts = table.group_by("label").aggregate([("group", "count_distinct")]).to_pylist()
    return {
        dataset.metadata.classes[row["label"]]: row["group_count_distinct"]
        for row in counts
        if row["label"] >= 0 and row["group_count_distinct"] < MIN_GROUPS
    }
