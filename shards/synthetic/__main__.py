"""Make a small set of synthetic H&E patches: `python -m shards.synthetic OUT`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import progress
from shards.synthetic.generate import SyntheticConfig, generate
from shards.synthetic.tissue import TISSUES

_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="new folder for the patches")]


@dataclass(frozen=True)
class _Command:
    """Make a small set of synthetic H&E patches, in class folders."""

    out: tyro.conf.Positional[_Out]
    config: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = field(
        default_factory=SyntheticConfig
    )

    def __call__(self) -> None:
        out, config = self.out, self.config
        total, patients = config.train + config.val + config.test, config.patients
        with progress("rendering", total, "patches") as advance:
            generate(out, config, advance)
        print(f"{out}: {total:,} patches, {len(TISSUES)} classes, {patients} patients per split")


def main() -> int:
    return run_command("shards.synthetic", _Command, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
