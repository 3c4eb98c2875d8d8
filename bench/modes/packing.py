"""`pack`: a folder of PNG files to shards, by our packer and by webdataset's ShardWriter.

Every contestant lists the folder, reads every file and writes every patch with its label. Ours also
checks each CRC, decodes each patch, sums its channels, hashes what it writes and forces it to disk.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import webdataset as wds
from accelerate import Accelerator
from PIL import Image

from bench.made import Made, base
from bench.settings import Settings
from bench.spent import Spent, spent
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say, rounds
from shards.codec.png import check
from shards.codec.tar_writer import ending, kept_members
from shards.pack.packing import pack
from shards.pack.plan import PackOptions

SHARD = 1024  # samples: enough shards for several workers
CHUNK = 64  # samples a write
REFERENCE = "webdataset ShardWriter, kept"
Packer = Callable[[Path, Path], object]  # class folders of PNG files, new folder


def packed(how: PackOptions, root: Path, out: Path) -> None:
    """By our packer, quietly."""
    with redirect_stderr(StringIO()):
        pack(root, out, how)


def _limit(root: Path, out: Path) -> None:
    """Header and CRC checks, labels and plain tar members; nothing is decoded or hashed."""
    out.mkdir()
    listed = _listed(root)
    for number, first in enumerate(range(0, len(listed), SHARD)):
        with open(out / f"train-{number:06d}.tar", "wb") as tar:
            for start in range(first, min(first + SHARD, len(listed)), CHUNK):
                part = listed[start : start + CHUNK]
                pngs = [path.read_bytes() for path, _ in part]
                for png in pngs:
                    check(png)
                labels = np.array([label for _, label in part])
                tar.write(kept_members(np.arange(start, start + len(part)), pngs, labels))
            tar.write(ending(tar.tell()))


def _shard_writer(image: Callable[[Path], object], root: Path, out: Path) -> None:
    """webdataset's own writer, as its documentation has it."""
    out.mkdir()
    with wds.ShardWriter(str(out / "train-%06d.tar"), maxcount=SHARD, verbose=0) as writer:
        for i, (path, label) in enumerate(_listed(root)):
            writer.write({"__key__": f"s{i:09d}", "png": image(path), "cls": label})


def _decoded(path: Path) -> bytes:
    """The file's bytes, after PIL has decoded them."""
    data = path.read_bytes()
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        image.load()
    return data


def _listed(root: Path) -> list[tuple[Path, int]]:
    folders = enumerate(sorted(root.iterdir()))
    return [(path, label) for label, folder in folders for path in sorted(folder.iterdir())]


def options(png: str, workers: int) -> PackOptions:
    return PackOptions(png=png, workers=workers, shard_size=SHARD)  # type: ignore[arg-type]


OURS: dict[str, Packer] = {
    "stored": partial(packed, options("stored", 1)),
    "keep": partial(packed, options("keep", 1)),
    "limit: CRC checks only, nothing decoded": _limit,
}
PEERS: dict[str, Packer] = {
    REFERENCE: partial(_shard_writer, Path.read_bytes),
    "webdataset ShardWriter, kept, each decoded by PIL": partial(_shard_writer, _decoded),
    "webdataset ShardWriter, encodes pixels": partial(_shard_writer, lambda p: Image.open(p)),
}


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """A record of kind `pack` for each packer and number of patches."""
    packers = OURS | PEERS if settings.peers else OURS
    say("pack: making the patches")
    pixels, labels = base(settings)
    records: list[Record] = []
    for count in settings.patches:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            made = Made(Path(folder) / "made", pixels, labels, count)
            root = made.pngs()
            say(f"pack: {count:,} patches, {len(packers)} packers in turn")
            records += _race(packers, root, Path(folder), count, settings, say)
    return records


def _race(
    packers: dict[str, Packer], root: Path, folder: Path, count: int, settings: Settings, say: Say
) -> list[Record]:
    results: dict[str, list[Spent]] = {name: [] for name in packers}
    sizes: dict[str, int] = {}

    def block(name: str) -> float:
        out = folder / "out"
        taken = spent(partial(packers[name], root, out))
        sizes[name] = sum(path.stat().st_size for path in out.iterdir())
        shutil.rmtree(out)
        results[name].append(taken)
        return taken.seconds

    rounds({name: partial(block, name) for name in packers}, settings.repeats, say)
    return [
        {
            "kind": "pack",
            "packer": name,
            "patches": count,
            "patches_per_s": spread([count / taken.seconds for taken in found]),
            "patches_per_core_s": spread([count / taken.core_seconds for taken in found]),
            "bytes_per_patch": sizes[name] / count,
        }
        for name, found in results.items()
    ]


def report(records: list[Record], settings: Settings) -> str:
    """A table for each number of patches."""
    parts = []
    for count in dict.fromkeys(record["patches"] for record in records):
        mine = [record for record in records if record["patches"] == count]
        rates = {r["packer"]: r["patches_per_core_s"]["median"] for r in mine}
        reference = rates.get(REFERENCE)
        rows = [["packer", "patches/s", "patches/s a core", "x ShardWriter", "bytes/patch"]]
        for record in mine:
            times = "-" if reference is None else f"{rates[record['packer']] / reference:.1f}"
            rows.append(
                [
                    record["packer"],
                    cell(record["patches_per_s"]),
                    cell(record["patches_per_core_s"]),
                    times,
                    f"{record['bytes_per_patch']:,.0f}",
                ]
            )
        parts.append(f"{count:,} patches from PNG files: {CELL}\n{table(rows)}")
    return "\n\n".join(parts)
