"""Patches under a folder: the walk, the layout, and the class or slide that folders name.

    SOURCE/train/TUM/tile7__y0032_x0064.png     split folders and class folders
    SOURCE/TUM/tile7__y0032_x0064.png           class folders: everything is train
    SOURCE/slide-12/000123_x1234_y5678.png      slide folders, unlabelled; also under split folders
    SOURCE/tile7.png, SOURCE/train/tile7.png    flat: neither, unlabelled

The layout is taken literally: a deeper folder, or one in the wrong place, is an error and never
searched, because its name would silently become a class.
"""

import os
from contextlib import suppress
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
        field = "slide" if layout == "slides" else "label"
        paths: list[str] = []
        columns: dict[str, list[Any]] = {"split": [], field: []}
        for folder in walk.folders:
            paths += [folder.prefix + name for name in folder.files]
            columns["split"] += [folder.split] * len(folder.files)
            columns[field] += [folder.name] * len(folder.files)
        patches: list[Patch] = []
        refused = list(walk.refused)
        batches = self.batches(paths, columns)
        for batch, result in zip(batches, look_up(batches), strict=True):
            if result.error:
                raise DataError(result.error[1])
            patches += result.patches
            refused += result.refused
            refused += [
                (batch.paths[i], f"cannot be looked at: {why}") for i, why in result.missing
            ]
        filled = {patch.path.rpartition("/")[0] for patch in patches}
        named = [folder.prefix[:-1] for folder in walk.folders if folder.name is not None]
        empty = [path for path in named if path not in filled]
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
            warnings=[f"the folder {path!r} holds no patches" for path in empty],
        )


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
        folders, files = self._list("")
        if not (folders or files or self.ignored):
            raise DataError(f"{root} is empty; {_EXPECTED}")
        self.splits = split_folders(root, folders)
        if self.splits:
            self.refused += [(file, _OUTSIDE) for file in files]
        else:
            self._add_split(folders, files, "", "train")
        for name, split in self.splits.items():
            self._add_split(*self._list(name), f"{name}/", split)
        if not any(folder.files for folder in self.folders) and not self.refused:
            kinds = ", ".join(suffix.upper() for suffix in accepted.suffixes)
            raise DataError(f"{root} holds no {kinds} file; {_EXPECTED}")
        self.folders.sort(key=lambda folder: folder.prefix)  # no prefix is the start of another

    def _add_split(self, folders: list[str], files: list[str], prefix: str, split: str) -> None:
        """Add the class or slide folders of a split or, if it has none, its files."""
        if not folders:
            self.folders.append(Folder(prefix, None, split, files))
            return
        self.refused += [(prefix + file, _OUTSIDE) for file in files]
        for name in folders:
            inner, files = self._list(prefix + name)
            if inner:
                raise DataError(
                    f"{self.root / prefix / name} holds folders {inner[:_SHOWN]}; {_EXPECTED}. If "
                    f"these are classes or splits, name the folder they are in as SOURCE; any "
                    f"other layout can be given by --manifest"
                )
            self.folders.append(Folder(f"{prefix}{name}/", name, split, files))

    def _list(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of folders and of files, sorted.

        Hidden and junk files are counted instead; links may not leave the root.
        """
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
                    is_folder = False
                    with suppress(OSError):  # raised by a link to itself, which `look_up` refuses
                        is_folder = entry.is_dir()
                    lower = name.lower()
                    if is_folder:
                        folders.append(name)
                    elif lower.endswith(_JUNK_SUFFIXES) or lower in _JUNK_NAMES:
                        self.ignored += 1
                    else:
                        files.append(name)
        except OSError as error:
            raise DataError(f"{self.root / folder} cannot be read: {error.strerror}") from None
        for link in sorted(links):
            check_link(link, self.root, self.real_root)
        return sorted(folders), sorted(files)


def choose_layout(walk: Walk, asked: Layout) -> tuple[Layout, str]:
    """Decide what the folders are; also return a note on the choice.

    `auto` takes folders for slides when the name of every image in them is a position and nothing
    else, and for classes when no name is.

    Raises:
        DataError: `auto` cannot tell, or the files are not in the layout `asked`.
    """
    root, accepted = walk.root, walk.accepted
    endings = tuple(f".{suffix}" for suffix in accepted.suffixes)
    images: dict[Folder, list[str]] = {}  # paths of the files with the suffix of an image
    for folder in walk.folders:
        names = [name for name in folder.files if name.lower().endswith(endings)]
        images[folder] = [folder.prefix + name for name in names]
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
    others = 0
    for path in set(paths).difference(positions):
        with suppress(OSError):
            others += not refused_status((root / path).stat(), accepted)
    # a slide is in one split: a folder name that recurs is more likely a class
    recurring = len({folder.name for folder in inside}) < len(inside)
    if others or recurring:
        raise DataError(
            f"{root}: {len(positions)} of {len(positions) + others} files are named by their "
            f"position only ({positions[0]!r}), as in folders of one slide each: say what the "
            f"folders are, --layout classes or --layout slides"
        )
    return "slides", (
        "layout: slides, one per folder, unlabelled (file names are positions x..._y...; if the "
        "folders are classes: --layout classes)"
    )
