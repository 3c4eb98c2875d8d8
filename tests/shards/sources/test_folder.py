"""Finding patches: which layouts are read, and what is reported of the others; what names say."""

import os
import random
import re
from pathlib import Path

import pytest

from common.errors import DataError
from shards.codec.png import MAX_SOURCE_BYTES
from shards.sources.layout import Layout
from shards.sources.names import barcode, read_name
from shards.sources.source import Origin, Patch
from shards.sources.splits import leaks, split_warnings
from tests.helpers.packing import collect_folder, list_patches


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def key(patch: Patch) -> tuple[str, str | None, str]:
    return patch.split, patch.label, patch.source


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/A/s__y1_x2.png", "val/A/t__.png"], {("train", "A", "s"), ("val", "A", "t")}),
        (["Train/A/s__.png", "VALID/A/t__.PNG"], {("train", "A", "s"), ("val", "A", "t")}),
        (["train/A/s__.png", "validation/A/t__.png"], {("train", "A", "s"), ("val", "A", "t")}),
        (["A/s__.png", "B/t__.png"], {("train", "A", "s"), ("train", "B", "t")}),
        (["train/s__.png", "test/t__.png"], {("train", None, "s"), ("test", None, "t")}),
        (["test/A/s__.png"], {("test", "A", "s")}),
        (["raw/s__.png"], {("train", "raw", "s")}),
        (["raw/train/A/s__.png", "raw/val/A/t__.png"], {("train", "A", "s"), ("val", "A", "t")}),
        (["A/__y1_x2.png"], {("train", "A", "A/__y1_x2.png")}),
        (["s__y1_x2.png", "t.png", "notes.txt"], {("train", None, "s"), ("train", None, "t.png")}),
        (["S1/000123_x1_y2.png", "S2/x3_y4.png"], {("train", None, "S1"), ("train", None, "S2")}),
        (
            ["train/S1/1_x1_y2.png", "val/S2/1_x1_y2.png"],
            {("train", None, "S1"), ("val", None, "S2")},
        ),
    ],
)
def test_layouts(names: list[str], expected: set[object], tmp_path: Path) -> None:
    assert {key(patch) for patch in list_patches(touch(tmp_path, *names))} == expected


def test_the_order_of_the_directory_does_not_matter(tmp_path: Path) -> None:
    names = [f"train/{label}/{i}.png" for label in "AB" for i in range(30)]
    lists = []
    for i in range(2):
        random.Random(i).shuffle(names)
        lists.append([patch.path for patch in list_patches(touch(tmp_path / str(i), *names))])
    assert lists[0] == lists[1] == sorted(names)


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("a__y0032_x0064", (32, 64)),
        ("a_x0064_y0032", (32, 64)),
        ("8863_idx5_x51_y1251_class0", (1251, 51)),
        ("a__y0_x999999999", (0, 999_999_999)),
        ("a__y0_x9999999999", (None, None)),
        ("a_y1", (None, None)),
        ("000123_x1234_y5678", (5678, 1234)),
        ("x12_y34", (34, 12)),
        ("max12_y34", (None, None)),
        ("xy", (None, None)),
    ],
)
def test_positions(stem: str, expected: tuple[int | None, int | None]) -> None:
    name = read_name(stem)
    assert (name.y, name.x) == expected


def test_what_is_not_a_patch_is_counted_or_refused(tmp_path: Path) -> None:
    names = ["train/A/s.png", "val/A/t.png", "train/A/.hidden.png", ".git/config", "train/A/n.txt"]
    collection = collect_folder(touch(tmp_path, *names, "Thumbs.db", "train/meta.json"))
    assert (len(collection.patches), collection.hidden, collection.ignored, collection.refused) == (
        2,
        2,
        3,
        [],
    )
    os.mkfifo(tmp_path / "train" / "A" / "pipe.png")
    (tmp_path / "train" / "A" / "huge.png").touch()
    os.truncate(tmp_path / "train" / "A" / "huge.png", 5 << 20)
    (tmp_path / "train" / "A" / "dangling.png").symlink_to("nothing.png")
    touch(tmp_path, "train/A/u.jpg", "train/A/v", "train/stray.png", "stray.tif")
    assert [path for path, _ in collect_folder(tmp_path).refused] == [
        "stray.tif",
        "train/A/dangling.png",
        "train/A/huge.png",
        "train/A/pipe.png",
        "train/A/u.jpg",
        "train/A/v",
        "train/stray.png",
    ]
    with pytest.raises(DataError, match="7 files cannot be used") as error:
        list_patches(tmp_path)
    assert "'train/A/u.jpg': not a PNG file (.jpg)" in str(error.value)


REFUSED: dict[str, tuple[list[str], str]] = {
    "missing": ([], "is not a folder"),
    "only notes": (["A/readme.txt"], "holds no PNG file"),
    "mixture": (["train/A/s.png", "tumor/s.png"], r"mixes split folders \['train'\].*'tumor'"),
    "two names for val": (["val/A/s.png", "valid/A/s.png"], "two folders for one split"),
    "folder in a class": (["train/A/slide/s.png"], r"level 2: 1 folders \(slide\)"),
    "different depths": (["A/s.png", "A/slide/s.png"], "images lie at different depths"),
    "class that train lacks": (["train/A/s.png", "val/B/t.png"], r"val has the classes \['B'\]"),
    "labels in part": (["train/A/s.png", "val/t.png"], "with and without a class folder"),
    "some names are positions": (
        ["A/x1_y2.png", "B/s.png"],
        r"1 of 2 .*'A/x1_y2.png'.*--layout slid",
    ),
    "slides in two splits": (["train/A/x1_y2.png", "val/A/x1_y3.png"], "--layout classes or"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layouts_that_are_refused(name: str, tmp_path: Path) -> None:
    names, reason = REFUSED[name]
    with pytest.raises(DataError, match=reason):
        list_patches(touch(tmp_path / "root", *names))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        list_patches(tmp_path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "A/s.png")
    with open(os.fsencode(tmp_path) + b"/A/\xff.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"A/\\xff.png'.*not UTF-8"):
        list_patches(tmp_path)


@pytest.mark.parametrize(
    ("link", "target", "allowed"),
    [
        ("A/link.png", "../B/t.png", True),
        ("A/link.png", "../../outside/s.png", False),
        ("C", "../outside", False),
        ("A/link.png", "/etc/hostname", False),
        ("C", "B", True),
    ],
)
def test_links_may_not_leave_the_root(
    link: str, target: str, allowed: bool, tmp_path: Path
) -> None:
    touch(tmp_path, "root/A/s.png", "root/B/t.png", "outside/s.png")
    (tmp_path / "root" / link).symlink_to(target)
    if allowed:
        assert len(list_patches(tmp_path / "root")) == 3
        return
    with pytest.raises(DataError, match="is a link to"):
        list_patches(tmp_path / "root")


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (["train/A/s.png"], "no val split: training is not validated"),
        (["val/A/s.png"], "no train split"),
        (["train/A/s.png", "train/B/s.png", "val/A/t.png"], r"val lacks the classes \['B'\]"),
        (["train/A/s.png", "train/B/x.txt", "val/A/t.png"], "'train/B' holds no patches"),
    ],
)
def test_warnings(names: list[str], warning: str, tmp_path: Path) -> None:
    collection = collect_folder(touch(tmp_path, *names))
    members = [(patch.split, patch.label) for patch in collection.patches]
    (text,) = collection.warnings + split_warnings(tmp_path, members)
    assert re.search(warning, text)


def test_group_regex(tmp_path: Path) -> None:
    touch(tmp_path, "train/A/case-1_a.png", "train/A/case-1_b.png", "val/A/case-2_a.png")
    patches = list_patches(tmp_path, r"(case-\d)")
    assert [patch.source for patch in patches] == ["case-1", "case-1", "case-2"]
    for regex, reason in (
        (r"(case-1)", "does not match 'val/A/case-2_a.png'"),
        (r"case-\d()", "captures nothing in 'train/A/case-1_a.png'"),
        (r"case", "has no group"),
        (r"(", "is not valid"),
    ):
        with pytest.raises(DataError, match=reason):
            list_patches(tmp_path, regex)


FOLDERS = ["train/A/x1_y2.png", "val/A/x1_y2.png"]


@pytest.mark.parametrize(
    ("layout", "names", "expected"),
    [
        (
            "classes",
            FOLDERS,
            {("train", "A", path) if "train" in path else ("val", "A", path) for path in FOLDERS},
        ),
        ("slides", FOLDERS, {("train", None, "A"), ("val", None, "A")}),
        ("slides", ["A/s.png"], {("train", None, "A")}),
        ("flat", ["train/s.png"], {("train", None, "train/s.png")}),
        ("flat", FOLDERS, "'train/A/x1_y2.png' lies in a folder"),
        ("classes", ["s.png"], "patches outside of folders"),
        ("slides", ["train/s.png"], "patches outside of folders"),
    ],
)
def test_layouts_on_demand(
    layout: Layout, names: list[str], expected: object, tmp_path: Path
) -> None:
    touch(tmp_path, *names)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            collect_folder(tmp_path, layout=layout)
        return
    collection = collect_folder(tmp_path, layout=layout)
    assert {key(patch) for patch in collection.patches} == expected
    assert collection.notes == [f"layout: {layout}, as asked"]


def test_slide_folders_give_slide_and_position_and_auto_says_so(tmp_path: Path) -> None:
    collection = collect_folder(touch(tmp_path, "S1/000123_x1234_y5678.png"))
    (patch,) = collection.patches
    assert (patch.slide, patch.x, patch.y, patch.group) == ("S1", 1234, 5678, ("slide", "S1"))
    (note,) = collection.notes
    assert note.startswith("layout: slides, one per folder") and "--layout classes" in note


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TCGA-A6-2671-01Z-00-DX1.1234-abcd", ("TCGA-A6-2671", "A6")),
        ("TUM_TCGA-G4-6304", ("TCGA-G4-6304", "G4")),
        ("NORM-TCGA-CEQVKIYG", None),
        ("XTCGA-A6-2671", None),
        ("TCGA-A6-26711", None),
    ],
)
def test_tcga_barcodes(name: str, expected: tuple[str, str] | None, tmp_path: Path) -> None:
    assert barcode(name) == expected
    for names in ([f"A/{name}__y1_x2.png"], [f"{name}.png"], [f"{name}/x1_y2.png"]):
        root = touch(tmp_path / str(len(names[0])) / names[0][0], *names)
        collection = collect_folder(root)
        (patch,) = collection.patches
        assert (patch.patient, patch.site) == (expected or (None, None))
        kind = "slide" if patch.slide else "source" if "__" in names[0] else "patch"
        assert patch.group[0] == ("patient" if expected else kind)
        assert ("(patients: 1, sites: 1)" in collection.notes[-1]) == (expected is not None)


def test_groups_that_cross_splits() -> None:
    pairs = [("train", "a"), ("train", "a"), ("val", "b"), ("test", "c"), ("val", "c")]
    assert leaks(pairs) == ["c"]


@pytest.mark.parametrize(
    ("names", "layout", "expected"),
    [
        (["train/A/s.png", "val/A/t.png", "val/README"], "classes", "classes"),
        (["train/s.png", "val/meta/LICENSE"], "flat", "flat"),
        (["train/s.png", "val/meta/LICENSE"], "auto", "flat"),
        (["S1/x1_y2.png", "S2/x1_y2.png", "S2/thumbnail.png"], "auto", "slides"),
    ],
)
def test_what_cannot_be_a_patch_does_not_make_the_layout(
    names: list[str], layout: Layout, expected: Layout, tmp_path: Path
) -> None:
    root = touch(tmp_path, *names)
    if "thumbnail" in names[-1]:
        (root / names[-1]).write_bytes(bytes(MAX_SOURCE_BYTES + 1))
    collection = collect_folder(root, layout=layout)
    assert (
        collection.origin == Origin(layout=expected)
        and [path for path, _ in collection.refused] == names[-1:]
    )


def test_a_name_that_is_only_a_suffix_is_no_image(tmp_path: Path) -> None:
    collection = collect_folder(touch(tmp_path, "A/png", "A/s.png"))
    assert (
        collection.refused == [("A/png", "not a PNG file (no suffix)")]
        and len(collection.patches) == 1
    )


def test_links_that_lead_nowhere_or_to_themselves(tmp_path: Path) -> None:
    root = touch(tmp_path, "A/s.png")
    (root / "A" / "nowhere.png").symlink_to(root / "A" / "missing.png")
    (root / "A" / "loop.png").symlink_to("loop.png")
    (root / "A" / "away.png").symlink_to(tmp_path.parent / "missing.png")
    assert collect_folder(root).refused == [
        ("A/away.png", "cannot be looked at: No such file or directory"),
        ("A/loop.png", "cannot be looked at: Too many levels of symbolic links"),
        ("A/nowhere.png", "cannot be looked at: No such file or directory"),
    ]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = touch(tmp_path, "A/s.png", "B/s.png"), os.scandir

    def refuse(path: Path) -> object:
        if path.name == "B":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, who often tests, may read everything
    with pytest.raises(DataError, match="B cannot be read: Permission denied"):
        collect_folder(root)


def test_the_first_link_that_leaves_the_root_is_named_in_any_order(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "A/s.png")
    touch(tmp_path, "away.png")
    for i in (3, 1, 2):
        (root / "A" / f"{i}.png").symlink_to(tmp_path / "away.png")
    with pytest.raises(DataError, match=r"A/1.png is a link"):
        collect_folder(root)
