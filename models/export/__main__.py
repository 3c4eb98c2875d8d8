"""`python -m models.export RUN --to onnx torch-export`: the encoder as a file."""

import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from common.command import run_command
from models.config import EXPORT_DEFAULTS, ExportOptions

_RunName = Annotated[
    str, tyro.conf.arg(metavar="RUN", help="folder of a run or of a snapshot, or a hub id")
]
_Options = Annotated[ExportOptions, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_RunName], options: _Options = EXPORT_DEFAULTS
) -> Callable[[], None]:
    """Write the encoder of a run as ONNX or torch.export, checked against PyTorch."""

    def action() -> None:
        from models.export.encoder import export  # imports torch: not for --help

        export(run, options)

    return action


def main() -> int:
    return run_command("models.export", _command)


if __name__ == "__main__":
    sys.exit(main())
