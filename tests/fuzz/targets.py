"""What is fuzzed: valid inputs to begin with, and the property that holds for any input.

A target raises nothing where the input is refused by the error that its reader documents, or is
accepted and has the stated property. Anything else, a crash, ten seconds or a gigabyte is a
finding.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import DataError
from eval.external_features import read_external
from eval.results import RESULTS, load_results
from eval.run import CONFIG, METRICS, STATUS, load_corruption, load_info, load_metrics, load_status
from models import snapshot
from models.hub import SNAPSHOT
from shards.codec import images, png
from shards.codec.png import PngError
from shards.codec.tar_reader import TarError, read_members
from shards.foreign.scan import ScanOptions, scan_tar
from shards.pack.tasks import read_plan
from shards.schema import (
    METADATA_NAME,
    decode_sidecar,
    dumps_metadata,
    encode_sidecar,
    loads_metadata,
)
from shards.sources.manifest import read_manifest
from tests.fuzz import inputs
from train.checkpoint import META, TENSORS, load_newest

SIDECAR_ROWS = 4


@dataclass(frozen=True)
class Target:
    """A reader of files from outside."""

    seeds: Callable[[Path], Iterable[bytes]]  # valid inputs; may work in an empty folder
    check: Callable[[bytes, Path], None]  # may write to a folder of its own


def check_png(data: bytes, _: Path) -> None:
    """A PNG is refused by PngError, or has the pixels that Pillow reads, if Pillow reads it."""
    for variant in {data, inputs.repaired_png(data)}:
        with suppress(PngError):
            assert png.decode_trusted(variant).shape == (32, 32, 3)
        try:
            pixels = png.decode(variant)
        except PngError:
            continue
        png.check(variant)
        np.testing.assert_array_equal(inputs.by_pillow(variant, pixels), pixels)
        stored = png.store(pixels[None]).tobytes()
        np.testing.assert_array_equal(png.decode(stored), pixels)


def check_jpeg(data: bytes, _: Path) -> None:
    """A JPEG is refused by PngError, or is of 32x32 pixels."""
    with suppress(PngError):
        assert images.decode_jpeg(data).shape == (32, 32, 3)


def check_sidecar(data: bytes, _: Path) -> None:
    """A sidecar is refused by ValueError, or is a table of the format that is written the same."""
    try:
        table = decode_sidecar(data, SIDECAR_ROWS)
    except ValueError:
        return
    assert decode_sidecar(bytes(encode_sidecar(table)), SIDECAR_ROWS).to_pylist()
    table.to_pylist()


def check_metadata(data: bytes, _: Path) -> None:
    """A dataset.json is refused by DataError, or is read the same after it is written again."""
    try:
        metadata = loads_metadata(data, "dataset.json")
    except DataError:
        return
    assert loads_metadata(dumps_metadata(metadata), "again") == metadata


def check_foreign_tar(data: bytes, folder: Path) -> None:
    """A tar of another tool is scanned to rows inside of the file, or is broken at a byte."""
    path = folder / "t.tar"
    for variant in {data, inputs.repaired_tar(data)}:
        path.write_bytes(variant)
        result = scan_tar(path, "t.tar", ScanOptions())
        rows = result.table.select(["offset", "size"]).to_pylist()
        assert all(0 < row["offset"] <= len(variant) - row["size"] for row in rows)
        with suppress(TarError):
            names = [member.name for member in read_members(path)]
            assert len(names) * 512 < len(variant)


def check_checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint is refused by DataError, or loaded with finite sizes under its own name."""
    text, _, blob = data.partition(b"\0")
    saved = folder / "checkpoints" / f"{8:012d}"
    saved.mkdir(parents=True, exist_ok=True)
    for variant in {text, inputs.repaired_checkpoint(text, blob)}:
        (saved / META).write_bytes(variant)
        (saved / TENSORS).write_bytes(blob)
        with suppress(DataError):
            loaded = load_newest(folder)
            assert loaded is not None and loaded.images_seen == 8
            assert all(isinstance(tensor, torch.Tensor) for tensor in loaded.tensors.values())


def check_snapshot(data: bytes, folder: Path) -> None:
    """A snapshot's config.json is refused by DataError, or fits the weights beside it."""
    place = folder / SNAPSHOT
    if not place.is_dir():
        inputs.model(place)
    (place / snapshot.CONFIG).write_bytes(data)
    with suppress(DataError):
        load_info(folder)
    with suppress(DataError):
        assert snapshot.load(place).config == snapshot.load_config(place / snapshot.CONFIG)


def check_weights(data: bytes, folder: Path) -> None:
    """A snapshot's weights are refused by DataError, or fit its config.json."""
    if not (folder / snapshot.CONFIG).is_file():
        inputs.model(folder)
    (folder / snapshot.WEIGHTS).write_bytes(data)
    with suppress(DataError):
        snapshot.load(folder)


def check_run(data: bytes, folder: Path) -> None:
    """The files of a run are refused by DataError each; lines of its log are left out."""
    for name in (CONFIG, STATUS, METRICS):
        (folder / name).write_bytes(data)
    for load in (load_corruption, load_status, load_metrics):
        with suppress(DataError):
            load(folder)


def check_results(data: bytes, folder: Path) -> None:
    """A results.json is refused by DataError, or read."""
    (folder / RESULTS).write_bytes(data)
    with suppress(DataError):
        load_results(folder)


def check_manifest(data: bytes, folder: Path) -> None:
    """A CSV or Parquet list is refused by DataError, or every path is inside of the source."""
    for suffix in (".csv", ".tsv", ".parquet"):
        path = folder / f"list{suffix}"
        path.write_bytes(data)
        with suppress(DataError):
            rows = read_manifest(path, root=folder)
            paths = rows.values["path"]
            assert len(set(paths)) == len(rows) == len(paths)
            assert not any(p.startswith("/") or ".." in p.split("/") for p in paths)


def check_plan(data: bytes, folder: Path) -> None:
    """The plan that tasks share is refused by DataError, or read."""
    (folder / ".plan.parquet").write_bytes(data)
    with suppress(DataError):
        read_plan(folder)


def check_embeddings(suffix: str) -> Callable[[bytes, Path], None]:
    def check(data: bytes, folder: Path) -> None:
        """Embeddings are refused by DataError, or are float32 (n, d) with a name for each row."""
        path = folder / f"x{suffix}"
        path.write_bytes(data)
        with suppress(DataError):
            external = read_external(path)
            assert external.vectors.ndim == 2 and external.vectors.dtype == np.float32
            assert external.named_by == "order" or len(external.names) == len(external.vectors)

    return check


def sidecars(folder: Path) -> Iterable[bytes]:
    shards = inputs.packed(folder)
    sidecar = (shards / "val-000000.parquet").read_bytes()
    assert decode_sidecar(sidecar, SIDECAR_ROWS).num_rows == SIDECAR_ROWS
    return [sidecar]


def runs(_: Path) -> Iterable[bytes]:
    yield (
        b'{"preset": "vae", "config": {"corruption": {"clean": 0.5}}, "data": {"root": "/d", '
        b'"hash": "0"}, "environment": {}, "continued": [{"images": 8, "seen": 4}]}'
    )
    yield b'{"status": "failed", "pid": 7, "time": "2026-01-01T00:00:00", "error": "loss"}'
    yield b'{"kind": "train", "images": 8, "loss": 1.5, "psnr": 20.0}\n{"kind": "val", "images'


def results(_: Path) -> Iterable[bytes]:
    yield (
        b'{"version": 1, "run": {"preset": "vae", "seed": 0}, "data": {"hash": "0", "root": "/d"},'
        b' "probe": {"mean": {"auroc": 0.5, "auroc_ci": [0.4, 0.6]}}, "notices": ["n"],'
        b' "seconds": 1.5, "environment": {"python": "3"}, "model": {"snapshot": "0"}}'
    )


def manifests(_: Path) -> Iterable[bytes]:
    yield b"path,label,split,x,y,mpp,patient\na.png,t,train,0,32,0.5,p\nb/c.png,n,test,,,,\n"
    yield 'path\tlabel\r\n"a, ""b"".png"\tx\r\nü.png\ty\r\n'.encode()
    yield inputs.manifest_parquet()


TARGETS: dict[str, Target] = {
    "png": Target(lambda _: inputs.images(), check_png),
    "jpeg": Target(lambda _: inputs.jpegs(), check_jpeg),
    "sidecar": Target(sidecars, check_sidecar),
    "metadata": Target(
        lambda folder: [(inputs.packed(folder) / METADATA_NAME).read_bytes()], check_metadata
    ),
    "foreign_tar": Target(inputs.foreign_tars, check_foreign_tar),
    "checkpoint": Target(lambda folder: [inputs.checkpoint(folder)], check_checkpoint),
    "snapshot": Target(
        lambda folder: [(inputs.model(folder) / snapshot.CONFIG).read_bytes()], check_snapshot
    ),
    "weights": Target(
        lambda folder: [(inputs.model(folder) / snapshot.WEIGHTS).read_bytes()], check_weights
    ),
    "run": Target(runs, check_run),
    "results": Target(results, check_results),
    "manifest": Target(manifests, check_manifest),
    "plan": Target(lambda folder: [inputs.recorded_plan(folder)], check_plan),
    "embeddings_parquet": Target(
        lambda _: [inputs.embeddings_parquet()], check_embeddings(".parquet")
    ),
    "embeddings_npy": Target(lambda _: [inputs.embeddings_npy()], check_embeddings(".npy")),
    "embeddings_h5": Target(lambda _: inputs.embeddings_h5(), check_embeddings(".h5")),
}
