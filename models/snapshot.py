"""A snapshot for use: `model.safetensors` and `config.json` to a model and back.

Snapshots from elsewhere are hostile: only tensors and JSON are read, and both are checked.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from common.errors import DataError
from common.files import atomic_file
from models.vae import VAE, ModelConfig

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 1 << 30
MAX_WIDTH = 4096
# what safetensors raises, depending on what is wrong with a file
UNREADABLE = (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError)
MAX_NAME = 100  # characters of a name from a file that a message repeats


def save(model: VAE, folder: Path, about: dict[str, Any]) -> None:
    """Write the model to `folder`; `about` (JSON) travels beside its config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    text = json.dumps({"model": asdict(model.config), "about": about}, indent=1)
    for name, data in ((WEIGHTS, to_bytes(tensors)), (CONFIG, (text + "\n").encode())):
        with atomic_file(folder / name) as file:
            file.write(data)


def load(folder: Path) -> VAE:
    """The model in `folder`, in eval mode on the CPU.

    Raises:
        DataError: a file is missing, malformed, or does not fit the other.
    """
    config = load_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise DataError(f"{path} does not exist: the snapshot is incomplete")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise DataError(f"{path} is larger than {MAX_WEIGHT_BYTES} bytes: not a snapshot's weights")
    try:
        tensors = load_file(path)
    except UNREADABLE as error:
        raise DataError(f"{path} is not safetensors: {error!r}"[:500]) from None
    with torch.device("meta"):  # without memory, so that a config cannot ask for a gigantic model
        expected = VAE(config).state_dict()
    if problem := mismatch(tensors, expected):
        raise DataError(f"{path} does not hold the weights of its config.json: {problem}")
    model = VAE(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def mismatch(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first difference in names, shapes or dtypes, in words; None where there is none."""
    for name in sorted(found.keys() ^ expected.keys()):
        return f"{name[:MAX_NAME]!r} is {'not expected' if name in found else 'missing'}"
    for name, tensor in expected.items():
        have, want = ((t.dtype, tuple(t.shape)) for t in (found[name], tensor))
        if have != want:
            return f"{name} is {have[0]} {have[1]}, expected {want[0]} {want[1]}"
    return None


def load_config(path: Path) -> ModelConfig:
    """The model config in a snapshot's config.json."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: {path.parent} is not a snapshot")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise DataError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not a snapshot's config")
    try:
        raw = json.loads(path.read_bytes())["model"]
        known = {field.name for field in fields(ModelConfig)}
        if unknown := set(raw) - known:
            raise ValueError(f"unknown settings {sorted(unknown)[:3]}"[:MAX_NAME])
        if not all(type(number) is int for number in (*raw["widths"], *_integers(raw))):
            raise ValueError("expected whole numbers for widths, latent_channels, stage1_kernel")
        config = ModelConfig(**{**raw, "widths": tuple(raw["widths"])})
        _check_ranges(config)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is not a model config: {error!r}"[:500]) from None
    return config


def _integers(raw: dict[str, Any]) -> list[Any]:
    return [raw[name] for name in ("latent_channels", "stage1_kernel") if name in raw]


def _check_ranges(config: ModelConfig) -> None:
    if config.architecture not in ("seed", "refined", "tied"):
        raise ValueError(f"architecture {config.architecture!r}")
    if config.upsample not in ("nearest", "bilinear", "transposed"):
        raise ValueError(f"upsample {config.upsample!r}")
    if config.stage1_kernel not in (3, 5) or not isinstance(config.latent_stage, bool):
        raise ValueError(f"stage1_kernel {config.stage1_kernel!r}, latent_stage")
    if len(config.widths) != 3 or max(config.widths) > MAX_WIDTH:
        raise ValueError(f"widths {config.widths}")
    if not 1 <= config.latent_channels <= MAX_WIDTH:
        raise ValueError(f"latent_channels {config.latent_channels}")
