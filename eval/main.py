"""`python -m eval.main RUN [--data DIR]`: evaluate a run (`eval.evaluation`)."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.locks import held
from common.machine import keep_freed_memory, threads_for, use_threads
from eval.config import EVAL_DEFAULTS, EvalConfig, Threads

_Run = Annotated[Path, tyro.conf.arg(metavar="RUN", help="folder of a finished run")]
_DATA = "packed data set, or its URL; default: the one that the run was trained on"
_Data = Annotated[str | None, tyro.conf.arg(metavar="DIR", help=_DATA)]
_Config = Annotated[EvalConfig, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_Run],
    data: _Data = None,
    threads: Threads = None,
    config: _Config = EVAL_DEFAULTS,
) -> Callable[[], None]:
    """Evaluate a run: write results.json, scores.parquet, embeddings and figures to RUN."""
    count = threads_for(threads)

    def action() -> None:
        from eval.evaluation import evaluate  # these import torch: not for --help
        from eval.run import load_info

        keep_freed_memory()
        use_threads(count)
        load_info(run)  # a folder that is no run is refused before a lock is left in it
        with held(run, "trains or evaluates this run"):
            evaluate(run, data, config)

    return action


def main() -> int:
    return run_command("eval.main", _command)


if __name__ == "__main__":
    sys.exit(main())
