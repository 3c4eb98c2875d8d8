"""Check a whole data set: every shard, keys, counts, groups and patches that cross splits."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.console import printable, progress
from shards.schema import (
    FOREIGN,
    MAX_PATCHES,
    DatasetMetadata,
    channel_mean,
    key,
    load_metadata,
    mean_splits,
    read_columns,
)
from shards.sources.splits import (
    GROUPS,
    SPLITS,
    leak_warning,
    leaks,
    unknown_sources,
    unknown_warning,
)
from shards.verify.duplicates import Crossing, Duplicates, find_duplicates, join
from shards.verify.shard import Findings, Problem, check_shard

_SHARD_FILE = re.compile(r"[a-z][a-z0-9_]{0,31}-\d{6}\.(tar|parquet)")


@dataclass(frozen=True)
class Report:
    """Result of a check: the data set is sound when `problem_count` is 0, whatever the warnings."""

    metadata: DatasetMetadata
    problems: list[Problem]  # the first ones of every file
    counts: Counter[str]  # of all problems, by file
    warnings: list[str]
    duplicates: Duplicates | None  # None: not looked for

    @property
    def problem_count(self) -> int:
        return self.counts.total()


def verify(root: Path, duplicates: bool = True) -> Report:
    """Check the data set in `root`; problems are collected, not raised.

    Args:
        duplicates: also look for patches that are in two splits; takes 0.5 GB of memory per
            million patches.

    Raises:
        DataError: `dataset.json` is missing or not of this format.
    """
    root = Path(root)
    metadata = load_metadata(root)
    findings = Findings(fingerprints={} if duplicates else None)
    total = sum(split.count for split in metadata.splits.values())
    with progress("verifying", total, "samples") as advance:
        for name, split in metadata.splits.items():
            for shard in split.shards:
                check_shard(root, metadata, name, shard, findings)
                advance(shard.count)
    _check_keys(metadata, findings)
    _check_counts(metadata, findings)
    files = {path for shard in metadata.shards for path in (shard.tar(root), shard.sidecar(root))}
    for path in sorted(root.iterdir()):  # a reader of `*.tar` would mix in what is not listed
        if _SHARD_FILE.fullmatch(path.name) and path not in files:
            findings.add(path.name, None, "not part of the data set; move it away")
    warnings = [
        leak_warning(name, crossing)
        for name in GROUPS
        if (crossing := leaks(findings.groups.get(name, ())))
    ]
    if unknown := unknown_warning(*unknown_sources(metadata.provenance)):
        warnings.append(unknown)
    repeated = None
    if findings.fingerprints is not None:
        splits = [name for name in SPLITS if name in findings.fingerprints]
        repeated = find_duplicates({name: join(findings.fingerprints[name]) for name in splits})
        warnings += _duplicate_warnings(root, metadata, repeated, findings)
    return Report(metadata, findings.problems, findings.problem_counts, warnings, repeated)


def _duplicate_warnings(
    root: Path, metadata: DatasetMetadata, duplicates: Duplicates, findings: Findings
) -> list[str]:
    numbers = {n for c in duplicates.crossings for pair in c.examples for n in pair}
    paths: dict[int, str] = {}  # by key number, as far as the sidecars can be read
    for shard in metadata.shards:
        keys = [key(i) for i in numbers.intersection(findings.keys.get(shard.name, ()))]
        if not keys:
            continue
        try:
            rows = read_columns(shard.sidecar(root), ["key", "path"])
            rows = rows.filter(pc.is_in(rows["key"], pa.array(keys)))
            paths |= {int(row["key"][1:]): str(row["path"]) for row in rows.to_pylist()}
        except (pa.ArrowException, OSError, ValueError, KeyError):
            continue  # a damaged sidecar is reported as a problem

    def sentence(crossing: Crossing) -> str:
        examples = "; ".join(
            " and ".join(f"{key(i)} ({printable(paths.get(i, 'unknown'))})" for i in pair)
            for pair in crossing.examples
        )
        return (
            f"{crossing.count:,} of the {duplicates.compared[crossing.second]:,} patches of "
            f"{crossing.second} are in {crossing.first} too, with {crossing.kind}: {examples}"
            f"{'; ...' if crossing.count > len(crossing.examples) else ''}"
        )

    return [sentence(crossing) for crossing in duplicates.crossings]


def _check_keys(metadata: DatasetMetadata, findings: Findings) -> None:
    """Check that every key occurs once in the data set, and in the range of its split."""
    names = [name for name, numbers in findings.keys.items() if numbers]
    if not names:
        return
    keys = np.concatenate([np.array(findings.keys[name], np.int64) for name in names])
    shard = np.repeat(np.arange(len(names)), [len(findings.keys[name]) for name in names])
    order = np.argsort(keys, kind="stable")
    for i in np.flatnonzero(np.diff(keys[order]) == 0):
        first, second = names[shard[order[i]]], names[shard[order[i + 1]]]
        findings.add(f"{second}.tar", None, f"key {key(keys[order[i]])} is also in {first}")
    ranges = metadata.provenance.get("key_ranges")  # free-form
    for name in names:
        match isinstance(ranges, dict) and ranges.get(name.rpartition("-")[0]):
            case [int(first), int(end)]:
                pass
            case _:
                first, end = 0, MAX_PATCHES
        low, high = min(findings.keys[name]), max(findings.keys[name])
        if not first <= low <= high < end:
            what = f"keys {low} to {high}, those of its split are {first} to {end - 1}"
            findings.add(f"{name}.tar", None, what)


def _check_counts(metadata: DatasetMetadata, findings: Findings) -> None:
    """Check that class counts and channel mean of `dataset.json` follow from the samples."""
    if findings.problem_counts:
        return  # lost samples change the counts: a difference would be no problem of its own
    for name, split in metadata.splits.items():
        counts = [findings.labels[name, label] for label in range(len(metadata.classes))]
        if counts != split.class_counts:
            findings.add("dataset.json", None, f"{name} counts {split.class_counts}, not {counts}")
    if "splits_left_out" in metadata.provenance:
        return  # the mean is that of the whole data set, of which these splits were fetched
    splits = mean_splits(metadata.splits)
    sums = np.sum([findings.sums[name] for name in splits], axis=0)
    mean = channel_mean(sums.tolist(), sum(metadata.splits[name].count for name in splits))
    # decoders of JPEG may differ by a grey level
    tolerance = 1e-3 if metadata.png == FOREIGN else 1e-12
    if not np.allclose(mean, metadata.channel_mean, rtol=0, atol=tolerance):
        findings.add("dataset.json", None, f"channel_mean is {metadata.channel_mean}, not {mean}")
