"""From arguments to a run folder that every rank sees, with a config and a data set they share."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import ranks
from common.errors import DataError
from common.files import write_atomically
from common.machine import environment
from pipeline.index import Dataset, open_dataset
from pipeline.loader import Storage
from train import launch
from train.arguments import Arguments, recorded
from train.config import Config, as_json, differences
from train.data import SYNTHETIC_IMAGES, find_data, is_synthetic
from train.task import require_labels

STORAGES: list[Storage] = ["stream", "host", "device"]  # from what always fits on
LOG = "log.txt"  # what a run prints, written there by what started it


@dataclass(frozen=True)
class Run:
    """A run folder, ready: its config resolved, its data open."""

    folder: Path
    preset: str
    config: Config
    dataset: Dataset
    arguments: Arguments


def prepare(
    preset: str, arguments: Arguments, accelerator: Any, say: Callable[[str], None]
) -> tuple[Run, str]:
    """Find the data, resolve the config, and make or check the run folder.

    Returns the run, and a sentence on where its data come from.

    Raises:
        DataError: nothing was started; the message says what to do.
    """
    if warning := launch.device_warning():
        say(warning)
    # the main rank packs
    root, sentence = ranks.main_process_first(lambda: find_data(arguments.data))
    dataset = ranks.together(lambda: _opened(root, arguments.data_hash))
    seed = arguments.config.seed
    folder = arguments.out or Path("data/processed") / f"{preset}-s{seed}"
    config = ranks.together(lambda: _resolved(arguments.config, dataset, accelerator))
    if config.deterministic:
        launch.set_deterministic()
    ranks.require_shared(folder)
    if arguments.config.storage == "auto":
        config = replace(config, storage=_agreed_storage(config.storage, folder))
    run = Run(folder, preset, config, dataset, arguments)
    _require_same(run)
    ranks.together(lambda: _claim(run) if ranks.rank() == 0 else None)
    return run, sentence


def _opened(root: Path, expected: str | None) -> Dataset:
    dataset = open_dataset(root)
    if expected not in (None, dataset.hash):
        raise DataError(
            f"{root} is not the data set of that run: its hash is {dataset.hash}, "
            f"not {expected}; name the right one with --data"
        )
    return dataset


def _resolved(config: Config, dataset: Dataset, accelerator: Any) -> Config:
    require_labels(config, dataset)
    device, processes = accelerator.device, accelerator.num_processes
    if config.images is None and is_synthetic(dataset.root) and device.type == "cpu":
        config = replace(config, images=SYNTHETIC_IMAGES)
    return launch.resolve(config, dataset.split("train"), device, processes)


def _agreed_storage(chosen: Storage, folder: Path) -> Storage:
    """One storage for all ranks, that of the run where it is resumed: it decides the order."""
    chosen = ranks.together(lambda: _recorded_storage(folder / "config.json", chosen))
    return min(ranks.gather_object(chosen), key=STORAGES.index)


def _recorded_storage(path: Path, chosen: Storage) -> Storage:
    if path.is_file():
        chosen = recorded(path)["config"].get("storage", chosen)
    if chosen not in STORAGES:
        raise DataError(f"{path} names the storage {chosen!r}; expected one of {STORAGES}")
    return chosen


def _facts(run: Run) -> dict[str, Any]:
    """What makes two runs one."""
    return {"config": as_json(run.config), "data": {"hash": run.dataset.hash}}


def _require_same(run: Run) -> None:
    """See that every rank has the settings and the data set of the main rank.

    Raises:
        SharedError: names the ranks that differ, and in what.
    """
    (_, _, main), *others = ranks.gather_object((ranks.place(), str(run.dataset.root), _facts(run)))
    lines = [
        f"{place}, with the data set {root}: {line}"
        for place, root, theirs in others
        for line in differences(main, theirs)
    ]
    if lines:
        raise ranks.SharedError(
            f"processes of one run differ from the main rank, with the data set "
            f"{run.dataset.root}:\n  "
            + "\n  ".join(lines)
            + "\nStart all of them with the same arguments, on the same data set"
        )


def _claim(run: Run) -> None:
    """Make the run folder with its config.json, or check that a resume is of the same run."""
    path = run.folder / "config.json"
    if not run.folder.exists() or all(path.name == LOG for path in run.folder.iterdir()):
        run.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "preset": run.preset,
            "config": as_json(run.config),
            "data": {"root": str(run.dataset.root.resolve()), "hash": run.dataset.hash},
            "environment": environment(),
        }
        write_atomically(path, json.dumps(facts, indent=1).encode())
        return
    if not run.arguments.resume:
        raise DataError(
            f"{run.folder} exists: continue it with --resume, or choose another --out or --seed"
        )
    if not path.is_file():
        raise DataError(f"{run.folder} has no config.json: it is not a run; choose another --out")
    before = recorded(path)
    then = {"config": before["config"], "data": {"hash": before["data"]["hash"]}}
    if lines := differences(then, _facts(run)):
        raise DataError(
            f"{run.folder} cannot be resumed with another config or data set:\n  "
            + "\n  ".join(lines)
            + "\nUse the run's own settings, or another --out"
        )
