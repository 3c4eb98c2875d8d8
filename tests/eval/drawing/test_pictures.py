"""The stored pictures of a run: equal patches for every run, codes that move, bad files refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import DataError
from eval.config import EvalConfig
from eval.drawing import pictures
from eval.session import RunSession, open_run
from models.config import ModelConfig
from pipeline import d4
from tests.helpers.trained_runs import make_run, packed_noise, save_snapshot


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_noise(tmp_path_factory.mktemp("data"), ["train", "val", "test"], ["a", "b"])


def drawn(folder: Path, data: Path, seed: int) -> RunSession:
    session = open_run(make_run(folder, data, seed=seed), None, EvalConfig())
    pictures.draw(session)
    return session


def test_runs_of_one_data_set_show_the_same_patches(tmp_path: Path, data: Path) -> None:
    sessions = [drawn(tmp_path / f"r{seed}", data, seed) for seed in range(2)]
    (one, facts), (two, _) = (pictures.load(session.run) for session in sessions)
    assert facts == sessions[0].hashes
    for name in ("clean", "corrupted", "orbit"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.reconstructed is not None
    assert len(one.clean) == pictures.PER_KIND * len(pictures.KINDS)
    np.testing.assert_array_equal(one.clean[:2], one.corrupted[:2])  # the first kind is identity
    stored = (sessions[0].run / pictures.PICTURES).read_bytes()
    assert len(stored) < 200_000
    pictures.draw(sessions[0])
    assert (sessions[0].run / pictures.PICTURES).read_bytes() == stored


def test_the_code_of_a_tied_model_moves_with_the_patch(tmp_path: Path, data: Path) -> None:
    run = make_run(tmp_path / "tied", data)
    save_snapshot(run, ModelConfig("tied"), fibres="regular")
    session = open_run(run, None, EvalConfig())
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    shown = pictures.pictures_of(session, images, images)
    assert shown.errors.max() < 1e-3
    np.testing.assert_allclose(shown.codes.astype(int), shown.moved.astype(int), atol=2)
    for g, pixels in enumerate(shown.orbit):
        expected = d4.act_one(images[0], g).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08" + bytes(7) + b"{}      "])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / pictures.PICTURES).write_bytes(content)
    with pytest.raises(DataError, match=r"evaluate again with: python -m eval.main"):
        pictures.load(tmp_path)
