"""Put runs side by side: `python -m eval.report RUN... --out DIR`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command

_Runs = Annotated[list[Path], tyro.conf.arg(metavar="RUN...", help="folders of evaluated runs")]
_Transfers = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(metavar="DIR...", help="folders of eval.transfer whose tables are included"),
]
_Efficiency = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FILE", help="JSON of bench/throughput.py model: size and speed"),
]


def _command(
    run_folders: tyro.conf.Positional[_Runs],
    out: Path,
    transfer: _Transfers = (),
    efficiency: _Efficiency = None,
) -> Callable[[], None]:
    """Compare evaluated runs: an HTML page, Markdown, tables for LaTeX, the numbers as JSON.

    Args:
        out: folder of the report.
    """

    def action() -> None:
        # imports torch: not for --help
        from eval.report.report import NUMBERS, PAGE, REPORT, TABLES, write_report

        path = write_report(run_folders, out, transfer, efficiency)
        print(*(path.with_name(name) for name in (PAGE, REPORT, TABLES, NUMBERS)), sep="\n")

    return action


def main() -> int:
    return run_command("eval.report", _command)


if __name__ == "__main__":
    sys.exit(main())
