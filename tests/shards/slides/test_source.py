"""`shards.pack` on slides: from files to shards, with what can be wrong on the way."""

import csv
import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.errors import DataError
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.merge import merge
from shards.pack import packing
from shards.pack.packing import pack, pack_task
from shards.pack.plan import PackOptions
from shards.pack.tasks import PackTask
from shards.slides import sheet, staging
from shards.slides.options import SlideOptions
from shards.slides.reader import Slide, open_slide
from tests.helpers import slides
from tests.helpers.packing import file_hashes, sidecar_rows

BARCODE = "TCGA-A6-2681-01Z-00-DX1"
TISSUE = (128, 448, 192, 576)  # rows and columns


def options(workers: int = 1, **changes: Any) -> PackOptions:
    names = {"coords", "annotations", "stride", "mpp", "mpp_of_slide", "min_tissue"} & {*changes}
    # the thumbnail is blurred by a pixel, half a patch: patches just outside would be half tissue
    of_slides = {"mpp": 0.5, "min_tissue": 0.6} | {name: changes.pop(name) for name in names}
    return PackOptions(workers=workers, shard_size=50, slides=SlideOptions(**of_slides), **changes)


def table_of(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "slides/slides.csv", newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides in folders as an archive has them, one without tissue."""
    root = tmp_path_factory.mktemp("slides") / "root"
    slides.write_slide(root / "1f" / f"{BARCODE}.svs", slides.tissue_slide(), reductions=(1, 4))
    fine = np.kron(slides.tissue_slide(seed=1), np.ones((2, 2, 1), np.uint8))
    slides.write_slide(root / "2e" / "fine.svs", fine, mpp=0.3, reductions=(1, 4))
    slides.write_slide(root / "3d" / "empty.svs", slides.glass(600, 800))
    (root / "1f" / "notes.txt").write_text("not a slide")
    return root


@pytest.fixture(scope="module")
def packed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(root, out, options())
    return out


def test_patches_are_the_pixels_at_their_coordinates(root: Path, packed: Path) -> None:
    rows = [row for row in sidecar_rows(packed) if row["slide"] == BARCODE]
    image = slides.tissue_slide()
    split = open_dataset(packed).split("train")
    pixels = read_split(split, np.arange(len(split)))
    for row in rows:
        place = np.s_[row["y"] : row["y"] + 32, row["x"] : row["x"] + 32]
        assert (pixels[int(row["key"][1:])] == image[place]).all()
    corners = {(row["y"], row["x"]) for row in rows}
    top, bottom, left, right = TISSUE
    assert corners == {(y, x) for y in range(top, bottom, 32) for x in range(left, right, 32)}


def test_the_sidecar_has_slide_patient_site_and_resolution(packed: Path) -> None:
    rows = sidecar_rows(packed)
    of_barcode = [row for row in rows if row["slide"] == BARCODE]
    fields = {tuple(row[name] for name in ("patient", "site", "path", "mpp")) for row in of_barcode}
    assert fields == {("TCGA-A6-2681", "A6", f"1f/{BARCODE}.svs", 0.5)}
    fine = [row for row in rows if row["slide"] == "fine"]
    assert fine and {(row["source"], row["patient"], row["mpp"]) for row in fine} == {
        ("fine", None, 0.5)
    }
    assert json.loads((packed / "dataset.json").read_text())["provenance"]["slides"] == {
        "mpp": 0.5,
        "stride": 32,
        "min_tissue": 0.6,
        "coords": None,
        "annotations": None,
        "resampling": "lanczos",
        "slides": 2,
        "readers": {table_of(packed)["fine"]["reader"]: 2},
    }


def test_every_slide_has_a_sheet_and_a_row_with_its_count_or_reason(packed: Path) -> None:
    table = table_of(packed)
    assert [table[name]["patches"] for name in (BARCODE, "empty")] == ["120", "0"]
    assert table["empty"]["reason"] == "no tissue was found" and not table[BARCODE]["reason"]
    assert table["fine"]["resampled"] == "yes" and float(table["fine"]["mpp_of_slide"]) == 0.3
    assert {p.name for p in (packed / "slides").glob("*.png")} == {f"{n}.png" for n in table}
    drawn = np.asarray(Image.open(packed / "slides" / f"{BARCODE}.png")).astype(int)
    assert drawn.shape == (600, 800, 3)
    green = (drawn == (0, 160, 0)).all(2)
    assert green[128, 192:577].all() and green[128:449, 576].all()
    assert not green[:120].any() and not green[:, :180].any()
    assert [p.name for p in packed.iterdir() if p.name.startswith(".")] == [".packed.json"]


def test_bytes_depend_on_neither_workers_nor_tasks(
    root: Path, packed: Path, tmp_path: Path
) -> None:
    pack(root, tmp_path / "two", options(workers=2))
    for index in range(2):
        pack_task(root, tmp_path / "tasks", options(), PackTask(index, 2))
    merge(tmp_path / "tasks")
    for out in (tmp_path / "two", tmp_path / "tasks"):
        for folder in ("", "slides"):
            files = {p.name: p.read_bytes() for p in (packed / folder).iterdir() if p.is_file()}
            assert files == {
                p.name: p.read_bytes() for p in (out / folder).iterdir() if p.is_file()
            }


def test_each_task_cuts_its_own_slides(
    root: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_and_note(path: Path) -> AbstractContextManager[Slide]:
        opened.append(path.name)
        return open_slide(path)

    monkeypatch.setattr(staging, "open_slide", open_and_note)
    with pytest.raises(DataError, match="num-tasks is 201, expected at most 200"):
        pack_task(root, tmp_path / "out", options(), PackTask(0, 201))
    out, shares = tmp_path / "out", []
    for index in range(3):
        pack_task(root, out, options(), PackTask(index, 3))
        shares.append({*opened})
        opened.clear()
        if index == 0:
            with pytest.raises(DataError, match=r"task 1 of 3: 1 of 1 slides are missing.*svs"):
                merge(out)
    assert shares == [{"fine.svs"}, {f"{BARCODE}.svs"}, set()]
    pack_task(root, out, options(), PackTask(0, 3))
    with monkeypatch.context() as patched:
        patched.setattr(packing, "WorkerPool", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge(out)
    shutil.copytree(out, tmp_path / "copy")
    merge(out, workers=2)
    pack(root, tmp_path / "copy", options())
    assert not opened
    assert hashes(out) == hashes(tmp_path / "copy") == hashes(packed)


def test_bad_patches_of_a_task_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "SHEET_SIDE", 100)  # from the level that is not broken
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide(), reductions=(1, 4))
    slides.break_tile(tmp_path / "root/a.svs", 4, 5)
    with pytest.raises(DataError, match=r"(?s)4 files.*a\.svs.*cannot be decoded"):
        pack_task(tmp_path / "root", tmp_path / "out", options(), PackTask(0, 1))
    with pytest.raises(DataError, match="4 files"):
        merge(tmp_path / "out")
    assert merge(tmp_path / "out", skip_bad=4).splits["train"].count == 116


def test_an_interrupted_pack_does_not_cut_a_finished_slide_again(
    root: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, opened = staging._stage, []

    def interrupted(handle: int, handles: Any, region: Any) -> None:
        opened.append(region.path)
        if stops and region.path.endswith("fine.svs"):
            raise KeyboardInterrupt
        cut(handle, handles, region)

    stops = True
    monkeypatch.setattr(staging, "_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path / "out", options())
    assert (tmp_path / "out/.staged").exists() and not (tmp_path / "out/dataset.json").exists()
    stops = False
    opened.clear()
    pack(root, tmp_path / "out", options())
    assert {*opened} == {"2e/fine.svs"}
    assert hashes(tmp_path / "out") == hashes(packed)


def hashes(out: Path) -> dict[str, str]:
    (copy := out.with_name(f"{out.name}-files")).mkdir(exist_ok=True)
    for path in out.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    return file_hashes(copy)


def test_other_options_do_not_use_what_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    slides.write_slide(root / "a.svs", slides.tissue_slide())
    with monkeypatch.context() as patched:
        patched.setattr(staging, "refuse_change", lambda path, patch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(root, tmp_path / "out", options())
    with pytest.raises(DataError, match="unfinished pack"):
        pack(root, tmp_path / "out", options(stride=48))
    pack(root, tmp_path / "out", options(stride=48, overwrite=True))
    pack(root, tmp_path / "new", options(stride=48))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "new")


def test_a_broken_slide_and_a_broken_tile_cost_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "SHEET_SIDE", 100)  # from the level that is not broken
    root = tmp_path / "root"
    (root / "broken").mkdir(parents=True)
    (root / "broken" / "zero.svs").write_bytes(b"II*\0")
    slides.write_slide(root / "a.svs", slides.tissue_slide(), reductions=(1, 4))
    slides.break_tile(root / "a.svs", 4, 5)  # rows 256 to 320, columns 320 to 384
    slides.write_slide(root / "b.svs", slides.tissue_slide(seed=1))
    with pytest.raises(DataError, match=r"broken/zero\.svs.*OpenSlide: "):
        pack(root, tmp_path / "out", options())
    assert table_of(tmp_path / "out")["zero"]["reason"].startswith("OpenSlide: ")
    metadata = pack(root, tmp_path / "out", options(skip_bad=10))
    skipped = metadata.provenance["skipped"]
    assert skipped["count"] == 5  # a file, and the four patches of the tile
    assert sum("cannot be decoded" in reason for _, reason in skipped["first"]) == 4
    corners = {(r["y"], r["x"]) for r in sidecar_rows(tmp_path / "out") if r["slide"] == "a"}
    assert len(corners) == 116 and (256, 320) not in corners and (256, 384) in corners
    assert sum(row["slide"] == "b" for row in sidecar_rows(tmp_path / "out")) == 120


def test_what_is_no_slide_has_its_reason_and_costs_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root := tmp_path / "root").mkdir()
    slides.write_slide(root / "good.svs", slides.tissue_slide())
    (root / "cut.svs").write_bytes(b"II*\0" + (4096).to_bytes(4, "little") + bytes(100))
    Image.fromarray(slides.glass(64, 64)).save(root / "photo.svs", "JPEG")
    grey, strips = slides.glass(64, 64)[..., 0], {"resolution": (2e4, 2e4), "resolutionunit": 3}
    for name, pixels in (("grey", grey), ("deep", slides.glass(64, 64).astype(np.uint16))):
        slides.tifffile.imwrite(root / f"{name}.tif", pixels, **strips)
    cmyk = np.dstack([slides.glass(64, 64), grey])
    slides.tifffile.imwrite(root / "cmyk.tif", cmyk, photometric="separated", **strips)
    metadata = pack(root, tmp_path / "out", options(skip_bad=9))
    assert metadata.splits["train"].count == 120
    reasons = {name: row["reason"] for name, row in table_of(tmp_path / "out").items()}
    for name, reason in {
        "cut": "no image in the TIFF",
        "photo": "not a TIFF file",
        "grey": "pixels are 1 x uint8 MINISBLACK",
        "deep": "pixels are 3 x uint16 RGB",
        "cmyk": "pixels are 4 x uint8 SEPARATED",
        "good": "",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons and not [r for r in caplog.records if r.name == "tifffile"]


def test_missing_microns_per_pixel_name_the_option(tmp_path: Path) -> None:
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide(), mpp=None)
    with pytest.raises(DataError, match=r"objective of 20x.*--mpp-of-slide"):
        pack(tmp_path / "root", tmp_path / "out", options())
    pack(tmp_path / "root", tmp_path / "out", options(mpp_of_slide=0.5))
    assert {row["mpp"] for row in sidecar_rows(tmp_path / "out")} == {0.5}


def test_a_manifest_lists_slides_with_their_labels_and_resolutions(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(
        "wsi,label,split,mpp,patient\n"
        f"1f/{BARCODE}.svs,tumor,train,0.4,P1\n2e/fine.svs,tumor,test,,P2\n"
    )
    from shards.sources.manifest import Columns

    listed = options(manifest=tmp_path / "list.csv", columns=Columns(path="wsi"))
    metadata = pack(root, tmp_path / "out", listed)
    assert metadata.classes == ["tumor"] and {*metadata.splits} == {"train", "test"}
    rows = [row for row in sidecar_rows(tmp_path / "out") if row["slide"] == BARCODE]
    assert {(row["patient"], row["mpp"]) for row in rows} == {("P1", 0.5)}
    assert rows and {row["x"] % 40 for row in rows} == {0}


def test_folders_are_classes_only_when_asked(root: Path, packed: Path, tmp_path: Path) -> None:
    metadata = pack(root, tmp_path / "out", options(layout="classes"))
    assert metadata.classes == ["1f", "2e"]
    assert json.loads((packed / "dataset.json").read_text())["classes"] == []


def test_splits_are_drawn_by_patient_or_slide(root: Path, tmp_path: Path) -> None:
    metadata = pack(root, tmp_path / "out", options(val=0.5))
    assert {*metadata.splits} == {"train", "val"}
    by_split = {
        (path.name.split("-")[0], slide)
        for path in (tmp_path / "out").glob("*.parquet")
        for slide in pq.read_table(path)["slide"].to_pylist()
    }
    assert len(by_split) == 2 and len({slide for _, slide in by_split}) == 2


def write_coords(path: Path, corners: Any, **attributes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("coords", data=np.array(corners, np.int64))
        for name, value in attributes.items():
            dataset.attrs[name] = value


TRIDENT = {
    "patch_size": 64,
    "patch_size_level0": 64,
    "level0_magnification": 20,
    "target_magnification": 20,
    "overlap": 32,
    "name": "a",
    "savetodir": "out",
    "level0_width": 800,
    "level0_height": 600,
}
CLAM = {"patch_size": 64, "patch_level": 0, "downsample": (1.0, 1.0), "level_dim": (800, 600)}


@pytest.mark.parametrize(
    ("name", "attributes"), [("patches/a_patches.h5", TRIDENT), ("a.h5", CLAM)]
)
@pytest.mark.parametrize("mpp", [None, 0.5])
def test_coordinates_of_other_tools_are_boxes(
    mpp: float | None, name: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide())
    write_coords(tmp_path / "h5" / name, [[0, 0], [32, 0], [760, 0]], **attributes)
    pack(tmp_path / "root", tmp_path / "out", options(mpp=mpp, coords=tmp_path / "h5"))
    corners = {(row["x"], row["y"]) for row in sidecar_rows(tmp_path / "out")}
    assert corners == {(x, y) for x in (0, 32, 64, 760) for y in (0, 32)}
    assert table_of(tmp_path / "out")["a"]["boxes"] == "3"


def test_coordinates_give_their_resolution(tmp_path: Path) -> None:
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide(), reductions=(1, 2))
    attributes = CLAM | {"patch_level": 1, "patch_size": 32, "level_dim": (400, 300)}
    write_coords(tmp_path / "a.h5", [[64, 64]], **attributes)
    pack(tmp_path / "root", tmp_path / "out", options(mpp=None, coords=tmp_path / "a.h5"))
    (row,) = sidecar_rows(tmp_path / "out")
    assert (row["x"], row["y"], row["mpp"]) == (64, 64, 1.0)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (TRIDENT | {"level0_width": 801}, "another slide"),
        ({"patch_level": 0}, "patch_size of coords is None"),
        (CLAM | {"level_dim": (800, 601)}, "another slide"),
        (CLAM | {"patch_level": 7}, "no such level"),
        (CLAM | {"patch_size": 16}, "too small"),
        (None, "no coordinates"),
    ],
)
def test_coordinates_that_do_not_fit_are_refused(
    attributes: dict[str, Any] | None, reason: str, tmp_path: Path
) -> None:
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide())
    (tmp_path / "h5").mkdir()
    if attributes:
        write_coords(tmp_path / "h5/a.h5", [[0, 0]], **attributes)
    with pytest.raises(DataError, match=reason):
        pack(tmp_path / "root", tmp_path / "out", options(coords=tmp_path / "h5"))


def test_coordinates_in_another_file_are_not_followed(tmp_path: Path) -> None:
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide())
    write_coords(tmp_path / "other.h5", [[0, 0]], **CLAM)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "coords")
    with pytest.raises(DataError, match="no dataset coords"):
        pack(tmp_path / "root", tmp_path / "out", options(coords=tmp_path / "a.h5"))


@pytest.mark.parametrize("corner", [(0, 0), (40, 70)])  # of the scanned area, as QuPath crops it
def test_annotated_classes_become_labels_of_the_tissue_inside(
    corner: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slide, "bounds_corner", lambda _: corner)
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide())
    (tmp_path / "qupath").mkdir()
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x, 0], [x + 192, 0], [x + 192, 600], [x, 600], [x, 0]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for name, x in (("Tumor", 192 - corner[0]), ("Stroma", 384 - corner[0]))
    ]
    (tmp_path / "qupath/a.geojson").write_text(json.dumps({"features": features}))
    metadata = pack(tmp_path / "root", tmp_path / "out", options(annotations=tmp_path / "qupath"))
    assert metadata.classes == ["Stroma", "Tumor"]
    assert metadata.splits["train"].class_counts == [60, 60]
    labels = {(row["x"] >= 384, row["label"]) for row in sidecar_rows(tmp_path / "out")}
    assert labels == {(False, 1), (True, 0)}
    assert table_of(tmp_path / "out")["a"]["classes"] == "Stroma: 60, Tumor: 60"


def test_a_slide_that_changes_while_it_is_cut_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides.write_slide(tmp_path / "root/a.svs", slides.tissue_slide())
    cut = staging._stage

    def touched(handle: int, handles: Any, region: Any) -> None:
        cut(handle, handles, region)
        region.slide.touch()

    monkeypatch.setattr(staging, "_stage", touched)
    with pytest.raises(DataError, match=r"a\.svs changed while it was packed"):
        pack(tmp_path / "root", tmp_path / "out", options())


def test_a_slide_by_itself_is_a_source(root: Path, tmp_path: Path) -> None:
    slide = root / "1f" / f"{BARCODE}.svs"
    pack(slide, tmp_path / "out", options())
    assert len(sidecar_rows(tmp_path / "out")) == 120
    with pytest.raises(DataError, match=r"--mpp 0\.5"):
        pack(slide, tmp_path / "other", PackOptions(workers=1))


def test_options_about_slides_need_slides() -> None:
    for wrong in ({"stride": 16}, {"mpp_of_slide": 0.5}, {"mpp": 300}, {"mpp": 0.5, "stride": 0}):
        with pytest.raises(ValueError, match=r"slides: give --mpp|expected"):
            SlideOptions(**wrong)  # type: ignore[arg-type]
    for changes in ({"convert": "tile"}, {"png": "keep"}, {"layout": "flat"}):
        with pytest.raises(ValueError, match="slides"):
            options(**changes)


@pytest.mark.realdata
def test_a_real_slide(tmp_path: Path) -> None:
    from tests.helpers.patches import real_archive

    slide = real_archive("CMU-1-Small-Region.svs")
    pack(slide, tmp_path / "out", options())
    (row,) = table_of(tmp_path / "out").values()
    assert (row["mpp"], row["width"], row["height"]) == ("0.499", "2220", "2967")
    assert 2000 < int(row["patches"]) < 2600
    mean = json.loads((tmp_path / "out/dataset.json").read_text())["channel_mean"]
    assert mean[0] > mean[2] > mean[1] and max(mean) < 0.85  # pink and purple, no glass
