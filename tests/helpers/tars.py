"""WebDataset tars as other tools write them, and malformed ones."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray
from PIL import Image

from shards.foreign.scan import Scan, ScanOptions, scan_tar

CLASSES = ("lymph", "stroma", "tumor")
Sample = tuple[str, int]  # key, and number in CLASSES
Members = Iterable[tuple[str, bytes]]


def samples(count: int, prefix: str = "") -> list[Sample]:
    """Name `count` samples of three slides, their classes in turn."""
    return [(f"{prefix}slide{i % 3}__{i:04d}", i % len(CLASSES)) for i in range(count)]


def pixels_of(key: str) -> NDArray[np.uint8]:
    """Draw (32, 32, 3) pixels from the key, smooth enough for JPEG."""
    rng = np.random.default_rng([*key.encode()])
    coarse = rng.uniform(40, 215, (4, 4, 3))
    smooth = np.kron(coarse, np.ones((8, 8, 1))) + rng.normal(0, 6, (32, 32, 3))
    return smooth.clip(0, 255).astype(np.uint8)


def image_of(key: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(key)).save(
        buffer, kind, **({"quality": 90} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


def members(entries: list[Sample], image: str = "png") -> Members:
    for key, label in entries:
        yield f"{key}.{image}", image_of(key, "PNG" if image == "png" else "JPEG")
        yield f"{key}.cls", str(label).encode()


def write_tar(path: Path, content: Members, tar_format: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, body in content:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


def by_shard_writer(path: Path, entries: list[Sample]) -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for key, label in entries:
            tar.write({"__key__": key, "png": pixels_of(key), "cls": label})


def by_shard_writer_json(path: Path, entries: list[Sample]) -> None:
    with webdataset.TarWriter(str(path)) as tar:
        for key, label in entries:
            fields = {"diagnosis": CLASSES[label], "patient": f"p{label}", "x": 32, "mpp": 0.5}
            tar.write({"__key__": key, "png": image_of(key), "json": fields})


def by_gnu_tar(path: Path, entries: list[Sample]) -> None:
    """Pack a folder with GNU tar: folders are members, and the order is the directory's."""
    folder = path.with_suffix("")
    for name, body in members(entries):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    subprocess.run(["tar", "--format=gnu", "-C", folder, "-cf", path, "."], check=True)


def interleaved(path: Path, entries: list[Sample]) -> None:
    """Write all images, and then all classes in another order."""
    every = list(members(entries))
    write_tar(path, [*every[::2], *reversed(every[1::2])])


def by_tarfile(tar_format: int, prefix: str = "") -> Callable[[Path, list[Sample]], None]:
    def write(path: Path, entries: list[Sample]) -> None:
        write_tar(path, members([(prefix + key, label) for key, label in entries]), tar_format)

    return write


def as_jpeg(path: Path, entries: list[Sample]) -> None:
    write_tar(path, members(entries, "jpg"))


LONG = "folder of a slide/" * 20  # longer than a plain header holds
WRITERS: dict[str, Callable[[Path, list[Sample]], None]] = {
    "ShardWriter": by_shard_writer,
    "ShardWriter json": by_shard_writer_json,
    "tarfile ustar": by_tarfile(tarfile.USTAR_FORMAT),
    "tarfile pax": by_tarfile(tarfile.PAX_FORMAT, LONG + "ü/"),
    "tarfile gnu": by_tarfile(tarfile.GNU_FORMAT, LONG),
    "GNU tar": by_gnu_tar,
    "interleaved": interleaved,
    "jpeg": as_jpeg,
}


def raw_header(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Make a header that no tool would write: any size, and nothing after it."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def json_body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


END = bytes(1024)  # what closes a tar


def without_end(path: Path) -> bytes:
    """Read a tar without the zeros that close it."""
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    return path.read_bytes()[: last.offset_data + -(-last.size // 512) * 512]


def open_tar(content: Members, folder: Path) -> bytes:
    """Make a tar of the members without the zeros that close it."""
    write_tar(folder / "open.tar", content)
    return without_end(folder / "open.tar")


def scan(path: Path, content: bytes | None = None, **options: Any) -> Scan:
    """Scan a tar, after writing `content` to it if given."""
    if content is not None:
        path.write_bytes(content)
    return scan_tar(path, "train-0.tar", ScanOptions(**options))
