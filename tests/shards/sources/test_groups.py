"""Which names carry a source, and what is said where none does.

Kinds of names that carry no source: counters that start again in each class or split folder
(`TUM/0001`), with zeros or without, copies (`0001 (1)`, `img (1)`, `0001 - Copy`), camera names
(`IMG_20240101_120000`, `DSC_0001`, `PXL_20240101_120000123`), hashes, UUIDs, spaces, brackets and
Unicode, the name of the class and a counter (`TUM_12_34`), a position alone. None of them is one
group with its namesake in another folder, and none raises a leak alarm.

Kinds that carry one: before `__`; before a position written as `_x1_y2`, `_y1_x2`, `_1_2`,
`_x_1_y_2`, `[x=1,y=2,w=3]`, `_Row_1_Col_2`; TCGA barcodes; BreakHis, IDC and WILDS names.
"""

import json
from pathlib import Path

import pytest

from common.console import show_messages
from pipeline.index import open_dataset
from shards.foreign.index import index_tars
from shards.foreign.provenance import IndexOptions
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import load_metadata
from shards.sources.names import read_name
from shards.verify.check import verify
from tests.helpers.messages import collected_messages
from tests.helpers.packing import collect_folder, sidecar_rows
from tests.helpers.patches import write_patches
from tests.helpers.tars import image_of, write_tar
from train.summary import warn_about

NO_SOURCE = (
    "0001",
    "17",
    "img (1)",
    "0001 (2)",
    "0001 - Copy",
    "IMG_20240101_120000",
    "IMG_2024_01_01_12_30",
    "DSC_0001",
    "PXL_20240101_120000123",
    "Screenshot_2024-01-01_12_30",
    "550e8400-e29b-41d4-a716-446655440000",
    "d41d8cd98f00b204e9800998ecf8427e",
    "tissue 漢 [3]",
    "TUM_12_34",
    "patch_12_34",
    "x12_y34",
    "000123_x1_y2",
    "TUM-AAAQQSLF",
    "lungaca12",
    "12_34_56",
    "tile_12_x0_y32",  # a number of the patch
    "patch-13-x0-y32",
    "cell_5_12_40",
)
SOURCES = {
    "tile7__y0032_x0064": "tile7",
    "0007__3": "0007",
    "S1_x12_y34": "S1",
    "S1_y34_x12": "S1",
    "S1_X12_Y34": "S1",
    "S-1.svs_1024_2048": "S-1.svs",
    "S1_1024_2048 (1)": "S1",
    "slide_12_1024_2048": "slide_12",
    "case 3 [x=3072,y=2048,w=32,h=32]": "case 3",
    "case 3 [d=4,x=3072,y=2048]": "case 3",
    "16B0001851_Block_Region_1_xini_6803_yini_59786": "16B0001851_Block_Region_1",
    "1A11_CRC-Prim-HE-07_022.tif_Row_301_Col_151": "1A11_CRC-Prim-HE-07_022.tif",
    "img006_x12_y34": "img006",
    "roi-3-x0-y32": "roi-3",
    "tile7__0_32": "tile7",
    "blk-AAAAQSLF-TCGA-AA-3837-01Z-00-DX1": "TCGA-AA-3837-01Z-00-DX1",
    "TCGA-G4-6304_x1_y2": "TCGA-G4-6304",
    "SOB_B_A-14-22549AB-40-001": "14-22549AB",
    "SOB_M_DC-14-2523-400-010": "14-2523",
    "8863_idx5_x51_y1251_class0": "8863_idx5",
    "patch_patient_004_node_4_x_3328_y_21792": "patient_004_node_4",
}


@pytest.mark.parametrize("stem", NO_SOURCE)
def test_names_that_carry_no_source(stem: str) -> None:
    assert read_name(stem, "TUM").source is None


@pytest.mark.parametrize("stem", SOURCES)
def test_names_that_carry_one(stem: str) -> None:
    assert read_name(stem, "TUM").source == SOURCES[stem]


@pytest.mark.parametrize(
    ("stem", "patient", "place"),
    [
        ("SOB_B_A-14-22549AB-40-001", "14-22549", (None, None)),
        ("8863_idx5_x51_y1251_class0", "8863", (1251, 51)),
        ("patch_patient_004_node_4_x_3328_y_21792", "patient_004", (21792, 3328)),
    ],
)
def test_conventions_give_the_patient(
    stem: str, patient: str, place: tuple[int | None, int | None]
) -> None:
    name = read_name(stem)
    assert (name.patient, (name.y, name.x)) == (patient, place)


def test_numbers_before_positions_are_slides_where_they_recur(tmp_path: Path) -> None:
    for name in ("8863_x1_y2", "8863_x3_y4", "9022_x1_y2"):
        for folder in "01":
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    patches = collect_folder(tmp_path, layout="classes").patches
    assert {patch.source for patch in patches} == {"8863", "9022"}


def test_numbered_tiles_are_sources_where_they_recur(tmp_path: Path) -> None:
    names = ["tile7_x0_y0", "tile7_x0_y32", "tile8_x0_y0"]
    for i, expected in ((3, {"tile7", "tile8"}), (1, {"A/tile7_x0_y0.png"})):
        for name in names[:i]:
            path = tmp_path / str(i) / "A" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        patches = collect_folder(tmp_path / str(i), layout="classes").patches
        assert {patch.source for patch in patches} == expected


def write_named(root: Path, stems: tuple[str, ...], folders: tuple[str, ...]) -> Path:
    """Write a patch of each name into each folder."""
    write_patches(root.parent / "made", {"train": len(stems) * len(folders)}, ("a",), seed=1)
    made = sorted((root.parent / "made").rglob("*.png"))
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for stem in stems:
            made.pop().rename(root / folder / f"{stem}.png")
    return root


def test_names_that_repeat_in_each_class_are_no_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = tuple(stem for stem in NO_SOURCE if not stem.startswith("TUM_"))
    root = write_named(tmp_path / "raw", stems, ("TUM", "NORM"))
    show_messages()
    metadata = pack(
        root, tmp_path / "out", PackOptions(val=0.2, test=0.2, workers=1, layout="classes")
    )
    printed = capsys.readouterr()
    first = "\n".join(printed.out.splitlines()[:5])
    assert "sources: the source of a patch is" in first and "source unknown" in first
    assert "the source is unknown of every patch" in printed.err and "--group-regex" in printed.err
    assert "more than one split" not in printed.err
    total = 2 * len(stems)
    assert metadata.provenance["splits"]["by"] == ["patch"]
    assert metadata.provenance["sources"]["patches"] == {"patch": total}
    assert all(row["source"] == row["path"] for row in sidecar_rows(tmp_path / "out"))
    report = verify(tmp_path / "out", duplicates=False)
    assert report.problem_count == 0
    assert [text for text in report.warnings if "more than one split" in text] == []
    assert any("source is unknown of every patch" in text for text in report.warnings)
    dataset = open_dataset(tmp_path / "out")
    assert sum(split.group_count for split in dataset.splits.values()) == total
    with collected_messages() as messages:
        warn_about(dataset)
    assert any("source is unknown of every patch" in text for text in messages)


@pytest.mark.parametrize("manifest", [False, True])
def test_counters_that_start_again_in_each_split_raise_no_alarm(
    manifest: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = tuple(f"{i:05d}" for i in range(4))
    root = write_named(tmp_path / "raw", stems, ("train/a", "val/a", "test/a"))
    options = PackOptions(workers=1)
    if manifest:
        paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
        rows = [f"{path},{path.parts[1]},{path.parts[0]}" for path in paths]
        (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *rows]))
        options = PackOptions(workers=1, manifest=tmp_path / "m.csv")
    show_messages()
    pack(root, tmp_path / "out", options)
    printed = capsys.readouterr()
    assert "more than one split" not in printed.err and "source is unknown" in printed.err


def test_a_real_source_is_kept_whole_beside_names_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = tuple(f"s{i % 5}__{i}" for i in range(20)) + tuple(f"{i:03d}" for i in range(10))
    root = write_named(tmp_path / "raw", stems, ("TUM", "NORM"))
    show_messages()
    pack(root, tmp_path / "out", PackOptions(val=0.2, test=0.2, workers=1))
    assert "the source is unknown of 20 of 60 patches" in capsys.readouterr().err
    dataset = open_dataset(tmp_path / "out")
    places: dict[str, set[str]] = {}
    for name, split in dataset.splits.items():
        for row in split.table.to_pylist():
            if row["source"] != row["path"]:
                places.setdefault(row["source"], set()).add(name)
    assert len(places) == 5 and all(len(splits) == 1 for splits in places.values())
    assert "unknown of 20 of 60" in dataset.unknown_sources


def test_a_group_regex_is_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_named(tmp_path / "raw", ("case1-01", "case1-02", "case2-01"), ("TUM", "NORM"))
    show_messages()
    options = PackOptions(group_regex=r"(case\d+)-", workers=1)
    metadata = pack(root, tmp_path / "out", options)
    assert "unknown" not in "".join(capsys.readouterr())
    assert metadata.provenance["sources"]["patches"] == {"source": 6}


def test_a_data_set_that_does_not_say_is_read(tmp_path: Path) -> None:
    pack(
        write_named(tmp_path / "raw", ("1", "2"), ("a",)), tmp_path / "out", PackOptions(workers=1)
    )
    path = tmp_path / "out" / "dataset.json"
    fields = json.loads(path.read_text())
    del fields["provenance"]["sources"], fields["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(fields))
    assert load_metadata(tmp_path / "out") and not open_dataset(tmp_path / "out").unknown_sources


def test_keys_of_tars_that_start_again_raise_no_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val", "test"):
        content: list[tuple[str, bytes]] = []
        for i in range(5):
            content += [(f"{i:06d}.png", image_of(f"{split}{i}")), (f"{i:06d}.cls", b"0")]
        write_tar(tmp_path / "tars" / f"{split}-000000.tar", content)
    show_messages()
    index_tars(str(tmp_path / "tars"), tmp_path / "out", IndexOptions())
    printed = capsys.readouterr()
    assert "more than one split" not in printed.err
    assert "the source is unknown of every patch" in printed.err
    report = verify(tmp_path / "out", duplicates=False)
    assert len(report.warnings) == 1 and "source is unknown" in report.warnings[0]
