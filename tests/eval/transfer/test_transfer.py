"""Probes carried between made sites: a signal that is the same, one that is not, other colours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from eval.measure.scores import Condition, read_scores
from eval.session import EvalConfig, Session
from eval.stats.contrasts import compare
from eval.transfer import __main__ as command
from eval.transfer.__main__ import BETWEEN, TransferConfig, encodings_of, transfer
from eval.transfer.sites import _site, places_of, short_names
from models.vae import ModelConfig, build
from pipeline.index import open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.eval.test_main import make_run, quiet

COUNTS = {"train": 40, "val": 24, "test": 48}  # a class; four patches a source image
PLAIN = TransferConfig(stain=("none",), baselines=("mean_rgb",))
Look = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def as_is(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return pixels


def pale(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Another staining: darker and pinker."""
    return pixels * np.array([0.95, 0.6, 0.75]) + np.array([10, 0, 5])


def patches(labels: NDArray[np.int64], rng: np.random.Generator, look: Look) -> list[Image.Image]:
    """The left half of a patch is lighter than the right, or darker: the mean colour is equal."""
    side = np.where(np.arange(32) < 16, 1.0, -1.0)[None, None, :, None]
    sign = np.where(labels == 1, 1.0, -1.0)[:, None, None, None]
    base = np.array([170.0, 120.0, 160.0]) + rng.normal(0, 4, (len(labels), 1, 1, 3))
    pixels = base + 25 * side * sign + rng.normal(0, 12, (len(labels), 32, 32, 3))
    return [Image.fromarray(p.clip(0, 255).astype(np.uint8)) for p in look(pixels)]


def site(
    folder: Path, seed: int, look: Look = as_is, signal: bool = True,
    classes: tuple[str, ...] = ("normal", "tumor"),
) -> Path:  # fmt: skip
    """A packed data set; without a signal the patches do not show their class."""
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        for label, name in enumerate(classes):
            shown = np.full(count, label) if signal else rng.integers(2, size=count)
            (folder / "raw" / split / name).mkdir(parents=True)
            for i, image in enumerate(patches(shown, rng, look)):
                file = f"{split}{label}{i // 4}__y0000_x{32 * (i % 4):04d}.png"
                image.save(folder / "raw" / split / name / file)
    pack(folder / "raw", folder / folder.name, PackOptions(workers=1))
    return folder / folder.name


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sites")
    return {
        "one": site(root / "one", 1),
        "two": site(root / "two", 2),
        "pale": site(root / "pale", 3, pale),
        "blind": site(root / "blind", 4, signal=False),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Path]) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "dvae-s0", sites["one"])


def auroc(rows: list[dict[str, Any]], **wanted: str) -> float:
    (row,) = [row for row in rows if wanted.items() <= row.items()]
    return float(row["auroc"])


def test_a_signal_is_carried_where_it_is_the_same(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    data = [sites["one"], sites["two"], sites["blind"]]
    found = transfer([run], data, tmp_path, PLAIN, quiet)
    assert {(r["train"], r["test"]) for r in found["matrix"]} == {
        (a, b) for a in ("one", "two", "blind") for b in ("one", "two", "blind")
    }
    rows = [row for row in found["matrix"] if row["features"] == "mean"]
    for train, test in (("one", "one"), ("one", "two"), ("two", "one")):
        assert auroc(rows, train=train, test=test) > 0.95
    assert abs(auroc(rows, train="one", test="blind") - 0.5) < 0.2
    assert abs(auroc(found["matrix"], features="mean_rgb", train="one", test="two") - 0.5) < 0.2
    (read,) = [row for row in found["site_probe"] if row["features"] == "mean"]
    assert read["data"] == BETWEEN and read["sites"] == ["blind", "one", "two"]
    assert read["chance_balanced_accuracy"] == pytest.approx(1 / 3)
    assert json.loads((tmp_path / "transfer.json").read_text()) == found
    text = (tmp_path / "transfer.md").read_text()
    assert f"{auroc(rows, train='one', test='two'):.3f}" in text
    # the scores give the same number, and an interval of a contrast on groups
    book, about = read_scores(tmp_path / "scores" / "dvae-s0" / "two.parquet")
    arms = {a: book.scores[Condition(a, "logistic", "train=one,stain=none")][None] for a in
            ("mean", "mean_rgb")}  # fmt: skip
    labels, groups = book.rows["label"].to_numpy(), np.array(book.rows["group"].to_pylist())
    contrast = compare(arms, labels, groups)
    expected = auroc(rows, train="one", test="two") - auroc(
        found["matrix"], features="mean_rgb", train="one", test="two"
    )
    assert contrast.difference.estimate == pytest.approx(expected, abs=1e-3)  # float32 ties
    assert contrast.difference.low is not None and contrast.difference.low > 0
    assert about["test"] == "two"


def test_a_planted_shift_is_read_off_and_normalisation_removes_it(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    config = TransferConfig(stain=("none", "site", "source"), baselines=("mean_rgb",))
    shifted = transfer([run], [sites["one"], sites["pale"]], tmp_path / "a", config, quiet)
    alike = transfer([run], [sites["one"], sites["two"]], tmp_path / "b", PLAIN, quiet)
    for features in ("mean", "mean_rgb"):
        of = {"features": features}
        assert auroc(shifted["site_probe"], **of, stain="none") > 0.98
        assert abs(auroc(shifted["site_probe"], **of, stain="site") - 0.5) < 0.2
        assert abs(auroc(alike["site_probe"], **of, stain="none") - 0.5) < 0.2
    for stained in ("site", "source"):  # and the signal stays
        rows = [row for row in shifted["matrix"] if row["stain"] == stained]
        assert auroc(rows, features="mean", train="one", test="pale") > 0.95
    # by site, the patches of the site itself do not change
    same = {"features": "mean", "train": "one", "test": "one"}
    by_stain = [auroc(shifted["matrix"], **same, stain=stained) for stained in ("none", "site")]
    assert by_stain[0] == by_stain[1]


def test_each_site_of_a_column_is_left_out(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    rows = ["path,label,split,site"]
    for name in ("one", "two", "blind"):
        for path in sorted((sites[name].parent / "raw").rglob("*.png")):
            split, label = path.parts[-3:-1]
            target = tmp_path / "raw" / f"{name}-{path.name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
            rows.append(f"{target.name},{label},{split},{name}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    options = PackOptions(workers=1, manifest=tmp_path / "table.csv")
    pack(tmp_path / "raw", tmp_path / "all", options)
    config = TransferConfig(stain=("none", "site"), baselines=("pca384",))
    found = transfer([run], [tmp_path / "all"], tmp_path / "out", config, quiet)
    for stained in ("none", "site"):
        of = {"stain": stained, "features": "mean"}
        assert auroc(found["left_out"], **of, site="one") > 0.9
        assert auroc(found["left_out"], **of, site="two") > 0.9
        assert abs(auroc(found["left_out"], **of, site="blind") - 0.5) < 0.2
        assert {r["site"] for r in found["left_out"]} == {"one", "two", "blind"}
    assert abs(auroc(found["site_probe"], features="mean", stain="none") - 0.5) < 0.2
    # what the probe without a site said of it is in the scores, one row a patch
    book, _ = read_scores(tmp_path / "out" / "scores" / "dvae-s0" / "all.parquet")
    scores = book.scores[Condition("mean", "logistic", "train=other sites,stain=none")]
    assert scores.shape == (3 * 2 * COUNTS["test"], 2)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)


def test_other_classes_and_a_single_site_are_refused(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    other = site(tmp_path / "other", 5, classes=("normal", "tumour"))
    with pytest.raises(DataError, match=r"only there: \['tumor', 'tumour'\]"):
        transfer([run], [sites["one"], other], tmp_path / "out", PLAIN, quiet)
    with pytest.raises(DataError, match="two data sets"):
        transfer([run], [sites["one"]], tmp_path / "out", PLAIN, quiet)
    with pytest.raises(DataError, match="named twice"):
        transfer([run], [sites["one"], sites["one"]], tmp_path / "out", PLAIN, quiet)
    assert not (tmp_path / "out").exists()


def test_the_command(
    sites: dict[str, Path], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = ["eval.transfer", str(run), "--data", str(sites["one"]), str(sites["two"])]
    words += ["--out", str(tmp_path), "--stain", "none", "--baselines", "mean_rgb"]
    monkeypatch.setattr("sys.argv", words)
    assert command.main() == 0
    assert (tmp_path / "transfer.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, "--baselines", "median"])
    assert command.main() == 2


def test_names_of_data_sets_are_short_and_differ() -> None:
    assert short_names([Path("/a/oral"), Path("/a/colon")]) == ["oral", "colon"]
    assert short_names([Path("/a/x/shards"), Path("/a/y/shards")]) == ["x-shards", "y-shards"]


def test_labels_count_the_classes_as_the_first_data_set_does(small_dataset: Path) -> None:
    session = Session(open_dataset(small_dataset), EvalConfig(), quiet)
    same = _site("a", session, ["normal", "tumor"])
    turned = _site("b", session, ["tumor", "normal"])
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(turned.rows.labels[split], 1 - same.rows.labels[split])
        table = turned.rows.tables[split]["label"].to_numpy()
        np.testing.assert_array_equal(table, turned.rows.labels[split])


def test_groups_of_an_earlier_split_are_left_out_of_the_site_probe(small_dataset: Path) -> None:
    session = Session(open_dataset(small_dataset), EvalConfig(), quiet)
    site = _site("a", session, ["normal", "tumor"])
    tables = {
        split: table.set_column(
            table.column_names.index("group"), "group",
            pa.array([split if i % 4 else "everywhere" for i in range(len(table))]),
        )
        for split, table in site.rows.tables.items()
    }  # fmt: skip
    crossed = replace(site, rows=replace(site.rows, tables=tables))
    found = places_of([crossed, replace(crossed, name="b")])
    assert found.names == ["a", "b"]
    assert (found.labels["train"] >= 0).all() and found.crossing == 2 * (4 + 4)
    assert (np.flatnonzero(found.labels["test"] == -1) % 4 == 0).all()


def test_baselines_stand_once_and_untrained_encoders_once_an_architecture() -> None:
    small, other = ModelConfig(widths=(4, 8, 16)), ModelConfig("refined", widths=(4, 8, 16))
    models = {"a": build(small, 0), "b": build(other, 0), "c": build(small, 1)}
    found = encodings_of(models, ("mean_rgb", "pca384", "random_init"))
    assert [(e.features, e.runs, e.fixed) for e in found] == [
        ("mean", ("a",), True),
        ("mean", ("b",), True),
        ("mean", ("c",), True),
        ("mean_rgb", ("a", "b", "c"), True),
        ("pca384", ("a", "b", "c"), False),
        ("random_init", ("a", "c"), True),
        ("random_init", ("b",), True),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    a, c = (found[i].fit(pixels)(pixels) for i in (0, 2))
    assert not np.array_equal(a, c)
