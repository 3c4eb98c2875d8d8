"""Make a small set of synthetic H&E patches: `python -m shards.synthetic OUT`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from common.console import progress
from shards.synthetic.generate import SyntheticConfig, generate
from shards.synthetic.tissue import TISSUES

_Out = Annotated[Path, tyro.conf.arg(metavar="OUT", help="new folder for the patches")]
_Config = Annotated[SyntheticConfig, tyro.conf.arg(name="")]


_DEFAULTS = SyntheticConfig()


def _command(out: tyro.conf.Positional[_Out], config: _Config = _DEFAULTS) -> Callable[[], None]:
    """Make a small set of synthetic H&E patches, in class folders."""

    def action() -> None:
        total, patients = config.train + config.val + config.test, config.patients
        with progress("rendering", total, "patches") as advance:
            generate(out, config, advance)
        print(f"{out}: {total:,} patches, {len(TISSUES)} classes, {patients} patients per split")

    return action


def main() -> int:
    return run_command("shards.synthetic", _command, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
