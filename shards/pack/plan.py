"""The plan of a pack: options, the order of the patches, their keys and the shards they fill."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import xxhash

from common.errors import DataError
from shards.schema import MAX_PATCHES, VERSION, shard_name
from shards.slides.options import SlideOptions
from shards.sources.convert import Rule
from shards.sources.layout import Layout, roles_of
from shards.sources.manifest import Columns
from shards.sources.names import group_pattern
from shards.sources.source import Patch
from shards.sources.splits import SPLITS

MAX_SHARD_SIZE = 1 << 20

_CHUNK = 4096  # patches per update of the digest
_TIME = Patch._fields.index("mtime_ns")


@dataclass(frozen=True)
class PackOptions:
    """What to pack, and how. All but `workers`, `skip_bad` and `overwrite` determine the bytes."""

    png: Literal["stored", "keep"] = "stored"
    """stored: write uncompressed PNGs of one fixed layout, the fastest to read (5120 bytes per
    labelled sample). keep: copy the source bytes."""
    shard_size: int = 16384
    """Samples per shard."""
    workers: int = 0
    """Worker processes; 0: one per usable core, or none for small sources."""
    seed: int = 0
    """Seed of the shuffle within each split and of the --val/--test draw."""
    skip_bad: int = 0
    """Skip up to this many files that are not usable patches; they are listed in dataset.json."""
    overwrite: bool = False
    """Replace the data set in OUT; files that are not part of it stay."""
    group_regex: str | None = None
    """Regular expression searched in each relative path; its first group is the source image.
    Default: the slide, or the file name before __ or before the position"""
    layout: Layout = "auto"
    """What the folders in SOURCE are: classes, slides, patients, flat, or the role of each level,
    as in class/patient, patient/class or */class/slide (* means nothing). auto decides by the names
    of folders and files, logs its choice, and asks where they leave a doubt."""
    follow_links: bool = False
    """Follow links that lead out of SOURCE."""
    manifest: Path | None = None
    """CSV, TSV or Parquet table that lists the patches in SOURCE, used instead of its folders."""
    columns: Columns = field(default_factory=Columns)
    missing: tuple[str, ...] = ()
    """Texts that mean no value in the columns patient, slide and site of the manifest, as in
    --missing NA unknown."""
    tidy_labels: bool = False
    """Make classes one that differ in blanks, case or Unicode form alone."""
    val: float = 0.0
    """Fraction of the patches to draw for val, by patient, slide or source."""
    test: float = 0.0
    """Fraction of the patches to draw for test, likewise."""
    convert: Rule = "none"
    """Convert images of other sizes and kinds: crop (centre), resize (centre square) or tile."""
    slides: SlideOptions = field(default_factory=SlideOptions)

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= MAX_SHARD_SIZE:
            raise ValueError(f"shard-size is {self.shard_size}, expected 1 to {MAX_SHARD_SIZE}")
        for name in ("workers", "seed", "skip_bad"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.png not in ("stored", "keep"):
            raise ValueError(f"png is {self.png!r}, expected stored or keep")
        if self.png == "keep" and self.convert != "none":
            raise ValueError(f"--convert {self.convert} leaves no source bytes for --png keep")
        if self.slides.asked and (self.convert != "none" or self.png == "keep"):
            raise ValueError(
                "patches of slides are cut and stored: leave out --convert and --png keep"
            )
        if self.slides.asked and self.layout not in ("auto", "classes"):
            raise ValueError(
                f"--layout {self.layout} is about patches; slides have auto or classes"
            )
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ValueError(f"val {self.val} and test {self.test}: expected 0 or more, below 1")
        if self.manifest is None and self.columns != Columns():
            raise ValueError("--columns says what is in a --manifest, and there is none")
        if self.manifest is None and self.missing:
            raise ValueError("--missing is about the cells of a --manifest, and there is none")
        if self.manifest is not None and self.layout != "auto":
            raise ValueError(f"--layout {self.layout} is about folders; a --manifest lists files")
        try:
            group_pattern(self.group_regex)
            roles_of(self.layout)
        except DataError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The patches of one shard, in their order."""

    name: str
    split: str
    first_key: int  # patch i has the key first_key + i, even if an earlier one is skipped
    patches: list[Patch]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The shards of a data set."""

    classes: list[str]  # sorted; empty when unlabelled
    key_ranges: dict[str, tuple[int, int]]  # by split: first key, one past the last
    shards: list[ShardPlan]
    digest: str  # of all that determines the bytes: options, patches, size and time of their files
    settings: str = ""  # the options that determine the bytes

    def content_digest(self) -> str:
        """Hash the options and patches without the times of the files: a copy has the same."""
        digest = xxhash.xxh3_64(self.settings.encode())
        for shard in self.shards:
            untimed = [patch[:_TIME] + patch[_TIME + 1 :] for patch in shard.patches]
            digest.update(msgspec.json.encode([shard.name, untimed]))
        return digest.hexdigest()

    def times_digest(self) -> str:
        """Hash the times of the files in seconds: archives and file systems round them."""
        seconds = [patch.mtime_ns // 10**9 for shard in self.shards for patch in shard.patches]
        return xxhash.xxh3_64_hexdigest(np.array(seconds, np.int64).tobytes())

    @property
    def newest(self) -> int:
        """Time of the last change of a file, in ns."""
        return max(patch.mtime_ns for shard in self.shards for patch in shard.patches)


def make_plan(patches: list[Patch], options: PackOptions) -> Plan:
    """Plan a sorted list of patches: the same list and options give the same plan.

    Raises:
        DataError: more patches than keys.
    """
    if len(patches) >= MAX_PATCHES:
        raise DataError(f"{len(patches)} patches, expected fewer than {MAX_PATCHES}")
    shards: list[ShardPlan] = []
    ranges: dict[str, tuple[int, int]] = {}
    key = 0
    for split in SPLITS:
        members = [patch for patch in patches if patch.split == split]
        if not members:
            continue
        seed = np.random.SeedSequence([options.seed, *split.encode()])
        # the raw stream of PCG64, which NumPy keeps fixed across versions
        bits = np.random.PCG64(seed).random_raw(len(members))
        ordered = [members[i] for i in np.argsort(bits, kind="stable").tolist()]
        for number, start in enumerate(range(0, len(ordered), options.shard_size)):
            shard = ShardPlan(
                name=shard_name(split, number),
                split=split,
                first_key=key + start,
                patches=ordered[start : start + options.shard_size],
            )
            shards.append(shard)
        ranges[split] = (key, key + len(ordered))
        key += len(ordered)
    classes = sorted({patch.label for patch in patches if patch.label is not None})
    values = [VERSION, options.png, options.shard_size, options.seed, options.convert]
    settings = json.dumps(values)
    digest = xxhash.xxh3_64(settings.encode())
    for start in range(0, len(patches), _CHUNK):
        digest.update(json.dumps(patches[start : start + _CHUNK]).encode())
    return Plan(
        classes=classes,
        key_ranges=ranges,
        shards=shards,
        digest=digest.hexdigest(),
        settings=settings,
    )
