"""`python bench/throughput.py [all|model|train]`: what this machine reaches, as tables and JSON.

Tables go to the standard output, progress to the standard error. Exit status: 0 done, 1 failed,
2 unusable arguments, 130 interrupted; what was measured by then is in the JSON file.
"""

import sys
import time

print("importing torch ...", file=sys.stderr, flush=True)

import argparse  # noqa: E402 - not tyro: needs only what training imports
import json  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import asdict, replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from bench import model, training  # noqa: E402
from bench.settings import DEFAULTS, Settings  # noqa: E402
from bench.table import Record  # noqa: E402
from bench.timing import Say  # noqa: E402
from eval.environment import environment  # noqa: E402
from shards.schema import DataError, load_card  # noqa: E402
from train.launch import device_warning, start_accelerator  # noqa: E402
from train.state import write_atomically  # noqa: E402


class Mode(NamedTuple):
    measure: Callable[[Settings, Accelerator, Say], list[Record]]
    report: Callable[[list[Record], Settings], str]


MODES = {
    "model": Mode(model.measure, model.report),
    "train": Mode(training.measure, training.report),
}


def main(argv: list[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        parser.error("one process is measured: start it with python, without a launcher")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    target, mode = given.pop("json", None), given.pop("mode")
    try:
        settings = replace(DEFAULTS[accelerator.device.type], **given)
    except ValueError as error:
        parser.error(str(error))
    if target is not None and not target.parent.is_dir():
        parser.error(f"--json {target}: the folder {target.parent} does not exist")
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
        load_card(Path(settings.data))  # a wrong folder is refused before minutes of work
    tf32 = torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    load = os.getloadavg()[0]
    facts = {**environment(), "load_average": load, "tf32_convolutions": tf32}
    print(
        f"{facts['device']}, torch {facts['packages']['torch']}, {facts['threads']} threads; "
        f"load average before: {load:.1f}{'; fp32 convolutions by TF32' if tf32 else ''}"
    )
    results: list[Record] = []
    for name in MODES if mode == "all" else [mode]:
        records = MODES[name].measure(settings, accelerator, say)
        print(f"\n== {name}\n\n{MODES[name].report(records, settings)}", flush=True)
        results += [{"mode": name, **record} for record in records]
        about = {"environment": facts, "mode": mode, "settings": asdict(settings)}
        if target is not None:
            text = json.dumps({**about, "results": results}, indent=1) + "\n"
            write_atomically(target, text.encode())
            say(f"wrote {target}")


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
    parser.add_argument("--data", metavar="DIR", help="packed folder; default: synthetic patches")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
