"""`python -m eval.export EMBEDDED --to h5ad slides`: embeddings for other programs, and maps."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import log
from eval.config import ExportOptions

_Folder = Annotated[Path, tyro.conf.arg(metavar="EMBEDDED", help="output folder of eval.embed")]
_Options = Annotated[ExportOptions, tyro.conf.arg(name="")]


def _command(folder: tyro.conf.Positional[_Folder], options: _Options) -> Callable[[], None]:
    """Write embeddings for other programs, and draw them over their slides."""

    def action() -> None:
        from eval.export.files import export  # imports torch: not for --help

        for path in export(folder, options):
            log.info(str(path))

    return action


def main() -> int:
    return run_command("eval.export", _command)


if __name__ == "__main__":
    sys.exit(main())
