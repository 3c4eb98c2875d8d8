"""The shard format, defined once: keys, members, patch shape, sidecar columns and `dataset.json`.

A data set is a folder::

    dataset.json             classes, splits, counts, channel means, provenance, hashes
    train-000000.tar         plain WebDataset: s000000000.png s000000000.cls s000000001.png ...
    train-000000.parquet     one row a sample: label, offset, size, crc32, source, x, y, ...

Whoever wrote the folder is not trusted: `load_card` checks every field before it is used.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

VERSION = 1
PATCH = 32  # side of a patch in pixels
CHANNELS = 3
PATCH_BYTES = PATCH * PATCH * CHANNELS
NO_LABEL = -1

CARD_NAME = "dataset.json"
MAX_CARD_BYTES = 64 << 20
PNG_MODES = ("stored", "keep")

SIDECAR = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # index into classes, -1 = none
        pa.field("offset", pa.int64(), nullable=False),  # of the first PNG byte in the tar
        pa.field("size", pa.int32(), nullable=False),  # of the PNG in bytes
        pa.field("crc32", pa.uint32(), nullable=False),  # of the PNG bytes
        pa.field("source", pa.string(), nullable=False),  # source image: the group of the patch
        pa.field("slide", pa.string()),
        pa.field("patient", pa.string()),
        pa.field("site", pa.string()),
        pa.field("x", pa.int32()),  # pixel column of the patch in its source image
        pa.field("y", pa.int32()),  # pixel row
        pa.field("mpp", pa.float32()),  # microns a pixel
        pa.field("path", pa.string(), nullable=False),  # relative to the packed folder
    ]
)

_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HASH = re.compile(r"[0-9a-f]{16}")


class DataError(Exception):
    """Input that cannot be used. The message names the file, the value and what to do."""


@dataclass(frozen=True)
class Shard:
    name: str  # "train-000000"; the files are NAME.tar and NAME.parquet
    count: int  # samples
    size: int  # bytes of the tar
    xxh3: str  # xxh3-64 of the tar, hexadecimal
    sidecar_size: int
    sidecar_xxh3: str


@dataclass(frozen=True)
class SplitCard:
    count: int
    class_counts: list[int]  # by class; empty when unlabelled
    shards: list[Shard]


@dataclass(frozen=True)
class DatasetCard:
    """What `dataset.json` says."""

    png: str  # "stored" or "keep"
    classes: list[str]  # sorted; empty when unlabelled
    splits: dict[str, SplitCard]
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


def dumps_card(card: DatasetCard) -> bytes:
    """The exact bytes of `dataset.json`: the same card gives the same bytes."""
    return (json.dumps(asdict(card), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def card_hash(card: DatasetCard) -> str:
    """The hash that names a data set in run folders: it covers every shard through its own hash."""
    return xxhash.xxh3_64_hexdigest(dumps_card(card))


def load_card(root: Path) -> DatasetCard:
    """Read and check `ROOT/dataset.json`.

    Raises:
        DataError: the file is missing, is not ours, or a field is not what the format says.
    """
    path = Path(root) / CARD_NAME
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: {root} is not a packed data set. "
            f"Pack one with: python -m shards.pack SOURCE {root}"
        )
    if path.stat().st_size > MAX_CARD_BYTES:
        raise DataError(f"{path} is larger than {MAX_CARD_BYTES} bytes: not a data set card")
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); pack the data set again") from None
    try:
        return _parse_card(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; pack the data set again"
        ) from None


def _parse_card(raw: Any) -> DatasetCard:
    _expect(isinstance(raw, dict), "the top level is not an object")
    _expect(raw["version"] == VERSION, f"version is {raw['version']!r}, this code reads {VERSION}")
    _expect(raw["png"] in PNG_MODES, f"png is {raw['png']!r}, expected one of {PNG_MODES}")
    classes = [str(name) for name in raw["classes"]]
    _expect(len(set(classes)) == len(classes), "a class is listed twice")
    splits = {name: _parse_split(name, split, classes) for name, split in raw["splits"].items()}
    _expect(bool(splits), "there are no splits")
    mean = [float(v) for v in raw["channel_mean"]]
    _expect(len(mean) == CHANNELS and all(0 <= v <= 1 for v in mean), f"channel_mean is {mean}")
    return DatasetCard(raw["png"], classes, splits, mean, dict(raw["provenance"]))


def _parse_split(name: str, raw: dict[str, Any], classes: list[str]) -> SplitCard:
    _expect(valid_split(name), f"split name {name!r} is not lower-case letters, digits and _")
    shards = []
    for i, entry in enumerate(raw["shards"]):
        shard = Shard(
            str(entry["name"]), int(entry["count"]), int(entry["size"]), str(entry["xxh3"]),
            int(entry["sidecar_size"]), str(entry["sidecar_xxh3"]),
        )  # fmt: skip
        _expect(shard.name == shard_name(name, i), f"shard {i} of {name} is named {shard.name!r}")
        _expect(0 < shard.count <= shard.size // 1024, f"{shard.name} has count {shard.count}")
        hashes = _HASH.fullmatch(shard.xxh3) and _HASH.fullmatch(shard.sidecar_xxh3)
        _expect(bool(hashes), f"{shard.name} has a malformed hash")
        shards.append(shard)
    counts = [int(n) for n in raw["class_counts"]]
    total = sum(shard.count for shard in shards)
    _expect(int(raw["count"]) == total, f"{name} has count {raw['count']}, its shards {total}")
    _expect(len(counts) == len(classes), f"{name} counts {len(counts)} classes of {len(classes)}")
    return SplitCard(total, counts, shards)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
