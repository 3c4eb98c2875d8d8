"""The report: verdicts are those of the statistics, text is escaped, numbers are the results'."""

import json
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from common.errors import DataError
from common.locks import held
from eval.drawing import run_figures
from eval.measure.scores import Condition, read_scores
from eval.report import atlas, pictures, ranking, svg, tables, verdicts
from eval.report.arms import MEASURES, ComparedArms, compare_runs
from eval.report.document import Estimate, Forest, Picture, Table, shown
from eval.report.report import write_report
from eval.report.runs import Baseline, EvaluatedRun, baselines, load_runs
from eval.report.svg import Axis, Point, Series
from eval.report.writers import escape_latex, escape_markdown
from eval.results import DataFacts, FeatureScores, Results
from eval.session import subset
from eval.stats.contrasts import compare, holm
from pipeline.corruptions import GRADED
from pipeline.index import Dataset
from tests.helpers.report_runs import (
    CLASSES,
    FORMULA,
    HOSTILE,
    change_results,
    pack_noise,
    write_run,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pack_noise(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> list[Path]:
    """Four seeds of eq-dvae and three of dvae; no vae; names that attack."""
    root = tmp_path_factory.mktemp("runs")
    runs = [write_run(root / f"eq-{s}", data, "eq-dvae", s, 1.5) for s in range(4)]
    runs += [write_run(root / f"dvae-{s}{HOSTILE}", data, "dvae", s, 0.6) for s in range(3)]
    return runs


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, runs: list[Path]) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("out")).parent


def compared_arms(runs: list[Path]) -> ComparedArms:
    return compare_runs(load_runs(runs))


def _runs_of(root: Path, data: Dataset, skills: dict[str, float], seeds: int) -> list[Path]:
    """Runs of every preset, seed by seed."""
    return [
        write_run(root / f"{preset}{seed}", data, preset, seed, skill)
        for seed in range(seeds)
        for preset, skill in skills.items()
    ]


def test_verdicts_are_those_of_the_contrasts(runs: list[Path]) -> None:
    compared = compared_arms(runs)
    judged = verdicts.primary(compared)
    words = [verdict.word for verdict, _ in judged]
    assert words[2] == "not measured" and "no run of vae" in judged[2][0].meaning
    seeds = [[read_scores(run / "scores.parquet")[0] for run in runs[a : a + 3]] for a in (0, 4)]
    rows = seeds[0][0].rows
    labels, groups = rows["label"].to_numpy(), np.array(rows["group"].to_pylist())
    clean = Condition("mean", "logistic")
    stacked = [np.stack([book.scores[clean] for book in of]) for of in seeds]
    direct = compare({"a": stacked[0], "b": stacked[1]}, labels, groups)
    contrast = judged[0][1]
    assert contrast is not None and contrast.difference.estimate == direct.difference.estimate
    assert (contrast.difference.low, contrast.p) == (direct.difference.low, direct.p)
    measured = {str(i): c.p for i, (_, c) in enumerate(judged) if c is not None}
    adjusted = holm({name: p for name, p in measured.items() if p is not None})
    assert f"Holm's p {adjusted['0']:.4f}" in judged[0][0].numbers
    assert f"{direct.difference.estimate:+.4f}" in judged[0][0].numbers
    assert f"difference: {direct.detectable:.4f}" in judged[0][0].before
    assert "seeds [3] of eq-dvae have no partner" in judged[0][0].numbers
    assert words[0] == "superior" and words[3] == "holds"


def test_few_seeds_or_few_groups_decide_nothing(tmp_path: Path, data: Dataset) -> None:
    skills = {"eq-dvae": 3.0, "dvae": 0.1}
    two_seeds = _runs_of(tmp_path / "two", data, skills, seeds=2)
    for runs, counted in ((two_seeds[:2], "one seed"), (two_seeds, "2 seeds")):
        compared = compared_arms(runs)
        (verdict, contrast), *_ = verdicts.primary(compared)
        assert verdict.word == "cannot be decided" and counted in verdict.meaning
        assert contrast is not None and contrast.difference.low is not None  # the numbers are shown
        assert counted in ranking.against_untrained(compared)[0].sentence
    few = pack_noise(tmp_path / "few", groups=4)
    three_seeds = _runs_of(tmp_path / "three", few, skills, seeds=3)
    (verdict, _), *_ = verdicts.primary(compared_arms(three_seeds))
    assert verdict.word == "cannot be decided" and "4 groups" in verdict.meaning


def test_a_contrast_is_over_the_seeds_with_which_both_arms_were_measured(
    tmp_path: Path, data: Dataset
) -> None:
    runs = _runs_of(tmp_path, data, {"eq-dvae": 1.5, "dvae": 0.6}, seeds=4)
    book, facts = read_scores(runs[-1] / "scores.parquet")  # dvae, seed 3
    book.scores = {c: scores for c, scores in book.scores.items() if c.corruption is None}
    book.write(runs[-1] / "scores.parquet", facts)
    compared = compared_arms(runs)
    *_, (verdict, contrast) = verdicts.primary(compared)
    assert contrast is not None and contrast.difference.seeds == 3 and verdict.word == "holds"
    measure = "area under the robustness curve"
    assert f"seeds [3] of dvae lack the {measure}" in verdict.numbers
    assert "seeds [3] of eq-dvae have no partner" in verdict.numbers
    assert verdicts.intervals(compared, [])["dvae"][measure].seeds == 3


def test_figures_name_the_split_that_was_measured(tmp_path: Path, data: Dataset) -> None:
    folder = write_run(tmp_path / "run", data, "dvae", 0, 1.0)
    (folder / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "figures" / "neighbours.png")
    for split in ("test", "val"):
        change_results(folder, protocol={"metrics_split": split})
        (figure,) = pictures.figures(load_runs([folder])[0])
        assert isinstance(figure, Picture)
        assert f"Patches of {split} and their eight nearest in {split} by" in figure.caption


def test_runs_that_cannot_be_paired_are_named(tmp_path: Path, data: Dataset) -> None:
    runs = [write_run(tmp_path / f"r{i}", data, "dvae", 0, 1.0) for i in range(2)]
    runs.append(write_run(tmp_path / "lost", data, "dvae", 1, 1.0))
    (runs[-1] / "scores.parquet").unlink()
    stale = write_run(tmp_path / "stale", data, "dvae", 2, 1.0)
    runs.append(change_results(stale, model={"architecture": "seed", "snapshot": "another"}))
    limited = write_run(tmp_path / "limited", data, "dvae", 4, 1.0)
    book, facts = read_scores(limited / "scores.parquet")
    book.write(limited / "scores.parquet", {**facts, "image_limits": "9 embedded, 9 probed"})
    runs.append(limited)
    unprobed = write_run(tmp_path / "unprobed", data, "dvae", 5, 1.0)
    runs.append(change_results(unprobed, probe={}))
    runs.append(write_run(tmp_path / "longer", data, "dvae", 3, 1.0, images_seen=2000))
    compared = compared_arms(runs)
    assert list(compared.arms) == ["dvae (images_seen 1000)", "dvae (images_seen 2000)"]
    dropped = "\n".join(compared.dropped)
    assert "r1: the seed and settings of another run" in dropped
    assert "unprobed: no probe was fitted" in dropped
    assert "lost:" in dropped and "stale: scores.parquet is of another snapshot_xxh3" in dropped
    assert "limited: scores.parquet is of another image_limits" in dropped


def test_codes_are_compared_with_the_best_features_without_an_encoder(
    tmp_path: Path, data: Dataset
) -> None:
    folders = _runs_of(tmp_path, data, {"dvae": 3.0, "supervised": 3.0}, seeds=3)
    probe = {
        "mean": {"features": "readout", "auroc": 0.8, "val_auroc": 0.7},
        "stage_stats": {"features": "readout", "auroc": 0.6, "val_auroc": 0.8},
        "random_init": {"features": "baseline", "auroc": 0.9},
        "mean_rgb": {"features": "baseline", "auroc": 0.4, "val_auroc": 0.9},
        "rgb_histogram": {"features": "baseline", "auroc": 0.5},
    }
    runs = [change_results(folder, probe=probe) for folder in folders]
    compared = compared_arms(runs)
    books = compared.arms["dvae"].books
    for book in books.values():
        book.scores[Condition("stage_stats")] = book.scores[Condition("random_init")]
    poor = books[0].scores[Condition("random_init")]
    books[0].scores[Condition("rgb_histogram")] = poor  # a baseline is evaluated once
    books[0].scores[Condition("mean_rgb")] = poor[::-1]
    rows = ranking.against_baseline(
        compared, verdicts.intervals(compared, baselines(load_runs(runs)))
    )
    assert [(row.name, row.word) for row in rows] == [
        ("dvae - rgb_histogram", "above the baseline"),
        ("dvae, stage_stats - rgb_histogram", "within noise of the baseline"),
    ]
    trained, test = compared.arms["dvae"].scores(MEASURES[0]), compared.test
    assert trained is not None and test is not None
    scores = {"dvae": trained, "histogram": [np.stack([poor[None]] * 3)]}
    expected = compare(scores, test.labels, test.groups).difference
    assert (rows[0].value, rows[0].interval) == (expected.estimate, expected.ends)


def test_two_reports_in_one_folder_do_not_mix(tmp_path: Path, data: Dataset) -> None:
    run, out = write_run(tmp_path / "run", data, "dvae", 0, 1.0), tmp_path / "report"
    with held(out, "writes"), pytest.raises(DataError, match=f"process {os.getpid()}"):
        write_report([run], out)
    (out / ".report.12.tmp.md").touch()
    write_report([run], out)
    assert not list(out.rglob(".*"))


def test_a_data_set_that_ranks_nothing_is_named_and_gaps_are_closed(
    tmp_path: Path, data: Dataset
) -> None:
    runs = _runs_of(tmp_path, data, {"dvae": 0.1, "supervised": 3.0}, seeds=3)
    results = Results(data=DataFacts(hash=""), probe={"mean_rgb": FeatureScores(auroc=0.45)})
    best = Baseline("mean_rgb", "mean_rgb", EvaluatedRun(tmp_path, "any", "any", results))
    compared = compared_arms(runs)
    rows = ranking.against_untrained(compared)
    evaluated_again = [("dvae", 1), ("supervised", 0), ("supervised", 1), ("supervised", 2)]
    for arm, seed in evaluated_again:  # once is enough
        del compared.arms[arm].books[seed].scores[Condition("random_init", "logistic")]
    assert ranking.against_untrained(compared) == rows
    names = ["dvae - untrained", "supervised - untrained"]
    others = [f"{name}, {measure.name}" for measure in MEASURES[1:] for name in names]
    assert [row.name for row in rows] == [*names, *others]
    assert [row.word for row in rows] == ["within noise of untrained", "training shows"] * 3
    assert "cannot rank models" in rows[0].sentence
    lines = ranking.gaps(compared, [best])
    dvae, ceiling = (np.mean([0.5 + k / 10 + s / 1000 for s in range(3)]) for k in (0.1, 3.0))
    assert f"dvae closes {(dvae - 0.45) / (ceiling - 0.45):+.2f} of the gap" in lines[-1]


PAIRED = {
    "compute": (
        ("dvae", "dvae-equal-compute", "dvae-2x", "eq-dvae"),
        {
            ("dvae-equal-compute", "dvae"),
            ("dvae-2x", "dvae"),
            ("eq-dvae", "dvae-equal-compute"),
            ("eq-dvae", "dvae-2x"),
            ("eq-dvae", "dvae"),
        },
    ),
    "groups": (
        ("eq-dvae", "eq-dvae-c4", "eq-dvae-refined", "d4-dvae", "c4-dvae"),
        {
            ("eq-dvae-c4", "eq-dvae"),
            ("eq-dvae-refined", "eq-dvae"),
            ("c4-dvae", "d4-dvae"),
            ("d4-dvae", "eq-dvae-refined"),
        },
    ),
    "beta": (
        ("dvae", "dvae-beta2", "dvae-beta2-fixed"),
        {("dvae-beta2", "dvae"), ("dvae-beta2-fixed", "dvae-beta2")},
    ),
    "any encoder": (("ae", "dvae", "uni"), {("ae", "dvae"), ("uni", "dvae")}),
}


@pytest.mark.parametrize("recipe", PAIRED)
def test_every_arm_meets_what_it_is_a_variant_of(recipe: str) -> None:
    names, expected = PAIRED[recipe]
    pairs = verdicts.pairs(dict(zip(names, names, strict=True)))
    assert set(pairs) == expected and len(pairs) == len(expected)


def test_baselines_stand_beside_every_headline(tmp_path: Path, data: Dataset) -> None:
    """Taken from the first run that measured them, without an effect of seeds."""
    compared = compared_arms(_runs_of(tmp_path, data, {"dvae": 1.0}, seeds=2))
    arm = compared.arms["dvae"]
    for condition in [c for c in arm.books[0].scores if c.features == "random_init"]:
        del arm.books[0].scores[condition]
    cells = verdicts.intervals(compared, [Baseline("untrained", "random_init", arm.runs[0])])
    assert list(cells) == ["dvae", "baseline untrained"]
    assert set(cells["baseline untrained"]) == {m.name for m in MEASURES}
    book, test = arm.books[1], compared.test
    assert test is not None
    levels = [
        book.scores[Condition("random_init", corruption=kind, severity=severity)][:, 1]
        for kind in GRADED
        for severity in range(1, 6)
    ]
    area = np.mean([roc_auc_score(test.labels, scores) for scores in levels])
    measured = cells["baseline untrained"]["area under the robustness curve"]
    assert measured.estimate == pytest.approx(area) and measured.seeds == 1


class Cells(HTMLParser):
    """The tables of a page by caption, and all attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_data(self, text: str) -> None:
        if self.inside:
            self.cells[-1] += text


def parsed(written: Path) -> tuple[Cells, str]:
    text = (written / "report.html").read_text()
    page = Cells()
    page.feed(text)
    return page, text


def test_the_page_loads_nothing_and_runs_only_its_own_script(written: Path) -> None:
    page, text = parsed(written)
    assert page.tags.count("script") == 2  # the map's data and the page's own
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "default-src 'none'" in text and "@import" not in text
    assert HOSTILE not in text and "alert(1)" in text
    assert "\\u003cscript\\u003ealert(1)" in text  # in the map's data
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))


def test_numbers_of_the_page_are_those_of_the_results(runs: list[Path], written: Path) -> None:
    page, _ = parsed(written)
    means = page.cells.index("noise variance")  # the table of means comes before that of all runs
    for run in runs:
        results: dict[str, Any] = json.loads((run / "results.json").read_text())
        at = page.cells.index(f"{shown(run.name)}", page.cells.index("noise variance", means + 1))
        row = page.cells[at : at + 13]
        assert row[1] == results["run"]["preset"] and row[2] == str(results["run"]["seed"])
        assert row[4] == f"{results['reconstruction']['psnr']:.2f}"
        assert row[6] == f"{results['latent']['kl']:.1f}"
        assert row[10] == f"{results['probe']['mean']['auroc']:.3f}"
        assert row[7] == "–"  # active units were not measured
    assert "0.432" in page.cells and "26.12 ± 1.00" in page.cells  # over seeds


def test_tables_take_seeds_together_and_count_them(tmp_path: Path, data: Dataset) -> None:
    runs = _runs_of(tmp_path, data, {"dvae": 1.0}, seeds=3)
    change_results(runs[1], equivariance={"error": 0.5, "by_element": {"rotation 90": 0.2321}})
    change_results(runs[2], drop=["equivariance"])
    runs.append(write_run(tmp_path / "alone", data, "vae", 0, 1.0))
    arms = list(compared_arms(runs).arms.values())
    by_element, readouts = tables.by_element(arms), tables.readouts(arms)
    assert isinstance(by_element, Table) and isinstance(readouts, Table)
    assert list(by_element.header) == ["element", "dvae", "alone"]
    row = next(row for row in by_element.rows if row[0] == "rotation 90")
    assert list(row[1:]) == ["0.332 ± 0.141 (2 of 3)", "0.432"]
    cells = {row[0]: list(row[1:]) for row in readouts.rows}
    assert cells["mean"] == ["384", "0.601 ± 0.001", "0.600 (0.1)"]  # alone: with its setting
    assert cells["random_init"] == ["384", "0.550", "0.550"]  # a baseline is the same for all


def test_formulas_and_commands_are_harmless_everywhere(written: Path) -> None:
    markdown, tex = ((written / name).read_text() for name in ("report.md", "tables.tex"))
    page, _ = parsed(written)
    assert shown(FORMULA) == "'=cmd()|x"
    assert any("'=cmd()|x" in cell for cell in page.cells)
    assert not any(cell.startswith(("=", "@")) for cell in page.cells)
    assert "<script" not in "".join(markdown.split("```")[::2])
    assert HOSTILE not in tex and r"\textless{}script\textgreater{}" in tex
    body = re.sub(r"\\[a-zA-Z]+(\{\})?|\\[{}$&#%_\\]", "", tex)
    assert not set(body) & set("\\#~^_<>|")
    assert tex.count(r"\toprule") == tex.count(r"\end{tabular}") > 5
    assert escape_latex(r"\input{x} 5% a_b") == r"\textbackslash{}input\{x\} 5\% a\_b"


def test_commands_repeat_what_was_done(tmp_path: Path, data: Dataset) -> None:
    run = write_run(tmp_path / "noise", data, "dvae-noise", 0, 1.0)
    external = write_run(tmp_path / "uni", data, "uni", 0, 1.0)
    change_results(external, external={"features": "uni.npy"})
    text = write_report([run, external], tmp_path / "out").read_text()
    commands = text[text.index("## To reproduce") :]
    assert f"train/main.py {run}/config.json --out {run}-again\n" in commands
    assert f"eval.main {run}-again --data {data.root}\n" in commands
    options = f"--data {data.root} --name uni --seed 0 --out {external}-again\n"
    assert f"eval.external uni.npy {options}" in commands
    assert f"eval.main {external}" not in commands and "train/main.py dvae-noise" not in commands


def test_sections_that_are_missing_are_not_measured(tmp_path: Path, data: Dataset) -> None:
    folder = write_run(tmp_path / "run", data, "dvae", 0, 1.0)
    sections = set(json.loads((folder / "results.json").read_text()))
    change_results(folder, drop=sections - {"data", "run"})
    for name in ("scores.parquet", "metrics.jsonl"):
        (folder / name).unlink()
    text = write_report([folder], tmp_path / "out").read_text()
    missing = text[text.index("## Not measured") :]
    for part in (
        "denoising",
        "equivariance",
        "linear probes",
        "Rate and distortion",
        "Robustness to noise",
        "AUROC with intervals",
        "pictures of patches and codes",
    ):
        assert part in missing
    assert escape_markdown(f"python -m eval.main {folder}") in missing
    assert missing.count("train/main.py eq-dvae --data") == 1
    assert "bench/throughput.py model --json FILE" in missing


def test_missing_arms_that_are_no_presets_are_trained_by_their_recipe(
    tmp_path: Path, data: Dataset
) -> None:
    folder = write_run(tmp_path / "run", data, "eq-dvae-relaxed", 0, 1.0)
    text = write_report([folder], tmp_path / "out").read_text()
    assert escape_markdown(f"python -m train.sweep relaxed --data {data.root}") in text
    assert "train/main.py dvae-refined" not in text


def test_intervals_name_classes_and_mixed_groups_are_one_stratum(
    tmp_path: Path, data: Dataset
) -> None:
    compared = compared_arms(_runs_of(tmp_path, data, {"dvae": 1.0}, seeds=2))
    assert compared.test is not None and compared.test.strata is None
    (row, *_) = ranking.against_untrained(compared)
    assert f"within class ({shown(CLASSES[0])}: 12, {shown(CLASSES[1])}: 12)" in row.numbers
    groups = np.array([f"image {i % 12}" for i in range(len(compared.test.labels))], dtype=object)
    compared.test = replace(compared.test, groups=groups)
    assert compared.test.strata is not None and not compared.test.strata.any()
    (row, *_) = ranking.against_untrained(compared)
    assert "12 groups of test within stratum" in row.numbers


def test_severities_go_by_their_number(tmp_path: Path, data: Dataset) -> None:
    folder = write_run(tmp_path / "run", data, "dvae", 0, 1.0)
    levels = [{"severity": severity, "auroc": severity / 10} for severity in (5, 2)]
    change_results(folder, robustness={"kinds": {"noise": {"levels": levels}}})
    (run,) = load_runs([folder])
    assert [run.severity("noise", s).auroc for s in (1, 2, 5)] == [None, 0.2, 0.5]


def test_a_forest_draws_every_interval_on_one_scale() -> None:
    rows = [Estimate("<b>", 0.5, (0.25, 0.75), "ours"), Estimate("point", 0.25, None, "open")]
    forest = Forest("f.svg", "title", "axis", rows, {0.0: "zero", 1.0: "one"}, "")
    placed = svg.place(forest, 0, 100)
    zero, one = placed.marks
    (half, ends), (quarter, none) = placed.rows
    assert none is None and ends is not None
    for position, value in ((half, 0.5), (ends[0], 0.25), (ends[1], 0.75), (quarter, 0.25)):
        assert position == pytest.approx(zero + value * (one - zero))
    drawing = svg.standalone(svg.forest(forest))
    assert len(ET.fromstring(drawing).findall(".//{*}path[@class='c0 bar']")) == 1


def test_the_map_is_of_the_runs_that_have_embeddings(tmp_path: Path, data: Dataset) -> None:
    runs = [write_run(tmp_path / f"r{i}", data, "dvae", i, 1.0) for i in range(2)]
    change_results(runs[1], protocol={"metrics_split": "val", "classes": list(CLASSES)})
    drawn = atlas.atlas(load_runs(runs), "map")
    assert drawn is not None and [run.name for run in drawn.points.runs] == ["r0"]
    assert "patches of test" in drawn.caption


def test_reports_repeat(runs: list[Path], written: Path, tmp_path: Path) -> None:
    again = write_report(runs, tmp_path).parent
    for path in written.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(written)).read_bytes()


def test_charts_are_valid_and_in_proportion() -> None:
    points = [Point(x, y, (y - 1, y + 1)) for x, y in ((1, 2.0), (10, 4.0), (100, 8.0))]
    series = [Series("<a&b>", points, 0), Series("none", [Point(0, float("nan"))], 1)]
    drawing = svg.plot(series, Axis("x", log=True), Axis("y"), '"><script>')
    root = ET.fromstring(svg.standalone(drawing))
    circles = root.findall(".//{*}g[@class='c0']/{*}circle")[:3]
    x, y = ([float(c.attrib[n]) for c in circles] for n in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # decades
    assert (y[0] - y[1]) * 2 == pytest.approx(y[1] - y[2], abs=0.4)
    assert svg.plot(series[1:], Axis("x"), Axis("y"), "") == ""


def test_the_map_is_the_principal_components(data: Dataset) -> None:
    features = np.random.default_rng(0).normal(size=(80, 20)) * np.linspace(1, 9, 20)
    xy, shares = atlas.components(features)
    pca = PCA(2, svd_solver="full").fit(features)
    for column, expected in zip(xy.T, pca.transform(features).T, strict=True):
        assert abs(np.corrcoef(column, expected)[0, 1]) > 0.9999
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-4)
    assert xy.min() == 0 and xy.max() == atlas.GRID
    rows = subset(10_000, atlas.POINTS)
    assert len(set(rows.tolist())) == atlas.POINTS and (np.diff(rows) > 0).all()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
    sheet = atlas.tiled(pixels)
    np.testing.assert_array_equal(sheet[32:64, 32 * 9 : 32 * 10], pixels[69])


def test_nearest_neighbours_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 16)).astype(np.float32)
    labels = np.repeat([0, 1, 2], 20)
    queries = run_figures.queries(labels)
    assert np.bincount(labels[queries]).tolist() == [2, 2, 2]
    neighbours, cosines = run_figures.nearest(features, queries)
    centred = features - features.mean(0)
    search = NearestNeighbors(n_neighbors=9, metric="cosine").fit(centred)
    distances, expected = search.kneighbors(centred[queries])
    np.testing.assert_array_equal(neighbours, expected[:, 1:])
    np.testing.assert_allclose(cosines, 1 - distances[:, 1:], atol=1e-5)
