"""The command line of `bench/throughput.py`. Without torch, which --help need not wait for."""

import argparse  # not tyro: needs only what training imports
from functools import partial
from pathlib import Path
from typing import NoReturn

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


def make_parser() -> argparse.ArgumentParser:
    """Make the parser; options left out take the default of the device."""
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


def refuse(message: str) -> NoReturn:
    """End the process with the usage, a message and the status of unusable arguments."""
    make_parser().error(message)
