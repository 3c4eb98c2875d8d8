"""Folders above the patches: which layouts are recognised, each with its rule, and which asked for.

The kind: class and patient folders in either order, with split folders above, between or none;
slides named by words, barcodes or the names of their files; the trees of IDC, BreakHis and WILDS;
folders that wrap all others; system folders; links. Where nothing decides, `--layout` is asked for.
"""

from pathlib import Path

import pytest

from common.errors import DataError
from shards.sources.files import look_up_here
from shards.sources.folder import FolderSource
from shards.sources.layout import roles_of
from tests.helpers.packing import collect_folder

IDC = ["8863/0/8863_idx5_x51_y1_class0.png", "8863/1/8863_idx5_x1_y1_class1.png"]
IDC += ["9022/0/9022_idx5_x51_y1_class0.png"]
BREAKHIS = [
    f"{kind}/SOB/{tumour}/SOB_{kind[0].upper()}_{short}_14-{slide}/40X/"
    f"SOB_{kind[0].upper()}_{short}-14-{slide}-40-00{i}.png"
    for kind, tumour, short, slide in (
        ("benign", "adenosis", "A", "22549AB"),
        ("benign", "fibroadenoma", "F", "25197"),
        ("malignant", "ductal_carcinoma", "DC", "2523"),
    )
    for i in (1, 2)
]
WILDS = [
    f"patches/patient_00{p}_node_{n}/patch_patient_00{p}_node_{n}_x_{x}_y_32.png"
    for p, n, x in ((4, 1, 0), (4, 2, 32), (5, 1, 64))
]


def touch(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


LAYOUTS = {
    "class, patient": (
        ["TUM/P-01/1.png", "TUM/P-02/1.png", "NORM/P-01/1.png"],
        "class/patient",
        {("train", "TUM", "P-01"), ("train", "TUM", "P-02"), ("train", "NORM", "P-01")},
    ),
    "patient, class": (
        ["case 1/TUM/1.png", "case 2/TUM/1.png", "case 2/NORM/1.png"],
        "patient/class",
        {("train", "TUM", "case 1"), ("train", "TUM", "case 2"), ("train", "NORM", "case 2")},
    ),
    "splits above": (
        ["train/TUM/P-01/1.png", "val/TUM/P-02/1.png"],
        "class/patient",
        {("train", "TUM", "P-01"), ("val", "TUM", "P-02")},
    ),
    "splits between": (
        ["TUM/train/1.png", "TUM/val/1.png", "NORM/train/1.png"],
        "classes",
        {("train", "TUM", None), ("val", "TUM", None), ("train", "NORM", None)},
    ),
    "IDC": (
        IDC,
        "patient/class",
        {("train", "0", "8863"), ("train", "1", "8863"), ("train", "0", "9022")},
    ),
    "BreakHis": (
        BREAKHIS,
        "class/*/*/slide/*",
        {
            ("train", "benign", "14-22549"),
            ("train", "benign", "14-25197"),
            ("train", "malignant", "14-2523"),
        },
    ),
    "WILDS": (
        WILDS,
        "*/slide",
        {("train", None, "patient_004"), ("train", None, "patient_005")},
    ),
    "WILDS, its folder of patches": (
        [name.removeprefix("patches/") for name in WILDS],
        "slides",
        {("train", None, "patient_004"), ("train", None, "patient_005")},
    ),
    "patients by their word": (
        ["patient_1/1.png", "patient_12/1.png"],
        "patients",
        {("train", None, "patient_1"), ("train", None, "patient_12")},
    ),
    "barcodes": (
        ["TCGA-A6-2671/1.png", "TCGA-G4-6304/1.png"],
        "slides",
        {("train", None, "TCGA-A6-2671"), ("train", None, "TCGA-G4-6304")},
    ),
    "slides that their files repeat": (
        ["S1/S1_0_32.png", "S2/S2_0_32.png"],
        "slides",
        {("train", None, None)},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognised_and_said(name: str, tmp_path: Path) -> None:
    names, layout, expected = LAYOUTS[name]
    collection = collect_folder(touch(tmp_path, names))
    assert collection.origin.layout == layout and not collection.refused
    assert {(p.split, p.label, p.patient) for p in collection.patches} == expected
    assert collection.notes[0].startswith(f"layout: {layout.split(',')[0]}")
    assert all(patch.group[0] != "patch" for patch in collection.patches) or name.startswith(
        "splits b"
    )


@pytest.mark.parametrize(
    ("names", "slides"),
    [
        (IDC, {"8863_idx5", "9022_idx5"}),
        (BREAKHIS, {"14-22549AB", "14-25197", "14-2523"}),
        (WILDS, {"patient_004_node_1", "patient_004_node_2", "patient_005_node_1"}),
    ],
)
def test_conventions_name_slides_and_say_their_rule(
    names: list[str], slides: set[str], tmp_path: Path
) -> None:
    collection = collect_folder(touch(tmp_path, names))
    assert {patch.slide for patch in collection.patches} == slides
    assert any(note.startswith("names as in") for note in collection.notes)


@pytest.mark.parametrize(
    "names",
    [
        ["TUM/oral/1.png", "NORM/colon/1.png"],  # two levels of classes
        ["1/TUM/1.png", "2/TUM/1.png"],  # patients, or grades
        ["P10/1.png", "P2/1.png"],
        ["8863/1.png", "9022/1.png"],
        ["a1b2c3d4/1.png", "0f1e2d3c/1.png"],
        ["A/1.png", "B/deeper/1.png"],
        ["smith/TUM/a/1.png", "jones/TUM/b/1.png"],
    ],
)
def test_in_doubt_the_layout_is_asked_for(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--layout"):
        collect_folder(touch(tmp_path, names))


@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("class/class", "TUM/oral/1.png", ("TUM/oral", None, None, None)),
        ("patients", "8863/1.png", (None, "8863", None, None)),
        ("site/patient/slide/class", "A/P1/S1/t/1.png", ("t", "A/P1", "A/P1/S1", "A")),
        ("*/class/slide", "x/TUM/S1/1.png", ("TUM", None, "S1", None)),
        ("patient/class", "8863/0/1.png", ("0", "8863", None, None)),
    ],
)
def test_layouts_asked_for(
    layout: str, name: str, expected: tuple[str | None, ...], tmp_path: Path
) -> None:
    (patch,) = collect_folder(touch(tmp_path, [name]), layout=layout).patches
    assert (patch.label, patch.patient, patch.slide, patch.site) == expected


def test_a_layout_of_another_depth_or_role_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["A/b/1.png"])
    with pytest.raises(DataError, match=r"lies 2 folders deep.*expects 3"):
        collect_folder(tmp_path, layout="class/patient/slide")
    for layout in ("colour", "class/colour", "patient/patient"):
        with pytest.raises(DataError, match="--layout"):
            roles_of(layout)


def test_sources_are_numbered_anew_for_each_patient(tmp_path: Path) -> None:
    names = ["train/TUM/P-01/img1__1.png", "test/TUM/P-02/img1__1.png"]
    patches = collect_folder(touch(tmp_path, names)).patches
    assert {patch.source for patch in patches} == {"P-01/img1", "P-02/img1"}


def test_system_folders_are_counted(tmp_path: Path) -> None:
    names = ["A/1.png", "__MACOSX/A/._1.png", "A/@eaDir/1.png", "A/._2.png", "B/Thumbs.db"]
    collection = collect_folder(touch(tmp_path, [*names, "B/2.png"]))
    assert [patch.path for patch in collection.patches] == ["A/1.png", "B/2.png"]
    assert not collection.refused and (collection.hidden, collection.ignored) == (1, 1)
    (note,) = [note for note in collection.notes if "system folders" in note]
    assert "@eaDir (1 files), __MACOSX (1 files)" in note


def test_links_out_of_the_source_are_followed_on_demand(tmp_path: Path) -> None:
    touch(tmp_path, ["root/A/1.png", "outside/2.png", "outside/deep/3.png"])
    (tmp_path / "root" / "A" / "link.png").symlink_to(tmp_path / "outside" / "2.png")
    (tmp_path / "root" / "B").symlink_to(tmp_path / "outside" / "deep")
    with pytest.raises(DataError, match="--follow-links"):
        collect_folder(tmp_path / "root")
    source = FolderSource(root=tmp_path / "root", follow_links=True)
    collection = source.collect(look_up_here)
    assert [patch.path for patch in collection.patches] == ["A/1.png", "A/link.png", "B/3.png"]
    assert collection.origin.links == "followed"
    (tmp_path / "outside" / "deep" / "back").symlink_to(tmp_path / "root")
    with pytest.raises(DataError, match="a link to a folder that it is in"):
        source.collect(look_up_here)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("slide.svs", "a whole slide"),
        ("camelyon.h5", "arrays"),
        ("data.zip", "unpack it"),
        ("data.tar.gz", "unpack it"),
        ("shards.tar", "--index"),
        ("rows.csv", "--manifest"),
        ("one.png", "name its folder"),
        ("nothing", "does not exist"),
    ],
)
def test_a_file_as_source_says_what_can_be_done(name: str, advice: str, tmp_path: Path) -> None:
    if name != "nothing":
        touch(tmp_path, [name])
    with pytest.raises(DataError, match=advice):
        collect_folder(tmp_path / name)
    if name.endswith((".svs", ".h5", ".zip")):
        touch(tmp_path, [f"in/A/{name}", "in/A/1.png"])
        ((_, reason),) = collect_folder(tmp_path / "in").refused
        assert advice in reason and "--convert" not in reason
