"""Probes carried between made sites: a signal that is the same, one that is not, other colours."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from common.errors import DataError
from eval.config import EvalConfig, TransferConfig
from eval.measure.scores import Condition, read_scores
from eval.session import Session
from eval.stats.contrasts import compare
from eval.transfer import __main__ as command
from eval.transfer.datasets import read_dataset, short_names, site_labels
from eval.transfer.results import LeftOutRow, MatrixRow, SiteProbeRow, load_transfer
from eval.transfer.transfer import BETWEEN, encodings_of, transfer
from models.config import ModelConfig
from models.vae import build
from pipeline.index import open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.patches import Look, as_is, pale, stained_patches
from tests.helpers.trained_runs import make_run

COUNTS = {"train": 40, "val": 24, "test": 48}  # a class; four patches a source image
PLAIN = TransferConfig(stain=("none",), baselines=("mean_rgb",))


def site(
    folder: Path,
    seed: int,
    look: Look = as_is,
    signal: bool = True,
    classes: tuple[str, ...] = ("normal", "tumor"),
) -> Path:
    """A packed data set; without a signal the patches do not show their class."""
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        for label, name in enumerate(classes):
            shown = np.full(count, label) if signal else rng.integers(2, size=count)
            (folder / "raw" / split / name).mkdir(parents=True)
            for i, image in enumerate(stained_patches(shown, rng, look)):
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


def auroc(rows: Sequence[MatrixRow | LeftOutRow | SiteProbeRow], **values: str) -> float:
    (row,) = [r for r in rows if all(getattr(r, name) == v for name, v in values.items())]
    assert row.auroc is not None
    return row.auroc


def test_a_signal_is_carried_where_it_is_the_same(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    data = [sites["one"], sites["two"], sites["blind"]]
    results = transfer([run], data, tmp_path, PLAIN)
    assert {(r.train, r.test) for r in results.matrix} == {
        (a, b) for a in ("one", "two", "blind") for b in ("one", "two", "blind")
    }
    rows = [row for row in results.matrix if row.features == "mean"]
    for train, test in (("one", "one"), ("one", "two"), ("two", "one")):
        assert auroc(rows, train=train, test=test) > 0.95
    assert abs(auroc(rows, train="one", test="blind") - 0.5) < 0.2
    assert abs(auroc(results.matrix, features="mean_rgb", train="one", test="two") - 0.5) < 0.2
    (read,) = [row for row in results.site_probe if row.features == "mean"]
    assert read.data == BETWEEN and read.sites == ["blind", "one", "two"]
    assert read.chance_balanced_accuracy == pytest.approx(1 / 3)
    assert load_transfer(tmp_path) == results
    text = (tmp_path / "transfer.md").read_text()
    assert f"{auroc(rows, train='one', test='two'):.3f}" in text
    # the scores give the same number, and an interval of a contrast on groups
    book, facts = read_scores(tmp_path / "scores" / "dvae-s0" / "two.parquet")
    arms = {
        features: book.scores[Condition(features, train="one", stain="none")][None]
        for features in ("mean", "mean_rgb")
    }
    labels, groups = book.rows["label"].to_numpy(), np.array(book.rows["group"].to_pylist())
    contrast = compare(arms, labels, groups)
    expected = auroc(rows, train="one", test="two") - auroc(
        results.matrix, features="mean_rgb", train="one", test="two"
    )
    assert contrast.difference.estimate == pytest.approx(expected, abs=1e-3)  # float32 ties
    assert contrast.difference.low is not None and contrast.difference.low > 0
    assert facts["test"] == "two"


def test_a_planted_shift_is_read_off_and_normalisation_removes_it(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    config = TransferConfig(stain=("none", "site", "source"), baselines=("mean_rgb",))
    shifted = transfer([run], [sites["one"], sites["pale"]], tmp_path / "a", config)
    alike = transfer([run], [sites["one"], sites["two"]], tmp_path / "b", PLAIN)
    for features in ("mean", "mean_rgb"):
        of = {"features": features}
        assert auroc(shifted.site_probe, **of, stain="none") > 0.98
        assert abs(auroc(shifted.site_probe, **of, stain="site") - 0.5) < 0.2
        assert abs(auroc(alike.site_probe, **of, stain="none") - 0.5) < 0.2
    for stained in ("site", "source"):  # and the signal stays
        rows = [row for row in shifted.matrix if row.stain == stained]
        assert auroc(rows, features="mean", train="one", test="pale") > 0.95
    # by site, the patches of the site itself do not change
    same = {"features": "mean", "train": "one", "test": "one"}
    by_stain = [auroc(shifted.matrix, **same, stain=stained) for stained in ("none", "site")]
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
    results = transfer([run], [tmp_path / "all"], tmp_path / "out", config)
    for stained in ("none", "site"):
        of = {"stain": stained, "features": "mean"}
        assert auroc(results.left_out, **of, site="one") > 0.9
        assert auroc(results.left_out, **of, site="two") > 0.9
        assert abs(auroc(results.left_out, **of, site="blind") - 0.5) < 0.2
        assert {r.site for r in results.left_out} == {"one", "two", "blind"}
    assert abs(auroc(results.site_probe, features="mean", stain="none") - 0.5) < 0.2
    # what the probe without a site said of it is in the scores, one row per patch
    book, _ = read_scores(tmp_path / "out" / "scores" / "dvae-s0" / "all.parquet")
    scores = book.scores[Condition("mean", train="other sites", stain="none")]
    assert scores.shape == (3 * 2 * COUNTS["test"], 2)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)


def test_other_classes_and_a_single_site_are_refused(
    sites: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    other = site(tmp_path / "other", 5, classes=("normal", "tumour"))
    with pytest.raises(DataError, match=r"only there: \['tumor', 'tumour'\]"):
        transfer([run], [sites["one"], other], tmp_path / "out", PLAIN)
    with pytest.raises(DataError, match="two data sets"):
        transfer([run], [sites["one"]], tmp_path / "out", PLAIN)
    with pytest.raises(DataError, match="named twice"):
        transfer([run], [sites["one"], sites["one"]], tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()


def test_the_command(
    sites: dict[str, Path],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["eval.transfer", str(run), "--data", str(sites["one"]), str(sites["two"])]
    words += ["--out", str(tmp_path), "--stain", "none", "--baselines", "mean_rgb"]
    words += ["--threads", "1"]
    monkeypatch.setattr("sys.argv", words)
    assert command.main() == 0
    assert (tmp_path / "transfer.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, "--baselines", "median"])
    assert command.main() == 2


def test_names_of_data_sets_are_short_and_differ() -> None:
    assert short_names([Path("/a/oral"), Path("/a/colon")]) == ["oral", "colon"]
    assert short_names([Path("/a/x/shards"), Path("/a/y/shards")]) == ["x-shards", "y-shards"]


def test_labels_count_the_classes_as_the_first_data_set_does(small_dataset: Path) -> None:
    session = Session(open_dataset(small_dataset), EvalConfig())
    same = read_dataset("a", session, ["normal", "tumor"])
    turned = read_dataset("b", session, ["tumor", "normal"])
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(turned.rows.labels[split], 1 - same.rows.labels[split])
        table = turned.rows.tables[split]["label"].to_numpy()
        np.testing.assert_array_equal(table, turned.rows.labels[split])


def test_groups_of_an_earlier_split_are_left_out_of_the_site_probe(small_dataset: Path) -> None:
    session = Session(open_dataset(small_dataset), EvalConfig())
    data = read_dataset("a", session, ["normal", "tumor"])
    tables = {
        split: table.set_column(
            table.column_names.index("group"),
            "group",
            pa.array([split if i % 4 else "everywhere" for i in range(len(table))]),
        )
        for split, table in data.rows.tables.items()
    }
    crossed = replace(data, rows=replace(data.rows, tables=tables))
    results = site_labels([crossed, replace(crossed, name="b")])
    assert results.names == ["a", "b"]
    assert (results.labels["train"] >= 0).all() and results.crossing == 2 * (4 + 4)
    assert (np.flatnonzero(results.labels["test"] == -1) % 4 == 0).all()


def test_baselines_stand_once_and_untrained_encoders_once_an_architecture() -> None:
    small, other = ModelConfig(widths=(4, 8, 16)), ModelConfig("refined", widths=(4, 8, 16))
    models = {"a": build(small, 0), "b": build(other, 0), "c": build(small, 1)}
    results = encodings_of(models, ("mean_rgb", "pca384", "random_init"), {})
    assert [(e.features, e.runs, e.fixed) for e in results] == [
        ("mean", ("a",), True),
        ("mean", ("b",), True),
        ("mean", ("c",), True),
        ("mean_rgb", ("a", "b", "c"), True),
        ("pca384", ("a", "b", "c"), False),
        ("random_init", ("a", "c"), True),
        ("random_init", ("b",), True),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    a, c = (results[i].fit(pixels)(pixels) for i in (0, 2))
    assert not np.array_equal(a, c)
