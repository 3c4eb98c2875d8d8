"""The files that the options of `eval.export` name."""

from pathlib import Path

from common.errors import DataError
from eval.config import ExportOptions
from eval.export.formats import FORMATS, LIBRARIES
from eval.export.maps import write_maps
from eval.export.table import read_table
from eval.export.values import clusters, probe_scores


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
