"""The command line of training: a preset's name or a run's config.json, then settings."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from common.errors import DataError
from common.files import read_json
from train.config import DEFAULT_PRESET, PRESETS, Config, from_json
from train.tracker import TRACKERS


@dataclass(frozen=True)
class Arguments:
    """Train a VAE on packed 32x32 patches, then evaluate it."""

    data: str | None = None  # data set, here or a URL; default data/shards, data/raw, or synthetic
    out: Path | None = None  # run folder; default data/processed/PRESET-sSEED
    resume: bool = False  # continue the run in `out` from its newest checkpoint
    track: tuple[str, ...] = ("tensorboard",)  # trackers beside metrics.jsonl
    data_hash: tyro.conf.Suppress[str | None] = None  # of the run that is repeated
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parse(argv: list[str]) -> tuple[str, Arguments]:
    """The preset's name and the arguments; exits with 2 where they are unusable."""
    named = bool(argv) and not argv[0].startswith("-")
    name, rest = (argv[0], argv[1:]) if named else (DEFAULT_PRESET, argv)
    preset, base = _base(name)
    arguments = tyro.cli(Arguments, default=base, args=rest, prog=f"train/main.py [{preset}]")
    if unknown := set(arguments.track) - set(TRACKERS):
        raise ValueError(f"unknown tracker {sorted(unknown)}; there are {sorted(TRACKERS)}")
    return preset, arguments


def _base(name: str) -> tuple[str, Arguments]:
    """The arguments that a preset, or the config.json of an earlier run, stands for."""
    if name in PRESETS:
        return name, Arguments(config=PRESETS[name]())
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        try:
            raw = recorded(path)
            config = from_json(raw["config"])
            root, data_hash = str(raw["data"]["root"]), str(raw["data"]["hash"])
            return str(raw["preset"]), Arguments(root, config=config, data_hash=data_hash)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a run's config.json: {error!r}") from None
    close = difflib.get_close_matches(name, PRESETS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown preset {name!r}{hint} Presets: {', '.join(PRESETS)}")


def recorded(path: Path) -> dict[str, Any]:
    """What a run's config.json says, its sections there.

    Raises:
        DataError: it is not the config.json of a run.
    """
    raw = read_json(path)
    if not (isinstance(raw.get("config"), dict) and isinstance(raw.get("data"), dict)):
        raise DataError(f"{path} is not a run's config.json: no sections config and data")
    if "hash" not in raw["data"]:
        raise DataError(f"{path} is not a run's config.json: it names no data hash")
    return raw
