"""Packed folders as tests compare them, and the patches of a folder without packing it."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shards.pack.metadata import too_many_bad
from shards.sources.collect import collect
from shards.sources.files import look_up_here
from shards.sources.folder import FolderSource, Layout
from shards.sources.source import Collection, Patch


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, hidden ones included."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def sidecar_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of all sidecars of a packed folder."""
    return [row for p in sorted(out.glob("*.parquet")) for row in pq.read_table(p).to_pylist()]


def collect_folder(
    root: Path, group_regex: str | None = None, layout: Layout = "auto"
) -> Collection:
    """What a folder holds, without the warnings about its splits."""
    source = FolderSource(root=root, group_regex=group_regex, layout=layout)
    return source.collect(look_up_here)


def list_patches(root: Path, group_regex: str | None = None) -> list[Patch]:
    """The patches under a folder, every file of which must be one."""
    collection = collect(FolderSource(root=root, group_regex=group_regex))
    if collection.refused:
        raise too_many_bad(str(root), collection.refused, len(collection.refused))
    return collection.patches
