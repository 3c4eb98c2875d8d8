"""Patches under a folder: the walk. What its folders mean is decided in `layout`.

SOURCE/train/TUM/tile7__y0032_x0064.png     split folders and class folders
SOURCE/TUM/tile7__y0032_x0064.png           class folders: everything is train
SOURCE/slide-12/000123_x1234_y5678.png      slide folders, unlabelled; also under split folders
SOURCE/TUM/patient-3/tile7.png              class and patient folders, in either order
SOURCE/tile7.png, SOURCE/train/tile7.png    flat: neither, unlabelled
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import UNSET

from common.errors import DataError
from shards.sources.files import (
    FileSource,
    check_link,
    folder_advice,
    is_junk_file,
    is_junk_folder,
    refused_name,
)
from shards.sources.layout import EXPECTED, Layout, Leaf, choose_layout
from shards.sources.names import barcode_notes, numbers_are_slides, require_utf8
from shards.sources.source import Accepted, Collection, LookUp, Origin
from shards.sources.splits import split_folders, split_name

_MISPLACED = "not where patches are expected"
_OUTSIDE = "outside the class folders"
_MOST_LEVELS = 16


class FolderSource(FileSource, frozen=True, kw_only=True, tag=True):
    """The files under a folder, in one of the layouts above."""

    layout: Layout = "auto"

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches.

        Raises:
            DataError: not a folder, empty, an ambiguous layout, a link that leaves the root, a
                name that is not UTF-8, a path that the regex does not match.
        """
        walk = Walk(self.root, self.accepted, self.follow_links)
        numbered = numbers_are_slides([leaf.stems for leaf in walk.leaves])
        choice = choose_layout(self.root, walk.leaves, self.layout, numbered, self.accepted)
        paths: list[str] = []
        fields = choice.fields
        columns: dict[str, list[Any]] = {name: [] for name in ("split", "label", *fields)}
        refused = list(walk.refused)
        for leaf in walk.leaves:
            values = choice.values(leaf)
            if values is None:  # nothing in it looks like a patch
                for name in leaf.files:
                    stem, dot, suffix = name.rpartition(".")
                    reason = refused_name(suffix if dot and stem else "", self.accepted)
                    refused.append((leaf.prefix + name, reason or _MISPLACED))
                continue
            paths += [leaf.prefix + name for name in leaf.files]
            for name, value in {"split": leaf.split, **values}.items():
                columns[name] += [value] * len(leaf.files)
        batches = self.batches(paths, columns, numbered, nested="patient" in fields)
        patches, unusable = self.looked_up(batches, look_up)
        refused += unusable
        patches.sort(key=lambda patch: patch.path)
        filled = {patch.path.rpartition("/")[0] for patch in patches}
        named = {leaf.prefix[:-1] for leaf in walk.leaves if leaf.parts and not leaf.inner}
        notes = [*choice.notes, *barcode_notes(patches), *walk.notes()]
        origin = Origin(layout=choice.name, links="followed" if self.follow_links else UNSET)
        return Collection(
            root=str(self.root),
            name=self.name,
            patches=patches,
            refused=sorted(refused),
            hidden=walk.hidden,
            ignored=walk.ignored,
            splits_from="folders" if any(leaf.in_split for leaf in walk.leaves) else "",
            rule=self.rule,
            origin=origin,
            notes=notes,
            warnings=[f"the folder {path!r} holds no patches" for path in sorted(named - filled)],
        )


@dataclass
class Walk:
    """The folders under `root` and their files.

    Raises:
        DataError: not a folder, empty, too deep, split folders beside others, a link that leaves
            the root or leads back to a folder above, a name that is not UTF-8.
    """

    root: Path
    accepted: Accepted
    follow_links: bool = False
    leaves: list[Leaf] = field(default_factory=list)  # folders with files, by path
    refused: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    hidden: int = 0  # names that start with a dot: not looked at
    ignored: int = 0  # notes and system files beside the images
    junk: Counter[str] = field(default_factory=Counter)  # system folders, and the files in them

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise DataError(folder_advice(self.root, EXPECTED))
        self._real_root = "" if self.follow_links else os.path.realpath(self.root)
        self._walk("", (), frozenset())
        if not (any(leaf.parts or leaf.files for leaf in self.leaves) or self.ignored):
            raise DataError(f"{self.root} is empty; {EXPECTED}")
        self._name_splits()
        if not any(leaf.files for leaf in self.leaves) and not self.refused:
            kinds = ", ".join(suffix.upper() for suffix in self.accepted.suffixes)
            raise DataError(f"{self.root} holds no {kinds} file; {EXPECTED}")
        self.leaves.sort(key=lambda leaf: leaf.prefix)

    def notes(self) -> list[str]:
        """Describe the system folders that were left out."""
        if not self.junk:
            return []
        shown = ", ".join(f"{name} ({count:,} files)" for name, count in sorted(self.junk.items()))
        return [f"not looked at: system folders {shown}"]

    def _walk(self, prefix: str, parts: tuple[str, ...], above: frozenset[str]) -> None:
        if len(parts) > _MOST_LEVELS:
            raise DataError(f"{self.root / prefix} lies more than {_MOST_LEVELS} folders deep")
        real = os.path.realpath(self.root / prefix)
        if real in above:
            raise DataError(f"{self.root / prefix} is a link to a folder that it is in: remove it")
        folders, files = self._list(prefix)
        if files or parts or not folders:
            endings = tuple(f".{suffix}" for suffix in self.accepted.suffixes)
            images = [name for name in files if name.lower().endswith(endings)]
            self.leaves.append(Leaf(prefix, parts, "train", files, images, tuple(folders)))
        for name in folders:
            self._walk(f"{prefix}{name}/", (*parts, name), above | {real})

    def _name_splits(self) -> None:
        """Take the level of the folders train, val and test out of the parts of each leaf."""
        depth = max((len(leaf.parts) for leaf in self.leaves), default=0)
        for level in range(depth):
            names = sorted({leaf.parts[level] for leaf in self.leaves if len(leaf.parts) > level})
            if level == 0:
                split_folders(self.root, names)  # refuses split folders beside others
            if not all(map(split_name, names)):
                continue
            leaves = []
            for leaf in self.leaves:
                if len(leaf.parts) > level:
                    leaves.append(leaf.within(level))
                elif level == 0:
                    self.refused += [(leaf.prefix + file, _OUTSIDE) for file in leaf.files]
                else:
                    leaves.append(leaf)
            self.leaves = leaves
            break
        inner = {leaf.split for leaf in self.leaves if leaf.parts}
        for i, leaf in enumerate(self.leaves):
            if not leaf.parts and leaf.split in inner:
                self.refused += [(leaf.prefix + file, _OUTSIDE) for file in leaf.files]
                self.leaves[i] = leaf.emptied()
        self.leaves = [leaf for leaf in self.leaves if leaf.files or not leaf.inner]

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
                    try:  # `suppress` would take longer than the rest
                        is_folder = entry.is_dir()
                    except OSError:  # a link to itself, which `look_up` refuses
                        is_folder = False
                    if is_folder and is_junk_folder(name):
                        self.junk[name] += sum(len(inner) for _, _, inner in os.walk(entry.path))
                    elif is_folder:
                        folders.append(name)
                    elif is_junk_file(name):
                        self.ignored += 1
                    else:
                        files.append(name)
        except OSError as error:
            raise DataError(f"{self.root / folder} cannot be read: {error.strerror}") from None
        for link in sorted(links):
            check_link(link, self.root, self._real_root)
        return sorted(folders), sorted(files)
