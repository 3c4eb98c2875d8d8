"""The slides in a folder, at any depth, or one slide.

Folders are not taken for classes: archives put each slide into a folder of its own. Folders named
train, val and test at the top are splits. `--layout classes` takes the folder that a slide is in
for its class. Files of other kinds are counted, and the data folder of a .mrxs is passed over.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from common.errors import DataError
from shards.slides.reader import SUFFIXES
from shards.sources.files import FileSource
from shards.sources.layout import Layout
from shards.sources.names import barcode_notes, require_utf8
from shards.sources.source import Accepted, Collection, LookUp, Origin
from shards.sources.splits import split_folders

SLIDES = Accepted(SUFFIXES, 1 << 44, "slide")


class SlideFolder(FileSource, frozen=True, kw_only=True, tag=True):
    """The slides below a root, or the one named `only` in it."""

    accepted: Accepted = SLIDES
    layout: Layout = "auto"
    only: str | None = None

    def collect(self, look_up: LookUp) -> Collection:
        """List the slides, as a patch each, sorted by path.

        Raises:
            DataError: no slide, split folders beside others, a link that leaves the root, a name
                that is not UTF-8.
        """
        hidden, ignored = 0, 0
        paths = [self.only] if self.only else []
        if not self.only:
            paths, hidden, ignored = _walk(self.root)
        if not paths:
            kinds = ", ".join(f".{suffix}" for suffix in SUFFIXES)
            raise DataError(f"{self.root} holds no slide: expected files that end in {kinds}")
        tops = sorted({path.split("/", 1)[0] for path in paths if "/" in path})
        splits = split_folders(self.root, tops)
        columns: dict[str, list[Any]] = {
            "split": [splits.get(path.split("/", 1)[0], "train") for path in paths],
            "slide": slide_names(paths),
        }
        if self.layout == "classes":
            inner = [path.split("/")[bool(splits) : -1] for path in paths]
            if [] in inner:
                raise DataError(
                    f"{self.root / paths[inner.index([])]} lies in no class folder, and --layout "
                    f"classes expects SOURCE/[train|val|test/]CLASS/SLIDE"
                )
            columns["label"] = [folders[0] for folders in inner]
        patches, refused = self.looked_up(self.batches(paths, columns), look_up)
        return Collection(
            root=str(self.root / (self.only or "")),
            name=self.only or self.name,
            patches=patches,
            refused=refused,
            hidden=hidden,
            ignored=ignored,
            rule=self.rule,
            splits_from="folders" if splits else "",
            origin=Origin(layout="classes" if self.layout == "classes" else "slides"),
            notes=[self._layout_note(paths, bool(splits)), *barcode_notes(patches)],
        )

    def _layout_note(self, paths: list[str], has_splits: bool) -> str:
        folders = {path.rpartition("/")[0] for path in paths} - {""}
        if self.layout == "classes":
            return "layout: classes, one per folder"
        if len(folders) > 1 or (folders and not has_splits):
            return (
                f"layout: {len(paths):,} slides in {len(folders):,} folders, which are not taken "
                f"for classes (--layout classes takes the topmost for them)"
            )
        return f"layout: {len(paths):,} slides"


def slide_names(paths: list[str]) -> list[str]:
    """Name every slide: its file name without the suffix or, where several have the same, the path
    without the suffix, or with it."""
    bare = [path.rpartition(".")[0] for path in paths]
    stems = [path.rpartition("/")[2] for path in bare]
    names: list[str] = []
    by_stem, by_bare = Counter(stems), Counter(bare)
    for stem, without, path in zip(stems, bare, paths, strict=True):
        names.append(stem if by_stem[stem] == 1 else without if by_bare[without] == 1 else path)
    return names


def _walk(root: Path) -> tuple[list[str], int, int]:
    """Return the sorted paths of slides under `root`, and the numbers of hidden and other files."""
    if not root.is_dir():
        raise DataError(f"{root} is neither a slide nor a folder of slides")
    paths: list[str] = []
    hidden = ignored = 0
    seen: set[str] = set()  # links may lead in a circle; those out of the root are refused later
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        slides = {name for name in files if name.lower().endswith(tuple(f".{s}" for s in SUFFIXES))}
        data = {name.rpartition(".")[0] for name in slides if name.lower().endswith(".mrxs")}
        hidden += sum(name.startswith(".") for name in (*folders, *files))
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in data)
        slides = {name for name in slides if not name.startswith(".")}
        ignored += sum(not name.startswith(".") and name not in slides for name in files)
        for name in slides:
            path = Path(folder, name).relative_to(root).as_posix()
            require_utf8(path)
            paths.append(path)
    return sorted(paths), hidden, ignored


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}")
