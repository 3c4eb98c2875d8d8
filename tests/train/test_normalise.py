"""Runs that normalise the staining of patches: training, resuming, evaluation and embedding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from common.files import read_json
from eval.config import EmbedOptions, EvalConfig, TransferConfig
from eval.embedding import embed
from eval.encoder import load
from eval.evaluation import embed_splits
from eval.features import read_embeddings
from eval.measure.probe import Labelled, fit
from eval.run import STAIN, load_info, load_stain
from eval.session import open_run
from eval.transfer.results import load_transfer
from eval.transfer.transfer import transfer
from models.config import ExportOptions
from models.export.encoder import export
from pipeline.index import Dataset, open_dataset
from pipeline.reader import read_split
from pipeline.units import fit_dataset, normalised
from tests.helpers.messages import collected_messages
from tests.helpers.patches import packed_sites
from tests.helpers.trained_runs import read_parts
from tests.helpers.training import newest_tensors, same_tensors
from train import main as command
from train import program

pytestmark = pytest.mark.usefixtures("main_in_process")

COMMON = [
    *("--batch-size", "16", "--storage", "stream", "--loop.validations", "1"),
    *("--loop.checkpoints", "2", "--track"),
]


def main(data: Path, run: Path, images: int, *more: str) -> int:
    places = ["--data", str(data), "--out", str(run), "--images", str(images)]
    return command.main(["dvae", *places, "--normalise", "slide", *COMMON, *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(data, folder, 64) == program.DONE
    return folder


def test_a_run_records_how_it_normalises(run: Path, data: Path) -> None:
    table = load_stain(run)
    assert table == fit_dataset(open_dataset(data), "slide")
    assert load_info(run).normalisation == table.normalisation
    text = (run / STAIN).read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True)


def test_training_sees_normalised_patches(run: Path, data: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    assert main(data, plain, 64, "--normalise", "none") == program.DONE
    assert not (plain / STAIN).exists() and load_info(plain).normalisation is None
    assert not same_tensors(newest_tensors(run), newest_tensors(plain))
    assert "normalisation" not in (plain / "snapshot/config.json").read_text()


def test_data_without_the_units_is_refused_before_a_run_begins(
    small_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(small_dataset, tmp_path / "run", 64, "--normalise", "site") == 2
    assert f"{small_dataset} names no site, but the option normalise" in capfd.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_a_resumed_run_continues_with_its_statistics(
    run: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resumed = tmp_path / "run"
    shutil.copytree(run, resumed)
    (newest,) = sorted((resumed / "checkpoints").glob("0*"))[-1:]
    shutil.rmtree(newest)
    assert main(data, resumed, 64, "--resume") == program.DONE
    assert same_tensors(newest_tensors(run), newest_tensors(resumed))
    assert main(data, resumed, 64, "--resume", "--normalise", "site") == 2
    assert "config.normalise: slide -> site" in capfd.readouterr().err
    table = read_json(resumed / STAIN)
    table["units"].popitem()
    (resumed / STAIN).write_text(json.dumps(table))
    assert main(data, resumed, 64, "--resume") == 2
    assert "statistics of staining are of the data set" in capfd.readouterr().err


def test_evaluation_and_embedding_see_the_patches_of_training(
    run: Path, data: Path, tmp_path: Path
) -> None:
    session = open_run(run, None, EvalConfig(device="cpu"))
    moved = normalised(open_dataset(data), load_stain(run))
    pixels = {name: read_split(split) for name, split in moved.splits.items()}
    for name, split in session.splits.items():
        assert np.array_equal(read_split(split), pixels[name])
    embed_splits(session)
    of_test, rows = read_embeddings(run / "embeddings" / "test.parquet")
    expected = load(run, "cpu").embed(pixels["test"])
    np.testing.assert_allclose(of_test, expected, atol=1e-5)
    by_path = dict(zip(rows["path"].to_pylist(), of_test, strict=True))
    for name in (run, run / "snapshot"):  # the snapshot by itself measures the units again
        vectors, paths = read_parts(embed(name, data, EmbedOptions(out=tmp_path / name.name)))
        at = [i for i, path in enumerate(paths) if path in by_path]
        np.testing.assert_allclose(vectors[at], [by_path[paths[i]] for i in at], atol=1e-5)


def test_a_new_data_set_is_moved_to_the_target_of_the_run(run: Path, tmp_path: Path) -> None:
    other = packed_sites(tmp_path / "other", seed=7)
    session = open_run(run, other, EvalConfig(device="cpu"))
    info = load_info(run)
    assert info.normalisation is not None
    table = fit_dataset(open_dataset(other), "slide", info.normalisation.target)
    expected = normalised(open_dataset(other), table).split("val")
    assert np.array_equal(read_split(session.splits["val"]), read_split(expected))
    without = packed_sites(tmp_path / "without", columns=("site",))
    with pytest.raises(DataError, match="names no slide"):
        embed(run, without, EmbedOptions(out=tmp_path / "out"))


def nan(raw: dict[str, Any]) -> None:
    raw["units"]["site north"]["mean"][0] = float("nan")


def no_spread(raw: dict[str, Any]) -> None:
    raw["normalisation"]["target"]["deviation"][1] = 0


def two_channels(raw: dict[str, Any]) -> None:
    raw["units"]["site north"]["mean"].pop()


def text_for_number(raw: dict[str, Any]) -> None:
    raw["units"]["site north"]["deviation"][2] = "1"


def other_unit(raw: dict[str, Any]) -> None:
    raw["normalisation"]["unit"] = "patient"


def list_of_units(raw: dict[str, Any]) -> None:
    raw["units"] = [*raw["units"].values()]


def odd_name(raw: dict[str, Any]) -> None:
    raw["units"]["\x00\n" * 1000] = raw["units"].pop("site north")


def other_target(raw: dict[str, Any]) -> None:
    raw["normalisation"]["target"]["mean"][0] = 1.0


HOSTILE = [
    (nan, "mean nan"),
    (no_spread, "deviation 0"),
    (two_channels, "length 3"),
    (text_for_number, "Expected `float`, got `str`"),
    (other_unit, "Invalid enum value 'patient'"),
    (list_of_units, "Expected `object`, got `array`"),
    (odd_name, "are of the data set"),
    (other_target, "is of another run than its snapshot"),
]


@pytest.mark.parametrize(("damage", "message"), HOSTILE, ids=lambda value: str(value))
def test_a_hostile_table_is_refused(
    damage: Callable[[dict[str, Any]], None], message: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    raw = read_json(run / STAIN)  # without the checksum, which an attacker writes anew
    damage(raw)
    (tmp_path / "run" / STAIN).write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message) as refused:
        open_run(tmp_path / "run", None, EvalConfig(device="cpu"))
    assert len(str(refused.value)) < 1000


def labelled(run: Path, dataset: Dataset, split: str) -> Labelled:
    features = load(run, "cpu").embed(read_split(dataset.split(split)))
    return Labelled(features, dataset.split(split).labels)


def test_a_transfer_sees_the_patches_of_training(run: Path, data: Path, tmp_path: Path) -> None:
    config = TransferConfig(stain=("none", "source"), baselines=("mean_rgb",), device="cpu")
    other = packed_sites(tmp_path / "other", seed=7)
    results = transfer([run], [data, other], tmp_path / "out", config)
    stains = {(row.features, row.stain) for row in results.matrix}
    assert stains == {("mean", "none"), ("mean_rgb", "none"), ("mean_rgb", "source")}
    assert any("normalises staining itself" in notice for notice in results.notices)
    moved = normalised(open_dataset(data), load_stain(run))
    features = load(run, "cpu").embed(read_split(moved.split("test")))
    labels = moved.split("test").labels
    probe = fit(*(labelled(run, moved, split) for split in ("train", "val")))
    row = next(row for row in results.matrix if row.features == "mean")  # from data to itself
    assert row.auroc == pytest.approx(probe.test(Labelled(features, labels)).auroc, abs=1e-3)
    assert load_transfer(tmp_path / "out").runs["run"].normalisation == load_info(run).normalisation


def test_an_exported_graph_leaves_normalisation_out(run: Path, tmp_path: Path) -> None:
    with collected_messages() as messages:
        export(run, ExportOptions(to=("torch-export",), out=tmp_path))
    assert any("which the exported graph leaves out" in message for message in messages)
