"""`pack`: a folder of PNG files to shards, by our packer and by webdataset's ShardWriter.

Every packer lists the folder, reads every file and writes every patch with its label. Ours also
checks each CRC, decodes each patch, sums its channels, hashes what it writes and forces it to disk.
"""

import shutil
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import webdataset as wds
from accelerate import Accelerator
from PIL import Image

from bench.patches import PatchSet, patch_sets
from bench.records import CELL, Record, Spread, grouped
from bench.settings import Settings
from bench.timing import Usage, log, rounds, usage
from common.console import table
from shards.codec.png import check
from shards.codec.tar_writer import ending, kept_members
from shards.pack.packing import pack
from shards.pack.plan import PackOptions

SHARD = 1024  # samples: enough shards for several workers
CHUNK = 64  # samples per write
REFERENCE = "webdataset ShardWriter, kept"

Packer = Callable[[Path, Path], object]  # class folders of PNG files, new folder


class PackSpeed(Record, tag="pack", frozen=True):
    """Speed of a packer on a number of patches."""

    packer: str
    patches: int
    patches_per_s: Spread
    patches_per_core_s: Spread
    bytes_per_patch: float


def pack_folder(png: Literal["stored", "keep"], workers: int, root: Path, out: Path) -> None:
    """Pack with our packer."""
    pack(root, out, PackOptions(png=png, workers=workers, shard_size=SHARD))


def check_and_copy(root: Path, out: Path) -> None:
    """Check headers and CRCs, write labels and plain tar members; decode and hash nothing."""
    out.mkdir()
    files = _labelled_files(root)
    for number, first in enumerate(range(0, len(files), SHARD)):
        with open(out / f"train-{number:06d}.tar", "wb") as tar:
            for start in range(first, min(first + SHARD, len(files)), CHUNK):
                chunk = files[start : start + CHUNK]
                pngs = [path.read_bytes() for path, _ in chunk]
                for png in pngs:
                    check(png)
                labels = np.array([label for _, label in chunk])
                tar.write(kept_members(np.arange(start, start + len(chunk)), pngs, labels))
            tar.write(ending(tar.tell()))


def pack_by_webdataset(image: Callable[[Path], object], root: Path, out: Path) -> None:
    """Pack with webdataset's own writer, used as its documentation shows."""
    out.mkdir()
    with wds.ShardWriter(str(out / "train-%06d.tar"), maxcount=SHARD, verbose=0) as writer:
        for i, (path, label) in enumerate(_labelled_files(root)):
            writer.write({"__key__": f"s{i:09d}", "png": image(path), "cls": label})


def decoded_by_pil(path: Path) -> bytes:
    """Read the bytes of a file, and have PIL decode them."""
    data = path.read_bytes()
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        image.load()
    return data


def _labelled_files(root: Path) -> list[tuple[Path, int]]:
    folders = enumerate(sorted(root.iterdir()))
    return [(path, label) for label, folder in folders for path in sorted(folder.iterdir())]


OURS: dict[str, Packer] = {
    "stored": partial(pack_folder, "stored", 1),
    "keep": partial(pack_folder, "keep", 1),
    "limit: CRC checks only, nothing decoded": check_and_copy,
}
PEERS: dict[str, Packer] = {
    REFERENCE: partial(pack_by_webdataset, Path.read_bytes),
    "webdataset ShardWriter, kept, each decoded by PIL": partial(
        pack_by_webdataset, decoded_by_pil
    ),
    "webdataset ShardWriter, encodes pixels": partial(pack_by_webdataset, lambda p: Image.open(p)),
}


def measure(settings: Settings, accelerator: Accelerator) -> list[PackSpeed]:
    """Race the packers on each number of patches."""
    packers = OURS | PEERS if settings.peers else OURS
    records: list[PackSpeed] = []
    for patches in patch_sets(settings, settings.patches):
        log.info(f"pack: {patches.count:,} patches, {len(packers)} packers in turn")
        records += _race(packers, patches, settings.repeats)
    return records


def _race(packers: dict[str, Packer], patches: PatchSet, repeats: int) -> list[PackSpeed]:
    root, out, count = patches.pngs(), patches.folder / "out", patches.count
    runs: dict[str, list[Usage]] = {name: [] for name in packers}
    sizes: dict[str, int] = {}

    def block(name: str) -> float:
        used = usage(partial(packers[name], root, out))
        sizes[name] = sum(path.stat().st_size for path in out.iterdir())
        shutil.rmtree(out)
        runs[name].append(used)
        return used.seconds

    rounds({name: partial(block, name) for name in packers}, repeats)
    return [
        PackSpeed(
            name,
            count,
            Spread.of([count / run.seconds for run in runs[name]]),
            Spread.of([count / run.core_seconds for run in runs[name]]),
            sizes[name] / count,
        )
        for name in packers
    ]


def report(records: list[PackSpeed], settings: Settings) -> str:
    """Show a table per number of patches."""
    tables = []
    for count, group in grouped(records, lambda r: r.patches).items():
        rates = {r.packer: r.patches_per_core_s.median for r in group}
        reference = rates.get(REFERENCE)
        rows = [["packer", "patches/s", "patches/s per core", "x ShardWriter", "bytes/patch"]]
        for r in group:
            ratio = "-" if reference is None else f"{rates[r.packer] / reference:.1f}"
            speeds = f"{r.patches_per_s}", f"{r.patches_per_core_s}"
            rows.append([r.packer, *speeds, ratio, f"{r.bytes_per_patch:,.0f}"])
        tables.append(f"{count:,} patches from PNG files: {CELL}\n{table(rows)}")
    return "\n\n".join(tables)
