"""Make a run folder from the arguments; all ranks share it, its config and its data set."""

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator

from common import locks, ranks
from common.console import log
from common.errors import DataError
from common.files import hash_json, is_unfinished, with_checksum, write_atomically
from common.machine import environment
from common.records import differences
from eval.run import (
    CONFIG,
    STAIN,
    DataRecord,
    Phase,
    RunRecord,
    load_record,
    load_stain,
    remove_unfinished,
)
from pipeline.config import Storage
from pipeline.index import Dataset, open_dataset
from pipeline.normalisation import Unit
from pipeline.units import StainTable, fit_dataset, normalised, require_units
from train import launch
from train.arguments import PROCESSED, Arguments
from train.checkpoint import newest_images
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
    continued_from: int = 0  # images of the smaller budget that it was trained with; 0: none


def prepare(
    by_preset: dict[str, Arguments], accelerator: Accelerator, held: ExitStack
) -> list[Run]:
    """Find the data, resolve the configs, and make or check the run folders.

    Args:
        by_preset: the arguments of every run; all name the same data set.
        held: holds the locks of the run folders from here on.

    Raises:
        DataError: the data, the settings or a run folder cannot be used; nothing was started.
    """
    if accelerator.is_main_process and (warning := launch.device_warning()):
        log.warning(warning)
    first = next(iter(by_preset.values()))
    root = ranks.main_process_first(lambda: find_data(first.data))  # the main rank packs
    dataset = ranks.together(lambda: _open(root, first.data_hash))
    ranks.require_same({"presets": " ".join(by_preset)}, "the command line")
    fitted: dict[Unit, StainTable] = {}
    return [
        _prepare_run(preset, arguments, dataset, accelerator, held, fitted)
        for preset, arguments in by_preset.items()
    ]


def _prepare_run(
    preset: str,
    arguments: Arguments,
    dataset: Dataset,
    accelerator: Accelerator,
    held: ExitStack,
    fitted: dict[Unit, StainTable],
) -> Run:
    config = ranks.together(lambda: _resolve(arguments.config, dataset, accelerator))
    config = ranks.together(lambda: compilable(config, arguments.config, accelerator.device))
    if config.deterministic:
        launch.set_deterministic()
    folder = arguments.out or PROCESSED / f"{preset}-s{config.seed}"
    ranks.require_shared(folder)
    if arguments.config.storage == "auto":
        config = replace(config, storage=_agree_on_storage(config.storage, folder))
    run = Run(folder, preset, config, dataset, arguments)
    _require_same(run)
    continued_from = ranks.together(lambda: claim(run, held) if ranks.rank() == 0 else 0)
    run = replace(run, continued_from=max(ranks.gather_object(continued_from)))
    if config.normalise == "none":
        return run
    # measured once, by the main rank
    table = ranks.together(lambda: _stain_table(run, fitted) if ranks.rank() == 0 else None)
    measured = ranks.gather_object(table)[0]
    return replace(run, dataset=ranks.together(lambda: normalised(dataset, measured)))


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
    if config.normalise != "none":
        require_units(dataset, config.normalise)
    device: torch.device = accelerator.device
    if config.images is None and is_synthetic(dataset.root) and device.type == "cpu":
        config = replace(config, images=SYNTHETIC_IMAGES)
    return launch.resolve(config, dataset.split("train"), device, accelerator.num_processes)


def compilable(config: Config, asked: Config, device: torch.device) -> Config:
    """Leave out compiling where torch cannot compile and the user did not ask for it."""
    if not config.compile or (obstacle := launch.compile_obstacle(device)) is None:
        return config
    if asked.compile or asked.cuda_graphs:
        raise DataError(f"{obstacle}; or train with --compile False")
    log.warning(f"{obstacle}. Until then the step runs without compiling, slower")
    return replace(config, compile=False)


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


def claim(run: Run, held: ExitStack) -> int:
    """Make the run folder with its config.json, or check that a resume is of the same run.

    Returns:
        The budget that the run had so far, if this one is larger and it has a checkpoint; else 0.
    """
    held.enter_context(locks.held(run.folder, "trains or evaluates this run"))
    path, config = run.folder / CONFIG, as_json(run.config)
    data = DataRecord(str(run.dataset.root.resolve()), run.dataset.hash)
    others = [file for file in run.folder.iterdir() if not is_unfinished(file)]
    if all(file.name in (OUTPUT, locks.LOCK) for file in others):
        remove_unfinished(run.folder)
        name = hash_json({"preset": run.preset, "config": config, "data": data.hash})
        write_record(path, RunRecord(run.preset, config, data, environment(), name=name))
        return 0
    if not run.arguments.resume:
        raise DataError(
            f"{run.folder} exists: continue it with --resume, or choose another --out or --seed"
        )
    if not path.is_file() and newest_images(run.folder):
        raise DataError(
            f"{run.folder} has checkpoints of a run, but {path.name}, which holds its settings and "
            "data set, is missing: put it back, or choose another --out"
        )
    if not path.is_file():
        raise DataError(f"{run.folder} has no config.json: it is not a run; choose another --out")
    before = load_record(path)
    images, budget = before.config.get("images"), config["images"]
    extends = isinstance(images, int) and isinstance(budget, int) and images < budget
    then = identity({**before.config, "images": budget if extends else images}, before.data.hash)
    if lines := differences(then, identity(config, run.dataset.hash)):
        raise DataError(
            f"{run.folder} cannot be resumed with another config or data set:\n  "
            + "\n  ".join(lines)
            + "\nUse the run's own settings (--images may be larger), or another --out"
        )
    remove_unfinished(run.folder)
    if not extends or not isinstance(images, int):
        return 0
    seen = newest_images(run.folder)
    phases = [*before.continued, Phase(images, seen)] if seen else before.continued
    record = RunRecord(run.preset, config, data, environment(), phases, before.name)
    write_record(path, record)
    return images if seen else 0


def _stain_table(run: Run, fitted: dict[Unit, StainTable]) -> StainTable:
    """Read RUN/stain.json, or measure the staining of the data set and write it.

    Args:
        fitted: measured already, for another run of the command.
    """
    unit, path = run.config.normalise, run.folder / STAIN
    assert unit != "none"
    table = load_stain(run.folder)
    if table is None:
        if unit not in fitted:
            fitted[unit] = fit_dataset(run.dataset, unit)
        table = fitted[unit]
        text = json.dumps(with_checksum(msgspec.to_builtins(table)), indent=1, sort_keys=True)
        write_atomically(path, text.encode())
    if table.normalisation.unit != unit:
        raise DataError(
            f"{path} holds statistics by {table.normalisation.unit}, but the run normalises by "
            f"{unit}: restore the file, or remove it to measure them again"
        )
    return table


def write_record(path: Path, record: RunRecord) -> None:
    """Write a run's config.json, or the settings of a run of a sweep."""
    content = with_checksum(msgspec.to_builtins(record))
    write_atomically(path, json.dumps(content, indent=1).encode())
