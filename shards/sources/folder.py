"""Patches under a folder: the walk, the layout, and what each folder says of its files.

    SOURCE/train/TUM/tile7__y0032_x0064.png     split folders and class folders
    SOURCE/TUM/tile7__y0032_x0064.png           class folders: everything is train
    SOURCE/slide-12/000123_x1234_y5678.png      slide folders, unlabelled; also under split folders
    SOURCE/tile7.png, SOURCE/train/tile7.png    flat: neither, unlabelled

The layout is taken literally: a deeper folder, or one in the wrong place, is an error and never
searched, because its name would silently become a class.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import DataError
from shards.sources.files import FileSource, check_link, refused_status
from shards.sources.names import barcode_notes, only_position, require_utf8
from shards.sources.source import Accepted, Collection, LookUp, Origin, Patch
from shards.sources.splits import split_folders

Layout = Literal["auto", "classes", "slides", "flat"]

_JUNK_NAMES = ("thumbs.db", "desktop.ini")
_JUNK_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".md", ".xml", ".yaml", ".yml", ".parquet")
_EXPECTED = "expected SOURCE/[train|val|test/][CLASS or SLIDE/]*.png"
_OUTSIDE = "outside the class folders"
_SHOWN = 10


class FolderSource(FileSource, frozen=True, kw_only=True, tag=True):
    """The files under a folder, in one of the layouts above."""

    layout: Layout = "auto"

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches.

        Raises:
            DataError: not a folder, empty, an ambiguous layout, a link that leaves the root, a
                name that is not UTF-8, a path that the regex does not match.
        """
        walk = Walk(self.root, self.accepted)
        layout, note = choose_layout(walk, self.layout)
        patches: list[Patch] = []
        refused = list(walk.refused)
        batches = self.batches(*_files(walk, layout))
        for batch, result in zip(batches, look_up(batches), strict=True):
            if result.error:
                raise DataError(result.error[1])
            patches += result.patches
            refused += result.refused
            refused += [
                (batch.paths[i], f"cannot be looked at: {why}") for i, why in result.missing
            ]
        return Collection(
            root=str(self.root),
            name=self.name,
            patches=patches,
            refused=sorted(refused),
            hidden=walk.hidden,
            ignored=walk.ignored,
            splits_from="folders" if walk.splits else "",
            origin=Origin(layout=layout),
            notes=[note, *barcode_notes(patches)],
            warnings=_empty_folders(walk, patches),
        )


def _files(walk: "Walk", layout: Layout) -> tuple[list[str], dict[str, list[Any]]]:
    """The paths of all files, and what their folders say of each."""
    field = "slide" if layout == "slides" else "label"
    paths: list[str] = []
    columns: dict[str, list[Any]] = {"split": [], field: []}
    for folder in walk.folders:
        paths += [folder.prefix + name for name in folder.files]
        columns["split"] += [folder.split] * len(folder.files)
        columns[field] += [folder.name] * len(folder.files)
    return paths, columns


def _empty_folders(walk: "Walk", patches: Iterable[Patch]) -> list[str]:
    """A warning for each class or slide without a patch."""
    filled = {patch.path.rpartition("/")[0] for patch in patches}
    named = [folder.prefix[:-1] for folder in walk.folders if folder.name is not None]
    return [f"the folder {path!r} holds no patches" for path in named if path not in filled]


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder whose files may be patches."""

    prefix: str  # of the paths in it, relative to the root: empty, or ends in /
    name: str | None  # of the class or slide
    split: str
    files: list[str]  # names, sorted


class Walk:
    """The folders under `root` and their files, three levels deep at most.

    Raises:
        DataError: not a folder, empty, too deep, split folders beside others, a link that leaves
            the root, a name that is not UTF-8.
    """

    def __init__(self, root: Path, accepted: Accepted) -> None:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; {_EXPECTED}")
        self.root = root
        self.real_root = os.path.realpath(root)
        self.accepted = accepted
        self.folders: list[Folder] = []  # in the order of their paths
        self.refused: list[tuple[str, str]] = []  # path and reason
        self.hidden = 0  # names that start with a dot: not looked at
        self.ignored = 0  # notes and system files beside the images
        self.splits: dict[str, str] = {}  # split folders
        self._root_folder()
        self.folders.sort(key=lambda folder: folder.prefix)  # no prefix is the start of another

    def _root_folder(self) -> None:
        folders, files = self._list("")
        if not folders and not files:
            raise DataError(f"{self.root} is empty; {_EXPECTED}")
        self.splits = split_folders(self.root, folders)
        if folders:
            self._stray(files, "")
        else:
            self._take(files, "", None, "train")
        for name in folders:
            if self.splits:
                self._split_folder(name, self.splits[name])
            else:
                self._inner_folder(name, name, "train")
        if not any(folder.files for folder in self.folders) and not self.refused:
            kinds = ", ".join(suffix.upper() for suffix in self.accepted.suffixes)
            raise DataError(f"{self.root} holds no {kinds} file; {_EXPECTED}")

    def _split_folder(self, folder: str, split: str) -> None:
        folders, files = self._list(folder)
        if not folders:
            self._take(files, f"{folder}/", None, split)
            return
        self._stray(files, f"{folder}/")
        for name in folders:
            self._inner_folder(f"{folder}/{name}", name, split)

    def _inner_folder(self, folder: str, name: str, split: str) -> None:
        folders, files = self._list(folder)
        if folders:
            inner = folders[:_SHOWN]
            raise DataError(
                f"{self.root / folder} holds folders {inner}; {_EXPECTED}. If these are classes or "
                f"splits, name the folder they are in as SOURCE; any other layout can be given "
                f"by --manifest"
            )
        self._take(files, f"{folder}/", name, split)

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of folders and of files, sorted; hidden ones are counted, links may not leave the
        root."""
        folders: list[str] = []
        files: list[str] = []
        links: list[str] = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        self.hidden += 1
                        continue
                    if not name.isascii():
                        require_utf8(entry.path)
                    if entry.is_symlink():
                        links.append(entry.path)
                    (folders if _is_folder(entry) else files).append(name)
        except OSError as error:
            raise DataError(f"{self.root / folder} cannot be read: {error.strerror}") from None
        for link in sorted(links):
            check_link(link, self.root, self.real_root)
        return sorted(folders), sorted(files)

    def _stray(self, files: list[str], prefix: str) -> None:
        for name in files:
            if _is_junk(name):
                self.ignored += 1
            else:
                self.refused.append((prefix + name, _OUTSIDE))

    def _take(self, files: list[str], prefix: str, folder: str | None, split: str) -> None:
        endings = tuple(f".{suffix}" for suffix in self.accepted.suffixes)
        candidates = [name for name in files if name.endswith(endings) or not _is_junk(name)]
        self.ignored += len(files) - len(candidates)
        self.folders.append(Folder(prefix, folder, split, candidates))


def choose_layout(walk: Walk, asked: Layout) -> tuple[Layout, str]:
    """Decide what the folders are, and say so in a sentence.

    `auto` takes folders for slides when the name of every image in them is a position and nothing
    else, and for classes when no name is.

    Raises:
        DataError: `auto` cannot tell, or the files do not lie as `asked` says.
    """
    root, accepted = walk.root, walk.accepted
    images = {folder: _images(folder, accepted) for folder in walk.folders}
    filled = [folder for folder in walk.folders if images[folder]]
    inside = [folder for folder in filled if folder.name is not None]
    if asked == "flat" and inside:
        raise DataError(
            f"{root}: {images[inside[0]][0]!r} lies in a folder, and --layout flat expects none "
            f"but train, val and test"
        )
    if asked in ("classes", "slides") and len(inside) < len(filled):
        raise DataError(f"{root} has patches outside of folders, --layout {asked} expects none")
    if asked != "auto":
        return asked, f"layout: {asked}, as asked"
    if not inside:
        return "flat", "layout: flat, without class folders: unlabelled"
    paths = [path for folder in inside for path in images[folder]]
    positions = [path for path in paths if only_position(path.rpartition("/")[2])]
    if not positions:
        return "classes", "layout: classes, one per folder"
    others = [path for path in set(paths).difference(positions) if _usable(root / path, accepted)]
    # A slide lies in one split: a folder name that recurs is rather a class.
    recurring = len({folder.name for folder in inside}) < len(inside)
    if others or recurring:
        raise DataError(
            f"{root}: {len(positions)} of {len(positions) + len(others)} files are named by their "
            f"position only ({positions[0]!r}), as in folders of one slide each: say what the "
            f"folders are, --layout classes or --layout slides"
        )
    return "slides", (
        "layout: slides, one per folder, unlabelled (file names are positions x..._y...; if the "
        "folders are classes: --layout classes)"
    )


def _images(folder: Folder, accepted: Accepted) -> list[str]:
    """Paths of the files whose suffix is that of an image."""
    endings = tuple(f".{suffix}" for suffix in accepted.suffixes)
    return [
        folder.prefix + name
        for name in folder.files
        if name.endswith(endings) or name.lower().endswith(endings)
    ]


def _usable(path: Path, accepted: Accepted) -> bool:
    try:
        return not refused_status(path.stat(), accepted)
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: looking at it will say so
        return False


def _is_junk(name: str) -> bool:
    return name.lower().endswith(_JUNK_SUFFIXES) or name.lower() in _JUNK_NAMES
