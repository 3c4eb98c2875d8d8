"""`python -m eval.main RUN [--data DIR]`: evaluate a run (`eval.evaluation`)."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.machine import keep_freed_memory
from eval.evaluation import evaluate
from eval.session import WHOLE, EvalConfig

_Run = Annotated[Path, tyro.conf.arg(metavar="RUN", help="folder of a finished run")]
_Data = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help="data set or URL; default: the run's own")
]
_Config = Annotated[EvalConfig, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_Run],
    data: _Data = None,
    config: _Config = WHOLE,
) -> Callable[[], None]:
    """Evaluate a run: RUN/results.json, RUN/embeddings, RUN/figures."""

    def action() -> None:
        keep_freed_memory()
        evaluate(run, data, config)

    return action


def main() -> int:
    return run_command("eval.main", _command)


if __name__ == "__main__":
    sys.exit(main())
