"""`python bench/throughput.py [all|MODE]`: what this machine reaches, as tables and JSON.

Tables go to the standard output, progress to the standard error. Exit status: 0 done, 1 failed,
2 unusable arguments, 130 interrupted; what was measured by then is in the JSON file.
"""

import sys
import time

print("importing torch ...", file=sys.stderr, flush=True)

import argparse  # noqa: E402 - not tyro: needs only what training imports
import json  # noqa: E402
import os  # noqa: E402
from dataclasses import asdict, replace  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Protocol, cast  # noqa: E402

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from bench import plot  # noqa: E402
from bench.settings import DEFAULTS, Settings  # noqa: E402
from bench.table import Record  # noqa: E402
from bench.timing import Say  # noqa: E402
from common.errors import DataError  # noqa: E402
from common.files import write_atomically  # noqa: E402
from common.machine import environment  # noqa: E402
from shards.schema import load_metadata  # noqa: E402
from train.launch import device_warning, start_accelerator  # noqa: E402


class Mode(Protocol):
    """What the module of a mode holds."""

    def measure(self, settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
        """What was measured, a record of plain JSON types each."""
        ...

    def report(self, records: list[Record], settings: Settings) -> str:
        """The records as tables."""
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
}


def load_mode(mode: str) -> Mode:
    """The module of a mode, imported only when it is run: it may need packages of its own.

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
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    target, mode = given.pop("json", None), given.pop("mode")
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    try:
        settings = replace(DEFAULTS[accelerator.device.type], **given)
    except ValueError as error:
        parser.error(str(error))
    for option, path in (("json", target), ("plot", settings.plot)):
        if path is not None and not Path(path).parent.is_dir():
            parser.error(f"--{option} {path}: the folder {Path(path).parent} does not exist")
    try:
        run(mode, settings, accelerator, target)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def run(mode: str, settings: Settings, accelerator: Accelerator, target: Path | None) -> None:
    """Measure a mode, or all; after each, print its tables and write all results so far."""
    say = _stopwatch()
    if warning := device_warning():
        say(warning)
    if settings.data is not None:
        load_metadata(Path(settings.data))  # a wrong folder is refused before minutes of work
    tf32 = torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    load = os.getloadavg()[0]
    facts = {**environment(), "load_average": load, "tf32_convolutions": tf32}
    print(
        f"{facts['device']}, torch {facts['packages']['torch']}, {facts['threads']} threads; "
        f"load average before: {load:.1f}{'; fp32 convolutions by TF32' if tf32 else ''}"
    )
    results: list[Record] = []
    for name in MODES if mode == "all" else [mode]:
        module = load_mode(name)
        records = module.measure(settings, accelerator, say)
        results += [{"mode": name, **record} for record in records]
        about = {"environment": facts, "mode": mode, "settings": asdict(settings)}
        if target is not None:
            text = json.dumps({**about, "results": results}, indent=1) + "\n"
            write_atomically(target, text.encode())
            say(f"wrote {target}")
        print(f"\n== {name}\n\n{module.report(records, settings)}", flush=True)
        rungs = [record for record in records if record.get("kind") == "rung"]
        if settings.plot is not None and rungs:
            plot.against_batch_size(rungs, Path(settings.plot))
            say(f"wrote {settings.plot}")


def _stopwatch() -> Say:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", file=sys.stderr, flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    """Options left out take the device's default."""
    parser = argparse.ArgumentParser(
        prog="bench/throughput.py", description="What this machine reaches, as tables and JSON."
    )
    parser.add_argument("mode", nargs="?", choices=["all", *MODES], default="all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here as well")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds over what is compared")
    parser.add_argument("--steps", type=int, metavar="N", help="steps timed together, each round")
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction,
        help="measure compiled graphs; on a CPU each takes 20 to 50 s to compile",
    )  # fmt: skip
    parser.add_argument(
        "--peers", action="store_true", default=None,
        help="also measure other tools on the same work",
    )  # fmt: skip
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", metavar="N",
        help="of the rungs of `train`; default: the batch size alone",
    )  # fmt: skip
    parser.add_argument(
        "--patches", type=int, nargs="+", metavar="N",
        help="of the sets for `pack`, `read` and `scaling`; default: 8192",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="picture of the rungs against them")
    parser.add_argument("--window", type=float, metavar="S", help="seconds side by side, a round")
    parser.add_argument("--data", metavar="DIR", help="packed folder; default: synthetic patches")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
