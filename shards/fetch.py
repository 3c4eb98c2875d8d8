"""Copy a remote data set into the cache: `python -m shards.fetch URL`.

The command prints the folder. Every other command that takes a data set also takes a URL, and
fetches it in the same way.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.command import run_command
from shards.remote.cache import fetch
from shards.remote.download import SCHEMES

_Url = Annotated[
    str,
    tyro.conf.arg(
        metavar="URL", help="folder: " + ", ".join(f"{scheme}://..." for scheme in SCHEMES)
    ),
]


@dataclass(frozen=True)
class _Command:
    """Copy a remote data set into the cache, verify it, and print its folder."""

    url: tyro.conf.Positional[_Url]
    cache: Path | None = None
    """Folder of the cache; default: $EQDVAE_CACHE, or eqdvae in $XDG_CACHE_HOME or ~/.cache."""
    splits: tuple[str, ...] = ()
    """Splits to fetch; default: all."""

    def __call__(self) -> None:
        print(fetch(self.url, self.cache, self.splits))


def main() -> int:
    return run_command("shards.fetch", _Command)


if __name__ == "__main__":
    sys.exit(main())
