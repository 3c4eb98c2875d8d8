"""Embed any patches with a trained run: `python -m eval.embed RUN SOURCE --out DIR`.

SOURCE is a packed data set, a folder that `shards.pack` understands, or one image file. DIR gets
`part-00000.parquet`, ...: one row a patch in the order of the paths, with a fixed-size list of
float32. Parts that are there already are kept, so the same command continues an interrupted one;
under `accelerate launch` or torchrun the ranks share the parts.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from numpy.typing import NDArray

from eval import run as runs
from eval.encoder import PatchEncoder, load
from eval.readouts import READOUTS, Features, read_embeddings, with_embeddings
from pipeline.index import Dataset, open_dataset
from pipeline.reader import Reader
from shards.command import run_command
from shards.pack import pack
from shards.plan import PackOptions
from shards.progress import progress
from shards.schema import CARD_NAME, CHANNELS, PATCH, DataError

KEPT = ("path", "source", "slide", "patient", "site", "x", "y", "mpp")
READ = 1024  # images a read
SHARDS = ".shards"  # the packed form of a folder, until its embeddings are complete
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class EmbedOptions:
    """What to write."""

    out: Path | None = None
    """Folder of the embeddings; default RUN/embeddings/SOURCE's name."""
    readout: str = "mean"
    """mean (384 numbers, the primary one), orbit_aligned, orbit_invariant, channel_stats."""
    formats: tuple[Literal["npy", "h5"], ...] = ()
    """Beside Parquet: npy, one array of all rows; h5, a file a slide with features and coords."""
    part_rows: int = 65_536
    """Rows of a Parquet part."""
    pack: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ValueError(f"unknown readout {self.readout!r}; there are {list(READOUTS)}")
        if self.part_rows < 1:
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


def embed(run: Path, source: Path, options: EmbedOptions = EmbedOptions()) -> Path:
    """Write the embeddings of `source` and return their folder.

    Raises:
        DataError: the run or the source cannot be used, or the folder holds embeddings of another
            run, source or readout.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if "h5" in options.formats:
        _h5py()
    out = options.out or run / "embeddings" / UNSAFE.sub("_", source.resolve().name)
    encoder = load(run, _device())
    rows = _rows(_packed(source, out, options.pack, rank))
    about = {
        "readout": options.readout,
        "snapshot_xxh3": runs.snapshot_hash(run),
        "dataset_hash": rows.dataset.hash,
    }
    parts = [
        (out / f"part-{i:05d}.parquet", np.arange(first, min(first + options.part_rows, len(rows))))
        for i, first in enumerate(range(0, len(rows), options.part_rows))
    ]
    mine = [part for part in parts[rank::world] if not _finished(*part, about)]
    with progress("embedding", sum(len(chosen) for _, chosen in mine), "patches") as advance:
        for path, chosen in mine:
            _write_part(path, rows, chosen, encoder, about, advance)
    if rank == 0:
        _wait(lambda: all(_finished(*part, about) for part in parts))
        _finish(out, [path for path, _ in parts], options)
    return out


def _device() -> str:
    cuda = torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"


def _wait(condition: Callable[[], bool]) -> None:
    """For the other ranks; the launcher ends this one too when one of them fails."""
    while not condition():
        time.sleep(0.2)


def _packed(source: Path, out: Path, options: PackOptions, rank: int) -> Dataset:
    """The data set at `source`, packed first, by rank 0, where it is not one."""
    if (source / CARD_NAME).is_file():
        return open_dataset(source)
    if not source.exists():
        raise DataError(f"{source} does not exist; name a packed data set, a folder or an image")
    shards = out / SHARDS
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            listed = out / ".files.csv"
            quoted = source.name.replace('"', '""')
            listed.write_text(f'path\n"{quoted}"\n', encoding="utf-8")
            source, options = source.parent, replace(options, manifest=listed)
        shutil.rmtree(shards, ignore_errors=True)  # of an interruption: the source may differ now
        pack(source, shards, options)
    _wait((shards / CARD_NAME).is_file)  # it is written last
    return open_dataset(shards)


def _rows(dataset: Dataset) -> Rows:
    names = list(dataset.splits)
    splits = [dataset.splits[name] for name in names]
    classes = np.array([*dataset.card.classes, None], dtype=object)  # -1 is no class
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
    with runs.whole_file(path) as temp:
        pq.write_table(table.replace_schema_metadata(about), temp, compression="zstd")


def _images(rows: Rows, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """The images of some rows, in order, READ at a time."""
    readers = [Reader(rows.dataset.splits[name]) for name in rows.splits]
    try:
        for first in range(0, len(chosen), READ):
            part = chosen[first : first + READ]
            pixels = np.empty((len(part), PATCH, PATCH, CHANNELS), np.uint8)
            for i, reader in enumerate(readers):
                mine = rows.split[part] == i
                pixels[mine] = reader.read(rows.sample[part][mine])
            yield pixels
    finally:
        for reader in readers:
            reader.close()


def _finish(out: Path, parts: list[Path], options: EmbedOptions) -> None:
    """Other formats, from the parts; then the packed form of a folder goes."""
    if "npy" in options.formats:
        with runs.whole_file(out / "embeddings.npy") as temp:
            np.save(temp, np.concatenate([read_embeddings(path)[0] for path in parts]))
    if "h5" in options.formats:
        _write_h5(out / "h5", parts)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    (out / ".files.csv").unlink(missing_ok=True)


def _write_h5(folder: Path, parts: list[Path]) -> None:
    """A file a slide: `features` (n, d) float32 and `coords` (n, 2) x, y, in the order of paths."""
    h5py = _h5py()
    slides: dict[str, tuple[list[Features], list[tuple[int, int]]]] = {}
    for path in parts:
        features, table = read_embeddings(path)
        columns = (table[name].to_pylist() for name in ("slide", "source", "x", "y"))
        for vector, slide, source, x, y in zip(features, *columns, strict=True):
            vectors, places = slides.setdefault(slide or source, ([], []))
            vectors.append(vector)
            places.append((-1 if x is None else x, -1 if y is None else y))
    names = {slide: UNSAFE.sub("_", slide).lstrip(".") or "_" for slide in slides}
    if len(set(names.values())) < len(names):
        raise DataError("two slides have one file name once unsafe characters are replaced")
    for slide, (vectors, places) in slides.items():
        with runs.whole_file(folder / f"{names[slide]}.h5") as temp, h5py.File(temp, "w") as file:
            file["features"] = np.stack(vectors)
            file["coords"] = np.array(places, np.int64)
            file.attrs["slide"] = slide


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError("the format h5 needs h5py: pip install 'eqdvae[h5]'") from None
    return h5py


_Run = Annotated[Path, tyro.conf.arg(metavar="RUN", help="folder of a finished run")]
_Source = Annotated[Path, tyro.conf.arg(metavar="SOURCE", help="data set, folder or image")]
_Options = Annotated[EmbedOptions, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_Run],
    source: tyro.conf.Positional[_Source],
    options: _Options = EmbedOptions(),
) -> Callable[[], None]:
    """Embed any patches with a trained run."""
    return lambda: print(embed(run, source, options))


def main() -> int:
    return run_command("eval.embed", _command)


if __name__ == "__main__":
    sys.exit(main())
