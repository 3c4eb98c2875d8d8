"""Walks a folder of patches, and says whether its folders are classes, slides, or neither.

    SOURCE/train/TUM/tile7__y0032_x0064.png     split folders and class folders
    SOURCE/TUM/tile7__y0032_x0064.png           class folders: everything is train
    SOURCE/slide-12/000123_x1234_y5678.png      slide folders, unlabelled; also under split folders
    SOURCE/tile7.png, SOURCE/train/tile7.png    flat: neither, unlabelled

The layout is taken literally: a deeper folder, or one in the wrong place, is an error and never
searched, because its name would silently become a class.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.names import only_position
from shards.png import MAX_SOURCE_BYTES
from shards.schema import DataError
from shards.split import split_folders

Layout = Literal["auto", "classes", "slides", "flat"]

_JUNK_NAMES = ("thumbs.db", "desktop.ini")
_JUNK_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".md", ".xml", ".yaml", ".yml", ".parquet")
_EXPECTED = "expected SOURCE/[train|val|test/][CLASS or SLIDE/]*.png"
_OUTSIDE = "outside the class folders"
_SHOWN = 10


@dataclass(frozen=True)
class Accepted:
    """Which files may be patches, before any is opened."""

    suffixes: tuple[str, ...]
    max_bytes: int


PLAIN = Accepted(("png",), MAX_SOURCE_BYTES)


@dataclass(frozen=True, slots=True)
class File:
    path: str  # relative to the root, with /
    stem: str  # name without suffix
    folder: str | None  # of the class or slide
    split: str
    size: int  # bytes
    mtime_ns: int


class Walk:
    """What the folders under `root` hold, three levels deep at most.

    Raises:
        DataError: not a folder, empty, too deep, split folders beside others, a link that leaves
            the root, a name that is not UTF-8.
    """

    def __init__(self, root: Path, accepted: Accepted = PLAIN) -> None:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; {_EXPECTED}")
        self.root = root
        self.real_root = os.path.realpath(root)
        self.accepted = accepted
        self.files: list[File] = []
        self.refused: list[tuple[str, str]] = []  # path and reason
        self.hidden = 0  # names that start with a dot: not looked at
        self.ignored = 0  # notes and system files beside the images
        self.warnings: list[str] = []
        self.splits: dict[str, str] = {}  # split folders
        self._root_folder()
        self.files.sort(key=lambda file: file.path)
        self.refused.sort()

    def _root_folder(self) -> None:
        folders, files = self._list("")
        if not folders and not files:
            raise DataError(f"{self.root} is empty; {_EXPECTED}")
        self.splits = split_folders(self.root, [entry.name for entry in folders])
        if folders:
            self._stray(files, "")
        else:
            self._take(files, "", None, "train")
        for entry in folders:
            if self.splits:
                self._split_folder(entry.name, self.splits[entry.name])
            else:
                self._inner_folder(entry.name, entry.name, "train")
        if not self.files and not self.refused:
            raise DataError(f"{self.root} holds no {self._kinds()} file; {_EXPECTED}")

    def _split_folder(self, folder: str, split: str) -> None:
        folders, files = self._list(folder)
        if not folders:
            self._take(files, f"{folder}/", None, split)
            return
        self._stray(files, f"{folder}/")
        for entry in folders:
            self._inner_folder(f"{folder}/{entry.name}", entry.name, split)

    def _inner_folder(self, folder: str, name: str, split: str) -> None:
        folders, files = self._list(folder)
        if folders:
            inner = [entry.name for entry in folders[:_SHOWN]]
            raise DataError(
                f"{self.root / folder} holds folders {inner}; {_EXPECTED}. If these are classes or "
                f"splits, name the folder they are in as SOURCE; any other layout can be given "
                f"by --manifest"
            )
        before = len(self.files)
        self._take(files, f"{folder}/", name, split)
        if len(self.files) == before:
            self.warnings.append(f"the folder {folder!r} holds no patches")

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
                check_link(entry.path, self.root, self.real_root)
            (folders if entry.is_dir() else files).append(entry)
        return folders, files

    def _stray(self, files: list[os.DirEntry[str]], prefix: str) -> None:
        for entry in files:
            if _is_junk(entry.name):
                self.ignored += 1
            else:
                self.refused.append((prefix + entry.name, _OUTSIDE))

    def _take(
        self, files: list[os.DirEntry[str]], prefix: str, folder: str | None, split: str
    ) -> None:
        for entry in files:
            path = prefix + entry.name
            stem, _, suffix = entry.name.rpartition(".")
            if suffix not in self.accepted.suffixes and _is_junk(entry.name):
                self.ignored += 1
                continue
            status = _stat(entry)
            reason = refusal(suffix, status, self.accepted)
            if reason or status is None:
                self.refused.append((path, reason))
                continue
            found = File(path, stem, folder, split, status.st_size, status.st_mtime_ns)
            self.files.append(found)

    def _kinds(self) -> str:
        return ", ".join(suffix.upper() for suffix in self.accepted.suffixes)


def choose_layout(root: Path, files: list[File], wanted: Layout) -> tuple[Layout, str]:
    """What the folders are, and a sentence that says so.

    `auto` takes folders for slides when the name of every file in them is a place and nothing
    else, and for classes when no name is.

    Raises:
        DataError: `auto` cannot tell, or the files do not lie as `wanted` says.
    """
    inside = [file for file in files if file.folder is not None]
    if wanted == "flat" and inside:
        raise DataError(
            f"{root}: {inside[0].path!r} lies in a folder, and --layout flat expects none but "
            f"train, val and test"
        )
    if wanted in ("classes", "slides") and len(inside) < len(files):
        raise DataError(f"{root} has patches outside of folders, --layout {wanted} expects none")
    if wanted != "auto":
        return wanted, f"layout: {wanted}, as asked"
    if not inside:
        return "flat", "layout: flat, without class folders: unlabelled"
    places = [file for file in inside if only_position(file.stem)]
    if not places:
        return "classes", "layout: classes, one a folder"
    # A slide lies in one split: a folder name that recurs is rather a class.
    recurring = len({(f.split, f.folder) for f in inside}) > len({f.folder for f in inside})
    if len(places) < len(inside) or recurring:
        raise DataError(
            f"{root}: {len(places)} of {len(inside)} files are named by their place only "
            f"({places[0].path!r}), as in folders of one slide each: say what the folders are, "
            f"--layout classes or --layout slides"
        )
    return "slides", (
        "layout: slides, one a folder, unlabelled (file names are places x..._y...; if the "
        "folders are classes: --layout classes)"
    )


def check_link(path: str, root: Path, real_root: str) -> None:
    """Raises:
    DataError: what `path` leads to lies outside of the root.
    """
    target = os.path.realpath(path)
    if os.path.commonpath([target, real_root]) != real_root:
        raise DataError(
            f"{path} is a link to {target}, outside {root}: refused. "
            f"Copy the files, or name the folder they are in"
        )


def refusal(suffix: str, status: os.stat_result | None, accepted: Accepted) -> str:
    """Why a file whose name ends in `.suffix` cannot be a patch, or nothing."""
    if suffix.lower() not in accepted.suffixes:
        hint = "; --convert takes it" if suffix.lower() in ("jpg", "jpeg", "tif", "tiff") else ""
        return f"not a {accepted.suffixes[0].upper()} file (.{suffix}){hint}"
    if status is None:
        return "a link to nothing"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > accepted.max_bytes:
        return f"{status.st_size} bytes, expected at most {accepted.max_bytes}"
    return ""


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
