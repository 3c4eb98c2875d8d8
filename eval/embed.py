"""`python -m eval.embed RUN SOURCE --out DIR`: embed any patches (`eval.embedding`)."""

import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from common.command import DONE, UNUSABLE_DATA, run_command
from common.machine import keep_freed_memory, threads_for, use_threads
from eval.config import EMBED_DEFAULTS, EmbedOptions

_Run = Annotated[
    str, tyro.conf.arg(metavar="RUN", help="folder of a run or of a snapshot, or a hub id")
]
_Source = Annotated[str, tyro.conf.arg(metavar="SOURCE", help="data set, URL, folder or image")]
_Threads = Annotated[
    int | None,
    tyro.conf.arg(metavar="N", help="CPU threads; default: the usable cores, shared by processes"),
]
_Options = Annotated[EmbedOptions, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_Run],
    source: tyro.conf.Positional[_Source],
    threads: _Threads = None,
    options: _Options = EMBED_DEFAULTS,
) -> Callable[[], int]:
    """Embed any patches with a trained run."""
    from common import ranks  # imports torch: not for --help

    count = threads_for(threads, ranks.local_ranks())

    def action() -> int:
        from eval.embedding import embed

        keep_freed_memory()
        use_threads(count)  # the launcher leaves each process one thread
        ranks.join()
        try:
            out = embed(run, source, options)
            if ranks.rank() == 0:
                print(out)
        except ranks.SharedError:
            if ranks.rank() == 0:  # who tells it for all
                raise
            return UNUSABLE_DATA
        finally:
            ranks.leave()
        return DONE

    return action


def main() -> int:
    return run_command("eval.embed", _command)


if __name__ == "__main__":
    sys.exit(main())
