"""The command line of training: a preset's name, a run's config.json or neither, then settings."""

import difflib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from common.console import log
from common.machine import threads_for
from train.config import COMPARISON, PRESETS, Config, from_json

PROCESSED = Path("data/processed")


@dataclass(frozen=True)
class Arguments:
    """Train a VAE on packed 32x32 patches, then evaluate it; without a preset, compare two."""

    data: str | None = None
    """packed data set, a folder or a URL. Default: data/shards, else data/raw, which is packed
    first, else a synthetic set"""
    out: Path | None = None
    """folder of the run. Default: data/processed/PRESET-sSEED. Without a preset, folder of both
    runs and their report. Default: data/processed"""
    resume: bool = False
    """continue the run in --out from its newest checkpoint"""
    threads: int | None = None
    """CPU threads of each process. Default: the usable cores, shared by the processes"""
    track: tuple[str, ...] = ("tensorboard",)
    """trackers that get the metrics in addition to metrics.jsonl: tensorboard, wandb, mlflow; for
    none, --track without a name"""
    data_hash: tyro.conf.Suppress[str | None] = None  # of the run that is repeated
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def __post_init__(self) -> None:
        threads_for(self.threads)  # refuses


def parse(argv: list[str]) -> dict[str, Arguments]:
    """Parse the command line into the arguments of a run by its preset's name.

    Without a preset they are those of the runs of COMPARISON. tyro exits with status 2.

    Raises:
        ValueError: a preset or value that does not exist, or a comparison of equals.
        DataError: a config.json that cannot be read.
    """
    if argv and not argv[0].startswith("-"):
        preset, defaults = _defaults(argv[0])
        return {preset: _parse(defaults, argv[1:], preset)}
    arms = {name: _parse(_defaults(name)[1], argv, "PRESET") for name in COMPARISON}
    if len({repr(arm.config) for arm in arms.values()}) < len(arms):
        raise ValueError(
            f"with these settings {' and '.join(arms)} are the same: name the preset to train"
        )
    return {
        name: replace(arm, out=(arm.out or PROCESSED) / f"{name}-s{arm.config.seed}")
        for name, arm in arms.items()
    }


def _parse(defaults: Arguments, options: list[str], preset: str) -> Arguments:
    prog = f"train/main.py [{preset}]"
    return tyro.cli(Arguments, default=defaults, args=options, prog=prog)


def _defaults(name: str) -> tuple[str, Arguments]:
    """Return the preset's name and the arguments of a preset or an earlier run's config.json."""
    if name in PRESETS:
        return name, Arguments(config=PRESETS[name]())
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        from eval.run import load_record  # imports torch, which --help need not wait for

        record = load_record(path)
        try:
            config = from_json(record.config)
        except ValueError as error:
            raise ValueError(f"{path} is not a run's config.json: {error}") from None
        if record.continued:
            budgets = " to ".join(f"{phase.images:,}" for phase in record.continued)
            log.warning(
                f"{path} is of a run that was continued from {budgets} to {config.images:,} "
                "images: a new run with its settings follows the schedule of the last budget from "
                "the start, and ends with other weights"
            )
        arguments = Arguments(record.data.root, config=config, data_hash=record.data.hash)
        return record.preset, arguments
    close = difflib.get_close_matches(name, PRESETS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown preset {name!r}{hint} Presets: {', '.join(PRESETS)}")
