"""The shard format, defined once: keys, members, patch shape, sidecar columns and `dataset.json`.

A data set is a folder::

    dataset.json             classes, splits, counts, channel means, provenance, hashes
    train-000000.tar         plain WebDataset: s000000000.png s000000000.cls s000000001.png ...
    train-000000.parquet     one row a sample: label, offset, size, crc32, source, x, y, ...

Tars of another tool stay where they are: `png` is then "foreign" and each shard says its `path`.

Whoever wrote the folder is not trusted: `load_metadata` checks every field before it is used.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from common.errors import DataError

VERSION = 1
PATCH = 32  # side of a patch in pixels
CHANNELS = 3
PATCH_BYTES = PATCH * PATCH * CHANNELS
NO_LABEL = -1

METADATA_NAME = "dataset.json"
PACKING_NAME = ".packing.json"  # beside an unfinished pack
MAX_METADATA_BYTES = 64 << 20
FOREIGN = "foreign"  # images of another tool, PNG or JPEG, at any place of its tars
PNG_MODES = ("stored", "keep", FOREIGN)

SIDECAR = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # index into classes, -1 = none
        pa.field("offset", pa.int64(), nullable=False),  # of the first image byte in the tar
        pa.field("size", pa.int32(), nullable=False),  # of the image in bytes
        pa.field("crc32", pa.uint32(), nullable=False),  # of the image's bytes
        pa.field("source", pa.string(), nullable=False),  # source image: the group of the patch
        pa.field("slide", pa.string()),
        pa.field("patient", pa.string()),
        pa.field("site", pa.string()),
        pa.field("x", pa.int32()),  # pixel column of the patch in its source image
        pa.field("y", pa.int32()),  # pixel row
        pa.field("mpp", pa.float32()),  # microns a pixel
        pa.field("path", pa.string(), nullable=False),  # in the packed folder; TAR/MEMBER
    ]
)

_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Shard:
    name: str  # "train-000000"; the files are NAME.tar and NAME.parquet
    count: int  # samples
    size: int  # bytes of the tar
    xxh3: str  # xxh3-64 of the tar, hexadecimal
    sidecar_size: int
    sidecar_xxh3: str
    path: str | None = (
        None  # of a foreign tar: absolute, or relative to dataset.json; None: NAME.tar
    )

    def tar(self, root: Path) -> Path:
        """Where the tar lies when dataset.json lies in `root`."""
        return root / (self.path or f"{self.name}.tar")

    def sidecar(self, root: Path) -> Path:
        return root / f"{self.name}.parquet"


@dataclass(frozen=True)
class SplitMetadata:
    count: int
    class_counts: list[int]  # by class; empty when unlabelled
    shards: list[Shard]


@dataclass(frozen=True)
class DatasetMetadata:
    """What `dataset.json` says."""

    png: str  # one of PNG_MODES
    classes: list[str]  # by label; empty when unlabelled
    splits: dict[str, SplitMetadata]
    channel_mean: list[float]  # RGB in [0, 1], of the train split (of all splits without one)
    provenance: dict[str, Any]
    version: int = VERSION

    @property
    def labelled(self) -> bool:
        return bool(self.classes)


def key(index: int) -> str:
    """The sample key: `s` and nine digits, unique across the splits of a data set.

    Keys number the patches in the order of packing, split after split; a patch that packing left
    out leaves a gap.
    """
    return f"s{index:09d}"


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


def valid_split(name: str) -> bool:
    return _SPLIT.fullmatch(name) is not None


def dumps_metadata(metadata: DatasetMetadata) -> bytes:
    """The exact bytes of `dataset.json`: the same metadata gives the same bytes."""
    fields = asdict(metadata, dict_factory=_present)
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def dataset_hash(metadata: DatasetMetadata) -> str:
    """The hash that names a data set in run folders: it covers every shard through its own hash.

    Where tars lie does not count: a copy elsewhere is the same data set.
    """
    return xxhash.xxh3_64_hexdigest(dumps_metadata(without_paths(metadata)))


def without_paths(metadata: DatasetMetadata) -> DatasetMetadata:
    """The metadata of a copy with every tar beside it."""
    splits = {
        name: replace(split, shards=[replace(shard, path=None) for shard in split.shards])
        for name, split in metadata.splits.items()
    }
    return replace(metadata, splits=splits)


def _present(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Metadata of before `path` existed keep their bytes, and with them their hash."""
    return {name: value for name, value in fields if value is not None}


def refuse_unfinished(root: Path) -> None:
    """Raises:
    DataError: `root` holds a pack that was begun, and is not complete.
    """
    if (root / PACKING_NAME).exists():
        raise DataError(
            f"{root} holds an unfinished pack: run the same python -m shards.pack command again, "
            f"or, if several tasks share it: python -m shards.merge {root}"
        )


def load_metadata(root: Path) -> DatasetMetadata:
    """Read and check `ROOT/dataset.json`.

    Raises:
        DataError: the file is missing, is not ours, or a field is not what the format says.
    """
    path = Path(root) / METADATA_NAME
    if not path.is_file():
        refuse_unfinished(Path(root))
        raise DataError(
            f"{path} does not exist: {root} is not a packed data set. "
            f"Pack one with: python -m shards.pack SOURCE {root} (WebDataset tars of another "
            f"tool are indexed with: python -m shards.verify {root} --index OUT)"
        )
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_METADATA_BYTES} bytes: not the metadata of a data set"
        )
    return loads_metadata(path.read_bytes(), str(path))


def loads_metadata(data: bytes, place: str) -> DatasetMetadata:
    """Check the bytes of metadata.

    Args:
        place: where they were read, for messages.

    Raises:
        DataError: as `load_metadata`.
    """
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not valid JSON ({error}); pack the data set again") from None
    try:
        return _parse_metadata(raw)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{place}: {type(error).__name__}: {error}; pack the data set again"
        ) from None


def _parse_metadata(raw: Any) -> DatasetMetadata:
    _expect(isinstance(raw, dict), "the top level is not an object")
    _expect(raw["version"] == VERSION, f"version is {raw['version']!r}, this code reads {VERSION}")
    _expect(raw["png"] in PNG_MODES, f"png is {raw['png']!r}, expected one of {PNG_MODES}")
    classes = [str(name) for name in raw["classes"]]
    _expect(len(set(classes)) == len(classes), "a class is listed twice")
    splits = {name: _parse_split(name, split, classes) for name, split in raw["splits"].items()}
    _expect(bool(splits), "there are no splits")
    paths = [shard.path for split in splits.values() for shard in split.shards if shard.path]
    _expect(raw["png"] == FOREIGN or not paths, f"a shard of {raw['png']} PNGs has a path")
    mean = [float(v) for v in raw["channel_mean"]]
    _expect(len(mean) == CHANNELS and all(0 <= v <= 1 for v in mean), f"channel_mean is {mean}")
    return DatasetMetadata(raw["png"], classes, splits, mean, dict(raw["provenance"]))


def _parse_split(name: str, raw: dict[str, Any], classes: list[str]) -> SplitMetadata:
    _expect(valid_split(name), f"split name {name!r} is not lower-case letters, digits and _")
    shards = []
    for i, entry in enumerate(raw["shards"]):
        shard = Shard(
            str(entry["name"]), int(entry["count"]), int(entry["size"]), str(entry["xxh3"]),
            int(entry["sidecar_size"]), str(entry["sidecar_xxh3"]), _parse_path(entry),
        )  # fmt: skip
        _expect(shard.name == shard_name(name, i), f"shard {i} of {name} is named {shard.name!r}")
        _expect(0 < shard.count <= shard.size // 1024, f"{shard.name} has count {shard.count}")
        _expect(shard.sidecar_size > 0, f"{shard.name} has sidecar_size {shard.sidecar_size}")
        hashes = _HASH.fullmatch(shard.xxh3) and _HASH.fullmatch(shard.sidecar_xxh3)
        _expect(bool(hashes), f"{shard.name} has a malformed hash")
        shards.append(shard)
    counts = [int(n) for n in raw["class_counts"]]
    total = sum(shard.count for shard in shards)
    _expect(int(raw["count"]) == total, f"{name} has count {raw['count']}, its shards {total}")
    _expect(len(counts) == len(classes), f"{name} counts {len(counts)} classes of {len(classes)}")
    return SplitMetadata(total, counts, shards)


def _parse_path(entry: dict[str, Any]) -> str | None:
    path = entry.get("path")
    _expect(path is None or (isinstance(path, str) and path.endswith(".tar")), f"path is {path!r}")
    _expect(path is None or "\0" not in path, f"path is {path!r}")
    return path


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
