"""The table that is taken away: a folder of embeddings as `eval.embed` writes it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import DataError
from eval.features import Features, vectors_of
from shards.schema import PATCH

COLUMNS = ("path", "source", "slide", "patient", "site", "x", "y", "mpp")


class Slide(NamedTuple):
    """The patches of a slide (of a source image, where no slide is known)."""

    name: str
    rows: NDArray[np.int64]  # (n,) of the table


@dataclass(frozen=True)
class EmbeddedTable:
    """Embeddings (n, d) in the order of the paths, and what is known of each patch."""

    root: Path
    features: Features
    rows: pa.Table  # COLUMNS, split and class
    facts: dict[str, str]  # readout, snapshot_xxh3, dataset_hash

    def slides(self) -> Iterator[Slide]:
        """Yield the slides, by name."""
        names = pc.coalesce(self.rows["slide"], self.rows["source"]).to_numpy().astype(str)
        for name in np.unique(names).tolist():
            yield Slide(name, np.flatnonzero(names == name))

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
        values = pc.unique(self.rows["mpp"].take(slide.rows)).to_pylist()
        return values[0] if len(values) == 1 else None

    def text(self, slide: Slide, column: str) -> str | None:
        """Return the value that all patches of a slide share, or None."""
        values = pc.unique(self.rows[column].take(slide.rows)).to_pylist()
        return values[0] if len(values) == 1 else None


def read_table(folder: Path) -> EmbeddedTable:
    """Read the embeddings in a folder of `eval.embed`.

    Raises:
        DataError: there are none, or a file is not of that command.
    """
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise DataError(f"{folder} holds no part-*.parquet: make it with python -m eval.embed")
    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
        features = vectors_of(table["embedding"])
        rows = table.select([*COLUMNS, "split", "class"])
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{folder} is not of eval.embed: {error}") from None
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DataError(f"{folder} holds embeddings that are not finite: embed the patches again")
    metadata = pq.read_schema(files[0]).metadata or {}
    facts = {
        name: metadata.get(name.encode(), b"").decode()
        for name in ("readout", "snapshot_xxh3", "dataset_hash")
    }
    return EmbeddedTable(folder, features, rows, facts)


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
