"""`python -m models.export RUN --to onnx torch-export`: the encoder as a file."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from common.command import run_command
from models.config import EXPORT_DEFAULTS, ExportOptions

_RunName = Annotated[
    str, tyro.conf.arg(metavar="RUN", help="folder of a run or of a snapshot, or a hub id")
]


@dataclass(frozen=True)
class _Command:
    """Write the encoder of a run as ONNX or torch.export, checked against PyTorch."""

    run: tyro.conf.Positional[_RunName]
    options: Annotated[ExportOptions, tyro.conf.arg(name="")] = EXPORT_DEFAULTS

    def __call__(self) -> None:
        from models.export.encoder import export  # imports torch: not for --help

        export(self.run, self.options)


def main() -> int:
    return run_command("models.export", _Command)


if __name__ == "__main__":
    sys.exit(main())
