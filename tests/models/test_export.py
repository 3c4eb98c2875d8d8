"""The encoder in other formats: the numbers of PyTorch, for any batch, the same bytes each time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from eval.encoder import load
from models.config import ExportOptions, ModelConfig
from models.export import encoder as exporting
from models.export.encoder import TARGETS, Target, export
from tests.helpers.trained_runs import save_snapshot

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
INPUTS: dict[str, Callable[[Any], Any]] = {
    "uint8": lambda pixels: pixels,
    "float": lambda pixels: pixels.astype(np.float32) / 255,
}


def small_run(folder: Path, architecture: Any) -> Path:
    return save_snapshot(folder / architecture, ModelConfig(architecture, widths=(8, 16, 32)))


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kind"), [("tied", "uint8"), ("seed", "float")])
@pytest.mark.parametrize("target", TARGETS)
def test_a_file_gives_the_numbers_of_the_encoder(
    target: Any, architecture: str, kind: Any, tmp_path: Path
) -> None:
    if target == "onnx":
        pytest.importorskip("onnxscript", reason="needs the extra export")
        pytest.importorskip("onnxruntime", reason="needs the extra export")
    run = small_run(tmp_path, architecture)
    options = ExportOptions((target,), kind)
    (path,) = export(run, options)
    assert path == run / "export" / TARGETS[target].file
    data = path.read_bytes()
    expected = load(run, "cpu").encode(PIXELS)
    images = INPUTS[kind](np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2)))
    for count in (5, 1, 2):
        embeddings = TARGETS[target].open(data)(images[:count])
        np.testing.assert_allclose(embeddings, expected[:count], atol=1e-4)
    export(run, options)
    assert path.read_bytes() == data
    assert str(Path(exporting.__file__).parent).encode() not in data


def test_a_file_with_other_numbers_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, "seed")
    encoder = load(run, "cpu")

    def wrong(data: bytes) -> exporting.Run:
        return lambda images: encoder.encode(images) + np.float32(0.01)

    monkeypatch.setitem(TARGETS, "onnx", Target("encoder.onnx", lambda program: b"", wrong))
    monkeypatch.setattr(exporting, "_onnx", lambda: None)
    monkeypatch.setattr(exporting, "traced", lambda model, dtype: None)
    with pytest.raises(DataError, match=r"differ from PyTorch's by 0\.01"):
        export(run)
    assert not (run / "export").exists()


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name=name)

    monkeypatch.setattr(exporting, "import_module", missing)
    with pytest.raises(DataError, match=r"need onnx: pip install 'eqdvae\[export\]'"):
        export(small_run(tmp_path, "seed"))
