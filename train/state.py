"""Checkpoint and resume: named tensors in safetensors, everything else in JSON, hashed, atomic.

RUN/checkpoints/000000050176/ holds `state.safetensors` and `state.json`. A folder appears under
its final name only when it is complete and on disk; older ones go only after that.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from eval.run import whole_file
from shards.output import sync_folder
from shards.schema import DataError

TENSORS, META = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    images_seen: int
    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that `path` is always either the old or the whole new content.

    Raises:
        DataError: the disk is full or the folder is not writable; names the path.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def save_checkpoint(
    run: Path, images_seen: int, meta: dict[str, Any], tensors: dict[str, Tensor], keep: int
) -> Path:
    """Write a checkpoint, then drop all but the newest `keep`.

    Raises:
        DataError: no space; the previous checkpoints are untouched.
    """
    folder = run / "checkpoints"
    final, partial = folder / f"{images_seen:012d}", folder / f".partial-{images_seen:012d}"
    shutil.rmtree(partial, ignore_errors=True)
    blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    whole = {"images_seen": images_seen, "xxh3": xxhash.xxh3_64_hexdigest(blob), **meta}
    try:
        partial.mkdir(parents=True)
        write_atomically(partial / TENSORS, blob)
        write_atomically(partial / META, json.dumps(whole, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        sync_folder(partial)
        partial.rename(final)
        sync_folder(folder)
    except (OSError, DataError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"checkpoint at {images_seen:,} images was not saved: {error}") from error
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_newest(run: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named in a warning and passed over."""
    for folder in reversed(_folders(run)):
        try:
            return _load(folder)
        except DataError as error:
            warn(f"{error}; falling back to the checkpoint before it")
    return None


def _load(folder: Path) -> Checkpoint:
    try:
        meta = json.loads((folder / META).read_bytes())
        blob = (folder / TENSORS).read_bytes()
        images_seen, expected = int(meta["images_seen"]), str(meta["xxh3"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a whole checkpoint ({error})") from None
    if xxhash.xxh3_64_hexdigest(blob) != expected or folder.name != f"{images_seen:012d}":
        raise DataError(f"{folder / TENSORS} was altered: its hash is not the one in {META}")
    try:
        return Checkpoint(images_seen, meta, load(blob))
    except SafetensorError as error:
        raise DataError(f"{folder / TENSORS} is not safetensors ({error})") from None


def _folders(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("[0-9]" * 12))


def pack_state(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """{part: {name: tensor}} flattened to `part/name`."""
    return {f"{part}/{name}": t for part, ts in parts.items() for name, t in ts.items()}


def unpack_state(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name."""
    return {
        f"{name}/{field}": value
        for name, parameter in module.named_parameters()
        for field, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The inverse of `optimizer_tensors`; `step` counters stay where the optimizer wants them."""
    for name, parameter in module.named_parameters():
        fields = unpack_state(tensors, name)
        optimizer.state[parameter] = {
            field: value.to(parameter.device)
            if value.ndim == 0
            else torch.empty_like(parameter).copy_(value)
            for field, value in fields.items()
        }
