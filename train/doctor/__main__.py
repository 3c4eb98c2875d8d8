"""`python -m train.doctor`: this machine, the data, what training chooses here, what to change."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import tyro

from common.command import run_command
from train.doctor.lines import as_text, diagnose

_Data = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help="packed data set; default: data/shards")
]
_Json = Annotated[
    bool, tyro.conf.arg(name="json", help="print a JSON array of the lines instead of text")
]


def _command(data: _Data = None, as_json: _Json = False) -> Callable[[], None]:
    """Describe this machine, the data, what training chooses here, and what to change."""

    def action() -> None:
        lines = diagnose(data)
        text = json.dumps([asdict(line) for line in lines], indent=1)
        print(text if as_json else as_text(lines), flush=True)

    return action


def main() -> int:
    return run_command("train.doctor", _command)


if __name__ == "__main__":
    sys.exit(main())
