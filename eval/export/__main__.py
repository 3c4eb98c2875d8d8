"""`python -m eval.export EMBEDDED --to h5ad slides`: embeddings for other programs, and maps."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.command import run_command
from common.console import log
from common.errors import DataError
from eval.drawing.figures import LIGHT
from eval.export.formats import FORMATS, LIBRARIES
from eval.export.maps import write_maps
from eval.export.table import read_table
from eval.export.values import clusters, probe_scores


@dataclass(frozen=True)
class ExportOptions:
    """Choose the files to write."""

    out: Path
    """Folder of the files."""
    to: tuple[Literal["h5ad", "trident", "slides"], ...] = ()
    """Formats: h5ad, for scanpy; trident, an HDF5 file per slide; slides, a table of mean and
    spread per slide."""
    clusters: int | None = None
    """Draw this number of clusters of all embeddings over every slide, as PNG and GeoJSON."""
    probe: Path | None = None
    """Run whose linear probe is drawn over every slide, as PNG and GeoJSON."""

    def __post_init__(self) -> None:
        if self.clusters is not None and not 2 <= self.clusters <= len(LIGHT):
            raise ValueError(f"clusters is {self.clusters}; expected 2 to {len(LIGHT)}")
        if not self.to and self.clusters is None and self.probe is None:
            raise ValueError("nothing to write: choose --to, --clusters or --probe")


def export(folder: Path, options: ExportOptions) -> list[Path]:
    """Write the embeddings in a folder of `eval.embed` in other formats; return the files.

    Raises:
        DataError: the folder holds no embeddings, a library is missing, patches have no place, or
            the run of the probe did not make the embeddings.
    """
    for name in options.to:
        LIBRARIES.get(name, lambda: None)()
    table = read_table(folder)
    if len({slide.stem.lower() for slide in table.slides}) < len(table.slides):
        raise DataError(f"{folder}: two slides get the same file name: rename one")
    files = [FORMATS[name](table, options.out) for name in dict.fromkeys(options.to)]
    if options.clusters is not None:
        files += write_maps(table, clusters(table, options.clusters), options.out)
    if options.probe is not None:
        files += write_maps(table, probe_scores(table, options.probe), options.out)
    return files


_Folder = Annotated[Path, tyro.conf.arg(metavar="EMBEDDED", help="output folder of eval.embed")]
_Options = Annotated[ExportOptions, tyro.conf.arg(name="")]


def _command(folder: tyro.conf.Positional[_Folder], options: _Options) -> Callable[[], None]:
    """Write embeddings for other programs, and draw them over their slides."""

    def action() -> None:
        for path in export(folder, options):
            log.info(str(path))

    return action


def main() -> int:
    return run_command("eval.export", _command)


if __name__ == "__main__":
    sys.exit(main())
