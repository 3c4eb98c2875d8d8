"""The command of a GPU run: its steps, their time limits, and its JSON file."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
from msgspec import Struct

from bench.gpu.points import DRY, FULL
from bench.gpu.report import Machine, decode, report
from common.command import DONE, FAILED
from common.console import table
from common.files import write_atomically

TOTAL = 465.0  # seconds of all steps
MIN_SECONDS = 8.0  # no step is begun with less time left
TIMED_OUT = (124, 137)  # exit statuses of timeout(1)
TESTS = re.compile(r"^(tests/\S+?::.+?)(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*)?$", re.M)


class Step(NamedTuple):
    """A process, and its time limit in seconds."""

    name: str
    limit: float
    arguments: list[str]  # of bench.gpu.work; none: the tests


class Outcome(Struct, frozen=True):
    """How a step ended."""

    name: str
    status: str  # done, failed, timed out or not begun
    seconds: float
    limit: float
    why: str = ""  # the last line that it printed, where it is not done


DATA = Step("data", 60, ["data"])
TEST = Step("tests", 130, [])
COMPILED = [("dvae", 0), ("dvae", 1), ("dvae", 2), ("eq-dvae", 0), ("d4-dvae", 0)]
MEASURED = [
    Step("machine", 30, ["machine"]),
    Step("steps dvae", 120, ["steps", "--preset", "dvae"]),
    Step("profile", 60, ["profile"]),
    Step("storage", 60, ["storage"]),
    Step("shares", 70, ["shares"]),
    Step("steps eq-dvae", 60, ["steps", "--preset", "eq-dvae"]),
    Step("embedding", 50, ["embedding"]),
    Step("steps d4-dvae", 60, ["steps", "--preset", "d4-dvae"]),
]


@dataclass
class Session:
    """A GPU run: its files, and how its steps ended."""

    out: Path
    data: Path
    dry: bool
    driver: str | None
    began: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)
    tests: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> Path:
        return self.out / "records.jsonl"

    def run(self, steps: Iterable[Step]) -> None:
        """Run steps side by side, and record how they ended."""
        with ExitStack() as stack:
            running = [started for step in steps if (started := self._start(step, stack))]
            for step, limit, process, log, began in running:
                status = process.wait()
                log.seek(0)
                printed = log.read()
                self._end(step, limit, status, printed, time.monotonic() - began)

    def _start(self, step: Step, stack: ExitStack) -> "Started | None":
        left = TOTAL - (time.monotonic() - self.began)
        limit = round(min(TOTAL if self.dry else step.limit, left), 1)
        if limit < MIN_SECONDS:
            outcome = Outcome(step.name, "not begun", 0.0, step.limit, f"{left:.0f} s were left")
            self.outcomes.append(outcome)
            self.write()
            return None
        print(f"[{TOTAL - left:4.0f} s] {step.name}, at most {limit:.0f} s", file=sys.stderr)
        log = stack.enter_context(
            (self.data.parent / f"{step.name}.log").open("w+", errors="replace")
        )
        command = ["timeout", "--kill-after=3", str(limit), sys.executable, "-m"]
        if step is TEST:
            mode = "--collect-only" if self.dry else "-vv"
            command += ["pytest", mode, "-p", "no:cacheprovider", "-m", "gpu", "tests/test_gpu.py"]
        else:
            command += ["bench.gpu.work", *step.arguments, "--data", str(self.data)]
            command += ["--records", str(self.records), "--seconds", str(limit)]
            command += ["--dry"] if self.dry else []
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self.data / "compiled")}
        if self.dry:  # compiles nothing, and sees no GPU
            environment |= {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        return Started(step, limit, process, log, time.monotonic())

    def _end(self, step: Step, limit: float, status: int, printed: str, seconds: float) -> None:
        lines = [line for line in printed.splitlines() if line.strip()]
        ended = "timed out" if status in TIMED_OUT else "failed" if status else "done"
        why = lines[-1][:300] if status and lines else ""
        self.outcomes.append(Outcome(step.name, ended, round(seconds, 1), limit, why))
        if step is TEST:
            self.tests = {test: result or "not run" for test, result in TESTS.findall(printed)}
        with (self.out / "log.txt").open("a") as file:
            file.write(f"== {step.name}: {ended} after {seconds:.1f} s\n{printed}\n")
        self.write()

    def write(self) -> None:
        """Write all results so far to gpu.json."""
        records = [json.loads(line) for line in self.lines()]
        document = {
            "dry": self.dry,
            "commit": os.environ.get("COMMIT"),
            "driver": self.driver,
            "seconds": round(time.monotonic() - self.began, 1),
            "steps": msgspec.to_builtins(self.outcomes),
            "tests": self.tests,
            "results": records,
        }
        write_atomically(self.out / "gpu.json", (json.dumps(document, indent=1) + "\n").encode())

    def lines(self) -> list[bytes]:
        """Return the records so far; a process that was killed may leave half a line."""
        if not self.records.exists():
            return []
        return [line for line in self.records.read_bytes().splitlines(True) if line[-1:] == b"\n"]


class Started(NamedTuple):
    """A step that runs."""

    step: Step
    limit: float
    process: subprocess.Popen[bytes]
    log: IO[str]
    began: float


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu/run.sh", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--dry", action="store_true", help="in miniature, on a CPU")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu.json", "records.jsonl", "log.txt"):
        (options.out / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        session = Session(options.out, Path(folder) / "data", options.dry, _driver())
        session.run([DATA])
        effort = DRY if session.dry else FULL
        jobs = [(preset, effort.sizes[i]) for preset, i in COMPILED if i < len(effort.sizes)]
        if session.dry:
            jobs = jobs[:1]
        # the compiler works on the host, so that all graphs are compiled at once, beside the tests
        options_of = {job: ["--preset", job[0], "--batch", str(job[1])] for job in jobs}
        compiling = [
            Step(f"compile {preset} {size}", 130, ["compile", *options_of[preset, size]])
            for preset, size in jobs
        ]
        session.run([TEST, *compiling])
        # the fastest variant of each kernel was chosen on a busy device: choose it again
        for choice in session.data.rglob("*.best_config"):
            choice.unlink()
        if session.dry:  # nobody reads these numbers, so the steps may disturb each other
            session.run(MEASURED)
        else:
            for step in MEASURED:
                session.run([step])
    print(_show(session), flush=True)
    return DONE if all(outcome.status == "done" for outcome in session.outcomes) else FAILED


def _show(session: Session) -> str:
    records = [decode(line) for line in session.lines()]
    rows = [["step", "status", "s", "limit", "why"]]
    rows += [
        [o.name, o.status, f"{o.seconds:.0f}", f"{o.limit:.0f}", o.why[:70]]
        for o in session.outcomes
    ]
    results = list(session.tests.values())
    counts = ", ".join(f"{results.count(r)} {r}" for r in dict.fromkeys(results)) or "none"
    machines = [str(r.environment.device) for r in records if isinstance(r, Machine)]
    title = f"{', '.join(machines)}; driver {session.driver}; tests: {counts}"
    return f"{report(records)}\n\n{title}\n{table(rows)}\n{session.out / 'gpu.json'}"


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None
