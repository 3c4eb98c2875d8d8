"""From a plain trainer to ours: whole steps with their loaders, in images/s.

All baselines do the same work: one architecture and objective, AdamW, clipping, EMA, one batch size
and thread count. They take turns in each round, so that the two speeds of a ratio are measured soon
after each other.

On a GPU an eager step waits for the device three times, because kornia's blur and JPEG check the
values of their arguments; in a compiled graph they do not.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator

from bench.records import CELL, NotMeasured, Record, Spread, grouped
from bench.settings import VARIANTS, Settings
from bench.steps import PRESETS_TIMED, endless, make_trainer, paced, paced_anew
from bench.timing import log, rounds
from common.console import table
from pipeline.index import Dataset
from train.config import PRESETS

PEERS = ("plain, webdataset", "plain, ImageFolder")  # also the keys of plain_trainer.LOADERS

Block = Callable[[], float]


class Baseline(Record, tag="rung", frozen=True):
    """Speed of whole training steps by one trainer, at one preset and batch size."""

    preset: str
    batch_size: int
    name: str = msgspec.field(name="rung")
    ours: bool  # our best variant, to which all are compared
    images_per_s: Spread | NotMeasured
    ours_is_faster_by: Spread | NotMeasured


def measure(settings: Settings, accelerator: Accelerator, dataset: Dataset) -> list[Baseline]:
    """Time every baseline of every preset and batch size."""
    records: list[Baseline] = []
    with tempfile.TemporaryDirectory(prefix="bench-plain-") as folder:
        if settings.peers:
            from bench import plain_trainer

            log.info("baselines: writing PNG files and webdataset tars")
            plain_trainer.write_out(dataset.split("train"), Path(folder), max(settings.sizes))
        for preset, size in product(PRESETS_TIMED, settings.sizes):
            one_size = replace(settings, batch_size=size)
            records += _compare(preset, one_size, accelerator, dataset, Path(folder))
    return records


def _compare(
    preset: str, settings: Settings, accelerator: Accelerator, dataset: Dataset, plain: Path
) -> list[Baseline]:
    torch.compiler.reset()
    device, size = accelerator.device, settings.batch_size
    obstacles = {name: v.obstacle(device, settings) for name, v in VARIANTS.items()}
    measurable = [name for name, reason in obstacles.items() if reason is None]
    with ExitStack() as stack:
        blocks: dict[str, Block] = {}
        if settings.peers:
            for name in PEERS:
                peer = _plain_block(name, preset, settings, device, plain)
                blocks[name] = stack.enter_context(peer)
        for name in measurable:
            variant = {"precision": VARIANTS[name].precision, "compile": VARIANTS[name].compiled}
            trainer = make_trainer(preset, accelerator, dataset, batch_size=size, **variant)
            source = partial(endless, trainer.loader)
            blocks[name] = partial(paced_anew, trainer, source, settings.steps)
        log.info(f"baselines: {preset}, batch {size}: the first steps of {', '.join(blocks)}")
        for block in blocks.values():
            block()
        seconds = rounds(blocks, settings.repeats)
    best = measurable[-1]
    record = partial(Baseline, preset, size)
    measured = [
        record(
            name,
            name == best,
            Spread.of([size / s for s in values]),
            Spread.of_ratios(values, seconds[best]),
        )
        for name, values in seconds.items()
    ]
    reasons = {name: NotMeasured(reason) for name, reason in obstacles.items() if reason}
    return measured + [record(name, False, none, none) for name, none in reasons.items()]


@contextmanager
def _plain_block(
    name: str, preset: str, settings: Settings, device: torch.device, folder: Path
) -> Iterator[Block]:
    """Yield a block of a plain trainer whose workers live from round to round, as in training."""
    from bench.plain_trainer import LOADERS, PlainTrainer  # needs webdataset

    trainer = PlainTrainer(PRESETS[preset](), device)
    with closing(LOADERS[name](folder, settings.batch_size, device.type == "cuda")) as batches:
        yield partial(paced, trainer.update, batches, settings.steps, device)


def report(records: list[Baseline]) -> str:
    """Show a table per preset and batch size."""
    tables = []
    for (preset, size), group in grouped(records, lambda r: (r.preset, r.batch_size)).items():
        rows = [["baseline", "images/s", "ours is faster by"]]
        for r in group:
            name = f"{r.name} = ours" if r.ours else r.name
            rows.append([name, f"{r.images_per_s}", f"{r.ours_is_faster_by:,.2f}"])
        tables.append(f"{preset}: baselines at batch {size:,}: {CELL}\n{table(rows)}")
    return "\n\n".join(tables)


def plot(records: list[Baseline], target: Path) -> None:
    """Draw images/s against the batch size: PNG, PDF or SVG, a panel per preset.

    Points are medians, bars the range of all repeats; what was not measured is left out.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    presets = grouped(records, lambda r: r.preset)
    figure, axes = plt.subplots(
        1, len(presets), figsize=(5 * len(presets), 4), sharey=True, squeeze=False
    )
    for axis, (preset, group) in zip(axes[0], presets.items(), strict=True):
        for name, points in grouped(group, lambda r: r.name).items():
            rates = {
                r.batch_size: r.images_per_s for r in points if isinstance(r.images_per_s, Spread)
            }
            medians = [rate.median for rate in rates.values()]
            below = [rate.median - rate.low for rate in rates.values()]
            above = [rate.high - rate.median for rate in rates.values()]
            if rates:
                axis.errorbar([*rates], medians, [below, above], marker="o", capsize=3, label=name)
        axis.set_xscale("log", base=2)
        axis.set(title=preset, xlabel="batch size")
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("images/s, whole steps")
    axes[0][-1].legend()
    figure.savefig(target, dpi=150, bbox_inches="tight")
    plt.close(figure)
