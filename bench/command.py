"""The command `bench/throughput.py` once its arguments are parsed: its JSON file and its tables."""

import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import msgspec
import torch
from accelerate import Accelerator

from bench.arguments import MODES, NOT_IN_ALL, refuse
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


def main(arguments: Namespace) -> int:
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        refuse("one process is measured: start it with python, without a launcher")
    options = {name: value for name, value in vars(arguments).items() if value is not None}
    target, mode = options.pop("json", None), options.pop("mode")
    options |= {name: tuple(v) for name, v in options.items() if isinstance(v, list)}
    try:
        settings = replace(DEFAULTS[accelerator.device.type], **options)
    except ValueError as error:
        refuse(str(error))
    for option, path in (("json", target), ("plot", settings.plot)):
        if path is not None and not Path(path).parent.is_dir():
            refuse(f"--{option} {path}: the folder {Path(path).parent} does not exist")
    handler = logging.StreamHandler(sys.stderr)  # stdout holds tables only
    handler.setFormatter(_Elapsed())
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    console.log.addHandler(logging.NullHandler())  # a pack that is timed does not warn each time
    try:
        run(mode, settings, accelerator, target)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return DONE


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
