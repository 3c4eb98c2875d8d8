"""Patches that were packed more than once: the same PNG bytes under two names."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from shards.codec.sidecar import columns
from shards.pack.resume import shard_files
from shards.pack.shard import Record

Ints = npt.NDArray[np.int64]
MAX_LISTED = 100


def repeated(out: Path, records: list[Record]) -> tuple[int, list[list[str]]]:
    """How many patches have the bytes of an earlier one, and pairs of paths (later, earlier).

    Exact: the prints only choose which patches are read and compared. With `--png stored` equal
    bytes are equal pixels; with `keep` one image saved by two programs is not found.
    """
    prints = np.concatenate([record.sample_prints for record in records])
    order = np.argsort(prints, kind="stable")
    same = prints[order[1:]] == prints[order[:-1]]
    wanted = np.zeros(len(prints), bool)
    wanted[order[1:][same]] = wanted[order[:-1][same]] = True
    ends = np.cumsum([record.count for record in records])
    seen: dict[bytes, str] = {}
    count, pairs = 0, list[list[str]]()
    for record, rows in zip(records, np.split(wanted, ends[:-1]), strict=True):
        for path, digest in _digests(out, record.name, np.flatnonzero(rows)):
            if digest not in seen:
                seen[digest] = path
                continue
            count += 1
            if len(pairs) < MAX_LISTED:
                pairs.append([path, seen[digest]])
    return count, pairs


def _digests(out: Path, name: str, rows: Ints) -> Iterator[tuple[str, bytes]]:
    """Path and hash of the PNGs at `rows` of a shard, read again from the tar."""
    if not len(rows):
        return
    tar, sidecar = shard_files(out, name)
    table = columns(sidecar, ["path", "offset", "size"]).take(rows)
    with open(tar, "rb") as file:
        for row in table.to_pylist():
            data = os.pread(file.fileno(), row["size"], row["offset"])
            yield row["path"], xxhash.xxh3_128_digest(data)
