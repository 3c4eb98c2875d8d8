"""Make a run folder from the arguments; all ranks share it, its config and its data set."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator

from common import ranks
from common.console import log
from common.errors import DataError
from common.files import write_atomically
from common.machine import environment
from common.records import differences
from eval.run import CONFIG, DataRecord, RunRecord, load_record
from pipeline.index import Dataset, open_dataset
from pipeline.loader import Storage
from train import launch
from train.arguments import Arguments
from train.config import Config, as_json, with_defaults
from train.data import SYNTHETIC_IMAGES, find_data, is_synthetic
from train.task import require_labels

STORAGES: list[Storage] = ["stream", "host", "device"]  # any data set fits the first
OUTPUT = "log.txt"  # what a run prints, written there by the program that started it


@dataclass(frozen=True)
class Run:
    """A run folder, ready: its config resolved, its data open."""

    folder: Path
    preset: str
    config: Config
    dataset: Dataset
    arguments: Arguments


def prepare(preset: str, arguments: Arguments, accelerator: Accelerator) -> Run:
    """Find the data, resolve the config, and make or check the run folder.

    Raises:
        DataError: the data, the settings or the run folder cannot be used; nothing was started.
    """
    if accelerator.is_main_process and (warning := launch.device_warning()):
        log.warning(warning)
    root = ranks.main_process_first(lambda: find_data(arguments.data))  # the main rank packs
    dataset = ranks.together(lambda: _open(root, arguments.data_hash))
    config = ranks.together(lambda: _resolve(arguments.config, dataset, accelerator))
    if config.deterministic:
        launch.set_deterministic()
    folder = arguments.out or Path("data/processed") / f"{preset}-s{config.seed}"
    ranks.require_shared(folder)
    if arguments.config.storage == "auto":
        config = replace(config, storage=_agree_on_storage(config.storage, folder))
    run = Run(folder, preset, config, dataset, arguments)
    _require_same(run)
    ranks.together(lambda: _claim(run) if ranks.rank() == 0 else None)
    return run


def _open(root: Path, expected_hash: str | None) -> Dataset:
    dataset = open_dataset(root)
    if expected_hash not in (None, dataset.hash):
        raise DataError(
            f"{root} is not the data set of that run: its hash is {dataset.hash}, "
            f"not {expected_hash}; name the right one with --data"
        )
    return dataset


def _resolve(config: Config, dataset: Dataset, accelerator: Accelerator) -> Config:
    require_labels(config, dataset)
    device: torch.device = accelerator.device
    if config.images is None and is_synthetic(dataset.root) and device.type == "cpu":
        config = replace(config, images=SYNTHETIC_IMAGES)
    return launch.resolve(config, dataset.split("train"), device, accelerator.num_processes)


def _agree_on_storage(storage: Storage, folder: Path) -> Storage:
    """Choose one storage for all ranks, that of a resumed run: the order depends on it."""
    path = folder / CONFIG

    def recorded() -> Storage:
        config = load_record(path).config if path.is_file() else {}
        name = config.get("storage", storage)
        if name not in STORAGES:
            raise DataError(f"{path} names the storage {name!r}; expected one of {STORAGES}")
        return STORAGES[STORAGES.index(name)]

    return min(ranks.gather_object(ranks.together(recorded)), key=STORAGES.index)


def identity(config: dict[str, object], data_hash: str) -> dict[str, object]:
    """Return what two runs must have in common to be one."""
    return {"config": with_defaults(config), "data": {"hash": data_hash}}


def _require_same(run: Run) -> None:
    """Check that every rank has the settings and the data set of the main rank.

    Raises:
        SharedError: names the ranks that differ, and in what.
    """
    facts = identity(as_json(run.config), run.dataset.hash)
    (_, _, main), *others = ranks.gather_object((ranks.place(), str(run.dataset.root), facts))
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
    path, config = run.folder / CONFIG, as_json(run.config)
    if not run.folder.exists() or all(file.name == OUTPUT for file in run.folder.iterdir()):
        run.folder.mkdir(parents=True, exist_ok=True)
        data = DataRecord(str(run.dataset.root.resolve()), run.dataset.hash)
        write_record(path, RunRecord(run.preset, config, data, environment()))
        return
    if not run.arguments.resume:
        raise DataError(
            f"{run.folder} exists: continue it with --resume, or choose another --out or --seed"
        )
    if not path.is_file():
        raise DataError(f"{run.folder} has no config.json: it is not a run; choose another --out")
    before = load_record(path)
    then = identity(before.config, before.data.hash)
    if lines := differences(then, identity(config, run.dataset.hash)):
        raise DataError(
            f"{run.folder} cannot be resumed with another config or data set:\n  "
            + "\n  ".join(lines)
            + "\nUse the run's own settings, or another --out"
        )


def write_record(path: Path, record: RunRecord) -> None:
    """Write a run's config.json, or the settings of a run of a sweep."""
    write_atomically(path, json.dumps(msgspec.to_builtins(record), indent=1).encode())
