"""Which tars `python -m shards.verify SOURCE --index OUT` is about, and the split of each."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from common.errors import DataError
from shards.schema import valid_split
from shards.sources.splits import split_name

_PACKED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_WORDS = re.compile(r"[^A-Za-z]+")


@dataclass(frozen=True)
class Tar:
    path: Path
    name: str  # relative to the folder that all tars are in
    split: str


def find_tars(source: str, split: str | None = None) -> list[Tar]:
    """The tars of a folder, or of a pattern with {a,b}, {000..009}, * and **; sorted by name.

    No shell takes part. The split is `split`, or what one word of the file's name or one of its
    folders says: `train-000000.tar`, `data/val/000000.tar`.

    Raises:
        DataError: nothing there, a name without a match, a compressed tar, a tar of no split.
    """
    if split is not None and not valid_split(split):
        raise DataError(f"--split {split!r}: expected lower-case letters, digits and _")
    folder = Path(source)
    paths = sorted(_walk(folder) if folder.is_dir() else _expand(source))
    if not paths:
        raise DataError(f"{source} holds no tars (*.tar)")
    base = folder if folder.is_dir() else Path(os.path.commonpath([p.parent for p in paths]))
    names = [path.relative_to(base).as_posix() for path in paths]
    for name in names:
        if not name.isprintable():
            raise DataError(f"{base}: a tar is named {name!r}: give it a plain name")
    return [
        Tar(path, name, split or _split(base, name))
        for path, name in zip(paths, names, strict=True)
    ]


def _walk(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if path.name.endswith(_PACKED):
            raise DataError(f"{path} is compressed: unpack it to a plain tar, or move it away")
    return [path for path in files if path.name.endswith(".tar")]


def _expand(pattern: str) -> set[Path]:
    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from None
    found: set[Path] = set()
    for part in parts:
        # a name that is there is meant, whatever * is in it; Path.glob takes no absolute pattern
        matches = [part] if Path(part).is_file() else glob.glob(part, recursive=True)  # noqa: PTH207
        files = {path for path in map(Path, matches) if path.is_file()}
        if not files:
            raise DataError(f"{part} does not exist; name a folder of tars, or a pattern of them")
        found |= files
    for path in found:
        if not path.name.endswith(".tar"):
            raise DataError(f"{path} is not named *.tar")
    return found


def _split(base: Path, name: str) -> str:
    """From the file's own name, then from its folders, the nearest first."""
    *folders, file = (base.resolve().name, *Path(name).parts)
    for part in (file.removesuffix(".tar"), *reversed(folders)):
        splits = {found for word in _WORDS.split(part) if (found := split_name(word))}
        if len(splits) == 1:
            return splits.pop()
    raise DataError(
        f"{base / name}: neither its name nor a folder says train, val or test; name the split of "
        f"all tars with --split"
    )
