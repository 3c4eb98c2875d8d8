"""Check a data set completely: `python -m shards.verify OUT`; with --index, make one of tars that
another tool wrote (`shards.foreign.index`).

Hashes and sizes against `dataset.json`, every member of every tar against its sidecar row, every
PNG decoded, keys unique, classes and channel means recounted. The tars are parsed by other code
than the one that wrote them. Warnings, which are no damage: groups that cross splits, and patches
that are in two splits, exactly or nearly (`shards.verify.duplicates`).
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from common.command import run_command
from common.console import printable, progress, table
from shards.foreign.index import IndexOptions, index_tars
from shards.pack.plan import MAX_PATCHES
from shards.pack.resume import shard_files
from shards.schema import FOREIGN, PATCH, DatasetMetadata, key, load_metadata
from shards.sources.splits import GROUPS, SPLITS, leak_warning, leaks
from shards.verify.check import check_shard
from shards.verify.duplicates import LOW_CONTRAST, Crossing, Duplicates, find_duplicates, join
from shards.verify.findings import Findings, Problem

_SHARD_FILE = re.compile(r"[a-z][a-z0-9_]{0,31}-\d{6}\.(tar|parquet)")
_SHOWN = 50


@dataclass(frozen=True)
class Report:
    """What was found: the data set is sound when `problem_count` is 0. Warnings do not count."""

    metadata: DatasetMetadata
    problems: list[Problem]  # the first ones of every file
    problem_count: int
    warnings: list[str]
    duplicates: Duplicates | None  # None: not looked for


def verify(root: Path, duplicates: bool = True) -> Report:
    """Check the data set in `root`; problems are collected, not raised.

    Args:
        duplicates: also look for patches that are in two splits; 0.5 GB of memory a million.

    Raises:
        DataError: there is no metadata to check against, or it is not one of ours.
    """
    root = Path(root)
    metadata = load_metadata(root)
    findings = Findings(prints={} if duplicates else None)
    total = sum(split.count for split in metadata.splits.values())
    with progress("verifying", total, "samples") as advance:
        for name, split in metadata.splits.items():
            for shard in split.shards:
                check_shard(root, metadata, name, shard, findings)
                advance(shard.count)
    _check_keys(metadata, findings)
    _check_counts(metadata, findings)
    _check_strays(root, metadata, findings)
    warnings = [
        leak_warning(name, crossing)
        for name in GROUPS
        if (crossing := leaks(findings.groups.get(name, ())))
    ]
    found = None
    if findings.prints is not None:
        known = [name for name in SPLITS if name in findings.prints]
        found = find_duplicates({name: join(findings.prints[name]) for name in known})
        warnings += _duplicate_warnings(root, found, findings)
    return Report(metadata, findings.problems, findings.counts.total(), warnings, found)


def _duplicate_warnings(root: Path, found: Duplicates, findings: Findings) -> list[str]:
    wanted = {number for c in found.crossings for pair in c.examples for number in pair}
    paths = _paths(root, wanted, findings)

    def sentence(crossing: Crossing) -> str:
        shown = "; ".join(
            " and ".join(f"{key(i)} ({printable(paths.get(i, 'unknown'))})" for i in pair)
            for pair in crossing.examples
        )
        return (
            f"{crossing.count:,} of the {found.compared[crossing.second]:,} patches of "
            f"{crossing.second} are in {crossing.first} too, with {crossing.kind}: {shown}"
            f"{'; ...' if crossing.count > len(crossing.examples) else ''}"
        )

    return [sentence(crossing) for crossing in found.crossings]


def _paths(root: Path, wanted: set[int], findings: Findings) -> dict[int, str]:
    """Original paths by key number, as far as the sidecars can be read."""
    paths: dict[int, str] = {}
    for name, keys in findings.keys.items():
        here = wanted.intersection(keys)
        if not here:
            continue
        try:
            rows = pq.read_table(shard_files(root, name)[1], columns=["key", "path"])
            rows = rows.filter(pc.is_in(rows["key"], pa.array([key(i) for i in here])))
            paths |= {int(row["key"][1:]): str(row["path"]) for row in rows.to_pylist()}
        except (pa.ArrowException, OSError, ValueError, KeyError):
            continue  # a damaged sidecar is reported as a problem
    return paths


def _check_keys(metadata: DatasetMetadata, findings: Findings) -> None:
    """Every key occurs once in the whole set, and in the range of its split."""
    names = list(findings.keys)
    if not names:
        return
    keys = np.concatenate([np.array(findings.keys[name], np.int64) for name in names])
    shard = np.repeat(np.arange(len(names)), [len(findings.keys[name]) for name in names])
    order = np.argsort(keys, kind="stable")
    for i in np.flatnonzero(np.diff(keys[order]) == 0):
        first, second = names[shard[order[i]]], names[shard[order[i + 1]]]
        what = f"key s{keys[order[i]]:09d} is also in {first}"
        findings.add(f"{second}.tar", None, what)
    ranges = _key_ranges(metadata)
    for name in [name for name in names if findings.keys[name]]:
        first, end = ranges.get(name.rpartition("-")[0], (0, MAX_PATCHES))
        low, high = min(findings.keys[name]), max(findings.keys[name])
        if not first <= low <= high < end:
            what = f"keys {low} to {high}, those of its split are {first} to {end - 1}"
            findings.add(f"{name}.tar", None, what)


def _key_ranges(metadata: DatasetMetadata) -> dict[str, tuple[int, int]]:
    """First key and end by split, as far as the provenance, which nobody has checked, has them."""
    ranges = metadata.provenance.get("key_ranges")
    found: dict[str, tuple[int, int]] = {}
    for name, pair in ranges.items() if isinstance(ranges, dict) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(k, int) for k in pair):
            found[name] = (pair[0], pair[1])
    return found


def _check_counts(metadata: DatasetMetadata, findings: Findings) -> None:
    """The class counts and channel means of the metadata follow from the samples."""
    if findings.counts:
        return  # samples were lost: the differences say nothing more
    for name, split in metadata.splits.items():
        counts = [findings.labels[name, label] for label in range(len(metadata.classes))]
        if counts != split.class_counts:
            findings.add("dataset.json", None, f"{name} counts {split.class_counts}, not {counts}")
    if "splits_left_out" in metadata.provenance:
        return  # the mean is that of the whole data set, of which these splits were fetched
    used = ["train"] if "train" in metadata.splits else list(metadata.splits)
    values = 255 * PATCH * PATCH * sum(metadata.splits[name].count for name in used)
    sums = np.sum([findings.sums[name] for name in used], axis=0)
    mean = [int(total) / values for total in sums]
    # decoders of JPEG may differ by a grey level
    tolerance = 1e-3 if metadata.png == FOREIGN else 1e-12
    if not np.allclose(mean, metadata.channel_mean, rtol=0, atol=tolerance):
        findings.add("dataset.json", None, f"channel_mean is {metadata.channel_mean}, not {mean}")


def _check_strays(root: Path, metadata: DatasetMetadata, findings: Findings) -> None:
    """Shards that the metadata does not list: a reader that takes `*.tar` would mix them in."""
    shards = [shard for split in metadata.splits.values() for shard in split.shards]
    listed = {path for shard in shards for path in (shard.tar(root), shard.sidecar(root))}
    for path in sorted(root.iterdir()):
        if _SHARD_FILE.fullmatch(path.name) and path not in listed:
            findings.add(path.name, None, "not part of the data set; move it away")


def _print_report(root: Path, report: Report) -> None:
    rows = [("split", "shards", "samples", "bytes", "problems")]
    for name, split in report.metadata.splits.items():
        size = sum(shard.size + shard.sidecar_size for shard in split.shards)
        bad = sum(problem.file.startswith(f"{name}-") for problem in report.problems)
        rows.append((name, f"{len(split.shards):,}", f"{split.count:,}", f"{size:,}", f"{bad:,}"))
    print(table(rows))
    if report.duplicates is not None and (flat := sum(report.duplicates.flat.values())):
        print(
            f"{flat:,} patches have hardly any contrast (standard deviation of the grey values "
            f"below {LOW_CONTRAST:g}): not compared with others"
        )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for problem in report.problems[:_SHOWN]:
        print(f"problem: {problem}", file=sys.stderr)
    verdict = f"{report.problem_count} problems" if report.problem_count else "sound"
    print(f"{root}: {verdict}")


_Source = Annotated[
    str, tyro.conf.arg(metavar="SOURCE", help="data set; with --index a folder or pattern of tars")
]
_NoDuplicates = Annotated[bool, tyro.conf.arg(help="do not look for patches in two splits")]
_Out = Annotated[
    Path | None,
    tyro.conf.arg(metavar="OUT", help="make a data set here of the WebDataset tars in SOURCE"),
]
_Options = Annotated[IndexOptions, tyro.conf.arg(name="")]


def _command(
    source: tyro.conf.Positional[_Source],
    no_duplicates: _NoDuplicates = False,
    index: _Out = None,
    options: _Options = IndexOptions(),  # noqa: B008 - frozen
) -> Callable[[], int]:
    """Check a data set: hashes, members, pixels, keys, counts, leakage, duplicates. Or, with
    --index, scan tars of another tool once, and make a data set of them where they lie."""
    if index is not None:
        return partial(_index, source, index, options)
    if options != IndexOptions():
        raise ValueError("--split, --classes, --skip-bad, ... are about --index, which is missing")
    return partial(_check, Path(source), not no_duplicates)


def _index(source: str, out: Path, options: IndexOptions) -> int:
    index_tars(source, out, options)
    return 0


def _check(root: Path, duplicates: bool) -> int:
    report = verify(root, duplicates)
    _print_report(root, report)
    return 1 if report.problem_count else 0


def main() -> int:
    """Exit status 1 also stands for a data set with problems."""
    return run_command(
        "shards.verify", _command, "nothing was changed", (tyro.conf.FlagCreatePairsOff,)
    )


if __name__ == "__main__":
    sys.exit(main())
