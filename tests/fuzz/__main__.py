"""Fuzz targets one after the other, guided by coverage (atheris): `python -m tests.fuzz`.

Each begins with the inputs of its corpus, at first the valid ones, and adds to it what reaches new
code. An input that breaks the property stops its target and is written to the corpus's folder as
`crash-*`, `timeout-*` or `oom-*`.
"""

import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import atheris
import psutil
import tyro

MORE_MEMORY = 1 << 30  # bytes beyond those of the imported program
TIMEOUT_S = 10


@dataclass(frozen=True)
class Fuzz:
    """Fuzz the readers of files from outside."""

    targets: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names in tests.fuzz.targets; default: all."""
    seconds: int = 60
    """Time for each target."""
    corpus: Path = field(default=Path(".fuzz"))
    """Folder that holds a folder of inputs for each target."""


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    packages = ["common", "shards", "models", "pipeline", "eval", "train"]
    with atheris.instrument_imports(include=packages):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory_folder()))
    (scratch / "seeds").mkdir()
    for number, seed in enumerate(target.seeds(scratch / "seeds")):
        (corpus / f"valid-{number}").write_bytes(seed)
        target.check(seed, scratch)
    limit = psutil.Process().memory_info().vms + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    options = [
        *(f"-max_total_time={seconds}", f"-timeout={TIMEOUT_S}", "-max_len=20000"),
        *(
            "-rss_limit_mb=3000",
            f"-artifact_prefix={corpus.parent}/{name}-",
            "-print_final_stats=1",
        ),
    ]
    atheris.Setup([sys.argv[0], str(corpus), *options], lambda data: target.check(data, scratch))
    atheris.Fuzz()


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> int:
    options = tyro.cli(Fuzz)
    if len(options.targets) == 1:
        fuzz(options.targets[0], options.seconds, options.corpus / options.targets[0])
        return 0
    from tests.fuzz.targets import TARGETS

    failed = 0
    for name in options.targets or TARGETS:
        arguments = [name, "--seconds", str(options.seconds), "--corpus", str(options.corpus)]
        failed += bool(subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments]).returncode)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
