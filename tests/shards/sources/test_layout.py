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
    "slides that their files repeat with a suffix": (
        ["S1/S1.svs [x=0,y=32,w=32,h=32].png", "S2/S2.svs [x=0,y=32,w=32,h=32].png"],
        "slides",
        {("train", None, None)},
    ),
    "sites": (
        ["site_A/TUM/P-01/1.png", "site_B/TUM/P-02/1.png", "site_A/NORM/P-01/1.png"],
        "site/class/patient",
        {
            ("train", "TUM", "site_A/P-01"),
            ("train", "NORM", "site_A/P-01"),
            ("train", "TUM", "site_B/P-02"),
        },
    ),
    "hospitals of WILDS": (
        [name.replace("patches", f"center_{i}") for i, name in enumerate(WILDS)],
        "site/slide",
        {("train", None, "patient_004"), ("train", None, "patient_005")},
    ),
    "BreakHis, copies": (
        [f"{name[:-4]}_{i}.png" for i, name in enumerate(BREAKHIS)],
        "class/*/*/slide/*",
        {
            ("train", "benign", "14-22549"),
            ("train", "benign", "14-25197"),
            ("train", "malignant", "14-2523"),
        },
    ),
    "Kather 2016": (
        [
            "01_TUMOR/10009_CRC-Prim-HE-03_009.tif_Row_1_Col_301.png",
            "02_STROMA/1A11_CRC-Prim-HE-07_022.tif_Row_301_Col_151.png",
        ],
        "classes",
        {("train", "01_TUMOR", None), ("train", "02_STROMA", None)},
    ),
    "training, testing": (
        ["training/TUM/P-01/1.png", "validation/TUM/P-02/1.png", "test_set/TUM/P-03/1.png"],
        "class/patient",
        {("train", "TUM", "P-01"), ("val", "TUM", "P-02"), ("test", "TUM", "P-03")},
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
        ["fold1/TUM/1.png", "fold2/TUM/1.png"],  # the same patches again
        ["fold1/train/40X/1.png", "fold1/test/40X/1.png", "fold2/train/40X/1.png"],
        ["Fold 1/images/1.png", "Fold 2/images/1.png"],
        ["images/TUM/1.png", "masks/TUM/1.png"],
        ["images/1.png", "masks/1.png"],
        ["P1/1.png", "P2/1.png"],
        ["B17-00123/0_512.png", "B17-00124 A1/0_512.png"],
        ["HE_1234-22/1.png", "HE_1235-22/1.png"],
        ["2021-05-11/1.png", "2021-05-12/1.png"],
        ["1.2.840.113654.2.62.1/1.png", "1.2.840.113654.2.62.2/1.png"],
        ["S1_files/14/0_1.png", "S2_files/14/0_1.png", "S1_files/15/0_1.png"],  # DeepZoom
        ["800/HP/1.png", "800/NORM/1.png"],
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


@pytest.mark.parametrize(
    "folders",
    [
        ("ADI", "BACK", "NORM", "TUM"),
        ("01_TUMOR", "02_STROMA", "08_EMPTY"),
        ("0", "1", "2"),
        ("00", "01", "10"),
        ("0_N", "1_PB", "2_UDH"),
        ("grade 1", "grade 2"),
        ("T1", "T2"),
        ("Gleason_3+3", "Gleason_3+4"),
        ("colon_aca", "colon_n"),
        ("class0", "class1"),
        ("center", "edge"),
    ],
)
@pytest.mark.parametrize("form", ["{}/1.png", "train/{}/1.png", "{0}/{0}_1.png"])
def test_folders_of_usual_classes_stay_classes(
    folders: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    collection = collect_folder(touch(tmp_path, [form.format(folder) for folder in folders]))
    assert collection.origin.layout == "classes"
    assert {patch.label for patch in collection.patches} == set(folders)


@pytest.mark.parametrize("folders", [("TUM", "NORM"), ("class0", "class1"), ("tumor", "stroma")])
def test_names_that_repeat_the_class_are_no_slides(
    folders: tuple[str, ...], tmp_path: Path
) -> None:
    collection = collect_folder(touch(tmp_path, [f"{name}/{name}_1_2.png" for name in folders]))
    assert {patch.label for patch in collection.patches} == set(folders)
    assert all(patch.group[0] == "patch" for patch in collection.patches)


def test_the_doubt_names_the_option_that_settles_it(tmp_path: Path) -> None:
    touch(tmp_path, ["NCT-CRC-HE/ADI/1.png", "NCT-CRC-HE/TUM/1.png"])
    with pytest.raises(DataError, match=r"--layout, for example \*/class, class/patient"):
        collect_folder(tmp_path)
    patches = collect_folder(tmp_path, layout="*/class").patches
    assert {patch.label for patch in patches} == {"ADI", "TUM"}


def test_one_folder_of_images_is_no_class(tmp_path: Path) -> None:
    split = ["train/images/a.png", "val/images/b.png"]
    zooms = [f"train/{zoom}X/{BREAKHIS[0].rpartition('/')[2]}" for zoom in (40, 100)]
    for i, names in enumerate((split, zooms, ["images/x0_y32.png"], ["40X/a.png"])):
        collection = collect_folder(touch(tmp_path / str(i), names))
        assert {patch.label for patch in collection.patches} == {None}
        assert collection.notes[0].startswith("layout: flat, in ")
    touch(tmp_path / "alone", ["images/a.png"])
    assert "if it is none: --layout '*'" in collect_folder(tmp_path / "alone").notes[0]


def test_what_is_beside_patches_is_counted_and_no_patch(tmp_path: Path) -> None:
    notes = ["list.csv", "a.md5", "run.log", "paper.pdf", "~$list.xlsx"]
    notes += ["1.png:Zone.Identifier", "1.png~", "ZbThumbnail.info", "cells.geojson"]
    collection = collect_folder(touch(tmp_path, ["A/1.png", *(f"A/{name}" for name in notes)]))
    assert not collection.refused and collection.ignored == len(notes)
    touch(tmp_path, ["A/2.png.part", "A/core.12"])  # of a patch that did not arrive, perhaps
    assert len(collect_folder(tmp_path).refused) == 2
