"""The model card: numbers and intervals of the evaluation, no markup of names, edits stay."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from eval.export.model_card import MARK, write_card
from eval.measure.scores import SCORES, Condition, read_scores
from eval.results import Results, load_results
from eval.stats.bootstrap import interval
from tests.helpers.report_runs import pack_noise, write_run


def evaluated(folder: Path) -> tuple[Path, Results]:
    run = write_run(folder / "run", pack_noise(folder), "dvae", 0, 1.0)
    return run, load_results(run)


def test_the_card_holds_scores_with_their_intervals(tmp_path: Path) -> None:
    run, results = evaluated(tmp_path)
    book, _ = read_scores(run / SCORES)
    write_card(run, results, book)
    text = (run / "snapshot/README.md").read_text()
    assert text.startswith("---\nlicense: unknown\nlibrary_name: eqdvae\n")
    labels, groups = book.rows["label"].to_numpy(), book.rows["group"].to_numpy()
    expected = interval(book.scores[Condition("mean")][None], labels, groups)
    row = (
        f"| mean | readout | {expected.estimate:.3f} | {expected.low:.3f} to {expected.high:.3f} |"
    )
    assert row in text
    assert "<script>" not in text and "not for diagnosis" in text
    write_card(run, results, book)
    assert (run / "snapshot/README.md").read_text() == text


def test_groups_that_hold_several_classes_are_one_stratum_as_in_reports(tmp_path: Path) -> None:
    run, results = evaluated(tmp_path)
    book, _ = read_scores(run / SCORES)
    groups = pa.array([f"image {i % 12}" for i in range(len(book.rows))])
    index = book.rows.column_names.index("group")
    book.rows = book.rows.set_column(index, "group", groups)
    protocol = replace(results.protocol, metrics_split="val", classes=["normal", "tumor"])
    write_card(run, replace(results, protocol=protocol), book)
    text = (run / "snapshot/README.md").read_text()
    assert "12 groups of test within stratum (normal: 11, tumor: 10; 9 hold" in text.replace(
        "\\", ""
    )
    assert "Other scores, on val" in text


def test_a_run_without_probes_says_so(tmp_path: Path) -> None:
    run, results = evaluated(tmp_path)
    write_card(run, replace(results, probe={}), None)
    assert "No probe was fitted" in (run / "snapshot/README.md").read_text()


def test_an_edited_card_stays(tmp_path: Path) -> None:
    run, results = evaluated(tmp_path)
    write_card(run, results, None)
    card = run / "snapshot/README.md"
    card.write_text(card.read_text().replace(MARK, "").replace("unknown", "cc-by-4.0"))
    write_card(run, results, None)
    assert "license: cc-by-4.0" in card.read_text()
