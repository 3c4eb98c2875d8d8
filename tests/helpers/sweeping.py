"""A sweep for tests, whose runs are small scripts in place of training and evaluation.

Empty files control them: `held` waits, `failing` and `refused` fail with and without a status.
"""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.helpers.messages import collected_messages
from train.sweep.options import Options
from train.sweep.recipes import RECIPES
from train.sweep.runs import Programs, SweepRun, plan_runs
from train.sweep.sweep import sweep

TIMEOUT_S = 60
TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
control, settings, _, out, resume = sys.argv[1:]
control, out = Path(control), Path(out)
images = json.loads(Path(settings).read_text())["config"]["images"]
assert resume == "--resume"
def sync(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
def status(word, error=None):
    part = out / f"status.{os.getpid()}"
    part.write_text(json.dumps({"status": word, "pid": os.getpid(), "error": error}))
    sync(part)
    part.rename(out / "status.json")
    sync(out)
def stop(number, frame):
    status("interrupted")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
with open(control / "started", "a") as file:
    file.write(out.name + " ")
status("running")
(out / "metrics.jsonl").write_text(json.dumps({"kind": "train", "images": images // 2}))
if hasattr(os, "sched_getaffinity"):
    print("cores", json.dumps(sorted(os.sched_getaffinity(0))))
if (control / out.name / "refused").exists():
    sys.exit("error: a bad setting")
if (control / out.name / "failing").exists():
    status("failed", "loss not finite")
    sys.exit(1)
(control / out.name / "there").touch()
while (control / out.name / "held").exists():
    time.sleep(0.02)
status("done")
"""
EVALUATION = """
import json, sys
from pathlib import Path
control, out, *more = sys.argv[1:]
RESULTS = {"data": {"hash": "0"}, "probe": {"mean": {}}, "robustness": {}}
with open(Path(control) / "evaluated", "a") as file:
    file.write(" ".join([Path(out).name, *more]) + "; ")
Path(out, "results.json").write_text(json.dumps(RESULTS))
"""


class FakeSweep:
    """A sweep of three arms and two seeds, whose runs are the scripts above."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.messages = folder, list[str]()
        self.control, self.out = folder / "control", folder / "out"
        self.options = Options(data=str(data), out=self.out, images=1000)
        self.runs = self.plan()
        for run in self.runs:
            (self.control / run.name).mkdir(parents=True)
        for name, text in (("train.py", TRAINING), ("evaluate.py", EVALUATION)):
            (folder / name).write_text(text)
        self.programs = Programs(self.program("train.py"))

    def program(self, name: str) -> tuple[str, ...]:
        return sys.executable, str(self.folder / name), str(self.control)

    def plan(self, recipe: str = "headline", **shared: Any) -> list[SweepRun]:
        return plan_runs(RECIPES[recipe](), 2, 1000, self.out, **shared)

    def mark(self, run: str, word: str) -> Path:
        path = self.control / run / word
        path.touch()
        return path

    def sweep(self, **options: Any) -> int:
        """Sweep, with other options than usual; the exit status. Messages are kept."""
        with collected_messages() as messages:
            status = sweep(self.runs, replace(self.options, **options), self.programs)
        self.messages += messages
        return status

    def states(self) -> list[str]:
        return [run.state for run in self.runs]

    def started(self) -> list[str]:
        """The names of the runs that were started since the last call."""
        path = self.control / "started"
        names = path.read_text().split() if path.exists() else []
        path.write_text("")
        return names


def when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do something once a condition holds, in a thread beside the test."""

    def wait() -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
