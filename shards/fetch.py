"""Copy a remote data set into the cache: `python -m shards.fetch URL`.

The command prints the folder. Every other command that takes a data set also takes a URL, and
fetches it in the same way.
"""

import sys
from collections.abc import Callable
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
_Cache = Annotated[
    Path | None,
    tyro.conf.arg(
        help="folder of the cache; default: $EQDVAE_CACHE, or eqdvae in $XDG_CACHE_HOME or ~/.cache"
    ),
]
_Splits = Annotated[tuple[str, ...], tyro.conf.arg(help="splits to fetch; default: all")]


def _command(
    url: tyro.conf.Positional[_Url], cache: _Cache = None, splits: _Splits = ()
) -> Callable[[], None]:
    """Copy a remote data set into the cache, verify it, and print its folder."""
    return lambda: print(fetch(url, cache, splits))


def main() -> int:
    return run_command("shards.fetch", _command)


if __name__ == "__main__":
    sys.exit(main())
