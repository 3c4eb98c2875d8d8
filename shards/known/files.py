"""`KnownFiles`: the public sets that have a file per patch, larger than 32x32.

`sources.convert` makes the patches: the centre of those of Camelyon17-WILDS, and what the user asks
for of those of NCT-CRC-HE.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from shards.known import camelyon17, nct_crc
from shards.known.inputs import Inputs
from shards.known.sets import FileSet
from shards.sources.files import FileSource
from shards.sources.source import Accepted, Collection, LookUp, Patch

# a value per patch by field (paths are relative to the root), and the number of those left out
_ListFiles = Callable[[Inputs], tuple[dict[str, list[Any]], dict[str, int]]]


@dataclass(frozen=True)
class _Set:
    list_files: _ListFiles
    rule: str  # what the source of a patch is
    has_slides: bool
    side: int  # pixels of a file
    accepted: Accepted


_SETS: Mapping[FileSet, _Set] = {
    "camelyon17-wilds": _Set(
        camelyon17.list_files, camelyon17.RULE, True, 96, Accepted(("png",), 1 << 20, "PNG file")
    ),
    "nct-crc": _Set(
        nct_crc.list_files, nct_crc.RULE, False, 224, Accepted(("tif",), 16 << 20, "TIFF file")
    ),
}


class KnownFiles(FileSource, frozen=True, kw_only=True, tag=True):
    """The files of a public set below a root."""

    set_name: FileSet
    paths: tuple[Path, ...]
    partial: bool = False

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches.

        Raises:
            DataError: a table, folder or file is missing, or is not as the set has it; another
                number of patches; a link that leaves the root.
        """
        of_set = _SETS[self.set_name]
        inputs = Inputs(self.set_name, self.paths, self.partial)
        columns, left_out = of_set.list_files(inputs)
        paths = columns.pop("path")
        batches = self.batches(paths, columns)
        patches: list[Patch] = []
        refused: list[tuple[str, str]] = []
        missing: list[str] = []
        for batch, result in zip(batches, look_up(batches), strict=True):
            if result.error:
                raise DataError(result.error[1])
            patches += result.patches
            refused += result.refused
            missing += [batch.paths[i] for i, _ in result.missing]
        if missing and not self.partial:
            raise DataError(
                f"{inputs.root}: {len(missing):,} of {len(paths):,} files are missing, as "
                f"{missing[0]}: unpack the archive again, or pack those that are there with "
                f"--partial"
            )
        if not of_set.has_slides:
            patches = [patch._replace(source=patch.path) for patch in patches]
        return inputs.collection(
            patches,
            of_set.rule,
            left_out={**left_out, "files that are missing": len(missing)},
            refused=refused,
        )


def known_files(name: FileSet, paths: tuple[Path, ...], partial: bool, links: bool) -> KnownFiles:
    """Return the files of a set.

    Args:
        links: follow links that lead out of the root.

    Raises:
        DataError: as `Inputs`.
    """
    return KnownFiles(
        root=Inputs(name, paths, partial).root,
        accepted=_SETS[name].accepted,
        side=_SETS[name].side,
        follow_links=links,
        set_name=name,
        paths=paths,
        partial=partial,
    )
