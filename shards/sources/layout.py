"""What the folders above a patch mean: class, patient, slide or site.

`auto` decides by the names of folders and files, and says what it took them for. It takes folders
for classes where nothing else is known of them, one level deep; where several levels or the names
leave a doubt, it asks for --layout.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from common.console import printable
from common.errors import DataError
from shards.sources.files import refused_status
from shards.sources.names import (
    CONVENTIONS,
    Name,
    barcode,
    only_position,
    read_name,
    slide_stem,
)
from shards.sources.source import Accepted
from shards.sources.splits import split_name

Layout = str  # auto, a name of NAMED, or roles of folders with / between them

ROLES = ("class", "patient", "slide", "site", "*")
NAMED = {"classes": ("class",), "slides": ("slide",), "patients": ("patient",), "flat": ()}
EXPECTED = "expected SOURCE/[train|val|test/][CLASS or SLIDE/]*.png, or folders that --layout names"

_FIELDS = {"class": "label", "patient": "patient", "slide": "slide", "site": "site"}
_WRAPPING = "patches images imgs img tiles crops raw data dataset dumps png jpg all sob"
_WRAPPERS = frozenset(_WRAPPING.split())
_COMPANIONS = frozenset(("mask", "masks", "labels", "annotations", "gt", "thumbnails", "overlays"))
_PERSON = re.compile(r"(?:^|[^a-z])(?:patient|pat|case|subject|donor|pid)s?[-_ ]?\w*\d", re.I)
_SLIDE = re.compile(r"(?:^|[^a-z])(?:slide|wsi|scan|specimen|block|section)[-_ ]?\w*\d", re.I)
_CLASS = re.compile(
    r"class|grade|gleason|cluster|label|category|type|score|stage|level|group|her2|ki", re.I
)
_SITE = re.compile(
    r"(?:site|hospital|center|centre|lab|institute|institution|clinic)(?:[-_ ].+|\d+)?", re.I
)
_FOLD = re.compile(r"(?:cv|k?fold|split|round|repeat)[-_ ]?\d+", re.I)
_SHORT = re.compile(r"(?:p|pt|px|pn|s|sl|sn|id|no|nr)[-_ ]?\d+", re.I)  # P1: no class as a rule
_ZOOM = re.compile(r"\d{1,3}[xX]")
_HASH = re.compile(r"[0-9a-fA-F]{8}[-_0-9a-fA-F]*")
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Leaf:
    """A folder whose files may be patches."""

    prefix: str  # of the paths in it, relative to the root: empty, or ends in /
    parts: tuple[str, ...]  # names of the folders, from the root on, without that of the split
    split: str
    files: list[str]  # names, sorted
    images: list[str]  # those that end as an image does
    inner: tuple[str, ...] = ()  # folders in it
    in_split: bool = False  # whether a folder named the split

    @property
    def stems(self) -> list[str]:
        """Names of the images without suffix."""
        return [name.rpartition(".")[0] for name in self.images]

    def within(self, level: int) -> "Leaf":
        """Return the leaf in the split that the folder of this level names."""
        split = split_name(self.parts[level])
        assert split is not None
        parts = self.parts[:level] + self.parts[level + 1 :]
        return replace(self, parts=parts, split=split, in_split=True)

    def emptied(self) -> "Leaf":
        return replace(self, files=[], images=[])


@dataclass(frozen=True)
class Choice:
    """A layout: the role of each level of folders."""

    name: str  # for `dataset.json`
    roles: tuple[str, ...]
    notes: list[str]
    by_names: bool = False  # slide and patient are read from the names of the files

    @property
    def fields(self) -> list[str]:
        """Fields of a patch, beside the class, that folders give."""
        named = ("site",) if self.by_names else ("site", "patient", "slide")
        return [_FIELDS[role] for role in named if role in self.roles]

    def values(self, leaf: Leaf) -> dict[str, str | None] | None:
        """Return what the folders of a leaf say of its patches; None at another depth.

        Names that may recur are made whole by what is above them: slide S1 of patient P1 is P1/S1.
        """
        if leaf.parts and len(leaf.parts) != len(self.roles):
            return None
        named: dict[str, list[str]] = {role: [] for role in ROLES}
        for role, part in zip(self.roles, leaf.parts, strict=False):
            named[role].append(part)
        values: dict[str, str | None] = {"label": "/".join(named["class"]) or None}
        above = ""
        for field in self.fields:
            own = "/".join(named[field])
            above = own if not above or above in own else f"{above}/{own}"
            values[field] = above or None
        return values


def roles_of(layout: Layout) -> tuple[str, ...] | None:
    """Return the roles that a --layout names; None for `auto`.

    Raises:
        DataError: a role that does not exist, or one twice that can be there once.
    """
    if layout == "auto":
        return None
    if layout in NAMED:
        return NAMED[layout]
    roles = tuple(layout.strip("/").lower().split("/"))
    if unknown := [role for role in roles if role not in ROLES]:
        raise DataError(
            f"--layout {layout!r}: {unknown[0]!r} is unknown; expected auto, {', '.join(NAMED)}, "
            f"or the roles of the folders below SOURCE, such as class/patient or */patient/class "
            f"({', '.join(ROLES)}; * is a folder without meaning)"
        )
    for role in ("patient", "slide", "site"):
        if roles.count(role) > 1:
            raise DataError(f"--layout {layout!r} names {role} twice")
    return roles


def choose_layout(
    root: Path, leaves: Sequence[Leaf], layout: Layout, numbered: bool, accepted: Accepted
) -> Choice:
    """Decide what the folders are.

    Args:
        leaves: folders below the root, without those of splits.
        numbered: see `names.read_name`.
        accepted: which files may be patches.

    Raises:
        DataError: `auto` cannot tell, or the files are not in the layout asked for.
    """
    filled = [leaf for leaf in leaves if leaf.images]
    asked = roles_of(layout)
    if asked is not None:
        _require_depth(root, filled, layout, asked)
        return Choice(layout, asked, [f"layout: {layout}, as asked"])
    if not any(leaf.parts for leaf in filled):
        return Choice("flat", (), ["layout: flat, without class folders: unlabelled"])
    inside = [leaf for leaf in filled if leaf.parts]
    if len({len(leaf.parts) for leaf in inside}) > 1:
        raise _doubt(root, filled, "images lie at different depths")
    for names in zip(*(leaf.parts for leaf in inside), strict=True):
        if all(map(_FOLD.fullmatch, names)):
            what = "are folds of cross-validation, it seems: each may hold the same patches"
            raise _doubt(root, filled, f"folders such as {printable(min(names))} {what}")
        if _COMPANIONS.intersection(name.lower() for name in names):
            what = ", ".join(map(printable, sorted({*names})[:_SHOWN]))
            raise _doubt(root, filled, f"not all of {what} are folders of patches, it seems")
    if len(inside[0].parts) == 1:
        return _one_level(root, inside, numbered, accepted)
    return _several_levels(root, inside, numbered)


def _require_depth(root: Path, filled: Sequence[Leaf], layout: str, roles: tuple[str, ...]) -> None:
    for leaf in filled:
        if len(leaf.parts) == len(roles):
            continue
        path = leaf.prefix + leaf.images[0]
        if not roles:
            raise DataError(
                f"{root}: {path!r} lies in a folder, and --layout flat expects none but train, "
                f"val and test"
            )
        if not leaf.parts:
            raise DataError(
                f"{root} has patches outside of folders, --layout {layout} expects none ({path!r})"
            )
        raise DataError(
            f"{root}: {path!r} lies {len(leaf.parts)} folders deep, without that of the split, and "
            f"--layout {layout} expects {len(roles)}: name the role of each, for example "
            f"--layout {'/'.join([*roles, '*', '*', '*'][: len(leaf.parts)])}"
        )


def _one_level(root: Path, inside: Sequence[Leaf], numbered: bool, accepted: Accepted) -> Choice:
    """Decide on one level of folders."""
    folders = {leaf.parts[0] for leaf in inside}
    paths = [leaf.prefix + name for leaf in inside for name in leaf.images]
    stems = [stem for leaf in inside for stem in leaf.stems]
    positions = [p for p, stem in zip(paths, stems, strict=True) if only_position(stem, numbered)]
    unless = "if the folders are classes: --layout classes"
    shown = ", ".join(map(printable, sorted(folders)[:_SHOWN]))
    zooms = all(map(_ZOOM.fullmatch, folders))
    if zooms or (_has_no_meaning(folders) and (inside[0].in_split or positions)):
        return Choice("*", ("*",), [f"layout: flat, in {shown}: unlabelled ({unless})"])
    # a slide is in one split: a folder name that recurs is more likely a class
    recurring = len(folders) < len(inside)
    if positions:
        others = 0  # that may be patches: a thumbnail is too large
        for path in set(paths).difference(positions) if not recurring else ():
            with suppress(OSError):
                others += not refused_status((root / path).stat(), accepted)
        if others or recurring:
            raise DataError(
                f"{root}: {len(positions)} of {len(positions) + others} files are named by their "
                f"position only ({positions[0]!r}), as in folders of one slide each: say what the "
                f"folders are, --layout classes or --layout slides"
            )
        why = f"(file names are positions x..._y...; {unless})"
        return Choice("slides", ("slide",), [f"layout: slides, one per folder, unlabelled {why}"])
    convention = _convention(inside, numbered)
    if role := _by_names(inside, 0, numbered):
        why = f"(the names of the files repeat those of the folders; {unless})"
        notes = [f"layout: {role}s, one per folder, unlabelled {why}", *_meaning(convention)]
        return Choice(f"{role}s", (role,), notes, by_names=bool(convention))
    if role := _by_words(folders):
        such = printable(min(folders))
        text = f"layout: {role}s, one per folder, unlabelled (folders such as {such}; {unless})"
        return Choice(f"{role}s", (role,), [text])
    if (_numbers(folders) or all(map(_SHORT.fullmatch, folders))) and not recurring:
        raise DataError(
            f"{root}: the {len(folders)} folders ({shown}, ...) "
            f"may be classes, patients or slides: say what they are, --layout classes, --layout "
            f"patients or --layout slides"
        )
    doubt = f" ({shown}; if it is none: --layout '*')" if _has_no_meaning(folders) else ""
    notes = [f"layout: classes, one per folder{doubt}", *_meaning(convention)]
    return Choice("classes", ("class",), notes)


def _several_levels(root: Path, inside: Sequence[Leaf], numbered: bool) -> Choice:
    """Decide on two or more levels of folders."""
    convention = _convention(inside, numbered)
    levels = [{leaf.parts[i] for leaf in inside} for i in range(len(inside[0].parts))]
    roles = [
        _by_names(inside, i, numbered) or _level_role(folders, bool(convention))
        for i, folders in enumerate(levels)
    ]
    preferred = CONVENTIONS[convention].classes if convention else frozenset()
    if any(folders <= preferred for folders in levels):
        for i, folders in enumerate(levels):
            if folders <= preferred or roles[i] == "class":
                roles[i] = "class" if folders <= preferred else "*"
    groups = {"patient", "slide"} & {*roles}
    if roles.count("number") == 1 and "class" not in roles and groups:
        roles[roles.index("number")] = "class"
    clear = all(role in ROLES for role in roles) and (groups or "class" in roles)
    if not clear or any(roles.count(role) > 1 for role in ROLES[:-1]):
        raise _doubt(root, inside, "what the folders are is not clear")
    text = "/".join(roles)
    shown = ", ".join(
        f"{'no meaning' if role == '*' else role} {printable(part)}"
        for role, part in zip(roles, inside[0].parts, strict=True)
    )
    label = "" if "class" in roles else "; unlabelled"
    note = f"layout: {text} ({shown}{label}; if they are something else: --layout, as in {text})"
    return Choice(text, tuple(roles), [note, *_meaning(convention)], by_names=bool(convention))


def _has_no_meaning(folders: set[str]) -> bool:
    """Whether folders are magnifications, or one folder named `images` or the like."""
    wraps = len(folders) == 1 and min(folders).lower() in _WRAPPERS
    return wraps or all(map(_ZOOM.fullmatch, folders))


def _level_role(folders: set[str], by_convention: bool) -> str:
    """Return the role of a level; `number` for small numbers, empty where it is in doubt."""
    only = min(folders) if len(folders) == 1 else ""
    if _has_no_meaning(folders):
        return "*"
    if all(name.endswith("_files") for name in folders):  # pyramids, all levels of them
        return ""
    if role := _by_words(folders):
        return role
    if all(re.fullmatch(r"\d{1,2}", name) for name in folders):
        return "number" if min(map(int, folders)) <= 1 else ""
    if only and by_convention:
        return "*"
    if all(any(c.isdigit() for c in name) for name in folders):
        same = len({re.sub(r"\d+", "#", name.lower()) for name in folders}) == 1
        is_class = any(_CLASS.search(name) for name in folders)
        if is_class:
            return "class"
        return "patient" if (same or _numbers(folders)) and not only else ""
    return "" if any(re.search(r"\d{2}", name) for name in folders) else "class"


def _names(inside: Sequence[Leaf], numbered: bool) -> Iterator[tuple[Leaf, Name]]:
    """Read the names of all images, one by one: most questions need the first of them only."""
    for leaf in inside:
        for stem in leaf.stems:
            yield leaf, read_name(stem, None, numbered)


def _by_names(inside: Sequence[Leaf], level: int, numbered: bool) -> str | None:
    """Return patient or slide where the names of all files in a folder say that it is theirs."""

    def is_slide(name: Name, folder: str) -> bool:
        if name.slide is not None:
            return name.slide in folder  # of a convention: SOB_B_A_14-22549AB holds 14-22549AB
        if name.rule != "position" or name.source is None or not re.search(r"\d", folder):
            return False  # TUM_12_34 in TUM is a class and a counter
        return not _CLASS.search(folder) and slide_stem(name.source) == slide_stem(folder)

    if all(name.patient == leaf.parts[level] for leaf, name in _names(inside, numbered)):
        return "patient"
    if all(is_slide(name, leaf.parts[level]) for leaf, name in _names(inside, numbered)):
        return "slide"
    return None


def _by_words(folders: Iterable[str]) -> str | None:
    """Return patient, slide or site where every folder is named by such a word."""
    names = list(folders)
    if all(map(_SITE.fullmatch, names)):
        return "site"
    if all(_SLIDE.search(name) or (re.search(r"-DX\w", name) and barcode(name)) for name in names):
        return "slide"
    if all(_PERSON.search(name) or barcode(name) for name in names):
        return "slide" if all(barcode(name) for name in names) else "patient"
    return None


def _numbers(folders: Iterable[str]) -> bool:
    """Whether names are hashes, or hold four digits, or are one text with longer numbers."""
    names = list(folders)
    if any(_CLASS.search(name) for name in names):
        return False
    if all(re.fullmatch(r"\d{3,}", name) or len(re.findall(r"\d", name)) > 3 for name in names):
        return True
    if all(_HASH.fullmatch(name) and any(c.isdigit() for c in name) for name in names):
        return True
    numbered = [re.fullmatch(r"([A-Za-z]{0,12}[-_ ]?)(\d+)", name) for name in names]
    texts = {match[1].lower() if match else "" for match in numbered}
    return len(texts) == 1 and "" not in texts and any(re.search(r"\d\d", n) for n in names)


def _convention(inside: Sequence[Leaf], numbered: bool) -> str:
    """Return the convention by which all files are named, if there is one."""
    first = next(name.rule for _, name in _names(inside, numbered))
    every = first in CONVENTIONS and all(n.rule == first for _, n in _names(inside, numbered))
    return first if every else ""


def _meaning(convention: str) -> list[str]:
    if not convention:
        return []
    return [f"names as in {convention}: {CONVENTIONS[convention].meaning}"]


def _doubt(root: Path, leaves: Sequence[Leaf], why: str) -> DataError:
    """Make an error that shows the levels of folders and asks for their roles."""
    depth = max(len(leaf.parts) for leaf in leaves)
    deepest = next(leaf for leaf in leaves if len(leaf.parts) == depth)
    lines = []
    for level in range(depth):
        names = sorted({leaf.parts[level] for leaf in leaves if len(leaf.parts) > level})
        shown = ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        lines.append(f"  level {level + 1}: {len(names)} folders ({shown})")
    example = printable(deepest.prefix + deepest.images[0])
    suggestions = ["/".join(["*"] * (depth - 1) + ["class"])] if depth > 1 else []
    suggestions += ["class/patient", "patient/class", "class/slide"] if depth == 2 else []
    suggestions += ["/".join(["*"] * (depth - 2) + ["class", "patient"])] if depth > 2 else []
    return DataError(
        f"{root}: {why} ({example} lies {depth} folders deep, without that of the split):\n"
        + "\n".join(lines)
        + f"\nSay what each is with --layout, for example {', '.join(suggestions) or 'class'} "
        f"(roles: {', '.join(ROLES)}), name an inner folder as SOURCE, or list the files in a "
        f"--manifest"
    )
