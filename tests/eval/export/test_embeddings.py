"""Embeddings for other programs hold the same numbers at the same places."""

import json
import resource
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DataError
from eval.config import ExportOptions
from eval.export.files import export
from eval.export.maps import bar_length
from eval.export.table import tile_side
from eval.features import Features, with_embeddings

SIDE = 64  # of a patch in pixels of the slide
SCALES = {"a.svs": 1.0, "b.svs": 9.0}


def write_table(folder: Path, placed: bool = True, cut: bool = False) -> Features:
    """Write embeddings of two slides of 3 x 4 touching tiles, files or `cut` from the slides."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(24, 5)).astype(np.float32)
    features[12:] += SCALES["b.svs"]
    x, y = (np.tile(v.ravel(), 2) * SIDE for v in np.mgrid[:3, :4])
    text = pa.nulls(24, pa.string())
    rows = pa.table(
        {
            "path": np.repeat(list(SCALES), 12) if cut else [f"{i:02d}.png" for i in range(24)],
            "source": ["a.svs"] * 12 + ["b.svs"] * 12,
            "slide": ["a.svs"] * 12 + ["b.svs"] * 12,
            "patient": ["P1"] * 24,
            "site": text,
            "x": pa.array(x, pa.int32()) if placed else pa.nulls(24, pa.int32()),
            "y": pa.array(y, pa.int32()),
            "mpp": pa.array([0.5] * 24, pa.float32()),
            "split": ["train"] * 24,
            "class": text,
        }
    )
    facts = {"readout": "mean", "snapshot_xxh3": "0" * 16, "dataset_hash": "1" * 16}
    folder.mkdir()
    table = with_embeddings(rows, features).replace_schema_metadata(facts)
    pq.write_table(table, folder / "part-00000.parquet")
    return features


def test_slides_are_pooled_and_hdf5_is_as_trident_writes_it(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs the extra h5")
    features = write_table(tmp_path / "embedded")
    export(tmp_path / "embedded", ExportOptions(tmp_path / "out", ("slides", "trident")))
    rows = pq.read_table(tmp_path / "out/slides.parquet").to_pylist()
    assert [(row["slide"], row["patient"], row["patches"]) for row in rows] == [
        ("a.svs", "P1", 12),
        ("b.svs", "P1", 12),
    ]
    np.testing.assert_allclose(rows[1]["mean"], features[12:].mean(0), rtol=1e-5)
    np.testing.assert_allclose(rows[1]["std"], features[12:].std(0), rtol=1e-5)
    with h5py.File(tmp_path / "out/trident/b.svs.h5") as file:
        np.testing.assert_array_equal(file["features"][:], features[12:])
        attributes = dict(file["coords"].attrs)
        assert file["features"].attrs["savetodir"] == str(tmp_path / "out/trident")
        assert file["coords"][:5].tolist() == [[0, 0], [0, 64], [0, 128], [0, 192], [64, 0]]
    assert attributes["patch_size_level0"] == SIDE and attributes["level0_magnification"] == 40


@pytest.mark.parametrize("name", ["trident", "h5ad"])
def test_a_full_disk_is_named(name: Literal["trident", "h5ad"], tmp_path: Path) -> None:
    pytest.importorskip({"trident": "h5py", "h5ad": "anndata"}[name], reason="needs an extra")
    write_table(tmp_path / "embedded")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large"):
            export(tmp_path / "embedded", ExportOptions(tmp_path / "out", (name,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_anndata_opens_with_places(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="needs the extra anndata")
    features = write_table(tmp_path / "embedded")
    contents = []
    for name in ("one", "two"):
        (path,) = export(tmp_path / "embedded", ExportOptions(tmp_path / name, ("h5ad",)))
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    data = anndata.read_h5ad(path)
    np.testing.assert_array_equal(data.X, features)
    assert data.obsm["spatial"][5].tolist() == [64, 64] and data.obs["slide"].iloc[-1] == "b.svs"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("placed", "names"),
    [(True, ["a.svs_x0_y0", "b.svs_x128_y192"]), (False, ["a.svs", "b.svs-11"])],
)
def test_patches_cut_from_one_file_have_names_of_their_own(
    placed: bool, names: list[str], tmp_path: Path
) -> None:
    anndata = pytest.importorskip("anndata", reason="needs the extra anndata")
    write_table(tmp_path / "embedded", placed, cut=True)
    (path,) = export(tmp_path / "embedded", ExportOptions(tmp_path / "out", ("h5ad",)))
    data = anndata.read_h5ad(path)
    assert data.obs_names.is_unique and [*data.obs_names[[0, -1]]] == names


def test_clusters_become_tiles_for_qupath_and_a_map(tmp_path: Path) -> None:
    write_table(tmp_path / "embedded")
    export(tmp_path / "embedded", ExportOptions(tmp_path / "out", clusters=2))
    names = []
    for slide in SCALES:
        text = (tmp_path / f"out/{slide}-clusters.geojson").read_text()
        tiles = json.loads(text)["features"]
        assert tiles[0]["properties"]["objectType"] == "tile"
        ring = tiles[0]["geometry"]["coordinates"][0]
        assert ring == [[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE], [0, 0]]
        names.append({tile["properties"]["classification"]["name"] for tile in tiles})
        assert (tmp_path / f"out/{slide}-clusters.png").is_file()
    assert sorted(map(list, names)) == [["cluster 1"], ["cluster 2"]]


def test_patches_without_places_cannot_be_drawn(tmp_path: Path) -> None:
    write_table(tmp_path / "embedded", placed=False)
    with pytest.raises(DataError, match="have no x and y"):
        export(tmp_path / "embedded", ExportOptions(tmp_path / "out", clusters=2))
    with pytest.raises(DataError, match="no part-"):
        export(tmp_path, ExportOptions(tmp_path / "out", clusters=2))


def test_sides_and_scale_bars() -> None:
    assert tile_side(np.array([[0, 0], [64, 0], [0, 128]])) == 64
    assert tile_side(np.array([[0, 0], [5, 7]])) == 32
    assert bar_length(500, 0.5) == (400, "200 µm")
    assert bar_length(99, None) == (50, "50 px")
