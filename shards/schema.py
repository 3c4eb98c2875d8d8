"""The shard format, defined once: patch shape, keys, sidecars and `dataset.json`.

A data set is a folder::

    dataset.json             classes, splits, counts, channel means, provenance, hashes
    train-000000.tar         plain WebDataset: s000000000.png s000000000.cls s000000001.png ...
    train-000000.parquet     one row per sample: label, offset, size, crc32, source, x, y, ...

Tars of another tool stay where they are: `png` is then "foreign" and each shard has a `path`.

The files are not trusted: `load_metadata` checks every field before it is used.

PATCH is the only definition of the patch size; the sizes of rows, PNGs and samples are computed
from it (`codec.png`, `codec.tar_writer`). Images of another size are refused from their header. A
second size would be a field of `DatasetMetadata` that is omitted at 32, so that data sets of today
keep the bytes of `dataset.json` and their hash.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from common.errors import DataError
from common.files import with_checksum, without_checksum

VERSION = 1
PATCH = 32  # side of a patch in pixels
CHANNELS = 3
PATCH_BYTES = PATCH * PATCH * CHANNELS
NO_LABEL = -1

MAX_PATCHES = 10**9  # the nine digits of a key
MAX_LISTED = 100  # items in each list of the provenance (skipped, repeated); all are counted
MIN_SAMPLE_BYTES = 1024  # in a tar: a header and a block of the image

METADATA_NAME = "dataset.json"
PACKING_NAME = ".packing.json"  # beside an unfinished pack
MAX_METADATA_BYTES = 64 << 20
FOREIGN = "foreign"  # images of another tool, PNG or JPEG, anywhere in its tars
PNG_MODES = ("stored", "keep", FOREIGN)

SIDECAR = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # index into classes, -1 = none
        pa.field("offset", pa.int64(), nullable=False),  # of the image in the tar
        pa.field("size", pa.int32(), nullable=False),  # of the image, in bytes
        pa.field("crc32", pa.uint32(), nullable=False),  # of the image's bytes
        pa.field("source", pa.string(), nullable=False),  # source image: the group of the patch
        pa.field("slide", pa.string()),
        pa.field("patient", pa.string()),
        pa.field("site", pa.string()),
        pa.field("x", pa.int32()),  # pixel column of the patch in its source image
        pa.field("y", pa.int32()),  # pixel row
        pa.field("mpp", pa.float32()),  # microns per pixel
        # relative to the source folder; TAR/MEMBER if foreign
        pa.field("path", pa.string(), nullable=False),
    ]
)

_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Shard:
    name: str  # "train-000000"; the files are NAME.tar and NAME.parquet
    count: int  # samples
    size: int  # of the tar, in bytes
    xxh3: str  # xxh3-64 of the tar, hexadecimal
    sidecar_size: int
    sidecar_xxh3: str
    path: str | None = None  # foreign tar: absolute or relative to the data set; None: NAME.tar

    def tar(self, root: Path) -> Path:
        """Path of the tar of a data set in `root`."""
        return root / (self.path or f"{self.name}.tar")

    def sidecar(self, root: Path) -> Path:
        """Path of the Parquet table of a data set in `root`."""
        return root / f"{self.name}.parquet"


@dataclass(frozen=True)
class SplitMetadata:
    count: int
    class_counts: list[int]  # by class; empty when unlabelled
    shards: list[Shard]


@dataclass(frozen=True)
class DatasetMetadata:
    """Content of `dataset.json`."""

    png: str  # one of PNG_MODES
    classes: list[str]  # by label; empty when unlabelled
    splits: dict[str, SplitMetadata]
    channel_mean: list[float]  # RGB in [0, 1], of the train split (of all splits without one)
    provenance: dict[str, Any]  # how the data set was made; free-form
    version: int = VERSION

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    @property
    def shards(self) -> list[Shard]:
        """Shards of all splits."""
        return [shard for split in self.splits.values() for shard in split.shards]


def key(index: int) -> str:
    """Sample key: `s` and nine digits, unique across the splits of a data set.

    Keys number the patches in packing order, split after split; a patch that packing skipped
    leaves a gap.
    """
    return f"s{index:09d}"


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


def valid_split(name: str) -> bool:
    return _SPLIT.fullmatch(name) is not None


def mean_splits(splits: Iterable[str]) -> list[str]:
    """Names of the splits that the channel mean covers: train, or all when there is no train."""
    names = list(splits)
    return ["train"] if "train" in names else names


def channel_mean(sums: Sequence[int], patches: int) -> list[float]:
    """Mean of each channel in [0, 1].

    Args:
        sums: (3,) sums of the 0-255 values of each channel over all pixels.
        patches: number of patches in the sums.
    """
    values = 255 * PATCH * PATCH * patches
    return [int(total) / values for total in sums]


def dumps_metadata(metadata: DatasetMetadata) -> bytes:
    """Encode `dataset.json`; equal metadata give equal bytes."""
    return _encode(with_checksum(_fields(metadata)))


def _fields(metadata: DatasetMetadata) -> dict[str, object]:
    return asdict(
        metadata,
        # None is left out, so that data sets from before `path` existed keep their bytes and hash
        dict_factory=lambda pairs: {name: value for name, value in pairs if value is not None},
    )


def _encode(fields: dict[str, object]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def dataset_hash(metadata: DatasetMetadata) -> str:
    """Return the hash that names a data set in run folders and in the cache.

    It covers every shard through the shard's hash, but not where foreign tars are: a copy elsewhere
    is the same data set.
    """
    return xxhash.xxh3_64_hexdigest(_encode(_fields(without_paths(metadata))))


def without_paths(metadata: DatasetMetadata) -> DatasetMetadata:
    """Return the metadata of a copy of the data set that has every tar in its folder."""
    splits = {
        name: replace(split, shards=[replace(shard, path=None) for shard in split.shards])
        for name, split in metadata.splits.items()
    }
    return replace(metadata, splits=splits)


def encode_sidecar(table: pa.Table) -> memoryview:
    """Encode a table of the schema SIDECAR; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=1 << 16,
        compression="zstd",
        compression_level=3,
        version="2.6",
        use_dictionary=["source", "slide", "patient", "site"],
    )
    return memoryview(sink.getvalue())


def decode_sidecar(data: bytes, count: int) -> pa.Table:
    """Decode and check a sidecar of `count` rows that is not trusted.

    Raises:
        ValueError: not Parquet, other columns, or another number of rows.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            # a small file can claim any number of rows: the claim is checked before they are read
            if file.metadata.num_rows != count:
                raise ValueError(f"{file.metadata.num_rows} rows, expected {count}")
            if not file.schema_arrow.equals(SIDECAR):
                raise ValueError("the columns are not those of the format")
            table = file.read()
            table.validate(full=True)  # lengths, and strings that are UTF-8
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not readable as Parquet: {error}") from None
    if table.num_rows != count:
        raise ValueError(f"{table.num_rows} rows, expected {count}")
    return table


def read_columns(path: Path, names: list[str]) -> pa.Table:
    """Read some columns of a sidecar, without a check of its format.

    Raises:
        KeyError: a column is missing.
        pa.ArrowException, OSError, ValueError: not readable.
    """
    # not read_table: its first call imports pyarrow.dataset, as slow as packing 2,000 patches
    with pq.ParquetFile(path) as file:
        return file.read(columns=names).select(names)


def refuse_unfinished(root: Path) -> None:
    """Refuse a folder that holds an unfinished pack.

    Raises:
        DataError: `root` holds a pack that was begun and is not complete.
    """
    if (root / PACKING_NAME).exists():
        raise DataError(
            f"{root} holds an unfinished pack: run the same python -m shards.pack command again, "
            f"or, if several tasks share it: python -m shards.merge {root}"
        )


def load_metadata(root: Path) -> DatasetMetadata:
    """Read and check `ROOT/dataset.json`.

    Raises:
        DataError: the file is missing, too large, or not of this format.
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
    """Decode and check the content of `dataset.json`.

    Args:
        place: path or URL of the file, for messages.

    Raises:
        DataError: not JSON, not of this format, or altered.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter from thousands of brackets
        raise DataError(f"{place} is not valid JSON ({error}); pack the data set again") from None
    try:
        _expect(isinstance(fields, dict), "the top level is not an object")
        version = fields.get("version")
        _expect(version == VERSION, f"version is {version!r}, this code reads {VERSION}")
        metadata = msgspec.convert(without_checksum(fields, place), DatasetMetadata)
        _check(metadata)
    except (msgspec.ValidationError, ValueError) as error:
        raise DataError(f"{place}: {error}; pack the data set again") from None
    return metadata


def _check(metadata: DatasetMetadata) -> None:
    png, classes, mean = metadata.png, metadata.classes, metadata.channel_mean
    _expect(png in PNG_MODES, f"png is {png!r}, expected one of {PNG_MODES}")
    _expect(len(set(classes)) == len(classes), "a class is listed twice")
    _expect(bool(metadata.splits), "there are no splits")
    for name, split in metadata.splits.items():
        _expect(valid_split(name), f"split name {name!r} is not lower-case letters, digits and _")
        for i, shard in enumerate(split.shards):
            wrong = f"shard {i} of {name} is named {shard.name!r}"
            _expect(shard.name == shard_name(name, i), wrong)
            most = shard.size // MIN_SAMPLE_BYTES
            _expect(0 < shard.count <= most, f"{shard.name} has count {shard.count}")
            _expect(shard.sidecar_size > 0, f"{shard.name} has sidecar_size {shard.sidecar_size}")
            hashes = _HASH.fullmatch(shard.xxh3) and _HASH.fullmatch(shard.sidecar_xxh3)
            _expect(bool(hashes), f"{shard.name} has a malformed hash")
        total, counts = sum(shard.count for shard in split.shards), len(split.class_counts)
        _expect(split.count == total, f"{name} has count {split.count}, its shards {total}")
        _expect(counts == len(classes), f"{name} counts {counts} classes of {len(classes)}")
    paths = [shard.path for shard in metadata.shards if shard.path is not None]
    _expect(png == FOREIGN or not paths, f"a shard of {png} PNGs has a path")
    for path in paths:
        _expect(path.endswith(".tar") and "\0" not in path, f"path is {path!r}")
    _expect(len(mean) == CHANNELS and all(0 <= v <= 1 for v in mean), f"channel_mean is {mean}")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
