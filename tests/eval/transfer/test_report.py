"""Transfers in the report: seeds together, other arms apart, names harmless, bad files refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from eval.measure.scores import SCORES, Condition, read_scores
from eval.report.document import Document, Table, shown
from eval.report.report import write_report
from eval.report.writers import to_markdown
from eval.results import parse
from eval.transfer import tables as transfer_tables
from eval.transfer.results import Transfer
from tests.helpers.report_runs import FORMULA, HOSTILE, pack_noise, write_run

SITES = ("oral", FORMULA)


def results(images: tuple[int, int] = (100, 100)) -> dict[str, Any]:
    """Two seeds of one arm between two sites: AUROC 0.6 and 0.8, a baseline of 0.5."""
    runs = {
        f"dvae-s{seed}": {"preset": "dvae", "seed": seed, "images_seen": n, "noise_var": seed}
        for seed, n in enumerate(images)
    }
    owners = [("mean", (name,), 0.6 + 0.2 * i) for i, name in enumerate(runs)]
    owners.append(("mean_rgb", tuple(runs), 0.5))
    split = {"patches": 12, "groups": 3}
    return {
        "runs": runs,
        "data": {
            site: {"splits": dict.fromkeys(("train", "val", "test"), split), "sites": [site]}
            for site in SITES
        },
        "protocol": {"stain": ["none"]},
        "matrix": [
            {"features": f, "runs": r, "stain": "none", "train": a, "test": b, "auroc": score}
            for f, r, score in owners
            for a in SITES
            for b in SITES
        ],
        "left_out": [],
        "site_probe": [
            {
                "features": f,
                "runs": r,
                "stain": "none",
                "data": HOSTILE,
                "auroc": None,
                "chance_auroc": 0.5,
                "balanced_accuracy": score,
                "chance_balanced_accuracy": 0.5,
            }
            for f, r, score in owners
        ],
        "notices": [f"{HOSTILE} left out"],
    }


def transfer_of(raw: dict[str, Any]) -> Transfer:
    return parse(raw, Transfer, Path("transfer.json"), "")


def tables(raw: dict[str, Any]) -> list[Table]:
    sections = transfer_tables.sections(transfer_of(raw))
    return [part for section in sections for part in section.parts if isinstance(part, Table)]


def test_seeds_are_taken_together_and_baselines_stand_once() -> None:
    _, matrix, site_probe = tables(results())
    name = shown(FORMULA)
    assert matrix.rows[0] == ["mean of dvae", "oral", "0.700 ± 0.141", "0.700 ± 0.141"]
    assert [row[:2] for row in matrix.rows] == [
        [features, site] for features in ("mean of dvae", "mean_rgb") for site in ("oral", name)
    ]
    assert matrix.rows[2][2:] == ["0.500", "0.500"]
    assert site_probe.rows[0][2:] == ["–", "0.500", "0.700 ± 0.141", "0.500"]


def test_other_budgets_are_other_arms() -> None:
    _, matrix, _ = tables(results(images=(100, 200)))
    names = [row[0] for row in matrix.rows]
    assert names[:4] == ["mean of dvae-s0"] * 2 + ["mean of dvae-s1"] * 2


def test_the_report_takes_in_transfers(tmp_path: Path) -> None:
    data = pack_noise(tmp_path / "data")
    run = write_run(tmp_path / "run", data, "dvae", 0, 1.0)
    (tmp_path / "transfer.json").write_text(json.dumps(results()))
    page = write_report([run], tmp_path / "out", [tmp_path])
    markdown, numbers = page.read_text(), json.loads(page.with_name("report.json").read_text())
    assert "## Transfer between sites" in markdown and "0.700 ± 0.141" in markdown
    html = page.with_name("report.html").read_text()
    assert "0.700 ± 0.141" in html and HOSTILE not in html + markdown
    short, whole = numbers["runs"]["run"], json.loads((run / "results.json").read_text())
    assert short["probe"] == whole["probe"] and short["latent"]["kl"] == whole["latent"]["kl"]
    assert [verdict["word"] for verdict in numbers["verdicts"]] == ["not measured"] * 4


def test_commands_and_numbers_name_no_folder_above_the_working_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pack_noise(tmp_path / "data")
    run = write_run(tmp_path / "run", data, "dvae", 0, 1.0)
    monkeypatch.chdir(tmp_path)
    page = write_report([run], tmp_path / "out")
    assert "train/main.py run/config.json --out run-again" in page.read_text()
    for file in page.parent.glob("*.*"):
        assert str(tmp_path) not in file.read_text()


def test_arms_are_compared_by_seed_after_transfer(tmp_path: Path) -> None:
    data = pack_noise(tmp_path / "data")
    raw = results() | {"runs": {}, "data": {"oral": {}, "../oral": {}}}
    for seed in range(3):
        for arm, skill in (("dvae", 0.5), ("eq-dvae", 2.0)):
            name = f"{arm}-s{seed}"
            raw["runs"][name] = {"seed": seed, "snapshot": f"{arm}{seed}"}
            book, facts = read_scores(write_run(tmp_path / name, data, arm, seed, skill) / SCORES)
            clean = book.scores[Condition("mean")]
            clean[0] = np.nan  # a patch without a site
            book.scores = {Condition("mean", train="colon", stain="none"): clean}
            book.write(tmp_path / "scores" / name / "oral.parquet", facts)
    arms = {name: name.rpartition("-")[0] for name in raw["runs"]}
    (table,) = transfer_tables.differences(tmp_path, transfer_of(raw), arms)
    (row,) = table.rows  # and nothing from outside the folder
    assert row[:3] == ["eq-dvae - dvae", "train=colon,stain=none", "oral"] and row[6] == "3"
    assert row[7] == "1 patches without scores"
    low, high = map(float, row[4].split(" to "))
    assert 0 < low < float(row[3]) < high
    assert "24 groups of test within class" in table.caption
    assert transfer_tables.differences(tmp_path / "none", transfer_of(raw), arms) == []
    raw["runs"]["dvae-s1"]["snapshot"] = "another"
    with pytest.raises(DataError, match=r"dvae-s1.oral.parquet is of another snapshot"):
        transfer_tables.differences(tmp_path, transfer_of(raw), arms)


@pytest.mark.parametrize("change", [{"matrix": [{}]}, {"runs": []}, {"notices": 3}])
def test_a_file_of_another_version_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "transfer.json").write_text(json.dumps(results() | change))
    with pytest.raises(DataError, match=r"run eval\.transfer again"):
        transfer_tables.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        transfer_tables.load(tmp_path / "nowhere")


def test_names_are_harmless_in_markdown() -> None:
    text = to_markdown(Document("t", "", transfer_tables.sections(transfer_of(results()))))
    assert "<script" not in text and "'=cmd" in text
