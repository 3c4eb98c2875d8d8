"""The patches to measure on: a packed folder that is named, or a synthetic set made for it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.settings import Settings
from bench.timing import Say
from common.errors import DataError

PATCHES = 4096  # of the synthetic set, or four batches where that is more


@contextmanager
def packed(settings: Settings, say: Say) -> Iterator[Path]:
    """A packed folder with a train split; a synthetic one goes at the end.

    Raises:
        DataError: no folder is named, and a package for making one is not installed.
    """
    if settings.data is not None:
        yield Path(settings.data)
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield _synthetic(Path(folder), max(PATCHES, 4 * max(settings.sizes)), say)


def _synthetic(folder: Path, patches: int, say: Say) -> Path:
    """Imported here, since it needs more than training does."""
    try:
        from shards.pack.packing import pack
        from shards.pack.plan import PackOptions
        from shards.synthetic.__main__ import SyntheticConfig, generate
    except ImportError as error:
        raise DataError(
            f"synthetic patches cannot be made ({error}); name a packed folder with --data"
        ) from error
    say(f"making {patches:,} synthetic patches")
    generate(folder / "raw", SyntheticConfig(train=patches, val=0, test=0))
    pack(folder / "raw", folder / "shards", PackOptions())
    return folder / "shards"
