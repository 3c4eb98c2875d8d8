"""`train`: steps of `train.loop.Trainer`, loader included.

First the same steps with batches from every storage, against one batch that lies on the device;
then the parts of a step, its share of what the machine can do, and the rungs from a plain trainer.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator

from bench import ladder, limits, split
from bench.data import packed
from bench.ladder import PRESETS_TIMED, endless, make_trainer, paced
from bench.settings import Settings
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say, rounds
from pipeline.index import Dataset, open_dataset
from pipeline.loader import STORES, Batch, Loader, choose_storage
from train.config import PRESETS
from train.loop import Trainer

FIXED = "fixed"  # one batch that lies on the device already

Source = Callable[[], Generator[Batch, None, None]]


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `peak`, once; by preset `speed`, one a source, `split`, one a part, and
    `limits`; and `rung`, one a preset, batch size and rung."""
    with packed(settings, say) as root:
        dataset = open_dataset(root)
        peak = limits.peaks(accelerator.device, settings.repeats, say)
        records: list[Record] = [{"kind": "peak", "rates": peak}]
        for preset in PRESETS_TIMED:
            records += _preset(preset, settings, accelerator, dataset, peak, say)
        return records + ladder.measure(settings, accelerator, dataset, say)


def _preset(
    preset: str, settings: Settings, accelerator: Accelerator, dataset: Dataset, peak: Record,
    say: Say,
) -> list[Record]:  # fmt: skip
    say(f"train: {preset}: making the trainer")
    torch.compiler.reset()
    config = replace(
        PRESETS[preset](), batch_size=settings.batch_size, compile=settings.compiled,
        storage="stream",
    )  # fmt: skip
    trainer = make_trainer(config, accelerator, dataset)
    found = sources(trainer)
    records = speeds(trainer, found, settings, say)
    fastest = list(loaders(trainer).values())[-1]
    records += split.measure(trainer, fastest, settings, say)
    with closing(found[FIXED]()) as batches:
        rates = records[0]["images_per_s"]
        records.append(limits.measure(trainer, next(batches), rates, peak))
    about = {
        "preset": preset,
        "architecture": trainer.config.model.architecture,
        "precision": trainer.config.precision,
        "compiled": trainer.config.compile,
    }
    return [{**about, **record} for record in records]


def loaders(trainer: Trainer) -> dict[str, Loader]:
    """By storage, every one that the split fits in, the slowest first."""
    device, train = trainer.device, trainer.split
    fits = {"stream", choose_storage(train, torch.device("cpu")), choose_storage(train, device)}
    return {
        storage: Loader(train, trainer.plan.batch, trainer.config.seed, device, storage)
        for storage in sorted(fits, key=list(STORES).index)
    }


def sources(trainer: Trainer) -> dict[str, Source]:
    """Where batches come from: one fixed batch, and every storage that the split fits in."""
    with closing(endless(trainer.loader)) as batches:
        first = next(batches)
    dense = first.images.contiguous(memory_format=torch.channels_last)
    fixed = first._replace(images=dense)
    found: dict[str, Source] = {FIXED: partial(_again, fixed)}
    return found | {name: partial(endless, loader) for name, loader in loaders(trainer).items()}


def _again(batch: Batch) -> Generator[Batch, None, None]:
    while True:
        yield batch


def speeds(
    trainer: Trainer, found: dict[str, Source], settings: Settings, say: Say
) -> list[Record]:
    """Records of kind `speed`, FIXED first."""
    say(f"train: {'compiling the step' if trainer.config.compile else 'the first step'}")
    trainer.update(next(found[FIXED]()))
    say(f"train: timing {', '.join(found)}: {settings.steps} steps each in a round")
    blocks = {name: partial(_block, trainer, found[name], settings.steps) for name in found}
    seconds = rounds(blocks, settings.repeats, say)
    return [
        {
            "kind": "speed",
            "source": name,
            "images_per_s": spread([trainer.plan.batch / s for s in values]),
            "step_s": spread(values),
            "step_over_fixed": spread(
                [s / fixed for s, fixed in zip(values, seconds[FIXED], strict=True)]
            ),
        }
        for name, values in seconds.items()
    ]


def _block(trainer: Trainer, source: Source, steps: int) -> float:
    """Seconds a step, once the loader is at its pace."""
    with closing(source()) as batches:
        return paced(trainer.update, batches, steps, trainer.device)


def report(records: list[Record], settings: Settings) -> str:
    """The peaks; by preset a table of sources, the shares of a step, its limits; the rungs."""
    parts = [limits.report_peaks(r["rates"]) for r in records if r["kind"] == "peak"]
    rungs = [record for record in records if record["kind"] == "rung"]
    for preset in dict.fromkeys(r["preset"] for r in records if r["kind"] == "speed"):
        mine = [r for r in records if r.get("preset") == preset and r["kind"] != "rung"]
        about, how = mine[0], "compiled" if mine[0]["compiled"] else "eager"
        title = f"{preset} ({about['architecture']}, {how} {about['precision']}): whole steps at "
        title += f"batch {settings.batch_size:,}: {CELL}"
        rows = [["batches from", "images/s", "ms a step", "step / fixed step"]]
        rows += [_row(record) for record in mine if record["kind"] == "speed"]
        shares = split.report([record for record in mine if record["kind"] == "split"])
        needs = [limits.report(record) for record in mine if record["kind"] == "limits"]
        parts.append("\n".join([title, table(rows), shares, *needs]))
    return "\n\n".join([*parts, ladder.report(rungs)])


def _row(record: Record) -> list[str]:
    milliseconds = {k: v if k == "repeats" else 1000 * v for k, v in record["step_s"].items()}
    return [
        record["source"],
        cell(record["images_per_s"]),
        cell(milliseconds, ",.1f"),
        cell(record["step_over_fixed"], ".3f"),
    ]
