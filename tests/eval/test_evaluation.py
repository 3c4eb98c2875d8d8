"""A run's evaluation end to end: embeddings, results, figures, and the report over runs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common.errors import DataError
from common.files import read_json, without_checksum
from eval import main as command
from eval import run
from eval.config import EvalConfig
from eval.evaluation import evaluate
from eval.features import COLUMNS, read_embeddings
from eval.measure import budgets, readouts, robustness
from eval.measure.metrics import Symmetry
from eval.measure.probe import Labelled, fit
from eval.measure.scores import Condition, read_scores
from eval.report import __main__ as report_command
from eval.report.report import write_report
from eval.report.writers import escape_markdown as escape
from eval.results import as_json
from models import snapshot
from models.vae import build
from pipeline.corruptions import GRADED
from pipeline.index import Split, open_dataset
from pipeline.reader import read_split
from tests.helpers.trained_runs import COUNTS, SMALL, make_run, packed_noise

HOSTILE = "a|b<script>_*`[x](http://y)"
SPLITS = list(COUNTS)
PLAIN = EvalConfig(
    figures=False,
    baselines=(),
    readouts=("mean",),
    probes=("logistic",),
    budgets=False,
    robustness=False,
    orbit_probe=False,
)


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """Draw each label budget three times; `test_protocol` is about the draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budgets, "DRAWS", 3)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return packed_noise(folder, SPLITS, ["benign", HOSTILE.replace("/", "-")])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "eq-dvae-s0", data)
    evaluate(folder)
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    text = (folder / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    results: dict[str, Any] = without_checksum(json.loads(text), "results.json")
    return results


def test_baselines_meet_the_same_corrupted_patches(evaluated: Path, data: Path) -> None:
    def colours(pixels: Any, split: Split) -> Labelled:
        features = (pixels / np.float32(255)).mean((1, 2), dtype=np.float32)
        return Labelled(features, split.labels)

    train, val, test = (open_dataset(data).split(name) for name in ("train", "val", "test"))
    probe = fit(*(colours(read_split(split), split) for split in (train, val)), "logistic")
    pixels = read_split(test)
    curves = results_of(evaluated)["robustness"]["baselines"]
    assert set(curves) == set(readouts.BASELINES)
    for kind in GRADED:
        expected = [
            probe.test(colours(robustness.corrupted(pixels, kind, s), test)).auroc
            for s in range(1, 6)
        ]
        assert curves["mean_rgb"]["kinds"][kind] == pytest.approx(expected, abs=0.02)
    areas = [np.mean(kind) for kind in curves["mean_rgb"]["kinds"].values()]
    assert curves["mean_rgb"]["area"] == pytest.approx(np.mean(areas))
    book, _ = read_scores(evaluated / "scores.parquet")
    assert Condition("random_init", corruption="stain", severity=5) in book.scores


def test_one_probe_is_fitted_on_the_orbit_of_every_train_patch(evaluated: Path, data: Path) -> None:
    model = snapshot.load(evaluated / "snapshot")
    splits = {name: open_dataset(data).split(name) for name in ("train", "val", "test")}

    pixels = {name: read_split(split) for name, split in splits.items()}
    turned = [np.rot90(pixels["train"], k, (1, 2)) for k in range(4)]
    orbit = [view for image in turned for view in (image, image[:, :, ::-1])]
    features = np.concatenate(
        [readouts.embed_mean(model, np.ascontiguousarray(view)) for view in orbit]
    )
    train = Labelled(features, np.concatenate([splits["train"].labels] * 8))
    val, test = (
        Labelled(readouts.embed_mean(model, pixels[s]), splits[s].labels) for s in ("val", "test")
    )
    expected = fit(train, val, "logistic").test(test)
    scores = results_of(evaluated)["probe"]["mean_full_orbit"]
    assert (scores["n_train"], scores["n_test"]) == (8 * 48, 24)
    assert scores["setting"] == expected.setting
    assert scores["auroc"] == pytest.approx(expected.auroc, abs=0.01)


def test_results_are_complete_and_the_same_twice(evaluated: Path) -> None:
    first = results_of(evaluated)
    names = {"mean_full_orbit", *readouts.READOUTS}
    assert set(first["probe"]) == names | set(readouts.BASELINES)
    assert first["probe"]["pca384"]["dimensions"] == 48  # as many as there are train images
    assert first["probe"]["mean_rgb"]["auroc"] > 0.7  # the classes differ by their mean colour
    test = first["protocol"]["splits"]["test"]
    assert (test["patches"], test["groups"]) == (24, 6)
    assert test["classes"]["benign"] == {"patches": 12, "groups": 3}
    assert first["run"]["dataset_hash"] == first["data"]["hash"]
    assert first["notices"] == []
    assert first["protocol"]["groups_in_several_splits"] == {"source": 0}
    assert len(first["latent"]["kl_per_dimension"]) == 384
    errors = first["equivariance"]["by_readout"]
    assert set(errors) == set(readouts.READOUTS)
    assert errors["mean"]["error"] > 0.1 > 1e-4 > errors["orbit_aligned"]["error"]
    returned = evaluate(evaluated, config=EvalConfig(figures=False))
    second = results_of(evaluated)
    assert as_json(returned) == second
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_every_figure_is_drawn(evaluated: Path) -> None:
    for name in ("reconstructions", "orbit", "curves", "embedding"):
        with Image.open(evaluated / "figures" / f"{name}.png", formats=["PNG"]) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_embeddings_read_back_in_sample_order(evaluated: Path, data: Path) -> None:
    dataset, model = open_dataset(data), snapshot.load(evaluated / "snapshot")
    for name, split in dataset.splits.items():
        path = evaluated / "embeddings" / f"{name}.parquet"
        features, rows = read_embeddings(path)
        pixels = read_split(split)
        np.testing.assert_array_equal(features, readouts.embed_mean(model, pixels))
        assert rows["key"].to_pylist() == split.table["key"].to_pylist()
        assert rows["label"].to_pylist() == split.labels.tolist()
        assert rows.column_names == list(COLUMNS)
        schema = pq.read_schema(path)
        assert schema.field("embedding").type.list_size == 384
        assert schema.metadata[b"dataset_hash"].decode() == dataset.hash
        assert schema.metadata[b"snapshot_xxh3"].decode() == run.snapshot_hash(evaluated)
    pixels = read_split(dataset.split("val"))[:5]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    direct = model.encoder(x).mean.flatten(1).numpy()
    features = readouts.embed_mean(model, read_split(dataset.split("val")))
    np.testing.assert_allclose(features[:5], direct, rtol=1e-4, atol=1e-5)


def test_orbit_readouts_are_what_they_promise() -> None:
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoders: dict[readouts.Source, readouts.Encode] = {"mean": lambda v: F.avg_pool2d(v, 8)}
    pooled = readouts.readouts_of(encoders, x, readouts.READOUTS)
    torch.testing.assert_close(pooled["orbit_aligned"], pooled["mean"])
    model = build(SMALL, 0)
    with torch.no_grad():
        for group, element in (("D4", 6), ("C4", 1)):
            still, moved = (
                readouts.readouts_of(
                    readouts.encoders_of(model), v, readouts.READOUTS, Symmetry(group)
                )
                for v in (x, readouts.d4.act_one(x, element))
            )
            for name in ("orbit_invariant", "stage_stats_invariant"):
                torch.testing.assert_close(still[name], moved[name])
            assert not torch.allclose(still["mean"], moved["mean"], atol=1e-4)
            aligned = still["orbit_aligned"].unflatten(1, (24, 4, 4))
            expected = readouts.d4.act_one(aligned, element).flatten(1)
            torch.testing.assert_close(moved["orbit_aligned"], expected)
    stats = pooled["channel_stats"]
    cells = pooled["mean"].unflatten(1, (3, 16)).numpy()
    np.testing.assert_allclose(stats[:, :3], cells.mean(2), rtol=1e-5)
    np.testing.assert_allclose(stats[:, 3:], cells.std(2), rtol=1e-4)


def test_baselines_agree_with_their_definitions(data: Path) -> None:
    pixels, model = read_split(open_dataset(data).split("train")), build(SMALL, 5)
    features = {
        name: fit(pixels[:40], model)(pixels[40:]) for name, fit in readouts.BASELINES.items()
    }
    x = pixels[40:].astype(np.float64) / 255
    np.testing.assert_allclose(features["mean_rgb"], x.mean((1, 2)), rtol=1e-5)
    corner = features["colour_grid"].reshape(-1, 4, 4, 3)[:, 0, 3]
    np.testing.assert_allclose(corner, x[:, :8, 24:].mean((1, 2)), rtol=1e-5)
    assert features["pca384"].shape == (8, 40)
    untrained = build(SMALL, readouts.RANDOM_INIT_SEED)
    expected = readouts.embed_mean(untrained, pixels[40:])
    np.testing.assert_array_equal(features["random_init"], expected)
    assert {f.dtype for f in features.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("splits", "classes", "notice"),
    [
        (["train", "test"], ["a", "b"], "no val split"),
        (["train", "val"], ["a", "b"], "no test split"),
        (["train", "val", "test"], ["a"], "single class"),
    ],
)
def test_data_that_cannot_be_probed_gives_metrics_and_a_notice(
    tmp_path: Path, splits: list[str], classes: list[str], notice: str
) -> None:
    folder = make_run(tmp_path / "run", packed_noise(tmp_path, splits, classes))
    results = evaluate(folder, config=PLAIN)
    assert results.probe == {}
    assert any(notice in text for text in results.notices)
    assert results.protocol.metrics_split == ("test" if "test" in splits else "val")
    assert results_of(folder)["reconstruction"]["psnr"] > 0
    assert write_report([folder], tmp_path / "out").is_file()


def test_a_source_image_in_two_splits_is_said(tmp_path: Path) -> None:
    shards = packed_noise(tmp_path, SPLITS, ["a", "b"], leaking=True)
    results = evaluate(make_run(tmp_path / "run", shards), config=PLAIN)
    assert results.protocol.groups_in_several_splits == {"source": 6}
    assert any("source" in text and "split" in text for text in results.notices)


def test_another_data_set_and_an_autoencoder_are_said(tmp_path: Path, data: Path) -> None:
    folder = make_run(tmp_path / "ae-s0", data, dataset_hash="0" * 16, stochastic=False)
    results = evaluate(folder, data, PLAIN)
    assert any("0" * 16 in text for text in results.notices)
    assert any("autoencoder" in text for text in results.notices)
    assert results_of(folder)["latent"]["kl"] is None


def test_probes_of_a_large_split_use_a_seeded_subset(tmp_path: Path, data: Path) -> None:
    folder = make_run(tmp_path / "run", data)
    limits = replace(PLAIN, embed_images=40, probe_images=20, test_images=10)
    results = evaluate(folder, config=limits)
    assert results.probe["mean"].n_train == 20
    assert results.protocol.metrics_images == 10
    assert results.notices == ["train: embeddings of 40 random images of 48"]
    split, model = open_dataset(data).split("train"), snapshot.load(folder / "snapshot")
    features, rows = read_embeddings(folder / "embeddings" / "train.parquet")
    keys = split.table["key"].to_pylist()
    embedded = [keys.index(key) for key in rows["key"].to_pylist()]
    assert embedded == sorted(set(embedded))
    expected = readouts.embed_mean(model, read_split(split))[embedded]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("info", "message"),
    [({"group": "D5"}, "D5"), ({"stochastic": "yes"}, "stochastic"), ({"seed": "x"}, "seed|x")],
)
def test_a_snapshot_that_lies_is_refused(
    tmp_path: Path, data: Path, info: dict[str, Any], message: str
) -> None:
    folder = make_run(tmp_path / "run", data)
    path = folder / "snapshot" / "config.json"
    raw = read_json(path)
    raw["about"] |= info
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=message):
        evaluate(folder, config=PLAIN)


def test_commands_end_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["eval.main", str(tmp_path)])
    assert command.main() == 1
    monkeypatch.setattr("sys.argv", ["eval.report", str(tmp_path), "--out", str(tmp_path / "o")])
    assert report_command.main() == 1
    monkeypatch.setattr("sys.argv", ["eval.main", str(tmp_path), "--readouts", "median"])
    assert command.main() == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert f"python -m eval.main {tmp_path}" in lines[1]


def test_the_report_compares_runs_on_one_data_set_and_escapes_names(
    tmp_path: Path, evaluated: Path, data: Path
) -> None:
    folders = [evaluated, make_run(tmp_path / HOSTILE.replace("/", "-"), data, seed=1)]
    evaluate(folders[1], config=PLAIN)
    other = make_run(tmp_path / "other", data, seed=2)
    results = results_of(folders[1])
    results["data"]["hash"] = "f" * 16
    results["model"]["snapshot"] = run.snapshot_hash(other)
    (other / "results.json").write_text(json.dumps(results))
    path = write_report([*folders, other, folders[0]], tmp_path / "out")
    text = path.read_text()
    assert text.count("## Data set") == 2
    assert "Mean ± standard deviation over seeds" in text
    prose = "".join(text.split("```")[::2])  # a code block shows what is in it
    assert "<script>" not in prose
    assert escape(folders[1].name) in prose
    cells = [line.replace(r"\|", "").count("|") for line in prose.splitlines()]
    for above, below in pairwise(cells):  # rows of one table have equally many cells
        assert above == below or 0 in (above, below)
    pictures = [part.split(")")[0] for part in text.split("](figures/")[1:]]
    assert len(pictures) == len(set(pictures)) >= 8
    assert all((path.parent / "figures" / name).is_file() for name in pictures)
    auroc = results_of(evaluated)["probe"]["mean"]["auroc"]
    assert f"{auroc:.3f}" in text
    assert write_report([*folders, other, folders[0]], tmp_path / "two").read_text() == text


@pytest.mark.parametrize("name", ["a|b", "<img src=x>", "[x](y)", "`c`", "_x_ *y*", "a\nb\x00"])
def test_escaped_names_have_no_live_markup(name: str) -> None:
    safe = escape(name)
    assert "\n" not in safe
    assert "<" not in safe
    for i, char in enumerate(safe):
        if char in "|[]`_*":
            assert safe[i - 1] == "\\"
