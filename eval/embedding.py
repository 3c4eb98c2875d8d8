"""The embedding of any patches with a trained run.

SOURCE is a packed data set, a folder that `shards.pack` understands, or one image file. OUT gets
`part-00000.parquet`, ...: one row per patch in the order of the paths, with a fixed-size list of
float32. Files that exist already are kept, so the same call continues an interrupted one; under
`accelerate launch` or torchrun the ranks share the files, which are the same for any number. OUT
holds this table alone, for tools that read a folder; other formats lie beside it, as OUT.npy and
in OUT-h5.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from common import ranks
from common.console import log, progress
from common.errors import DataError
from common.files import remove_unfinished, write_atomically
from common.locks import held
from eval import features, parquet
from eval.config import EMBED_DEFAULTS, EmbedOptions
from eval.encoder import PatchEncoder, load
from eval.run import snapshot_hash
from eval.session import stain_table
from models.hub import run_folder
from pipeline.index import Dataset, open_dataset
from pipeline.reader import READ_SIZE, Reader
from pipeline.units import normalised
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.remote.cache import local
from shards.schema import CHANNELS, METADATA_NAME, PATCH

PARTS = 64  # files of a source, for the ranks to share, where that leaves a file enough work
MOST_ROWS = 65_536  # per file: 100 MB
SHARDS = ".shards"  # the packed form of a folder, until its embeddings are complete
LISTING = ".files.csv"  # the manifest of a single image


@dataclass(frozen=True)
class Samples:
    """The samples of all splits of a data set, in the order of their paths."""

    dataset: Dataset
    table: pa.Table  # features.EMBEDDED_COLUMNS, and `split` and `class`
    splits: list[str]
    split: NDArray[np.int64]  # (n,) index into splits
    index: NDArray[np.int64]  # (n,) index into that split

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class EmbeddingFile:
    """A Parquet file, and the samples whose embeddings it holds."""

    path: Path
    rows: NDArray[np.int64]
    part: str  # "0 of 3"


def embed(run: Path | str, source: Path | str, options: EmbedOptions = EMBED_DEFAULTS) -> Path:
    """Write the embeddings of a source, or of the data set at a URL; return their folder.

    Raises:
        DataError: the run or the source cannot be used, or the folder holds embeddings of another
            run, source or readout; on every rank where it is so on one.
    """
    features.require_libraries(options.formats)
    root = ranks.main_process_first(lambda: local(source))
    out = options.out or run_folder(run) / "embedded" / features.file_name(root.resolve().name)
    ranks.require_shared(out)
    with ExitStack() as stack:
        lock = held(out, "writes embeddings there")
        ranks.together(lambda: _begin(out, stack, lock) if ranks.rank() == 0 else None)
        _embed(run, root, out, options)
    return out


def _begin(out: Path, stack: ExitStack, lock: AbstractContextManager[None]) -> None:
    """Take the lock of OUT, and remove what a killed command was writing."""
    stack.enter_context(lock)
    remove_unfinished(out)
    features.remove_unfinished_formats(out)


def _embed(run: Path | str, root: Path, out: Path, options: EmbedOptions) -> None:
    """Embed the source at `root` into OUT, whose lock is held."""
    cuda = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"
    encoder = ranks.together(lambda: load(run, device))
    packed = ranks.together(lambda: _packed(root, out, options.pack))
    stained = ranks.together(lambda: open_dataset(packed))
    measured = encoder.normalisation if ranks.rank() == 0 else None
    table = ranks.together(lambda: stain_table(stained, run, measured))
    table = ranks.gather_object(table)[0]
    dataset = ranks.together(lambda: normalised(stained, table))
    samples = ranks.together(lambda: _by_path(dataset))
    facts = {
        "readout": options.readout,
        "snapshot_xxh3": snapshot_hash(run),
        "dataset_hash": samples.dataset.hash,
    }
    ranks.require_same(facts, "the run or the source")
    if "h5" in options.formats:
        ranks.together(lambda: features.slide_files(features.slides_of(samples.table)))
    files = plan_files(out, len(samples), options.part_rows)
    ranks.together(lambda: _write_share(files, samples, encoder, facts))
    ranks.together(lambda: _finish(out, files, facts, options))
    if ranks.rank() == 0:
        numbers = encoder.dimensions(options.readout)
        log.info(f"{len(samples):,} embeddings of {numbers} numbers in {len(files)} files")


def plan_files(out: Path, samples: int, part_rows: int | None) -> list[EmbeddingFile]:
    """Divide samples among files, independently of ranks: another number of them can continue."""
    reads = max(-(-samples // PARTS // READ_SIZE), 1)  # whole: files do not change the numbers
    size = part_rows or min(reads * READ_SIZE, MOST_ROWS)
    firsts = range(0, samples, size)
    return [
        EmbeddingFile(
            out / f"part-{i:05d}.parquet",
            np.arange(first, min(first + size, samples)),
            f"{i} of {len(firsts)}",
        )
        for i, first in enumerate(firsts)
    ]


def _packed(source: Path, out: Path, options: PackOptions) -> Path:
    """Find the data set at `source`, or where the main rank packs it."""
    if (source / METADATA_NAME).is_file():
        return source
    if not source.exists():
        raise DataError(f"{source} does not exist; name a packed data set, a folder or an image")
    shards = out / SHARDS
    if ranks.rank() > 0:
        return shards
    out.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        manifest = out / LISTING
        quoted = source.name.replace('"', '""')
        write_atomically(manifest, f'path\n"{quoted}"\n'.encode())
        source, options = source.parent, replace(options, manifest=manifest)
    shutil.rmtree(shards, ignore_errors=True)  # of an interruption: the source may differ now
    with _no_warnings_of_splits():
        pack(source, shards, options)
    return shards


@contextmanager
def _no_warnings_of_splits() -> Iterator[None]:
    """Leave out warnings that the packed form of a folder lacks splits: embedding needs none."""

    def is_of_interest(record: logging.LogRecord) -> bool:
        return record.levelno != logging.WARNING or " split" not in record.getMessage()

    log.addFilter(is_of_interest)
    try:
        yield
    finally:
        log.removeFilter(is_of_interest)


def _by_path(dataset: Dataset) -> Samples:
    names = list(dataset.splits)
    splits = [dataset.splits[name] for name in names]
    classes = np.array([*dataset.metadata.classes, None], dtype=object)  # -1 is no class
    tables = [
        split.table.select(features.EMBEDDED_COLUMNS)
        .append_column("split", pa.array([name] * len(split)))
        .append_column("class", pa.array(classes[split.labels], pa.string()))
        for name, split in zip(names, splits, strict=True)
    ]
    table = pa.concat_tables(tables)
    order = np.argsort(table["path"].to_numpy().astype(str), kind="stable")
    split_of = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    index = np.concatenate([np.arange(len(split)) for split in splits])
    return Samples(dataset, table.take(pa.array(order)), names, split_of[order], index[order])


def _write_share(
    files: list[EmbeddingFile], samples: Samples, encoder: PatchEncoder, facts: dict[str, str]
) -> None:
    """Write this rank's share of the files that are not there yet."""
    share = [file for file in files[ranks.rank() :: ranks.world()] if not _finished(file, facts)]
    with progress("embedding", sum(len(file.rows) for file in share), "patches") as advance:
        for file in share:
            write_file(file, samples, encoder, facts, advance)


def _finished(file: EmbeddingFile, facts: dict[str, str]) -> bool:
    """Tell whether a file exists; one of another run or source is an error, never overwritten."""
    if not file.path.is_file():
        return False
    try:
        metadata = pq.read_schema(file.path).metadata or {}
        rows = pq.read_metadata(file.path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise parquet.unreadable(file.path, error) from None
    same = all(metadata.get(name.encode()) == value.encode() for name, value in facts.items())
    if not same or rows != len(file.rows):
        raise DataError(
            f"{file.path} holds embeddings of another run, source, readout or part size; "
            "choose another --out, or remove it"
        )
    return True


def write_file(
    file: EmbeddingFile,
    samples: Samples,
    encoder: PatchEncoder,
    facts: dict[str, str],
    advance: Callable[[int], None],
) -> None:
    """Embed the samples of a file and write it, whole or not at all."""
    batches = []
    for pixels in _images(samples, file.rows):
        batches.append(encoder.embed(pixels, facts["readout"]))
        advance(len(pixels))
    rows = samples.table.take(pa.array(file.rows))
    table = features.with_embeddings(rows, np.concatenate(batches))
    parquet.write_tables(file.path, [table], {**facts, features.PART: file.part})


def _images(samples: Samples, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """Read the images of some samples, in order, READ_SIZE at a time."""
    with ExitStack() as stack:
        splits = [samples.dataset.splits[name] for name in samples.splits]
        readers = [stack.enter_context(Reader(split)) for split in splits]
        for first in range(0, len(rows), READ_SIZE):
            batch = rows[first : first + READ_SIZE]
            pixels = np.empty((len(batch), PATCH, PATCH, CHANNELS), np.uint8)
            for i, reader in enumerate(readers):
                in_split = samples.split[batch] == i
                pixels[in_split] = reader.read(samples.index[batch][in_split])
            yield pixels


def _finish(
    out: Path, files: list[EmbeddingFile], facts: dict[str, str], options: EmbedOptions
) -> None:
    """Write other formats and remove the packed form of a folder, on the main rank."""
    if ranks.rank() > 0:
        return
    if missing := [file.path.name for file in files if not _finished(file, facts)]:
        raise DataError(f"{out} lacks {missing[:5]}: they were removed; run the command again")
    features.write_formats(out, [file.path for file in files], options.formats)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    (out / LISTING).unlink(missing_ok=True)
