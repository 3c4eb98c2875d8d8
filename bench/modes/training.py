"""`train`: steps of `train.loop.Trainer`, loader included.

Steps on batches from every storage are compared with steps on one batch that is on the device
already; then come the parts of a step, its share of the machine's peaks, and plain trainers.
"""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator

from bench import baselines, roofline
from bench.patches import packed_folder
from bench.records import CELL, Record, Spread, grouped
from bench.roofline import Peaks, Roofline
from bench.settings import Settings
from bench.steps import (
    PRESETS_TIMED,
    BatchSource,
    StepPart,
    TrainRecord,
    endless,
    make_trainer,
    measure_parts,
    paced_anew,
    report_parts,
    training_of,
)
from bench.timing import log, rounds
from common.console import table
from pipeline.index import Dataset, open_dataset
from pipeline.loader import STORES, Batch, Loader, choose_storage
from train.loop import Trainer

FIXED = "fixed"  # one batch that is on the device already


class StepSpeed(TrainRecord, tag="speed", frozen=True):
    """Whole steps on batches from one source."""

    source: str
    images_per_s: Spread
    step_s: Spread
    step_over_fixed: Spread


def measure(settings: Settings, accelerator: Accelerator) -> list[Record]:
    """Measure the peaks once; each preset's speeds, parts and roofline; the baselines."""
    with packed_folder(settings) as root:
        dataset = open_dataset(root)
        peaks = roofline.peaks(accelerator.device, settings.repeats)
        records: list[Record] = [peaks]
        for preset in PRESETS_TIMED:
            records += _preset(preset, settings, accelerator, dataset, peaks)
        comparisons = baselines.measure(settings, accelerator, dataset)
    if settings.plot is not None:
        baselines.plot(comparisons, Path(settings.plot))
        log.info(f"wrote {settings.plot}")
    return records + comparisons


def _preset(
    preset: str, settings: Settings, accelerator: Accelerator, dataset: Dataset, peaks: Peaks
) -> list[TrainRecord]:
    log.info(f"train: {preset}: making the trainer")
    torch.compiler.reset()
    options = {"batch_size": settings.batch_size, "compile": settings.compiled}
    trainer = make_trainer(preset, accelerator, dataset, storage="stream", **options)
    loaders = fitting_loaders(trainer)
    fixed = fixed_batch(trainer)
    speeds = speeds_by_source(trainer, preset, fixed, loaders, settings)
    parts = measure_parts(trainer, list(loaders.values())[-1], preset, settings)
    rate = speeds[0].images_per_s.median
    return [*speeds, *parts, roofline.measure(trainer, fixed, preset, rate, peaks.rates)]


def fitting_loaders(trainer: Trainer) -> dict[str, Loader]:
    """Make a loader for every storage that the split fits in, the slowest first."""
    device, train = trainer.device, trainer.split
    fitting = {"stream", choose_storage(train, torch.device("cpu")), choose_storage(train, device)}
    return {
        storage: Loader(train, trainer.schedule.batch, trainer.config.seed, device, storage)
        for storage in sorted(fitting, key=list(STORES).index)
    }


def fixed_batch(trainer: Trainer) -> Batch:
    """Load a batch to the device, in the memory format of the batches that are copied there."""
    with closing(endless(trainer.loader)) as batches:
        batch = next(batches)
    return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))


def speeds_by_source(
    trainer: Trainer, preset: str, fixed: Batch, loaders: dict[str, Loader], settings: Settings
) -> list[StepSpeed]:
    """Time whole steps on a fixed batch, and on those of each loader."""
    sources: dict[str, BatchSource] = {FIXED: lambda: (fixed for _ in count())}
    sources |= {name: partial(endless, loader) for name, loader in loaders.items()}
    log.info(f"train: {'compiling the step' if trainer.config.compile else 'the first step'}")
    trainer.update(next(sources[FIXED]()))
    log.info(f"train: timing {', '.join(sources)}: {settings.steps} steps each in a round")
    blocks = {
        name: partial(paced_anew, trainer, source, settings.steps)
        for name, source in sources.items()
    }
    seconds = rounds(blocks, settings.repeats)
    return [
        StepSpeed(
            *training_of(trainer, preset),
            source=name,
            images_per_s=Spread.of([trainer.schedule.batch / s for s in values]),
            step_s=Spread.of(values),
            step_over_fixed=Spread.of_ratios(values, seconds[FIXED]),
        )
        for name, values in seconds.items()
    ]


def report(records: Sequence[Record], settings: Settings) -> str:
    """Show the peaks; per preset the sources, the parts of a step and its roofline; baselines."""
    tables = [roofline.report_peaks(record) for record in records if isinstance(record, Peaks)]
    of_presets = [record for record in records if isinstance(record, TrainRecord)]
    for preset, group in grouped(of_presets, lambda r: r.preset).items():
        first, mode = group[0], "compiled" if group[0].compiled else "eager"
        rows = [["batches from", "images/s", "ms per step", "step / fixed step"]]
        for r in group:
            if isinstance(r, StepSpeed):
                step, ratio = f"{r.step_s.times(1000):,.1f}", f"{r.step_over_fixed:,.3f}"
                rows.append([r.source, f"{r.images_per_s}", step, ratio])
        lines = [
            f"{preset} ({first.architecture}, {mode} {first.precision}): whole steps at "
            f"batch {settings.batch_size:,}: {CELL}",
            table(rows),
            report_parts([record for record in group if isinstance(record, StepPart)]),
            *(roofline.report(record) for record in group if isinstance(record, Roofline)),
        ]
        tables.append("\n".join(lines))
    comparisons = [record for record in records if isinstance(record, baselines.Baseline)]
    return "\n\n".join([*tables, baselines.report(comparisons)])
