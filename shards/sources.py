"""Where patches come from: folders of classes, with or without split folders, to a sorted list.

    SOURCE/train/TUM/tile7__y0032_x0064.png     split, class, source image and position
    SOURCE/TUM/tile7__y0032_x0064.png           no split folders: everything is train
    SOURCE/train/tile7__y0032_x0064.png         no class folders: unlabelled

The layout is taken literally: a deeper folder, or one in the wrong place, is an error and never
searched, because its name would silently become a class.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from shards.names import group_pattern, position, source_image
from shards.png import MAX_SOURCE_BYTES
from shards.schema import DataError
from shards.split import class_warnings, split_folders

_JUNK_NAMES = ("thumbs.db", "desktop.ini")
_JUNK_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".md", ".xml", ".yaml", ".yml")
_LAYOUT = "expected SOURCE/[train|val|test/]CLASS/*.png"
_OUTSIDE = "outside the class folders"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Patch:
    """One image file, as the scan found it."""

    path: str  # relative to the root, with /
    label: str | None  # class name
    split: str
    source: str  # source image: the group that must not be cut by a split
    y: int | None  # pixel row in the source image
    x: int | None  # pixel column
    size: int  # bytes
    mtime_ns: int
    slide: str | None = None
    patient: str | None = None
    site: str | None = None
    mpp: float | None = None  # microns a pixel


@dataclass(frozen=True)
class Survey:
    """Everything under a root: the patches, and what is not one."""

    patches: list[Patch]  # sorted by path
    refused: list[tuple[str, str]]  # path and reason; counted against --skip-bad
    hidden: int  # files and folders whose name starts with a dot: not looked at
    ignored: int  # notes and system files beside the images
    warnings: list[str]


def scan(root: Path, group_regex: str | None = None) -> list[Patch]:
    """The patches under `root`, sorted by path, whatever the order of the directory.

    Raises:
        DataError: as `survey`, and also when there is any file that is not a PNG.
    """
    found = survey(root, group_regex)
    if found.refused:
        raise DataError(f"{root}: {listing(found.refused, len(found.refused))}")
    return found.patches


def survey(root: Path, group_regex: str | None = None) -> Survey:
    """Walk `root`; see the module's docstring for the layouts.

    Args:
        group_regex: see `shards.names.source_image`.

    Raises:
        DataError: not a folder, empty, an ambiguous layout, a link that leaves the root, a name
            that is not UTF-8, a class that train lacks, a path the regex does not match.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; {_LAYOUT}")
    walk = _Walk(root, group_regex)
    walk.root_folder()
    walk.patches.sort(key=lambda patch: patch.path)
    walk.refused.sort()
    labels: dict[str, set[str | None]] = {}
    for patch in walk.patches:
        labels.setdefault(patch.split, set()).add(patch.label)
    warnings = walk.warnings + class_warnings(root, labels)
    return Survey(walk.patches, walk.refused, walk.hidden, walk.ignored, warnings)


def listing(refused: list[tuple[str, str]], total: int, shown: int = _SHOWN) -> str:
    """`N files cannot be used as patches`, with the first paths and reasons."""
    lines = [f"{total} file{'s' if total > 1 else ''} cannot be used as patches"]
    lines += [f"  {path!r}: {reason}" for path, reason in refused[:shown]]
    if total > shown:
        lines.append(f"  ... and {total - shown} more")
    return "\n".join(lines)


class _Walk:
    """Collects what the folders hold, three levels deep at most."""

    def __init__(self, root: Path, group_regex: str | None) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.group = group_pattern(group_regex)
        self.patches: list[Patch] = []
        self.refused: list[tuple[str, str]] = []
        self.hidden = 0
        self.ignored = 0
        self.warnings: list[str] = []

    def root_folder(self) -> None:
        folders, files = self._list("")
        if not folders and not files:
            raise DataError(f"{self.root} is empty; {_LAYOUT}")
        if not folders:
            raise DataError(
                f"{self.root} holds {len(files)} files but no class folders; {_LAYOUT}. "
                f"Unlabelled patches go into {self.root / 'train'}"
            )
        splits = split_folders(self.root, [entry.name for entry in folders])
        self._stray(files, "")
        for entry in folders:
            if splits:
                self._split_folder(entry.name, splits[entry.name])
            else:
                self._class_folder(entry.name, entry.name, "train")
        if not self.patches and not self.refused:
            raise DataError(f"{self.root} holds no PNG file; {_LAYOUT}")

    def _split_folder(self, folder: str, split: str) -> None:
        folders, files = self._list(folder)
        if not folders:
            self._files(files, folder, None, split)
            return
        self._stray(files, f"{folder}/")
        for entry in folders:
            self._class_folder(f"{folder}/{entry.name}", entry.name, split)

    def _class_folder(self, folder: str, label: str, split: str) -> None:
        folders, files = self._list(folder)
        if folders:
            inner = [entry.name for entry in folders[:_SHOWN]]
            raise DataError(
                f"{self.root / folder} holds folders {inner}; {_LAYOUT}. If these are classes or "
                f"splits, name the folder they are in as SOURCE"
            )
        before = len(self.patches)
        self._files(files, folder, label, split)
        if len(self.patches) == before:
            self.warnings.append(f"the class folder {folder!r} holds no patches")

    def _list(self, folder: str) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
        """Folders and files, sorted; hidden ones are counted, links may not leave the root."""
        with os.scandir(self.root / folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        folders: list[os.DirEntry[str]] = []
        files: list[os.DirEntry[str]] = []
        for entry in listed:
            if entry.name.startswith("."):
                self.hidden += 1
                continue
            _check_name(entry)
            if entry.is_symlink():
                self._check_link(entry)
            (folders if entry.is_dir() else files).append(entry)
        return folders, files

    def _check_link(self, entry: os.DirEntry[str]) -> None:
        target = os.path.realpath(entry.path)
        if os.path.commonpath([target, self.real_root]) != self.real_root:
            raise DataError(
                f"{entry.path} is a link to {target}, outside {self.root}: refused. "
                f"Copy the files, or name the folder they are in"
            )

    def _stray(self, files: list[os.DirEntry[str]], prefix: str) -> None:
        for entry in files:
            if _is_junk(entry.name):
                self.ignored += 1
            else:
                self.refused.append((prefix + entry.name, _OUTSIDE))

    def _files(
        self, files: list[os.DirEntry[str]], folder: str, label: str | None, split: str
    ) -> None:
        for entry in files:
            if _is_junk(entry.name):
                self.ignored += 1
                continue
            path = f"{folder}/{entry.name}"
            stem, _, suffix = entry.name.rpartition(".")
            status = _stat(entry)
            reason = _refusal(suffix, status)
            if reason or status is None:
                self.refused.append((path, reason))
                continue
            source = source_image(path, stem, self.group)
            y, x = position(stem)
            self.patches.append(
                Patch(path, label, split, source, y, x, status.st_size, status.st_mtime_ns)
            )


def _check_name(entry: os.DirEntry[str]) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{os.fsencode(entry.path)!r}: the name is not UTF-8; rename it") from None


def _is_junk(name: str) -> bool:
    return name.lower().endswith(_JUNK_SUFFIXES) or name.lower() in _JUNK_NAMES


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def _refusal(suffix: str, status: os.stat_result | None) -> str:
    """Why a file is not a patch, or nothing."""
    if suffix.lower() != "png":
        return f"not a PNG file (.{suffix})"
    if status is None:
        return "a link to nothing"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > MAX_SOURCE_BYTES:
        return f"{status.st_size} bytes, expected at most {MAX_SOURCE_BYTES}"
    return ""
