"""Pack patches into WebDataset shards: `python -m shards.pack SOURCE OUT`.

The bytes written depend on the files and on the options alone: not on the number of processes or
tasks, the order of the directory, the machine or the time.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from shards.pack.packing import pack, pack_task
from shards.pack.plan import PackOptions
from shards.pack.tasks import choose_task
from shards.slides.options import SlideOptions

_Source = Annotated[Path, tyro.conf.arg(metavar="SOURCE", help="folder of patches, or of slides")]
_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="new folder for the data set")]


@dataclass(frozen=True)
class _Options(PackOptions):
    __doc__ = PackOptions.__doc__
    slides: Annotated[SlideOptions, tyro.conf.arg(name="")] = field(default_factory=SlideOptions)


@dataclass(frozen=True)
class _Command:
    """Pack 32x32 RGB PNG patches into WebDataset shards."""

    source: tyro.conf.Positional[_Source]
    out: tyro.conf.Positional[_Out]
    packing: Annotated[_Options, tyro.conf.arg(name="")] = field(default_factory=_Options)
    task_index: int | None = None
    """Index of this task, from 0 to --num-tasks less 1. Default: its place in a Slurm array."""
    num_tasks: int | None = None
    """Number of tasks that share the work. Each builds its own shards, or cuts its own slides, then
    python -m shards.merge OUT completes the data set."""

    def __post_init__(self) -> None:
        choose_task(self.task_index, self.num_tasks)

    def __call__(self) -> None:
        task = choose_task(self.task_index, self.num_tasks)
        if task is None:
            pack(self.source, self.out, self.packing)
        else:
            pack_task(self.source, self.out, self.packing, task)


def main() -> int:
    return run_command("shards.pack", _Command, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    sys.exit(main())
