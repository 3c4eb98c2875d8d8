"""Where a snapshot is found; the hub is reached offline here, through its cache."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from eval.encoder import load
from models.hub import locate
from tests.helpers.trained_runs import SMALL, save_snapshot

REVISION = "a" * 40
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def put_in_cache(snapshot: Path, cache: Path, repository: str) -> Path:
    """Lay out a cache of huggingface_hub: a reference, and the files of its revision."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    shutil.copytree(snapshot, folder / "snapshots" / REVISION)
    return folder / "snapshots" / REVISION


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_model_of_the_hub_loads_from_the_cache(cache: Path, tmp_path: Path) -> None:
    run = save_snapshot(tmp_path / "run", SMALL)
    cached = put_in_cache(run / "snapshot", cache, "lab/patches")
    expected = load(run, "cpu").encode(PIXELS)
    for name in ("lab/patches", "hf://lab/patches", f"lab/patches@{REVISION}"):
        assert locate(name) == cached
        np.testing.assert_array_equal(load(name, "cpu").encode(PIXELS), expected)
    np.testing.assert_array_equal(load(run / "snapshot", "cpu").encode(PIXELS), expected)


@pytest.mark.parametrize("name", ["lab/other", "lab/patches@branch", "lab--x/a..b"])
def test_what_is_not_in_the_cache_is_an_error_offline(name: str, cache: Path) -> None:
    with pytest.raises(DataError, match="neither a folder nor in the cache"):
        locate(name)


@pytest.mark.parametrize("name", ["../lab/patches", "/lab/patches", "lab/patches/x", "patches"])
def test_paths_are_no_hub_ids(name: str) -> None:
    with pytest.raises(DataError, match="not the folder of a finished run"):
        locate(name)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'eqdvae\[hub\]'"):
        locate("lab/patches")
