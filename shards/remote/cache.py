"""Data sets that lie elsewhere: fetched once into a cache, then like any other folder.

What arrives is not trusted: `dataset.json` is bounded and checked like a local one, every file has
to have the size and the hash that it says, and names are built here, never taken from dataset.json.
The folder in the cache is named by the hash of the data set, so a changed one gets another.
"""

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from common.console import progress
from common.errors import DataError
from common.files import atomic_file, sync_folder
from common.locks import locked
from shards.remote.download import Wanted, download, read_small
from shards.remote.store import Store
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
    """The folder or file that `name` means: a path, or a URL whose data set is fetched first.

    Raises:
        DataError: as `fetch`.
    """
    text = os.fspath(name)
    return fetch(text) if "://" in text else Path(text)


def cache_folder() -> Path:
    """$EQDVAE_CACHE, or eqdvae in $XDG_CACHE_HOME, or ~/.cache/eqdvae."""
    if named := os.environ.get(CACHE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqdvae"


def fetch(url: str, cache: Path | None = None, splits: Sequence[str] | None = None) -> Path:
    """The folder with the data set at `url`; what it lacks is downloaded, in several threads.

    Files have their names when they are whole and verified; an interrupted one continues.

    Args:
        splits: only these; the folder is then a smaller data set with its own hash.

    Raises:
        DataError: not one of the schemes of `shards.remote.store`, nothing there, a file that is
            not what dataset.json says, a connection that does not last, a full disk. What is done
            stays.
    """
    store = Store(url)
    metadata = loads_metadata(
        read_small(store, METADATA_NAME, MAX_METADATA_BYTES), f"{store.url}/{METADATA_NAME}"
    )
    if splits:
        metadata = _only(metadata, url, splits)
    folder = (cache or cache_folder()) / dataset_hash(metadata)
    wanted = _wanted(metadata, url, folder)
    with _fetch_lock(folder):
        if missing := [file for file in wanted if not file.there()]:
            _refuse_full(folder, missing)
            _download_all(store, missing)
        if not (folder / METADATA_NAME).exists():
            with atomic_file(folder / METADATA_NAME) as file:
                file.write(dumps_metadata(without_paths(metadata)))
            sync_folder(folder)
    return folder


def _only(metadata: DatasetMetadata, url: str, splits: Sequence[str]) -> DatasetMetadata:
    if missing := sorted(set(splits) - set(metadata.splits)):
        raise DataError(f"{url} has no split {missing}, only {sorted(metadata.splits)}")
    kept = {name: split for name, split in metadata.splits.items() if name in splits}
    left = sorted(set(metadata.splits) - set(kept))
    return replace(
        metadata, splits=kept, provenance=metadata.provenance | {"splits_left_out": left}
    )


def _wanted(metadata: DatasetMetadata, url: str, folder: Path) -> list[Wanted]:
    """Every file of the data set: where it is in the store, where it goes, what it must be."""
    here = without_paths(metadata)
    files = []
    for name, split in metadata.splits.items():
        for shard, plain in zip(split.shards, here.splits[name].shards, strict=True):
            path = shard.path or f"{shard.name}.tar"
            if path.startswith("/") or ".." in path.split("/") or not path.isprintable():
                raise DataError(
                    f"{url}: {shard.name} lies at {path!r}, outside the data set: index the tars "
                    f"into a folder above them, and put that there"
                )
            sidecar = plain.sidecar(folder)
            files.append(Wanted(path, plain.tar(folder), shard.size, shard.xxh3))
            files.append(Wanted(sidecar.name, sidecar, shard.sidecar_size, shard.sidecar_xxh3))
    return files


def _download_all(store: Store, files: list[Wanted]) -> None:
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


def _refuse_full(folder: Path, files: list[Wanted]) -> None:
    """
    Raises:
        DataError: the disk has no room for the files; metadata may claim any size.
    """
    need, free = sum(file.size - file.begun() for file in files), shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder} has room for {free:,} bytes, the data set needs {need:,} more: make room, "
            f"or choose another folder with --cache or ${CACHE}"
        )


def _fetch_lock(folder: Path) -> AbstractContextManager[None]:
    """Make `folder`, and let no other process fetch into it meanwhile."""
    waiting = f"waiting: another process fetches into {folder}"
    return locked(folder / ".fetch.lock", waiting, wait=True)
