"""Embeddings from elsewhere: any form gives the probes of the run they came from, or a refusal.

The kind of slides' names: with the suffix of a slide file on either side, on both and not the same,
in other case; names with dots of their own; two slides that differ in the suffix alone; no match
at all.
"""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DataError
from common.files import read_json
from eval import external as command
from eval.config import EvalConfig, ExternalConfig
from eval.evaluation import evaluate
from eval.external_evaluation import equivariance, evaluate_embeddings, robustness_of
from eval.external_features import ExternalFeatures, match_samples, read_external
from eval.features import Features, read_embeddings, with_embeddings
from eval.measure import budgets, metrics
from eval.measure.scores import Condition, read_scores
from eval.report.report import write_report
from eval.results import as_json
from models import snapshot
from pipeline.index import Dataset, Split, open_dataset
from pipeline.pixels import to_float, to_tensor
from pipeline.reader import read_split
from tests.helpers.trained_runs import make_run

PROBES = ("logistic", "knn")
BASELINES = ("mean_rgb", "colour_grid")
CONFIG = ExternalConfig(BASELINES, PROBES)
QUICK = ExternalConfig(("mean_rgb",), ("logistic",), budgets=False)


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """Draw each label budget three times; `test_protocol` is about the draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "DRAWS", 3)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "dvae-s0", small_dataset)
    config = EvalConfig(BASELINES, PROBES, robustness=False, figures=False, readouts=("mean",))
    evaluate(folder, config=config)
    return folder


@pytest.fixture(scope="module")
def data(small_dataset: Path) -> Dataset:
    return open_dataset(small_dataset)


def embedded(run: Path, data: Dataset) -> tuple[pa.Table, Features]:
    """All rows in the order of the data set, and their embeddings."""
    splits = [read_embeddings(run / "embeddings" / f"{name}.parquet") for name in data.splits]
    return pa.concat_tables([rows for _, rows in splits]), np.concatenate([f for f, _ in splits])


def parquet(file: Path, vectors: Any, **columns: list[str]) -> Path:
    pq.write_table(with_embeddings(pa.table(columns), vectors), file)
    return file


def in_one_file(run: Path, data: Dataset, folder: Path, kind: str) -> Path:
    rows, vectors = embedded(run, data)
    mixed = np.random.default_rng(0).permutation(len(vectors))
    keys = [rows["key"].to_pylist()[i] for i in mixed]
    if kind == "run":
        return run / "embeddings"
    if kind == "npy":
        np.save(folder / "theirs.npy", vectors)
        return folder / "theirs.npy"
    if kind == "keys.h5":
        with h5py.File(folder / "theirs.h5", "w") as file:
            file["features"], file["keys"] = vectors[mixed][None], keys
        return folder / "theirs.h5"
    if kind == "lists":
        lists = pa.array(vectors[mixed].tolist(), pa.list_(pa.float64()))
        pq.write_table(pa.table({"key": keys, "embedding": lists}), folder / "theirs.parquet")
        return folder / "theirs.parquet"
    if kind == "paths":
        paths = [rows["path"].to_pylist()[i] for i in mixed]
        return parquet(folder / "theirs.parquet", vectors[mixed], path=paths)
    return _a_file_a_slide(data, vectors, folder / "slides")


def _a_file_a_slide(data: Dataset, vectors: Any, folder: Path) -> Path:
    table = pa.concat_tables([split.table for split in data.splits.values()])
    sources, places = table["source"].to_numpy(), np.stack([table["x"], table["y"]], 1)
    folder.mkdir()
    for source in set(sources):
        with h5py.File(folder / f"{source}.h5", "w") as file:
            file["features"] = vectors[sources == source]
            file["coords"] = places[sources == source]
    return folder


@pytest.mark.parametrize("kind", ["run", "npy", "keys.h5", "lists", "paths", "slides"])
def test_every_form_gives_the_probes_of_the_run(
    kind: str, run: Path, data: Dataset, tmp_path: Path
) -> None:
    features = in_one_file(run, data, tmp_path, kind)
    out, config = tmp_path / "out", CONFIG if kind == "run" else QUICK
    results = as_json(evaluate_embeddings(features, data.root, "theirs", out, config))
    expected = json.loads((run / "results.json").read_text())
    for name in ("mean", *config.baselines):
        assert results["probe"][name] == expected["probe"][name]
        if kind == "run":
            assert results["other_probes"][name] == expected["other_probes"][name]
            assert results["budgets"][name] == expected["budgets"][name]
    assert results["protocol"]["splits"] == expected["protocol"]["splits"]
    assert read_json(out / "results.json") == results
    assert "robustness" not in results and any("no encoder" in n for n in results["notices"])
    ours, _ = read_scores(run / "scores.parquet")
    theirs, facts = read_scores(out / "scores.parquet")
    assert theirs.rows.equals(ours.rows)
    for condition, scores in theirs.scores.items():
        np.testing.assert_array_equal(scores, ours.scores[condition])
    assert (
        Condition("mean", budget="k=1", draw=budgets.DRAWS - 1) in theirs.scores
    ) is config.budgets
    assert facts == {
        "snapshot_xxh3": results["model"]["snapshot"],
        "dataset_hash": data.hash,
        "image_limits": f"None embedded, {config.probe_images} probed",
    }


def test_the_report_puts_them_beside_runs(run: Path, data: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "theirs"
    evaluate_embeddings(run / "embeddings", data.root, "theirs", out, QUICK)
    text = write_report([run, out], tmp_path / "report").read_text()
    assert "theirs" in text and "not measured" in text


def test_embeddings_of_other_patches_too_are_counted(
    run: Path, data: Dataset, tmp_path: Path
) -> None:
    rows, vectors = embedded(run, data)
    keys = [*rows["key"].to_pylist(), "elsewhere"]
    more = np.concatenate([vectors, vectors[:1]])
    features = parquet(tmp_path / "theirs.parquet", more, key=keys)
    results = evaluate_embeddings(features, data.root, "theirs", tmp_path / "out", QUICK)
    assert any(notice.startswith("1 embeddings") for notice in results.notices)


def test_wrong_rows_are_refused_by_name(run: Path, data: Dataset, tmp_path: Path) -> None:
    rows, vectors = embedded(run, data)
    keys, paths = rows["key"].to_pylist(), rows["path"].to_pylist()
    broken = vectors.copy()
    broken[5, 7] = np.nan
    twice = [*keys[:-1], keys[3]]
    swapped = [paths[1], paths[0], *paths[2:]]
    wrong: list[tuple[str, dict[str, list[str]], Any]] = [
        (
            rf"2 of 80 patches .* no embedding \(the first: {keys[0]}",
            {"key": keys[2:]},
            vectors[2:],
        ),
        (rf"1 patches have several .*{keys[3]}", {"key": twice}, vectors),
        (rf"1 embeddings of .* not finite \({keys[5]}", {"key": keys}, broken),
        (r"2 of 80 patches .* no embedding", {"key": keys, "path": swapped}, vectors),
        (r"needs embedding, and key or path", {"name": keys}, vectors),
    ]
    for number, (message, names, values) in enumerate(wrong):
        features = parquet(tmp_path / f"{number}.parquet", values, **names)
        with pytest.raises(DataError, match=message):
            evaluate_embeddings(features, data.root, "theirs", tmp_path / "out", CONFIG)
    np.save(tmp_path / "short.npy", vectors[1:])
    with pytest.raises(DataError, match="79 embeddings for the 80 patches"):
        evaluate_embeddings(tmp_path / "short.npy", data.root, "x", tmp_path / "o", CONFIG)
    assert not (tmp_path / "out").exists()


def header(text: str, version: int = 1, claimed: int | None = None) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", claimed or len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def saved(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 384), }\n"
NPY = {
    "not one": (b"hello", "not a .npy"),
    "objects": (saved(np.array([[None]])), "object|not a .npy"),
    "integers": (saved(np.zeros((3, 4), int)), "int64"),
    "one dimension": (saved(np.zeros(3)), r"\(3,\)"),
    "truncated": (saved(np.zeros((3, 4)))[:-1], "truncated"),
    "claims a terabyte": (header(HUGE), "truncated"),
    "claims a header of 4 GB": (header("{", 2, 2**32 - 1), "not a .npy"),
}


@pytest.mark.parametrize("name", NPY)
def test_npy_files_that_lie_are_refused(name: str, tmp_path: Path) -> None:
    content, message = NPY[name]
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        read_external(tmp_path / "x.npy")
    assert "x.npy" in str(refused.value)


def test_npy_in_the_order_of_paths_is_not_taken_for_that_of_the_shards(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.zeros((3, 4)))
    (tmp_path / "part-00000.parquet").touch()
    with pytest.raises(DataError, match="order of paths"):
        read_external(tmp_path / "embeddings.npy")


SUFFIXES = {  # of the data, of the embeddings
    "theirs without": (".svs", ""),
    "ours without": ("", ".svs"),
    "two kinds": (".ome.tif", ".SVS"),
    "dots": (".a1b2.svs", ".a1b2"),
    "the same": (".xyz", ".xyz"),
}
PATHS = {  # of the data, of the embeddings
    "without suffix": ("train/A/1.png", "train/A/1"),
    "another suffix": ("train/A/1.png", "train/A/1.jpg"),
    "absolute": ("train/A/1.png", "/data/raw/train/A/1.png"),
    "names of files": ("train/A/1.png", "1.png"),
    "case": ("train/A/1.png", "TRAIN/A/1.PNG"),
    "Windows": ("train/A/1.png", "D:\\raw\\train\\A\\1.png"),
    "./": ("train/A/1.png", "./train/A/1.png"),
    "Unicode form": ("train/\u00e9/1.png", "train/e\u0301/1.png"),
}


def split_of(slides: list[str]) -> Split:
    table = pa.table(
        {
            "key": [f"s{i}" for i in range(len(slides))],
            "slide": pa.array(slides, pa.string()),
            "source": slides,
            "path": slides,
            "x": [0] * len(slides),
            "y": [0] * len(slides),
        }
    )
    return cast(Split, SimpleNamespace(table=table, keys=lambda rows: rows))


def match(ours: list[str], theirs: list[str], by: str = "slide and place") -> list[float]:
    """The embedding of each of our slides or paths; theirs are numbered."""
    vectors = np.arange(len(theirs), dtype=np.float32)[:, None]
    names = [name if by == "path" else (name, 0, 0) for name in theirs]
    external = ExternalFeatures(vectors, names, by)
    data = SimpleNamespace(root="data", splits={"train": split_of(ours)})
    embedded, _ = match_samples(external, cast(Dataset, data), ["train"])
    return cast(list[float], embedded["train"][:, 0].tolist())


@pytest.mark.parametrize("case", SUFFIXES)
def test_slides_are_joined_with_and_without_suffix(case: str) -> None:
    ours, theirs = SUFFIXES[case]
    assert match([f"X{ours}", f"Y{ours}"], [f"Y{theirs}", f"X{theirs}"]) == [1, 0]


def test_slides_that_differ_in_the_suffix_alone_are_told_apart_or_refused() -> None:
    assert match(["X.svs", "X.tif"], ["X.tif", "X.svs"]) == [1, 0]
    with pytest.raises(DataError, match=r"'X' fit the slides 'X\.svs' and 'X\.tif'"):
        match(["X.svs", "X.tif"], ["X"])
    with pytest.raises(DataError, match="several embeddings"):
        match(["X.svs"], ["X", "X.tif"])


def test_slides_are_joined_in_other_case_and_with_folders_in_front() -> None:
    assert match(["X1.svs", "Y.svs"], ["y", "/slides/x1.SVS"]) == [1, 0]


@pytest.mark.parametrize("case", PATHS)
def test_paths_are_joined_in_another_spelling(case: str) -> None:
    ours, theirs = PATHS[case]
    others = ["test/B/2.png", theirs.replace("1", "3"), theirs]
    assert match([ours, "test/B/2.png"], others, "path") == [2, 0]


def test_paths_that_fit_two_patches_or_none_are_refused() -> None:
    with pytest.raises(DataError, match=r"have no embedding.* first embeddings are of 1\.png"):
        match(["train/A/1.png", "train/B/1.png"], ["1.png", "1"], "path")
    with pytest.raises(DataError, match="have no embedding"):
        match(["train/A/1.png"], ["val/A/1.png"], "path")
    with pytest.raises(DataError, match="several embeddings"):
        match(["train/A/1.png"], ["A/1.png", "1.png"], "path")


def test_names_that_do_not_match_are_shown_of_both_sides() -> None:
    with pytest.raises(DataError, match=r"first: \('X\.svs', 0, 0\)\); the first .* of \('Q\.a1'"):
        match(["X.svs"], ["Q.a1"])


def test_h5_files_that_point_elsewhere_or_claim_too_much_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["features"] = np.ones((2, 3))
    (tmp_path / "secret.bin").write_bytes(bytes(48))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink("secret.h5", "features")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        stored = [(str(tmp_path / "secret.bin"), 0, 48)]
        file.create_dataset("features", (2, 3), "f8", external=stored)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("features", (2**30, 384), "f4", chunks=(1024, 384))
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["other"] = np.ones(3)
    messages = {"link": "link", "raw": "not an array in", "bomb": "far more", "none": "missing"}
    for name, message in messages.items():
        with pytest.raises(DataError, match=message) as refused:
            read_external(tmp_path / f"{name}.h5")
        assert f"{name}.h5" in str(refused.value)


@pytest.mark.parametrize("name", ["no.npy", "x.csv", "."])
def test_what_is_no_file_of_embeddings_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    with pytest.raises(DataError, match=r"does not exist|no \.parquet"):
        read_external(tmp_path / name)


def test_the_command(
    run: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval.external", str(run / "embeddings"), "--data", str(data.root), "--name", "x"]
    words += ["--out", str(tmp_path), "--probes", "logistic", "--no-budgets", "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--baselines", "mean_rgb"])
    assert command.main() == 0
    assert read_scores(tmp_path / "scores.parquet")[0].scores.keys() == {
        Condition("mean"),
        Condition("mean_rgb"),
    }
    monkeypatch.setattr("sys.argv", [*words, "--baselines", "random_init"])
    assert command.main() == 2


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


def pooled(pixels: Any) -> Any:
    """Exactly equivariant: (n, 3, 4, 4)."""
    return pixels.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255


def test_equivariance_of_grids_and_of_vectors() -> None:
    assert equivariance(pooled, PIXELS).error < 1e-6
    assert equivariance(lambda p: pooled(p).mean((2, 3)), PIXELS).error < 1e-6
    flat = equivariance(lambda p: pooled(p).reshape(len(p), -1), PIXELS)
    assert flat.error > 0.5 and set(flat.by_group) == {"D4", "C4"}
    # independently: sqrt(E |f(gx) - f(x)|^2 / (2 E |f - E f|^2)), for the quarter turn
    turned = pooled(np.rot90(PIXELS, 1, (1, 2))).reshape(40, -1)
    codes = pooled(PIXELS).reshape(40, -1)
    spread = 2 * np.square(codes - codes.mean(0)).sum()
    expected = np.sqrt(np.square(turned - codes).sum() / spread)
    assert flat.by_element["rotation 90"] == pytest.approx(expected, rel=1e-4)


def test_equivariance_and_robustness_are_those_of_the_evaluation(run: Path, data: Dataset) -> None:
    model = snapshot.load(run / "snapshot")

    def codes(pixels: Any) -> Any:
        images = to_float(to_tensor(pixels))
        with metrics.evaluating(model):
            return model.encoder(images).mean.numpy()

    pixels = read_split(data.split("test"))
    results = json.loads((run / "results.json").read_text())
    error = equivariance(codes, pixels).error
    assert error == pytest.approx(results["equivariance"]["error"], rel=1e-4)
    curves = robustness_of(codes, data.root, CONFIG)
    assert curves.clean == pytest.approx(results["probe"]["mean"]["auroc"], abs=1e-6)
    levels = curves.kinds["noise"].levels
    assert [level.severity for level in levels] == [1, 2, 3, 4, 5]
    assert all(level.psnr is None and level.input_psnr is None for level in levels)
