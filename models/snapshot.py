"""A model as files, `model.safetensors` and `config.json`, and back.

Snapshots may come from untrusted sources: only tensors and JSON are read, and both are checked.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from common.errors import DataError
from common.files import (
    make_folder,
    read_json,
    sync_folder,
    with_checksum,
    write_atomically,
)
from common.records import convert
from models.config import ModelConfig
from models.vae import VAE

WEIGHTS, CONFIG = "model.safetensors", "config.json"
WEIGHTS_HASH = "weights_xxh3"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 1 << 30
# what safetensors raises, depending on what is wrong with a file
UNREADABLE = (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError)
MAX_NAME = 100  # characters of a name from a file that a message repeats


def save(model: VAE, folder: Path, about: Mapping[str, object]) -> None:
    """Write a model to `folder`, with `about` (JSON values) beside its config.

    The config is removed first and written last: with it the snapshot is whole. It holds the hash
    of the weights.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    weights = to_bytes(tensors)
    content = {
        "model": asdict(model.config),
        "about": about,
        WEIGHTS_HASH: xxhash.xxh3_64_hexdigest(weights),
    }
    text = json.dumps(with_checksum(content), indent=1)
    make_folder(folder)
    (folder / CONFIG).unlink(missing_ok=True)
    sync_folder(folder)
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, (text + "\n").encode())


def load(folder: Path) -> VAE:
    """Read the model in `folder`, in eval mode on the CPU.

    Raises:
        DataError: a file is missing, malformed, or does not fit the other.
    """
    raw = _read_config(folder / CONFIG)
    config, path = _model_config(raw, folder / CONFIG), folder / WEIGHTS
    if not path.is_file():
        raise DataError(f"{path} does not exist: the snapshot is incomplete")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise DataError(f"{path} is larger than {MAX_WEIGHT_BYTES} bytes: not a snapshot's weights")
    data = path.read_bytes()
    if raw.get(WEIGHTS_HASH) not in (None, xxhash.xxh3_64_hexdigest(data)):  # old ones have none
        raise DataError(
            f"{path} was altered, or is of another model than the {CONFIG} beside it: its hash is "
            f"not {raw[WEIGHTS_HASH]!r}. Restore both files, or save the snapshot again by "
            "training with --resume"
        )
    try:
        tensors = from_bytes(data)
    except UNREADABLE as error:
        raise DataError(f"{path} is not safetensors: {error!r}"[:500]) from None
    with torch.device("meta"):  # without memory, so that a config cannot ask for a gigantic model
        expected = VAE(config).state_dict()
    if problem := mismatch(tensors, expected):
        raise DataError(f"{path} does not hold the weights of its config.json: {problem}")
    model = VAE(config)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def mismatch(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Describe the first difference in names, shapes or dtypes; None if there is none."""
    for name in sorted(tensors.keys() ^ expected.keys()):
        return f"{name[:MAX_NAME]!r} is {'not expected' if name in tensors else 'missing'}"
    for name, tensor in expected.items():
        other = tensors[name]
        if (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            return (
                f"{name} is {other.dtype} {tuple(other.shape)}, expected {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    return None


def load_config(path: Path) -> ModelConfig:
    """Read the model config in a snapshot's config.json.

    Raises:
        DataError: the file is missing, altered, or not the config of a model that can be built.
    """
    return _model_config(_read_config(path), path)


def _read_config(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise DataError(f"{path} does not exist: {path.parent} is not a snapshot")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise DataError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not a snapshot's config")
    return read_json(path)


def _model_config(raw: Mapping[str, object], path: Path) -> ModelConfig:
    try:
        return convert(raw["model"], ModelConfig)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is not a model config: {error!r}"[:500]) from None
