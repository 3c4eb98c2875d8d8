"""The command `bench/throughput.py`: its arguments, its JSON file and its tables."""

import argparse  # not tyro: needs only what training imports
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import msgspec
import torch
from accelerate import Accelerator

from bench.records import Record
from bench.settings import DEFAULTS, Settings
from bench.timing import log
from common import console
from common.command import DONE, FAILED, INTERRUPTED
from common.errors import DataError
from common.files import write_atomically
from common.machine import Environment, environment
from shards.schema import load_metadata
from train.launch import device_warning, start_accelerator


@dataclass(frozen=True, kw_only=True)
class Machine(Environment):
    """The environment, and what else decides how fast the machine is during a measurement."""

    load_average: float  # over the last minute, before the measurement
    tf32_convolutions: bool  # float32 convolutions of a GPU run in TF32


class Mode(Protocol):
    """The module of a mode."""

    def measure(self, settings: Settings, accelerator: Accelerator) -> Sequence[Record]:
        """Measure, and return the records for the JSON file."""
        ...

    def report(self, records: Sequence[Record], settings: Settings) -> str:
        """Show the records as tables."""
        ...


MODES = {
    "model": "bench.modes.model",
    "train": "bench.modes.training",
    "augment": "bench.modes.augment",
    "side-by-side": "bench.modes.side_by_side",
    "embed": "bench.modes.embedding",
    "pack": "bench.modes.packing",
    "read": "bench.modes.reading",
    "scaling": "bench.modes.scaling",
    "shuffle": "bench.modes.shuffle",
    "neighbours": "bench.modes.neighbours",
}
NOT_IN_ALL = ("neighbours",)  # it chose a constant of this project; minutes that tell a user little


class _Elapsed(logging.Formatter):
    """Seconds since the start before each message."""

    def format(self, record: logging.LogRecord) -> str:
        return f"[{record.relativeCreated / 1000:5.0f} s] {record.getMessage()}"


def load_mode(mode: str) -> Mode:
    """Import the module of a mode, only when it is run: it may need packages of its own.

    Raises:
        DataError: one of them is not installed.
    """
    try:
        return cast(Mode, import_module(MODES[mode]))
    except ImportError as error:
        raise DataError(f"the mode {mode} cannot be measured here: {error}") from error


def main(argv: list[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        parser.error("one process is measured: start it with python, without a launcher")
    options = {name: value for name, value in vars(arguments).items() if value is not None}
    target, mode = options.pop("json", None), options.pop("mode")
    options |= {name: tuple(v) for name, v in options.items() if isinstance(v, list)}
    try:
        settings = replace(DEFAULTS[accelerator.device.type], **options)
    except ValueError as error:
        parser.error(str(error))
    for option, path in (("json", target), ("plot", settings.plot)):
        if path is not None and not Path(path).parent.is_dir():
            parser.error(f"--{option} {path}: the folder {Path(path).parent} does not exist")
    _show_progress()
    try:
        run(mode, settings, accelerator, target)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _show_progress() -> None:
    """Send the messages of the bench to stderr, so that stdout holds tables only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Elapsed())
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    console.log.addHandler(logging.NullHandler())  # a pack that is timed does not warn each time


def run(mode: str, settings: Settings, accelerator: Accelerator, target: Path | None) -> None:
    """Measure a mode, or all; after each, print its tables and write all results so far."""
    if warning := device_warning():
        log.warning(warning)
    if settings.data is not None:
        load_metadata(Path(settings.data))  # a wrong folder is refused before minutes of work
    tf32 = torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    machine = Machine(
        **asdict(environment()), load_average=os.getloadavg()[0], tf32_convolutions=tf32
    )
    print(
        f"{machine.device}, torch {machine.packages['torch']}, {machine.threads} threads; "
        f"load average before: {machine.load_average:.1f}"
        f"{'; fp32 convolutions by TF32' if tf32 else ''}"
    )
    results: list[dict[str, object]] = []
    every = [name for name in MODES if name not in NOT_IN_ALL]
    for name in every if mode == "all" else [mode]:
        module = load_mode(name)
        records = module.measure(settings, accelerator)
        results += [{"mode": name, **msgspec.to_builtins(record)} for record in records]
        if target is not None:
            document = {
                "environment": asdict(machine),
                "mode": mode,
                "settings": asdict(settings),
                "results": results,
            }
            write_atomically(target, (json.dumps(document, indent=1) + "\n").encode())
            log.info(f"wrote {target}")
        print(f"\n== {name}\n\n{module.report(records, settings)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    """Options left out take the device's default."""
    parser = argparse.ArgumentParser(
        prog="bench/throughput.py",
        description="Measure what this machine reaches, as tables and JSON.",
    )
    add = parser.add_argument
    add_integer = partial(add, type=int, metavar="N")
    add("mode", nargs="?", choices=["all", *MODES], default="all")
    add("--json", type=Path, metavar="FILE", help="write the results to this file as well")
    add_integer("--batch-size", help="images per training step")
    add_integer(
        "--repeats", help="number of rounds; each measures everything that is compared once"
    )
    add_integer("--steps", help="consecutive steps that are timed together in each round")
    compiled = "measure compiled graphs too; on a CPU each takes 20 to 50 s to compile"
    add("--compiled", action=argparse.BooleanOptionalAction, help=compiled)
    peers = "also measure other tools (webdataset, ImageFolder, kornia, ...) on the same work"
    add("--peers", action="store_true", default=None, help=peers)
    sizes = "batch sizes at which `train` compares plain trainers with ours; default: --batch-size"
    add_integer("--batch-sizes", nargs="+", help=sizes)
    patches = "numbers of patches that `pack`, `read` and `scaling` measure on; default: 8192"
    add_integer("--patches", nargs="+", help=patches)
    plot = "draw the speeds of those trainers against the batch size to FILE (PNG, PDF or SVG)"
    add("--plot", metavar="FILE", help=plot)
    window = "seconds of each round of `side-by-side`"
    add("--window", type=float, metavar="S", help=window)
    add("--data", metavar="DIR", help="packed folder to measure on; default: synthetic patches")
    return parser
