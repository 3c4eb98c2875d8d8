"""Fetch remote data sets into a cache, once; from then on they are folders like any other.

What arrives is not trusted: `dataset.json` is limited in size and checked like a local one, every
file must have the size and hash given there, and local names are built here, never taken from it. A
folder of the cache is named by the hash of its data set, so a changed data set gets another.
"""

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from common.console import progress
from common.errors import DataError
from common.files import atomic_file
from common.locks import locked
from shards.remote.download import RemoteFile, Store, download, read_small
from shards.schema import (
    MAX_METADATA_BYTES,
    METADATA_NAME,
    DatasetMetadata,
    dataset_hash,
    dumps_metadata,
    loads_metadata,
    without_paths,
)

CACHE = "EQDVAE_CACHE"  # environment variable
THREADS = 8


def local(name: str | os.PathLike[str]) -> Path:
    """Return the local path of a data set: a URL is fetched into the cache first.

    Raises:
        DataError: as `fetch`.
    """
    text = os.fspath(name)
    return fetch(text) if "://" in text else Path(text)


def cache_folder() -> Path:
    """Return $EQDVAE_CACHE, or eqdvae in $XDG_CACHE_HOME, or ~/.cache/eqdvae."""
    if folder := os.environ.get(CACHE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqdvae"


def fetch(url: str, cache: Path | None = None, splits: Sequence[str] | None = None) -> Path:
    """Download what is missing of the data set at `url`, in several threads; return its folder.

    Files get their names when they are complete and verified; an interrupted download continues.

    Args:
        splits: fetch these only; the folder is then a smaller data set with its own hash.

    Raises:
        DataError: not one of the schemes of `shards.remote.download`, no data set there, a file
            that is not the one in `dataset.json`, a connection that does not last, a full disk.
            What has arrived stays.
    """
    store = Store(url)
    place = f"{store.url}/{METADATA_NAME}"
    metadata = loads_metadata(read_small(store, METADATA_NAME, MAX_METADATA_BYTES), place)
    if splits:
        metadata = _select(metadata, url, splits)
    folder = (cache or cache_folder()) / dataset_hash(metadata)
    files = _files(metadata, url, folder)
    waiting = f"waiting: another process fetches into {folder}"
    with locked(folder / ".fetch.lock", waiting, wait=True):
        if missing := [file for file in files if not file.complete()]:
            need, free = sum(f.size - f.arrived() for f in missing), shutil.disk_usage(folder).free
            if need > free:  # `dataset.json` may claim any size
                raise DataError(
                    f"{folder} has room for {free:,} bytes, the data set needs {need:,} more: make "
                    f"room, or choose another folder with --cache or ${CACHE}"
                )
            _download_all(store, missing)
        if not (folder / METADATA_NAME).exists():
            with atomic_file(folder / METADATA_NAME) as file:
                file.write(dumps_metadata(without_paths(metadata)))
    return folder


def _select(metadata: DatasetMetadata, url: str, names: Sequence[str]) -> DatasetMetadata:
    """Return the metadata of some splits; the provenance names the others."""
    if missing := sorted(set(names) - set(metadata.splits)):
        raise DataError(f"{url} has no split {missing}, only {sorted(metadata.splits)}")
    splits = {name: split for name, split in metadata.splits.items() if name in names}
    left_out = sorted(set(metadata.splits) - set(splits))
    provenance = metadata.provenance | {"splits_left_out": left_out}
    return replace(metadata, splits=splits, provenance=provenance)


def _files(metadata: DatasetMetadata, url: str, folder: Path) -> list[RemoteFile]:
    files = []
    for shard in metadata.shards:
        path = shard.path or f"{shard.name}.tar"
        if path.startswith("/") or ".." in path.split("/") or not path.isprintable():
            raise DataError(
                f"{url}: {shard.name} lies at {path!r}, outside the data set: index the tars "
                f"into a folder above them, and put that there"
            )
        tar, sidecar = replace(shard, path=None).tar(folder), shard.sidecar(folder)
        files.append(RemoteFile(path, tar, shard.size, shard.xxh3))
        files.append(RemoteFile(sidecar.name, sidecar, shard.sidecar_size, shard.sidecar_xxh3))
    return files


def _download_all(store: Store, files: list[RemoteFile]) -> None:
    stop, lock = threading.Event(), threading.Lock()
    total = sum(file.size for file in files)
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
    with progress(f"fetching {store.url}", total, "bytes") as advance:

        def received(count: int) -> None:
            with lock:
                advance(count)

        try:
            futures = [pool.submit(download, store, file, received, stop) for file in files]
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()  # the first error, or an interruption, ends the others
            pool.shutdown(cancel_futures=True)
