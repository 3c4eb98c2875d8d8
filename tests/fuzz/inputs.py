"""Valid files to begin with, and repaired checksums: without them mutations get no further."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from deflate import crc32
from PIL import Image, PngImagePlugin

from models import snapshot
from models.vae import build
from shards.codec.png import SIGNATURE, Pixels
from shards.pack.packing import pack, pack_task
from shards.pack.plan import PackOptions
from shards.pack.tasks import PackTask
from tests.helpers.patches import write_patches
from tests.helpers.tars import WRITERS, json_body, samples, write_tar
from tests.helpers.trained_runs import INFO, SMALL
from train.checkpoint import META, TENSORS, save_checkpoint

BLOCK = 512


def images() -> Iterator[bytes]:
    """Yield PNGs of 32x32 pixels: several encoders' layouts, a palette, text and a profile."""
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    smooth = np.add.outer(np.arange(32), np.arange(96)).reshape(32, 32, 3).astype(np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a patch")
    for image, options in (
        (Image.fromarray(smooth), {"compress_level": 9}),
        (Image.fromarray(pixels), {"compress_level": 0}),
        (Image.fromarray(smooth), {"pnginfo": text, "icc_profile": b"profile", "dpi": (72, 72)}),
        (Image.fromarray(smooth).convert("P"), {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        yield buffer.getvalue()


def by_pillow(data: bytes, otherwise: Pixels) -> Pixels:
    """Decode a PNG by Pillow, which refuses some that PNG allows, such as odd text."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return otherwise


def jpegs() -> Iterator[bytes]:
    smooth = np.add.outer(np.arange(32), np.arange(96)).reshape(32, 32, 3).astype(np.uint8)
    for options in ({"quality": 90}, {"quality": 50, "progressive": True}):
        buffer = io.BytesIO()
        Image.fromarray(smooth).save(buffer, "JPEG", **options)
        yield buffer.getvalue()


def repaired_png(data: bytes) -> bytes:
    """Write the CRC of every chunk anew."""
    fixed, at = bytearray(data), len(SIGNATURE)
    while at + 12 <= len(fixed):
        end = at + 12 + int.from_bytes(fixed[at : at + 4], "big")
        if end > len(fixed):
            break
        fixed[end - 4 : end] = crc32(bytes(fixed[at + 4 : end - 4])).to_bytes(4, "big")
        at = end
    return bytes(fixed)


def packed(folder: Path) -> Path:
    """Pack a few patches of two classes."""
    write_patches(folder / "raw", {"train": 4, "val": 2, "test": 2}, ("a", "b"), seed=0)
    pack(folder / "raw", folder / "shards", PackOptions(shard_size=5, workers=1))
    return folder / "shards"


def recorded_plan(folder: Path) -> bytes:
    """Make the plan that two tasks of a pack share."""
    write_patches(folder / "raw", {"train": 4, "val": 2, "test": 2}, ("a", "b"), seed=0)
    options = PackOptions(shard_size=5, workers=1)
    pack_task(folder / "raw", folder / "tasks", options, PackTask(0, 2))
    return (folder / "tasks" / ".plan.parquet").read_bytes()


def foreign_tars(folder: Path) -> Iterator[bytes]:
    """Yield small tars as several tools write them."""
    for number, (name, write) in enumerate(WRITERS.items()):
        if name != "GNU tar":  # no program runs
            write(folder / f"{number}.tar", samples(2))
            yield (folder / f"{number}.tar").read_bytes()
    body = json_body(label="a", slide="s", patient="p", site="t", x=1, y=2, mpp=0.5, source="q")
    image = next(images())
    write_tar(folder / "json.tar", [("k.png", image), ("k.json", body)], tarfile.PAX_FORMAT)
    yield (folder / "json.tar").read_bytes()


def repaired_tar(data: bytes) -> bytes:
    """Write the checksum of every block that looks like a header anew."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - BLOCK + 1, BLOCK):
        block = fixed[at : at + BLOCK]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(fixed)


def checkpoint(folder: Path) -> bytes:
    """Make a checkpoint as one input: its JSON, a zero byte, its tensors."""
    tensors = {"model/w": torch.ones(2, 3), "optimizer/w/step": torch.tensor(3.0)}
    save_checkpoint(folder, 8, {"log_bytes": 4, "processes": 1}, tensors, keep=1)
    saved = folder / "checkpoints" / f"{8:012d}"
    return (saved / META).read_bytes() + b"\0" + (saved / TENSORS).read_bytes()


def repaired_checkpoint(text: bytes, blob: bytes) -> bytes:
    """Write the hash of both files into the JSON."""
    try:
        content = json.loads(text)
        content.pop("xxh3", None)
        digest = xxhash.xxh3_64(json.dumps(content, sort_keys=True).encode())
        digest.update(blob)
        return json.dumps({**content, "xxh3": digest.hexdigest()}).encode()
    except (ValueError, RecursionError, AttributeError, TypeError):
        return text


def model(folder: Path) -> Path:
    """Write the snapshot of an untrained model."""
    snapshot.save(build(SMALL, 0), folder, INFO)
    return folder


def embeddings_parquet() -> bytes:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float32)), 4)
    sink = pa.BufferOutputStream()
    table = pa.table({"key": ["00000000", "00000001"], "path": ["a", "b"], "embedding": vectors})
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def embeddings_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 4), np.float32))
    return buffer.getvalue()


def embeddings_h5() -> Iterator[bytes]:
    for names in ({"keys": np.array([b"00000000", b"00000001"])}, {"coords": np.eye(2, dtype=int)}):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["features"] = np.ones((2, 4), np.float32)
            file.attrs["slide"] = "s.svs"
            for name, value in names.items():
                file[name] = value
        yield buffer.getvalue()


def manifest_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    rows = {"path": ["a.png", "b.png"], "label": ["x", "y"], "x": [0, 32], "mpp": [0.5, 0.25]}
    pq.write_table(pa.table(rows), sink)
    return sink.getvalue().to_pybytes()
