"""What the index of tars was made of, as `dataset.json` records it, and whether it is complete."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from shards.foreign.collect import Tar
from shards.foreign.scan import ScanOptions
from shards.schema import FOREIGN, METADATA_NAME, load_metadata
from shards.sources.source import Groups


@dataclass(frozen=True)
class IndexOptions(ScanOptions):
    """Options of --index: how to read the tars of another tool."""

    split: str | None = None
    """Split of all tars. Default: from the name of each tar, or of one of its folders."""
    classes: str | None = None
    """Class names in the order of the labels, as in normal,tumor. Default: the names that the
    samples have, sorted, or their numbers."""
    skip_bad: int = 0
    """Leave out up to this many unusable samples; they are listed."""
    workers: int = 0
    """Worker processes; 0: one per usable core, or in-process for small inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "skip_bad"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.names is not None and ("" in self.names or len(set(self.names)) < len(self.names)):
            raise ValueError(f"--classes {self.classes!r} has an empty name, or one twice")

    @property
    def names(self) -> list[str] | None:
        return None if self.classes is None else self.classes.split(",")

    @property
    def own_label_suffix(self) -> str | UnsetType:
        """The suffix of labels, unset where it is the usual one."""
        return UNSET if self.label_suffix == "cls" else self.label_suffix


class Skipped(msgspec.Struct, frozen=True):
    """Samples that were left out."""

    count: int
    first: list[str]  # tar, byte and reason of at most MAX_LISTED


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Which tars the samples come from, and how they were read."""

    source: str  # name of the folder, or pattern
    label_field: str | None
    ignored: list[str]
    label_suffix: str | UnsetType = UNSET  # of the member that is the label, if not cls
    classes: list[str] | UnsetType = UNSET  # names that were asked for
    group_regex: str | None
    tars: dict[str, list[str]]  # names by split
    key_ranges: dict[str, list[int]]  # by split: first key, one past the last
    skipped: Skipped
    empty: list[str]  # names of tars without a sample
    sources: Groups


def is_complete(source: str, out: Path, tars: list[Tar], options: IndexOptions) -> bool:
    """Whether OUT holds the index of these tars: none has another size, or changed since."""
    metadata = load_metadata(out)
    try:
        past = msgspec.convert(metadata.provenance, Provenance)
    except msgspec.ValidationError:
        return False
    same = (
        metadata.png == FOREIGN
        and past.source == Path(source).name
        and past.label_field == options.label_field
        and past.ignored == list(options.ignore)
        and past.group_regex == options.group_regex
        and past.label_suffix == options.own_label_suffix
        and past.classes == (options.names or UNSET)
    )
    indexed = (out / METADATA_NAME).stat().st_mtime_ns
    now = {
        (tar.split, tar.path.resolve()): -1 if status.st_mtime_ns > indexed else status.st_size
        for tar in tars
        if tar.name not in past.empty and (status := tar.path.stat())
    }
    then = {
        (name, shard.tar(out).resolve()): shard.size
        for name, split in metadata.splits.items()
        for shard in split.shards
    }
    sidecars = [(out / f"{shard.name}.parquet", shard.sidecar_size) for shard in metadata.shards]
    whole = all(path.exists() and path.stat().st_size == size for path, size in sidecars)
    return same and whole and now == then
