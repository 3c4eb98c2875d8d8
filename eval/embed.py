"""Embed any patches with a trained run: `python -m eval.embed RUN SOURCE --out DIR`.

SOURCE is a packed data set, a folder that `shards.pack` understands, or one image file. DIR gets
`part-00000.parquet`, ...: one row a patch in the order of the paths, with a fixed-size list of
float32. Parts that are there already are kept, so the same command continues an interrupted one;
under `accelerate launch` or torchrun the ranks share the parts, which are the same for any number.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray

from common import ranks
from common.command import DONE, UNUSABLE_DATA, run_command
from common.console import progress
from common.errors import DataError
from common.files import atomic_path
from common.machine import usable_cores
from eval import features as formats
from eval import run as runs
from eval.encoder import PatchEncoder, load
from eval.features import Format
from eval.measure.readouts import READOUTS, with_embeddings
from pipeline.index import Dataset, open_dataset
from pipeline.reader import READ_SIZE, Reader
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.remote.cache import local
from shards.schema import CHANNELS, METADATA_NAME, PATCH

KEPT = ("path", "source", "slide", "patient", "site", "x", "y", "mpp")
PARTS = 64  # of a source, for the ranks to share, where that leaves a part enough work
MOST_ROWS = 65_536  # of a part: 100 MB
SHARDS = ".shards"  # the packed form of a folder, until its embeddings are complete


@dataclass(frozen=True)
class EmbedOptions:
    """What to write."""

    out: Path | None = None
    """Folder of the embeddings; default RUN/embeddings/SOURCE's name."""
    readout: str = "mean"
    """mean (384 numbers, the primary one), orbit_aligned, orbit_invariant, channel_stats."""
    formats: tuple[Format, ...] = ()
    """Beside Parquet: npy, one array of all rows; h5, a file a slide with features and coords."""
    part_rows: int | None = None
    """Rows of a Parquet part; by default a 64th of the source, from 1024 to 65,536."""
    pack: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ValueError(f"unknown readout {self.readout!r}; there are {list(READOUTS)}")
        if self.part_rows is not None and self.part_rows < 1:
            raise ValueError(f"part_rows is {self.part_rows}; expected at least 1")


@dataclass(frozen=True)
class Rows:
    """The samples of a data set in the order of their paths."""

    dataset: Dataset
    table: pa.Table  # KEPT, and `split` and `class`
    splits: list[str]
    split: NDArray[np.int64]  # (n,) index into splits
    sample: NDArray[np.int64]  # (n,) index into that split

    def __len__(self) -> int:
        return len(self.sample)


Part = tuple[Path, NDArray[np.int64]]  # a file, and which rows it holds


def embed(run: Path, source: Path | str, options: EmbedOptions = EmbedOptions()) -> Path:
    """Write the embeddings of `source`, or of the data set at that URL; return their folder.

    Raises:
        DataError: the run or the source cannot be used, or the folder holds embeddings of another
            run, source or readout; on every rank where it is so on one.
    """
    formats.check(options.formats)
    found = ranks.main_first(lambda: local(source))
    out = options.out or run / "embeddings" / formats.file_name(found.resolve().name)
    ranks.require_shared(out)
    encoder = ranks.together(lambda: load(run, _device()))
    packed = ranks.together(lambda: _packed(found, out, options.pack))
    rows = ranks.together(lambda: _rows(open_dataset(packed)))
    about = {
        "readout": options.readout,
        "snapshot_xxh3": runs.snapshot_hash(run),
        "dataset_hash": rows.dataset.hash,
    }
    ranks.require_same(about, "the run or the source")
    parts = _parts(out, len(rows), options.part_rows)
    ranks.together(lambda: _write_mine(parts, rows, encoder, about))
    ranks.together(lambda: _finish(out, parts, about, options))
    if ranks.rank() == 0:
        numbers = encoder.dimensions(options.readout)
        print(f"{len(rows):,} embeddings of {numbers} numbers in {len(parts)} files")
    return out


def _device() -> str:
    cuda = torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"


def _parts(out: Path, rows: int, part_rows: int | None) -> list[Part]:
    """The same for any number of ranks, so that another number continues an interrupted one."""
    fair = (
        -(-rows // PARTS // READ_SIZE) * READ_SIZE
    )  # whole reads: the parts do not change the numbers
    size = part_rows or min(max(fair, READ_SIZE), MOST_ROWS)
    return [
        (out / f"part-{i:05d}.parquet", np.arange(first, min(first + size, rows)))
        for i, first in enumerate(range(0, rows, size))
    ]


def _write_mine(
    parts: list[Part], rows: Rows, encoder: PatchEncoder, about: dict[str, str]
) -> None:
    """This rank's share of the parts that are not there yet."""
    mine = [part for part in parts[ranks.rank() :: ranks.world()] if not _finished(*part, about)]
    with progress("embedding", sum(len(chosen) for _, chosen in mine), "patches") as advance:
        for path, chosen in mine:
            _write_part(path, rows, chosen, encoder, about, advance)


def _packed(source: Path, out: Path, options: PackOptions) -> Path:
    """The data set at `source`, or where the main rank packs what is there."""
    if (source / METADATA_NAME).is_file():
        return source
    if not source.exists():
        raise DataError(f"{source} does not exist; name a packed data set, a folder or an image")
    shards = out / SHARDS
    if ranks.rank() > 0:
        return shards
    out.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        listed = out / ".files.csv"
        quoted = source.name.replace('"', '""')
        listed.write_text(f'path\n"{quoted}"\n', encoding="utf-8")
        source, options = source.parent, replace(options, manifest=listed)
    shutil.rmtree(shards, ignore_errors=True)  # of an interruption: the source may differ now
    pack(source, shards, options)
    return shards


def _rows(dataset: Dataset) -> Rows:
    names = list(dataset.splits)
    splits = [dataset.splits[name] for name in names]
    classes = np.array([*dataset.metadata.classes, None], dtype=object)  # -1 is no class
    tables = [
        split.table.select(KEPT)
        .append_column("split", pa.array([name] * len(split)))
        .append_column("class", pa.array(classes[split.labels], pa.string()))
        for name, split in zip(names, splits, strict=True)
    ]
    table = pa.concat_tables(tables)
    order = np.argsort(table["path"].to_numpy().astype(str), kind="stable")
    of = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    sample = np.concatenate([np.arange(len(split)) for split in splits])
    return Rows(dataset, table.take(pa.array(order)), names, of[order], sample[order])


def _finished(path: Path, chosen: NDArray[np.int64], about: dict[str, str]) -> bool:
    """Whether a part is there; one of another run or source is an error, never overwritten."""
    if not path.is_file():
        return False
    schema = pq.read_schema(path)
    there = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    same = all(there.get(name) == value for name, value in about.items())
    if not same or pq.read_metadata(path).num_rows != len(chosen):
        raise DataError(
            f"{path} holds embeddings of another run, source, readout or part size; "
            "choose another --out, or remove it"
        )
    return True


def _write_part(
    path: Path, rows: Rows, chosen: NDArray[np.int64], encoder: PatchEncoder,
    about: dict[str, str], advance: Callable[[int], None],
) -> None:  # fmt: skip
    found = []
    for pixels in _images(rows, chosen):
        found.append(encoder.encode(pixels, about["readout"]))
        advance(len(pixels))
    table = with_embeddings(rows.table.take(pa.array(chosen)), np.concatenate(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temp:
        pq.write_table(table.replace_schema_metadata(about), temp, compression="zstd")


def _images(rows: Rows, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The images of some rows, in order, READ_SIZE at a time."""
    with ExitStack() as stack:
        splits = [rows.dataset.splits[name] for name in rows.splits]
        readers = [stack.enter_context(Reader(split)) for split in splits]
        for first in range(0, len(chosen), READ_SIZE):
            part = chosen[first : first + READ_SIZE]
            pixels = np.empty((len(part), PATCH, PATCH, CHANNELS), np.uint8)
            for i, reader in enumerate(readers):
                mine = rows.split[part] == i
                pixels[mine] = reader.read(rows.sample[part][mine])
            yield pixels


def _finish(out: Path, parts: list[Part], about: dict[str, str], options: EmbedOptions) -> None:
    """On the main rank: other formats, from the parts; then the packed form of a folder goes."""
    if ranks.rank() > 0:
        return
    if missing := [path.name for path, chosen in parts if not _finished(path, chosen, about)]:
        raise DataError(f"{out} lacks {missing[:5]}: they were removed; run the command again")
    formats.write(out, [path for path, _ in parts], options.formats)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    (out / ".files.csv").unlink(missing_ok=True)


_Run = Annotated[Path, tyro.conf.arg(metavar="RUN", help="folder of a finished run")]
_Source = Annotated[str, tyro.conf.arg(metavar="SOURCE", help="data set, URL, folder or image")]
_Options = Annotated[EmbedOptions, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_Run],
    source: tyro.conf.Positional[_Source],
    options: _Options = EmbedOptions(),
) -> Callable[[], int]:
    """Embed any patches with a trained run."""

    def action() -> int:
        # the launcher leaves each process one thread
        torch.set_num_threads(max(1, usable_cores() // ranks.local_ranks()))
        ranks.join()
        try:
            out = embed(run, source, options)
            if ranks.rank() == 0:
                print(out)
        except ranks.SharedError:
            if ranks.rank() == 0:  # who tells it for all
                raise
            return UNUSABLE_DATA
        finally:
            ranks.leave()
        return DONE

    return action


def main() -> int:
    return run_command("eval.embed", _command)


if __name__ == "__main__":
    sys.exit(main())
