"""Paths in a manifest that are spelled in another way than the files, or name none.

The suffix may be missing, and the Unicode form be another; such files are found. For other paths
the cause is said: folders too many or too few, \\ for /, blanks, case, another suffix.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from shards.sources.source import Accepted

_MOST_FILES = 200_000  # that are looked at for the cause


def other_spelling(root: str, path: str, accepted: Accepted) -> str:
    """Return how the file is named that a manifest means by `path`; empty where it is `path`.

    The suffix may be missing, and the Unicode form be another: é is one character, or two.
    """
    name = path.rpartition("/")[2]
    has_suffix = name.rpartition(".")[2].lower() in accepted.suffixes
    if has_suffix and (path.isascii() or os.path.lexists(f"{root}/{path}")):
        return ""
    endings = [""] if has_suffix else [f".{suffix}" for suffix in accepted.suffixes]
    forms = [path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]
    candidates = {form + ending for form in forms for ending in endings} - {path}
    existing = [c for c in sorted(candidates) if Path(root, c).is_file()]
    return existing[0] if len(existing) == 1 else ""


class NearestPaths:
    """Paths by the name of their file, to find the one that another spelling means."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self._paths[_levels(path)[0]].append(path)

    def nearest(self, path: str) -> str:
        """Return the only path with the same name of the file whose folders agree most, or none.

        The suffix, case, Unicode form, and \\ for / make no difference.
        """
        levels = _levels(path)
        ranked: dict[int, list[str]] = defaultdict(list)
        for other in self._paths.get(levels[0], []):
            same = [a == b for a, b in zip(levels, _levels(other), strict=False)]
            ranked[(*same, False).index(False)].append(other)
        best = ranked[max(ranked)] if ranked else []
        return best[0] if len(best) == 1 else ""

    def same(self, path: str) -> str:
        """Return the nearest path if one of the two has only more folders in front, else none."""
        other = self.nearest(path)
        pairs = zip(_levels(path), _levels(other), strict=False)
        return other if other and all(a == b for a, b in pairs) else ""


def _levels(path: str) -> list[str]:
    """Return the names in a path from the last to the first, without what spellings differ in."""
    plain = unicodedata.normalize("NFC", path).casefold().replace("\\", "/")
    *folders, name = [part for part in plain.split("/") if part != "."]
    return [name.rpartition(".")[0] or name, *reversed(folders)]


class SpellingHints:
    """Say why files that a manifest names are not found below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, path: str) -> str:
        """Return the cause, after a semicolon; empty if it is unknown."""
        folder = self._root.resolve().name
        if "\\" in path:
            return "; the path has \\ in it: write / between folders"
        if path != path.strip():
            return "; the path begins or ends with a blank"
        if path.startswith(f"{folder}/") and os.path.lexists(self._root / path[len(folder) + 1 :]):
            return f"; paths begin inside SOURCE: leave out {folder}/, or name the folder above"
        other = self._files.nearest(path)
        if not other:
            return ""
        if path.endswith(f"/{other}"):
            above = path[: len(path) - len(other)]
            return f"; paths begin inside SOURCE: leave out {above}, there is {other!r}"
        case = path.casefold() == other.casefold()
        return f"; there is {other!r}{': upper and lower case differ' if case else ''}"

    @cached_property
    def _files(self) -> NearestPaths:
        """The files below the root."""
        paths: list[str] = []
        for folder, _, files in os.walk(self._root):
            above = os.path.relpath(folder, self._root)
            paths += [file if above == "." else f"{above}/{file}" for file in files]
            if len(paths) > _MOST_FILES:
                break
        return NearestPaths(paths)
