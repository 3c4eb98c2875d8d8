"""The lines of the doctor: every check has one, whatever happens to it."""

import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import machine
from train.doctor import checks
from train.doctor.checks import Fact

LIMIT_S = 5.0  # per line, importing torch aside: file systems and drivers may not answer
IMPORT_LIMIT_S = 60.0
DATA, PROCESSED = "data/shards", "data/processed"

Check = Callable[[], Fact]


@dataclass(frozen=True)
class Line:
    """One fact: its value or, where it has none, why; and what the user can change."""

    name: str
    value: str | None = None
    unknown: str | None = None
    advice: str | None = None


def diagnose(data: str | None = None) -> list[Line]:
    """Describe the machine, a packed data set, and the settings that training chooses for them.

    Nothing is raised, changed, downloaded or compiled, and no check is waited for longer than
    LIMIT_S; one that does not answer is left behind in a thread.

    Args:
        data: folder of a packed data set; None: data/shards.
    """
    named = DATA if data is None else data
    slow: dict[str, Check] = {"torch": checks.torch_build, "training": checks.imports}
    quick: dict[str, Check] = {  # none imports more than the slow ones
        "python": lambda: f"{sys.version.split()[0]} in {sys.prefix}",
        "system": lambda: f"{platform.platform()}, {machine.cpu_name()}",
        "packages": checks.packages,
        "code": checks.code,
        "user": checks.user,
        "cores": checks.cores,
        "memory": checks.memory,
        "GPU": checks.gpus,
        "compiler": checks.compiler,
        "disk, runs": partial(checks.disk, Path(PROCESSED)),
        "disk, temporary": lambda: checks.disk(Path(tempfile.gettempdir())),
        "data": partial(checks.data_set, named, data is None),
        "disk, data": lambda: checks.disk(checks.local(named)),
        "reading": partial(checks.reading, named),
        "size in memory": partial(checks.size_in_memory, named),
        "device": lambda: str(checks.device()),
        "precision": lambda: str(checks.config_for(named).precision),
        "compile": partial(checks.compiled, named),
        "storage": partial(checks.storage, named),
        "threads": checks.threads,
        "batch": lambda: f"{checks.config_for(named).batch_size:,}",
        "images": lambda: f"{checks.config_for(named).images:,}",
    }
    return [
        *(_line(name, check, IMPORT_LIMIT_S) for name, check in slow.items()),
        *(_line(name, check, LIMIT_S) for name, check in quick.items()),
    ]


def as_text(lines: list[Line]) -> str:
    """Align the lines, and repeat their advice at the end."""
    from common.console import printable

    width = max(len(line.name) for line in lines)
    rows = [
        f"{line.name:<{width}}  "
        + printable(f"unknown: {line.unknown}" if line.value is None else line.value)
        for line in lines
    ]
    advice = [f"- {line.name}: {printable(line.advice)}" for line in lines if line.advice]
    return "\n".join([*rows, "", "to change:", *(advice or ["- nothing"])])


def _line(name: str, check: Check, limit_s: float) -> Line:
    """Run a check in a thread, and leave it there where it does not end in time."""
    answers: list[Line] = []

    def answer() -> None:
        try:
            fact = check()
        except BaseException as error:  # a broken package may even exit
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            answers.append(Line(name, unknown=reason))
        else:
            value, advice = (fact, None) if isinstance(fact, str) else fact
            answers.append(Line(name, value, advice=advice))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(limit_s)
    return answers[0] if answers else Line(name, unknown=f"no answer within {limit_s:g} seconds")
