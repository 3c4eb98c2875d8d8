"""A snapshot for use: `model.safetensors` and `config.json` to a model and back.

Snapshots from elsewhere are hostile: only tensors and JSON are read, and both are checked.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from models.vae import VAE, ModelConfig
from shards.output import publish
from shards.schema import DataError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_WIDTH = 4096


def save(model: VAE, folder: Path, about: dict[str, Any]) -> None:
    """Write the model to `folder`; `about` (JSON) travels beside its config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    text = json.dumps({"model": asdict(model.config), "about": about}, indent=1)
    for name, data in ((WEIGHTS, to_bytes(tensors)), (CONFIG, (text + "\n").encode())):
        with publish(folder / name) as file:
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
    model = VAE(config)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{path} does not hold the weights of its config.json: {error}") from None
    return model.eval().requires_grad_(False)


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
            raise ValueError(f"unknown settings {sorted(unknown)}")
        config = ModelConfig(**{**raw, "widths": tuple(int(w) for w in raw["widths"])})
        _check_ranges(config)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a model config: {error!r}") from None
    return config


def _check_ranges(config: ModelConfig) -> None:
    if config.architecture not in ("seed", "refined"):
        raise ValueError(f"architecture {config.architecture!r}")
    if config.upsample not in ("nearest", "bilinear", "transposed"):
        raise ValueError(f"upsample {config.upsample!r}")
    if config.stage1_kernel not in (3, 5) or not isinstance(config.latent_stage, bool):
        raise ValueError(f"stage1_kernel {config.stage1_kernel!r}, latent_stage")
    if len(config.widths) != 3 or max(*config.widths, config.latent_channels) > MAX_WIDTH:
        raise ValueError(f"widths {config.widths} or latent_channels {config.latent_channels}")
    if not isinstance(config.latent_channels, int) or config.latent_channels < 1:
        raise ValueError(f"latent_channels {config.latent_channels!r}")
