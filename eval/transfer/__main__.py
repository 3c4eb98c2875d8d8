"""`python -m eval.transfer RUN... --data A B C --out DIR`: transfer probes to other sites."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.locks import held
from common.machine import keep_freed_memory, threads_for, use_threads
from eval.config import TRANSFER_DEFAULTS, Threads, TransferConfig

_Runs = Annotated[list[Path], tyro.conf.arg(metavar="RUN...", help="folders of finished runs")]
_Data = Annotated[list[str], tyro.conf.arg(metavar="DATA...", help="packed data sets or URLs")]
_Config = Annotated[TransferConfig, tyro.conf.arg(name="")]


def _command(
    run_folders: tyro.conf.Positional[_Runs],
    data: _Data,
    out: Path,
    threads: Threads = None,
    config: _Config = TRANSFER_DEFAULTS,
) -> Callable[[], None]:
    """Transfer probes between data sets: OUT/transfer.json, OUT/transfer.md, OUT/scores."""
    count = threads_for(threads)

    def action() -> None:
        from eval.transfer.transfer import TABLES, transfer  # imports torch: not for --help

        keep_freed_memory()
        use_threads(count)
        with held(out, "writes results there"):
            transfer(run_folders, list(data), out, config)
        print((out / TABLES).read_text(encoding="utf-8"))

    return action


def main() -> int:
    return run_command("eval.transfer", _command)


if __name__ == "__main__":
    sys.exit(main())
