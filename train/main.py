"""`accelerate launch train/main.py [PRESET]`: train, evaluate, report.

Exit codes of `python train/main.py`: 0 done, 1 failed, 2 unusable arguments, 75 interrupted after
saving. They do not survive the launcher, so RUN/status.json is the contract.
"""

import sys
import time

BEGAN = time.monotonic()
print("importing torch ...", flush=True)

import difflib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from eval.environment import environment  # noqa: E402
from eval.job import EvalConfig  # noqa: E402
from eval.main import evaluate  # noqa: E402
from eval.report import write_report  # noqa: E402
from eval.run import read_json  # noqa: E402
from pipeline.index import Dataset, open_dataset  # noqa: E402
from pipeline.loader import Storage  # noqa: E402
from shards.schema import DataError  # noqa: E402
from train import introduction, launch, state  # noqa: E402
from train.config import (  # noqa: E402
    DEFAULT_PRESET,
    PRESETS,
    Config,
    as_json,
    differences,
    from_json,
)
from train.data import SYNTHETIC_IMAGES, find_data, is_synthetic  # noqa: E402
from train.interrupt import Interrupts  # noqa: E402
from train.loop import NonFiniteError, Trainer  # noqa: E402
from train.tracker import TRACKERS, Tracker, clock  # noqa: E402

DONE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 75
# the orbit readouts cost nine encodings an image more: `python -m eval.main RUN` adds them
SHORT_EVALUATION = EvalConfig(readouts=("mean",))


@dataclass(frozen=True)
class Arguments:
    """Train a VAE on packed 32x32 patches, then evaluate it."""

    data: Path | None = None  # packed folder; default data/shards, data/raw, or synthetic patches
    out: Path | None = None  # run folder; default data/processed/PRESET-sSEED
    resume: bool = False  # continue the run in `out` from its newest checkpoint
    track: tuple[str, ...] = ("tensorboard",)  # trackers beside metrics.jsonl
    data_hash: tyro.conf.Suppress[str | None] = None  # of the run that is repeated
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class Run:
    """A run folder, ready: its config resolved, its data open."""

    folder: Path
    preset: str
    config: Config
    dataset: Dataset
    arguments: Arguments


def main(argv: list[str]) -> int:
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    interrupts = Interrupts()
    try:
        preset, arguments = parse(argv)
        accelerator = launch.start_accelerator()
        if not accelerator.is_main_process:
            say = lambda line: None  # noqa: E731
        run = prepare(preset, arguments, accelerator, say)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("interrupted before training began", file=sys.stderr)
        return INTERRUPTED
    try:
        finished = train(run, accelerator, interrupts, say)
        if finished and interrupts.requested:
            raise KeyboardInterrupt
        if finished and accelerator.is_main_process:
            conclude(run, say)
        write_status(run, accelerator, "done" if finished else "interrupted")
        return DONE if finished else INTERRUPTED
    except KeyboardInterrupt:
        write_status(run, accelerator, "interrupted")
        say("interrupted; the last checkpoint stays. Continue with the same command and --resume")
        return INTERRUPTED
    except (DataError, NonFiniteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        write_status(run, accelerator, "failed", str(error))
        return FAILED
    except BaseException as error:
        write_status(run, accelerator, "failed", repr(error))
        raise
    finally:
        accelerator.end_training()


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
            raw = _recorded(path)
            config = from_json(raw["config"])
            root, data_hash = Path(raw["data"]["root"]), str(raw["data"]["hash"])
            return str(raw["preset"]), Arguments(root, config=config, data_hash=data_hash)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a run's config.json: {error!r}") from None
    close = difflib.get_close_matches(name, PRESETS, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown preset {name!r}{hint} Presets: {', '.join(PRESETS)}")


def prepare(preset: str, arguments: Arguments, accelerator: Any, say: Callable[[str], None]) -> Run:
    """Find the data, resolve the config, and make or check the run folder.

    Raises:
        DataError: nothing was started; the message says what to do.
    """
    if warning := launch.device_warning():
        say(warning)
    with accelerator.main_process_first():  # the main rank packs, the others find it done
        root, sentence = find_data(arguments.data)
    dataset = open_dataset(root)
    if arguments.data_hash not in (None, dataset.hash):
        raise DataError(
            f"{root} is not the data set of that run: its hash is {dataset.hash}, "
            f"not {arguments.data_hash}; name the right one with --data"
        )
    config = arguments.config
    folder = arguments.out or Path("data/processed") / f"{preset}-s{config.seed}"
    if config.images is None and is_synthetic(root) and accelerator.device.type == "cpu":
        config = replace(config, images=SYNTHETIC_IMAGES)
    config = launch.resolve(
        config, dataset.split("train"), accelerator.device, accelerator.num_processes
    )
    if config.deterministic:
        launch.set_deterministic()
    if arguments.config.storage == "auto":
        config = replace(config, storage=_agreed(config.storage, folder, accelerator))
    run = Run(folder, preset, config, dataset, arguments)
    if accelerator.is_main_process:
        _claim(run)
    accelerator.wait_for_everyone()
    _introduce(run, accelerator, sentence, say)
    return run


def _recorded(path: Path) -> dict[str, Any]:
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


def _agreed(chosen: Storage, folder: Path, accelerator: Any) -> Storage:
    """One storage for all ranks, that of the run where it is resumed: it decides the order."""
    path = folder / "config.json"
    if path.is_file():
        chosen = _recorded(path)["config"].get("storage", chosen)
    ranks: list[Storage] = ["stream", "host", "device"]
    if chosen not in ranks:
        raise DataError(f"{path} names the storage {chosen!r}; expected one of {ranks}")
    mine = torch.tensor([ranks.index(chosen)], device=accelerator.device)
    return ranks[int(accelerator.gather(mine).min())]


def _claim(run: Run) -> None:
    """Make the run folder with its config.json, or check that a resume is of the same run."""
    path = run.folder / "config.json"
    if not run.folder.exists() or not any(run.folder.iterdir()):
        run.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "preset": run.preset,
            "config": as_json(run.config),
            "data": {"root": str(run.dataset.root.resolve()), "hash": run.dataset.hash},
            "environment": environment(),
        }
        state.write_atomically(path, json.dumps(facts, indent=1).encode())
        return
    if not run.arguments.resume:
        raise DataError(
            f"{run.folder} exists: continue it with --resume, or choose another --out or --seed"
        )
    if not path.is_file():
        raise DataError(f"{run.folder} has no config.json: it is not a run; choose another --out")
    now = {"config": as_json(run.config), "data": {"hash": run.dataset.hash}}
    before = _recorded(path)
    then = {"config": before["config"], "data": {"hash": before["data"]["hash"]}}
    if lines := differences(then, now):
        raise DataError(
            f"{run.folder} cannot be resumed with another config or data set:\n  "
            + "\n  ".join(lines)
            + "\nUse the run's own settings, or another --out"
        )


def _introduce(run: Run, accelerator: Any, sentence: str, say: Callable[[str], None]) -> None:
    say(sentence)
    for line in introduction.found(run.dataset, run.config):
        say(line)
    device, processes = accelerator.device.type, accelerator.num_processes
    threads = torch.get_num_threads()
    say(introduction.planned(run.preset, run.config, device, threads, processes))
    say(f"  into {run.folder}")
    for line in introduction.warnings(run.dataset):
        say(f"warning: {line}")


def train(run: Run, accelerator: Any, interrupts: Interrupts, say: Callable[[str], None]) -> bool:
    """Train to the end of the budget; False when interrupted after saving."""
    trainer = Trainer(accelerator, run.config, run.dataset, run.folder, say)
    checkpoint = state.load_newest(run.folder, lambda line: say(f"warning: {line}"))
    resume_bytes = 0
    if checkpoint:
        trainer.restore(checkpoint)
        resume_bytes = int(checkpoint.meta["log_bytes"])
        say(f"resuming after {trainer.images_seen:,} images")
    write_status(run, accelerator, "running")
    main_rank = accelerator.is_main_process
    names = run.arguments.track if main_rank else ()
    sinks = [TRACKERS[name](run.folder, trainer.images_seen) for name in names]
    tracker = Tracker(run.folder, sinks, resume_bytes if main_rank else None)
    if run.config.compile:
        say("compiling the step: the first one takes a minute or two ...")
    if trainer.images_left:
        seconds = trainer.seconds_a_step() * trainer.images_left / trainer.plan.batch
        say(f"  training will take about {clock(seconds)}, then the evaluation")
    began = trainer.done
    try:
        with interrupts.graceful(lambda: trainer.done > began):
            finished = trainer.train(tracker, lambda: interrupts.requested)
    finally:
        tracker.close()
    if finished and main_rank:
        trainer.save_snapshot({"preset": run.preset, "seed": run.config.seed})
    if not finished:
        say(f"interrupted: saved at {trainer.images_seen:,} images; continue with --resume")
    accelerator.wait_for_everyone()
    return finished


def conclude(run: Run, say: Callable[[str], None]) -> None:
    """Evaluation, pictures and a short report."""
    say("evaluating ...")
    evaluate(run.folder, run.dataset.root, SHORT_EVALUATION)
    report = write_report([run.folder], run.folder / "report")
    say(f"done in {clock(time.monotonic() - BEGAN)}: {report}")


def write_status(run: Run, accelerator: Any, name: str, error: str | None = None) -> None:
    if not accelerator.is_main_process and name != "failed":
        return
    status = {"status": name, "pid": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    path = run.folder / "status.json"
    try:
        state.write_atomically(path, json.dumps({**status, "error": error}, indent=1).encode())
    except DataError as problem:  # of a full disk, say: the run's own error matters more
        print(f"error: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
