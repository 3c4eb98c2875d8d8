"""Normalisation of staining: units and their statistics, and patches that are read normalised."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from pipeline import normalisation, stain
from pipeline.index import Dataset, open_dataset
from pipeline.loader import STORES, Loader
from pipeline.normalisation import Normaliser, Statistics, Unit, statistics
from pipeline.pixels import to_float
from pipeline.reader import read_batches, read_split
from pipeline.units import MOST, WHOLE, fit_dataset, normalised, units_of
from tests.helpers.patches import packed_sites

CPU = torch.device("cpu")
STORAGES = sorted(STORES.keys() - {"device"})
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(packed_sites(tmp_path_factory.mktemp("sites")))


def by_site(dataset: Dataset, split: str) -> dict[str, np.ndarray]:
    """The patches of both sites in the order of their paths: the same tissue row by row."""
    table, pixels = dataset.split(split).columns(["site", "path"]), read_split(dataset.split(split))
    sites, paths = (np.array(table[name].to_pylist()) for name in ("site", "path"))
    columns = np.array([int(path.rpartition("_x")[2][:-4]) for path in paths])
    return {
        site: pixels[(rows := np.flatnonzero(sites == site))[np.argsort(columns[rows])]]
        for site in ("north", "south")
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_statistics_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "CHUNK", 7)
    whole = stain.statistics(to_float(torch.from_numpy(PIXELS).permute(0, 3, 1, 2)))
    actual = statistics(PIXELS)
    for values, expected in zip((actual.mean, actual.deviation), whole, strict=True):
        torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-5, atol=1e-4)


def test_units_are_moved_apart_and_never_patch_by_patch() -> None:
    rng = np.random.default_rng(0)
    light = rng.integers(100, 200, (6, 32, 32, 3), np.uint8)
    dark = (light * 0.6).astype(np.uint8)
    moved, every = np.stack([light, dark], 1).reshape(-1, 32, 32, 3), np.arange(12)
    units = [statistics(light), statistics(dark)]
    Normaliser(np.array([0, 1] * 6, np.int32), units, units[0]).apply(moved, every)
    assert np.abs(moved[::2].astype(int) - light).max() <= 1  # onto itself
    assert distance(moved[1::2], light) < 0.2 * distance(dark, light)
    # a patch darker than its unit stays so: it is not normalised by itself
    light[0] = light[0] // 2
    Normaliser(np.zeros(6, np.int32), [statistics(light)], units[1]).apply(light, every[:6])
    assert light[0].mean() < 0.8 * light[1:].mean()


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_patch_is_normalised_alike_in_any_batch(size: int) -> None:
    units = [statistics(PIXELS[:10]), statistics(PIXELS[10:] // 2)]
    normaliser = Normaliser((np.arange(20) % 2).astype(np.int32), units, units[1])
    whole = PIXELS.copy()
    normaliser.apply(whole, np.arange(20))
    for first in range(0, 20, size):
        rows = np.arange(first, min(first + size, 20))
        part = PIXELS[rows].copy()
        normaliser.apply(part, rows)
        assert np.array_equal(part, whole[rows])


@pytest.mark.parametrize("unit", ["site", "slide", "source"])
def test_sites_of_equal_tissue_become_alike(unit: Unit, dataset: Dataset) -> None:
    moved = normalised(dataset, fit_dataset(dataset, unit))
    for split in ("train", "val", "test"):
        before, after = by_site(dataset, split), by_site(moved, split)
        apart = distance(before["north"], before["south"])
        assert apart > 20 and distance(after["north"], after["south"]) < 0.3 * apart


def test_the_target_is_the_train_split(dataset: Dataset) -> None:
    table = fit_dataset(dataset, "slide")
    assert table.normalisation.target == statistics(read_split(dataset.split("train")))
    moved = statistics(read_split(normalised(dataset, table).split("train")))
    np.testing.assert_allclose(moved.mean, table.normalisation.target.mean, atol=1)
    assert table == fit_dataset(dataset, "slide")
    other = Statistics((50.0, 10.0, -10.0), (10.0, 5.0, 5.0))
    assert fit_dataset(dataset, "slide", other).normalisation.target == other


def test_a_small_unit_uses_its_site(dataset: Dataset) -> None:
    tables = {name: split.columns(["slide", "site"]) for name, split in dataset.splits.items()}
    units = units_of(tables, "slide")
    names = np.array(units.names)[units.codes["train"]]
    pairs = set(zip(tables["train"]["slide"].to_pylist(), names.tolist(), strict=True))
    assert ("north-train-0", "site north") in pairs  # 2 patches
    assert ("north-train-1", "slide north-train-1") in pairs
    few = {name: table.slice(0, 7) for name, table in tables.items() if name == "train"}
    assert units_of(few, "slide").names == [WHOLE]


def test_a_large_unit_is_sampled_evenly(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST, "site", 8)
    sites = np.array(dataset.split("train").columns(["site"])["site"].to_pylist())
    rows = np.flatnonzero(sites == "south")[::3]
    expected = statistics(read_split(dataset.split("train"), rows))
    assert fit_dataset(dataset, "site").units["site south"] == expected


@pytest.mark.parametrize("storage", STORAGES)
def test_all_ways_of_reading_give_the_same_bytes(storage: str, dataset: Dataset) -> None:
    moved = normalised(dataset, fit_dataset(dataset, "slide"))
    split = moved.split("train")
    pixels = read_split(split)
    assert distance(pixels, read_split(dataset.split("train"))) > 3
    assert np.array_equal(np.concatenate(list(read_batches(split))), pixels)
    for batch in Loader(split, 7, 0, CPU, storage).batches(0, len(split)):
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels[batch.indices])


def test_a_data_set_without_the_units_is_refused(tmp_path: Path) -> None:
    dataset = open_dataset(packed_sites(tmp_path, columns=("site",)))
    with pytest.raises(DataError, match=f"{dataset.root} names no slide.*normalise slide"):
        fit_dataset(dataset, "slide")
    table = fit_dataset(dataset, "site")
    assert set(table.units) == {"site north", "site south"}
    with pytest.raises(DataError, match="are of the data set 0000"):
        normalised(dataset, replace(table, dataset_hash="0" * 16))
    with pytest.raises(DataError, match="with 1 units, not of"):
        normalised(dataset, replace(table, units={"site north": table.units["site north"]}))
