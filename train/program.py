"""The course of one run or of a comparison: prepare, train, evaluate, report; status files.

Ctrl-C and signals of schedulers finish the step and save while training, and stop at once
otherwise.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

import msgspec
import torch
from accelerate import Accelerator

from common import ranks
from common.command import DONE, FAILED, STOPPED, STOPPING, UNUSABLE_ARGUMENTS
from common.console import clock, log, show_messages
from common.errors import DataError
from common.files import write_atomically
from common.machine import Neighbours, crowding, keep_freed_memory, threads_for, use_threads
from common.records import flatten
from eval.config import EvalConfig
from eval.evaluation import evaluate
from eval.report.report import write_report
from eval.run import STATUS, Status, load_status
from train import launch, summary
from train.arguments import Arguments
from train.checkpoint import drop_older, load_newest
from train.config import as_json
from train.loop import NonFiniteError, Trainer
from train.prepare import Run, prepare
from train.tracker import TRACKERS, Tracker, require_trackers

# leaves out the orbit readouts (nine more encodings per image); `python -m eval.main RUN` adds them
SHORT_EVALUATION = EvalConfig(
    readouts=("mean",),
    orbit_probe=False,
    baselines=("mean_rgb", "colour_grid", "pca384", "random_init"),
    probes=("logistic",),
    budgets=False,
    robustness=False,
)


class Interrupts:
    """Signal handlers of the main program; `requested` is read between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._can_finish: Callable[[], bool] = lambda: False
        for number in (signal.SIGINT, *STOPPING):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self._handle)

    @contextmanager
    def graceful(self, can_finish: Callable[[], bool]) -> Iterator[None]:
        """Inside, a first signal only sets `requested`, unless `can_finish()` is False.

        A second Ctrl-C ends the process at once. Other signals are ignored after the first:
        schedulers signal every process, and the launcher passes the signal on.
        """
        self._can_finish = can_finish
        try:
            yield
        finally:
            self._can_finish = lambda: False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated, self.requested = self.requested, True
        if repeated and number != signal.SIGINT:
            return
        if repeated or not self._can_finish():
            raise KeyboardInterrupt


def main(by_preset: dict[str, Arguments], began: float) -> int:
    """Train as the command line says, then evaluate; return the exit status.

    Args:
        by_preset: arguments of every run by its preset's name, as `train.arguments.parse` returns.
        began: `time.monotonic()` at the start of the process.
    """
    interrupts, neighbours = Interrupts(), Neighbours()
    with ExitStack() as held:  # the locks of the run folders
        try:
            first = next(iter(by_preset.values()))
            require_trackers(first.track)
            accelerator = launch.start_accelerator(first.threads)
            keep_freed_memory()
            show_messages(quiet=not accelerator.is_main_process)
            runs = prepare(by_preset, accelerator, held)
            left = unfinished(runs)
            introduce(runs, accelerator)
            crowded = crowding(neighbours.cores(), torch.get_num_threads())
            alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
            if crowded and alone and first.threads is None:
                log.warning(crowded)
        except (DataError, ValueError, OSError) as error:
            log_error(error)
            return UNUSABLE_ARGUMENTS
        except KeyboardInterrupt:
            log.error("interrupted before training began")
            return STOPPED
        try:
            for number, run in enumerate(left, 1):
                status = complete(run, left[number:], runs, accelerator, interrupts, began)
                if status != DONE:
                    return status
            return DONE
        finally:
            accelerator.end_training()


def unfinished(runs: list[Run]) -> list[Run]:
    """Return the runs of a comparison that are not done, at least one; a single run as it is."""
    if len(runs) == 1:
        return runs
    statuses = ranks.gather_object([load_status(run.folder) for run in runs])[0]
    left = [
        run
        for run, status in zip(runs, statuses, strict=True)
        if run.continued_from or not status or status.status != "done"
    ]
    return left or runs[-1:]


def complete(
    run: Run,
    later: list[Run],
    runs: list[Run],
    accelerator: Accelerator,
    interrupts: Interrupts,
    began: float,
) -> int:
    """Train and evaluate a run; report on all `runs` where none is `later`; return the status."""
    try:
        if not train(run, later, accelerator, interrupts):
            return STOPPED
        if interrupts.requested:
            raise KeyboardInterrupt
        reported = [] if later else runs
        ranks.together(lambda: conclude(run, reported, began) if ranks.rank() == 0 else None)
        write_status(run, "done")
        return DONE
    except BaseException as error:
        return end_early(run, error, interrupts)


def introduce(runs: list[Run], accelerator: Accelerator) -> None:
    """Log the data, and the budget and the folder of each run, before the first begins."""
    log.info(summary.describe_data(runs[0].dataset, runs[0].config))
    if accelerator.is_main_process:
        summary.warn_about(runs[0].dataset)
    device, processes = accelerator.device, accelerator.num_processes
    for run in runs:
        log.info(summary.describe_work(run.preset, run.config, device, processes))
        log.info(f"  into {run.folder}")
        if accelerator.is_main_process:
            summary.warn_about_settings(run.config)


def _seconds_of(run: Run, accelerator: Accelerator) -> float:
    """Estimate training and evaluation of a run by a trainer that ends here."""
    trainer = Trainer(accelerator, run.config, run.dataset, run.folder)
    seconds = sum(_seconds_left(trainer, run))
    accelerator.free_memory()
    return seconds


def _seconds_left(trainer: Trainer, run: Run) -> tuple[float, float]:
    """Estimate the training that is left, and the evaluation after it, which one process does."""
    training = trainer.seconds_left()
    image_seconds = training / trainer.images_left * trainer.accelerator.num_processes
    return training, summary.evaluation_seconds(run.dataset, image_seconds)


def train(run: Run, later: list[Run], accelerator: Accelerator, interrupts: Interrupts) -> bool:
    """Train to the end of the budget; False when interrupted after saving."""
    write_status(run, "running")
    accelerator.wait_for_everyone()
    seconds_later = sum(_seconds_of(other, accelerator) for other in later)
    trainer = Trainer(accelerator, run.config, run.dataset, run.folder)
    checkpoint = load_newest(run.folder)
    log_bytes = 0
    if checkpoint:
        trainer.restore(checkpoint)
        if accelerator.is_main_process:  # a crash may have left more
            drop_older(run.folder, checkpoint.images_seen, run.config.loop.keep_checkpoints)
        log_bytes = checkpoint.meta["log_bytes"]
        log.info(f"resuming after {trainer.images_seen:,} images")
    is_main = accelerator.is_main_process
    names = run.arguments.track if is_main else ()
    settings = flatten(as_json(run.config))
    sinks = [TRACKERS[name](run.folder, trainer.images_seen, settings) for name in names]
    tracker = Tracker(run.folder, sinks, log_bytes if is_main else None)
    if run.config.compile:
        log.info("compiling the step: the first one takes a minute or two ...")
    if run.continued_from and trainer.images_left:
        log.info(summary.describe_continuation(run.config, run.continued_from, trainer.done))
    if trainer.images_left:
        training, evaluation = _seconds_left(trainer, run)
        log.info(
            f"  about {clock(training + evaluation)} to the end: {clock(training)} of training "
            f"with its validations, {clock(evaluation)} of evaluation"
        )
        if later:
            others = " and ".join(other.preset for other in later)
            log.info(f"  about {clock(training + evaluation + seconds_later)} with {others}")
    first = trainer.done
    try:
        with interrupts.graceful(lambda: trainer.done > first):
            finished = trainer.train(tracker, lambda: interrupts.requested)
    finally:
        tracker.close()
    if finished:
        if is_main:
            trainer.save_snapshot(run.preset)
        log.info(summary.describe_reading(trainer.images_seen, len(trainer.split)))
    else:
        log.info(f"interrupted: saved at {trainer.images_seen:,} images; continue with --resume")
        write_status(run, "interrupted")
    accelerator.wait_for_everyone()  # a scheduler may end the job with the first that leaves
    return finished


def conclude(run: Run, reported: list[Run], began: float) -> None:
    """Evaluate and draw pictures; write a short report on `reported`, if any."""
    log.info("evaluating ...")
    before = torch.get_num_threads()
    use_threads(threads_for(run.arguments.threads))  # the other ranks wait
    evaluate(run.folder, run.dataset.root, SHORT_EVALUATION)
    use_threads(before)
    if not reported:
        return
    folder = run.folder if len(reported) == 1 else run.folder.parent
    report = write_report([each.folder for each in reported], folder / "report")
    log.info(f"done in {clock(time.monotonic() - began)}: {report}")


def end_early(run: Run, error: BaseException, interrupts: Interrupts) -> int:
    """Log why the run ended early and write its status.json; return the exit status.

    Raises:
        BaseException: `error` itself, if it is a bug rather than unusable data or a signal.
    """
    # ranks that were interrupted break off what the others were doing with them
    broken_off = isinstance(error, KeyboardInterrupt | RuntimeError) or ranks.rank() > 0
    if interrupts.requested and broken_off:
        write_status(run, "interrupted")
        log.info(
            "interrupted; the last checkpoint stays. Continue with the same command and --resume"
        )
        return STOPPED
    if isinstance(error, DataError | NonFiniteError | OSError):
        log_error(error)
        write_status(run, "failed", str(error))
        return FAILED
    write_status(run, "failed", repr(error))
    raise error


def log_error(error: Exception) -> None:
    """Log an error; one that all ranks raise is logged by the main rank only."""
    if ranks.rank() == 0 or not isinstance(error, ranks.SharedError):
        log.error(str(error))


def write_status(run: Run, name: str, error: str | None = None) -> None:
    """Write RUN/status.json, from the main rank or a failed one; a failure is not overwritten."""
    if ranks.rank() > 0 and name != "failed":
        return
    with suppress(DataError):  # a status that cannot be read is replaced
        before = load_status(run.folder)
        if before and before.status == "failed" and name != "running":
            return
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    status = msgspec.to_builtins(Status(name, os.getpid(), now, error))
    try:
        write_atomically(run.folder / STATUS, json.dumps(status, indent=1).encode())
    except DataError as failure:  # of a full disk, say: the run's own error matters more
        log.error(str(failure))
