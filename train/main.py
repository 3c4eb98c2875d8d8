"""`accelerate launch train/main.py [PRESET]`: train, evaluate, report.

Exit codes of `python train/main.py`: 0 done, 1 failed, 2 unusable arguments, 75 interrupted after
saving. They do not survive the launcher, so RUN/status.json is the contract.
"""

import sys
import time

from common.files import write_atomically

BEGAN = time.monotonic()
print("importing torch ...", flush=True)

import json  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import suppress  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from common import ranks  # noqa: E402
from common.command import DONE, FAILED, STOPPED, UNUSABLE_ARGUMENTS  # noqa: E402
from common.console import clock, show_messages  # noqa: E402
from common.errors import DataError  # noqa: E402
from common.files import read_json  # noqa: E402
from common.machine import keep_freed_memory, usable_cores  # noqa: E402
from eval.evaluation import evaluate  # noqa: E402
from eval.report.report import write_report  # noqa: E402
from eval.session import EvalConfig  # noqa: E402
from train import checkpoint as state  # noqa: E402
from train import launch  # noqa: E402
from train import summary as introduction  # noqa: E402
from train.arguments import parse  # noqa: E402
from train.interrupt import Interrupts  # noqa: E402
from train.loop import NonFiniteError, Trainer  # noqa: E402
from train.prepare import Run, prepare  # noqa: E402
from train.tracker import TRACKERS, Tracker  # noqa: E402

# the orbit readouts cost nine encodings an image more: `python -m eval.main RUN` adds them
SHORT_EVALUATION = EvalConfig(
    readouts=("mean",),
    orbit_probe=False,
    baselines=("mean_rgb", "colour_grid", "pca384", "random_init"),
    probes=("logistic",),
    budgets=False,
    robustness=False,
)


def main(argv: list[str]) -> int:
    say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
    interrupts = Interrupts()
    try:
        preset, arguments = parse(argv)
        accelerator = launch.start_accelerator()
        keep_freed_memory()
        show_messages(quiet=not accelerator.is_main_process)
        if not accelerator.is_main_process:
            say = lambda line: None  # noqa: E731
        run, sentence = prepare(preset, arguments, accelerator, say)
        _introduce(run, accelerator, sentence, say)
    except (DataError, ValueError, OSError) as error:
        tell(error)
        return UNUSABLE_ARGUMENTS
    except KeyboardInterrupt:
        print("interrupted before training began", file=sys.stderr)
        return STOPPED
    try:
        if not train(run, accelerator, interrupts, say):
            return STOPPED
        if interrupts.requested:
            raise KeyboardInterrupt
        ranks.together(lambda: conclude(run, say) if ranks.rank() == 0 else None)
        write_status(run, "done")
        return DONE
    except BaseException as error:
        return give_up(run, error, interrupts, say)
    finally:
        accelerator.end_training()


def give_up(
    run: Run, error: BaseException, interrupts: Interrupts, say: Callable[[str], None]
) -> int:
    """Tell why the run ends before its end, in RUN/status.json too; raises faults of ours."""
    # ranks that were interrupted at once break off what the others were doing with them
    broken_off = isinstance(error, KeyboardInterrupt | RuntimeError) or ranks.rank() > 0
    if interrupts.requested and broken_off:
        write_status(run, "interrupted")
        say("interrupted; the last checkpoint stays. Continue with the same command and --resume")
        return STOPPED
    if isinstance(error, DataError | NonFiniteError | OSError):
        tell(error)
        write_status(run, "failed", str(error))
        return FAILED
    write_status(run, "failed", repr(error))
    raise error


def tell(error: Exception) -> None:
    """Print an error; one that all ranks have is printed by the main one."""
    if ranks.rank() == 0 or not isinstance(error, ranks.SharedError):
        print(f"error: {error}", file=sys.stderr)


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
    write_status(run, "running")
    accelerator.wait_for_everyone()
    trainer = Trainer(accelerator, run.config, run.dataset, run.folder, say)
    checkpoint = state.load_newest(run.folder, lambda line: say(f"warning: {line}"))
    resume_bytes = 0
    if checkpoint:
        trainer.restore(checkpoint)
        resume_bytes = int(checkpoint.meta["log_bytes"])
        say(f"resuming after {trainer.images_seen:,} images")
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
    if finished:
        say(introduction.read(trainer.images_seen, len(trainer.split)))
    else:
        say(f"interrupted: saved at {trainer.images_seen:,} images; continue with --resume")
        write_status(run, "interrupted")
    accelerator.wait_for_everyone()  # a scheduler may end the job with the first that leaves
    return finished


def conclude(run: Run, say: Callable[[str], None]) -> None:
    """Evaluation, pictures and a short report."""
    say("evaluating ...")
    torch.set_num_threads(usable_cores())  # the other ranks wait
    evaluate(run.folder, run.dataset.root, SHORT_EVALUATION)
    report = write_report([run.folder], run.folder / "report")
    say(f"done in {clock(time.monotonic() - BEGAN)}: {report}")


def write_status(run: Run, name: str, error: str | None = None) -> None:
    """RUN/status.json, by the main rank, or by the one that failed: that stays."""
    path = run.folder / "status.json"
    if ranks.rank() > 0 and name != "failed":
        return
    with suppress(DataError):  # there is none
        if name != "running" and read_json(path).get("status") == "failed":
            return
    status = {"status": name, "pid": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    try:
        write_atomically(path, json.dumps({**status, "error": error}, indent=1).encode())
    except DataError as problem:  # of a full disk, say: the run's own error matters more
        print(f"error: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
