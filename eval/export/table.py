"""The table that is taken away: a folder of embeddings as `eval.embed` writes it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.errors import DataError
from eval.features import EMBEDDED_COLUMNS, PART, PARTS, Features, file_name, slides_of, vectors_of
from eval.parquet import read_table as read_parquet
from shards.schema import PATCH


class Slide(NamedTuple):
    """The patches of a slide (of a source image, where no slide is known)."""

    name: str
    rows: NDArray[np.int64]  # (n,) of the table

    @property
    def stem(self) -> str:
        """Name of its files."""
        return file_name(self.name).lstrip(".") or "_"


@dataclass(frozen=True)
class EmbeddedTable:
    """Embeddings (n, d) in the order of the paths, and what is known of each patch."""

    root: Path
    features: Features
    rows: pa.Table  # EMBEDDED_COLUMNS, split and class
    facts: dict[str, str]  # readout, snapshot_xxh3, dataset_hash

    @cached_property
    def slides(self) -> list[Slide]:
        """The slides, by name."""
        names, codes = np.unique(np.array(slides_of(self.rows), str), return_inverse=True)
        rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        return [Slide(name, of_slide) for name, of_slide in zip(names.tolist(), rows, strict=True)]

    def places(self, slide: Slide) -> NDArray[np.int64]:
        """Return x and y (n, 2) of the patches of a slide, in its pixels.

        Raises:
            DataError: a patch has no place.
        """
        xy = [self.rows[name].take(slide.rows) for name in ("x", "y")]
        if any(column.null_count for column in xy):
            raise DataError(
                f"{self.root}: patches of {slide.name} have no x and y; pack them with positions "
                "in their names (..._x1234_y5678.png) or in a manifest, and embed them again"
            )
        return np.stack([column.to_numpy().astype(np.int64) for column in xy], axis=1)

    def mpp(self, slide: Slide) -> float | None:
        """Return the microns per pixel of the patches of a slide, where all have the same."""
        return self._shared(slide, "mpp")

    def text(self, slide: Slide, column: str) -> str | None:
        """Return the value that all patches of a slide share, or None."""
        return self._shared(slide, column)

    def _shared(self, slide: Slide, column: str) -> Any:
        values = pc.unique(self.rows[column].take(slide.rows)).to_pylist()
        return values[0] if len(values) == 1 else None


def read_table(folder: Path) -> EmbeddedTable:
    """Read the embeddings in a folder of `eval.embed`.

    Raises:
        DataError: there are none, or a file is not of that command.
    """
    files = sorted(folder.glob(PARTS))
    if not files:
        raise DataError(f"{folder} holds no {PARTS}: make it with python -m eval.embed")
    parts = [read_parquet(file) for file in files]
    facts = _shared_facts(folder, [facts for _, facts in parts])
    try:
        table = pa.concat_tables([part for part, _ in parts])
        features = vectors_of(table["embedding"])
        rows = table.select([*EMBEDDED_COLUMNS, "split", "class"])
    except (pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{folder} is not of eval.embed: {error}") from None
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"{folder} holds embeddings that are not finite: embed the patches again")
    return EmbeddedTable(folder, features, rows, facts)


def _shared_facts(folder: Path, of_files: list[dict[str, str]]) -> dict[str, str]:
    """Return readout, snapshot_xxh3 and dataset_hash, which all files share.

    Raises:
        DataError: they do not, or a file is missing or in the place of another.
    """
    shared = {
        name: of_files[0].get(name, "") for name in ("readout", "snapshot_xxh3", "dataset_hash")
    }
    for number, facts in enumerate(of_files):
        part = f"{number} of {len(of_files)}"
        if facts.get(PART, part) != part or any(facts.get(n, "") != shared[n] for n in shared):
            raise DataError(
                f"{folder}: the files are not those of one eval.embed: its {PARTS} number {number} "
                "is of another run or source, or one is missing. Embed the patches again into "
                "another folder"
            )
    return shared


def tile_side(places: NDArray[np.int64]) -> int:
    """Find the side of a patch in pixels of the slide.

    It is the smallest distance of two patches in one row or column, which holds for tiles that
    touch; 32 where that is smaller (overlap), or where no two patches share a row or column.
    """
    steps: list[int] = []
    for axis in (0, 1):
        order = np.lexsort((places[:, axis], places[:, 1 - axis]))
        move = np.diff(places[order], axis=0)
        steps += move[(move[:, 1 - axis] == 0) & (move[:, axis] > 0), axis].tolist()
    return max(PATCH, min(steps, default=PATCH))
