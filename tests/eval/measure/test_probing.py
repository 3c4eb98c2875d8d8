"""Classes that val or test lacks are stated beside every score that leaves them out.

The kind: one class of val, of test, of both; none; a split without labels; in results.json, on the
console and in the report.
"""

import json
import shutil
from pathlib import Path

import pytest

from eval.config import EvalConfig
from eval.evaluation import evaluate
from eval.measure.probing import probe_protocol
from eval.report.report import PAGE, REPORT, write_report
from eval.session import Session
from pipeline.index import open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.messages import collected_messages
from tests.helpers.patches import write_patches
from tests.helpers.trained_runs import make_run

CLASSES = ("a", "b", "c")
CONFIG = EvalConfig(
    baselines=("mean_rgb",),
    probes=("logistic",),
    robustness=False,
    figures=False,
    readouts=("mean",),
    orbit_probe=False,
)


def packed(folder: Path, without: dict[str, str]) -> Path:
    """Pack patches of three classes, without one of some splits."""
    write_patches(folder / "raw", {"train": 12, "val": 8, "test": 8}, CLASSES, seed=0)
    for split, name in without.items():
        shutil.rmtree(folder / "raw" / split / name)
    pack(folder / "raw", folder / "shards", PackOptions(workers=1))
    return folder / "shards"


@pytest.mark.parametrize(
    "without", [{}, {"val": "a"}, {"test": "c"}, {"val": "a", "test": "c"}], ids=str
)
def test_the_protocol_names_the_classes_that_splits_lack(
    without: dict[str, str], tmp_path: Path
) -> None:
    session = Session(open_dataset(packed(tmp_path, without)), CONFIG)
    protocol = probe_protocol(session)
    expected = {split: [name] for split, name in without.items()}
    assert (protocol.absent_classes or {}) == expected
    lines = [notice for notice in session.notices if "has no patch of" in notice]
    assert len(lines) == len(without) and all("2 of 3 classes" in line for line in lines)


def test_scores_of_some_classes_say_so_wherever_they_stand(tmp_path: Path) -> None:
    data = packed(tmp_path, {"test": "c"})
    run = make_run(tmp_path / "dvae-s0", data)
    with collected_messages() as messages:
        evaluate(run, config=CONFIG)
    scores = [line for line in messages if "AUROC" in line and "probe of" in line]
    assert scores and all("over 2 of 3 classes" in line for line in scores)
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"]["absent_classes"] == {"test": ["c"]}
    write_report([run], tmp_path / "report")
    sentence = "test has no patch of c: AUROC and accuracies are scored over 2 of 3 classes"
    for name in (REPORT, PAGE):
        text = (tmp_path / "report" / name).read_text()
        sections = ("Scores on test", "Tables of scores", "Labels and corruption")
        assert text.count(sentence) >= len(sections) + 1  # and among the notices


def test_classes_of_one_group_are_named_beside_their_scores(tmp_path: Path) -> None:
    data = packed(tmp_path, {})
    run = make_run(tmp_path / "dvae-s0", data)
    session = Session(open_dataset(data), CONFIG)
    assert probe_protocol(session).single_group_classes is None
    for path in (tmp_path / "raw" / "test" / "b").glob("test-b-1*.png"):
        path.unlink()
    pack(tmp_path / "raw", data, PackOptions(workers=1, overwrite=True))
    evaluate(run, config=CONFIG, data=data)
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"]["single_group_classes"] == {"test": ["b"]}
    write_report([run], tmp_path / "report")
    sentence = "all patches of b in test are of one patient, slide, source image or patch each"
    assert (tmp_path / "report" / REPORT).read_text().count(sentence) >= 3
