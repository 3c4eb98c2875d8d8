"""The encoder in scikit-learn: as `PatchEncoder` in numbers, as an estimator in behaviour."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from common.errors import DataError
from eval import transformer
from eval.encoder import load
from eval.transformer import EmbeddingTransformer
from models.config import ModelConfig
from tests.helpers.trained_runs import save_snapshot

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
WITHOUT_DATA = (  # the others fit random tables of any width
    "check_estimator_cloneable",
    "check_get_params_invariance",
    "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_no_attributes_set_in_init",
    "check_estimator_repr",
    "check_valid_tag_types",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_snapshot(tmp_path_factory.mktemp("run"), ModelConfig())


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_it_passes_the_checks_of_estimators(name: str, run: Path) -> None:
    getattr(estimator_checks, name)("EmbeddingTransformer", EmbeddingTransformer(run))


@pytest.mark.parametrize("readout", ["mean", "channel_stats"])
def test_both_forms_give_the_numbers_of_the_encoder(readout: str, run: Path) -> None:
    expected = load(run, "cpu").encode(PIXELS, readout)
    step = EmbeddingTransformer(run, readout, "cpu")
    for images in (PIXELS, PIXELS.reshape(len(PIXELS), -1)):
        np.testing.assert_array_equal(step.fit_transform(images), expected)
    names = step.get_feature_names_out()
    assert len(names) == expected.shape[1] and names[0] == "embeddingtransformer0"


def test_output_can_be_a_table(run: Path) -> None:
    pandas = pytest.importorskip("pandas")
    step = EmbeddingTransformer(run, device="cpu").set_output(transform="pandas")
    table = clone(step).fit(PIXELS).transform(PIXELS[:3])
    assert isinstance(table, pandas.DataFrame) and table.shape == (3, 384)
    assert table.columns[-1] == "embeddingtransformer383"


def test_a_readout_set_after_fit_counts_from_the_next_fit(run: Path) -> None:
    step = EmbeddingTransformer(run, device="cpu").fit(PIXELS)
    step.set_params(readout="channel_stats")
    assert step.transform(PIXELS).shape == (len(PIXELS), len(step.get_feature_names_out()))
    step.fit(PIXELS)
    names = step.get_feature_names_out()
    assert step.transform(PIXELS).shape == (len(PIXELS), 48) and len(names) == 48


def test_a_pipeline_is_cross_validated(run: Path) -> None:
    labels = np.arange(len(PIXELS)) % 2
    dark = (PIXELS // (1 + 3 * labels[:, None, None, None])).astype(np.uint8)
    pipeline = make_pipeline(EmbeddingTransformer(run, device="cpu"), LogisticRegression())
    scores = cross_val_score(pipeline, dark, labels, cv=3)
    expected = cross_val_score(LogisticRegression(), load(run, "cpu").encode(dark), labels, cv=3)
    np.testing.assert_allclose(scores, expected)


@pytest.mark.filterwarnings("error")
def test_fitted_steps_are_cached_by_a_pipeline(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.arange(len(PIXELS)) % 2
    step = EmbeddingTransformer(run, device="cpu")
    pipeline = make_pipeline(step, StandardScaler(), LogisticRegression(), memory=str(tmp_path))
    expected = pipeline.fit(PIXELS, labels).predict_proba(PIXELS)
    monkeypatch.setattr(transformer, "load", None)  # the second time it comes from the cache
    cached = clone(pipeline).fit(PIXELS, labels).predict_proba(PIXELS)
    np.testing.assert_array_equal(cached, expected)


def test_a_grid_is_searched(run: Path) -> None:
    labels = np.arange(len(PIXELS)) % 2
    pipeline = make_pipeline(EmbeddingTransformer(run, device="cpu"), LogisticRegression())
    grid = {"embeddingtransformer__readout": ["mean", "channel_stats"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(PIXELS, labels)
    assert len(search.cv_results_["params"]) == 2


@pytest.mark.parametrize("images", [["a.png", "b.png"], [Path("a.png")], PIXELS.astype(object)])
def test_paths_are_refused_with_the_way_to_read_them(images: ArrayLike, run: Path) -> None:
    with pytest.raises(ValueError, match=r"read files with np\.stack"):
        EmbeddingTransformer(run).fit(images)


@pytest.mark.parametrize("images", [PIXELS[0], PIXELS[:, :16], PIXELS[..., 0], np.zeros((2, 9))])
def test_other_shapes_are_refused(images: NDArray[np.generic], run: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        EmbeddingTransformer(run).fit(images)


def test_before_and_without_a_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFittedError):
        EmbeddingTransformer(run).transform(PIXELS)
    with pytest.raises(DataError):
        EmbeddingTransformer(tmp_path).fit(PIXELS)
    encoder = load(run)
    monkeypatch.setattr(encoder, "normalisation", object())
    monkeypatch.setattr(transformer, "load", lambda *_: encoder)
    with pytest.raises(ValueError, match="normalises"):
        EmbeddingTransformer(run).fit(PIXELS)
