"""The records of results.json: read as they were written, tolerant of absence, strict on types."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from common.files import with_checksum, without_checksum
from eval.results import (
    RESULTS,
    DataFacts,
    ExternalRunFacts,
    FeatureScores,
    Latent,
    Results,
    RunFacts,
    as_json,
    load_results,
    save,
)


def test_records_come_back_as_they_were_and_unknown_fields_are_ignored(tmp_path: Path) -> None:
    results = Results(
        version=2,
        data=DataFacts(hash="f" * 16),
        run=RunFacts(preset="dvae", seed=1),
        latent=Latent(kl=300.5, kl_per_dimension=[0.5, None]),
        probe={"mean": FeatureScores(features="readout", dimensions=384, auroc=0.5)},
    )
    save(tmp_path / RESULTS, results)
    assert load_results(tmp_path) == results
    raw = json.loads((tmp_path / RESULTS).read_text())
    assert list(raw["probe"]["mean"])[:3] == ["features", "dimensions", "accuracy"]
    later = without_checksum(raw, RESULTS) | {"later": {"more": 1}}
    (tmp_path / RESULTS).write_text(json.dumps(with_checksum(later)))
    assert load_results(tmp_path) == results
    raw["probe"]["mean"]["auroc"] = 0.9
    (tmp_path / RESULTS).write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"results\.json was altered"):
        load_results(tmp_path)


def test_sections_that_were_not_measured_are_left_out_and_other_values_are_null() -> None:
    raw = as_json(Results(data=DataFacts(hash="f"), run=RunFacts(preset="dvae")))
    assert "latent" not in raw and "robustness" not in raw
    assert raw["run"] == {"preset": "dvae", "seed": None, "noise_var": None}
    assert as_json(ExternalRunFacts(preset="uni", seed=0)) == {"preset": "uni", "seed": 0}
    assert as_json(Latent(kl=math.nan))["kl"] is None


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ({}, "data"),
        ({"data": {"hash": 3}}, r"data\.hash"),
        ({"data": {"hash": "f"}, "latent": {"kl": "high"}}, r"latent\.kl"),
        ({"data": {"hash": "f"}, "probe": {"mean": {"auroc": []}}}, r"probe.*auroc"),
    ],
)
def test_wrong_types_are_refused_by_file_and_field(
    raw: dict[str, Any], place: str, tmp_path: Path
) -> None:
    (tmp_path / RESULTS).write_text(json.dumps(raw))
    with pytest.raises(DataError, match=rf"results\.json .*{place}.*eval\.main"):
        load_results(tmp_path)
