"""Pack a public set of patches: `python -m shards.known NAME FILES OUT`.

FILES are as they were downloaded and unpacked: `docs/known-data.md` says what each set is, which
splits it gets and what is known of its bias.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.command import run_command
from common.errors import DataError
from shards.known.arrays import ArraySource
from shards.known.files import known_files
from shards.known.sets import SETS, SetName
from shards.pack.packing import pack_source
from shards.pack.plan import PackOptions
from shards.sources.collect import AnySource
from shards.sources.convert import ConvertedSource, TileSource
from shards.sources.names import require_utf8

_Name = Annotated[SetName, tyro.conf.arg(metavar="NAME", help=", ".join(SETS))]
_Paths = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(
        metavar="FILES OUT",
        help="folder of the set, or several of its files and folders; then the new folder",
        help_behavior_hint="",
    ),
]


@dataclass(frozen=True)
class Command:
    """Pack a public set of patches into WebDataset shards, from its files as downloaded."""

    name: tyro.conf.Positional[_Name]
    paths: tyro.conf.Positional[_Paths]
    partial: bool = False
    """Accept fewer patches than were published: a subset, or some of the splits."""
    convert: Literal["crop", "resize", "tile"] | None = None
    """What becomes of the 224x224 pixels of nct-crc: crop (the centre 32x32), resize (the whole, to
    32x32) or tile (49 patches of 32x32)."""
    follow_links: bool = False
    """Follow links that lead out of the folder."""
    shard_size: int = PackOptions.shard_size
    """Samples per shard."""
    workers: int = PackOptions.workers
    """Worker processes; 0: one per usable core, or none for small sets."""
    seed: int = PackOptions.seed
    """Seed of the shuffle within each split."""
    skip_bad: int = PackOptions.skip_bad
    """Skip up to this many files that are damaged; they are listed in dataset.json."""
    overwrite: bool = False
    """Replace the data set in OUT; files that are not part of it stay."""

    def __post_init__(self) -> None:
        if len(self.paths) < 2:
            raise ValueError("FILES or OUT is missing: name the folder of the set, then OUT")
        if self.name == "nct-crc" and self.convert is None:
            raise ValueError(
                "nct-crc has patches of 224x224 pixels: choose --convert resize (all of the patch "
                "that the label is about, at 3.5 microns per pixel), crop or tile (0.5 microns per "
                "pixel)"
            )
        if self.name != "nct-crc" and self.convert is not None:
            raise ValueError(f"--convert is about nct-crc; {self.name} has one rule")
        self._options()

    def __call__(self) -> None:
        out = self.paths[-1]
        if out.is_file():
            raise DataError(f"{out} is a file: name the new folder for the data set last")
        require_utf8(str(out.resolve()))
        files = self.paths[:-1]
        source: AnySource
        match self.name:
            case "pcam" | "pathmnist" | "crchisto":
                source = ArraySource(name=self.name, paths=files, partial=self.partial)
            case name:
                listing = known_files(name, files, self.partial, self.follow_links)
                if self.convert == "tile":
                    source = TileSource(files=listing)
                else:
                    source = ConvertedSource(files=listing, rule=self.convert or "crop")
        pack_source(source, out, self._options())

    def _options(self) -> PackOptions:
        return PackOptions(
            shard_size=self.shard_size,
            workers=self.workers,
            seed=self.seed,
            skip_bad=self.skip_bad,
            overwrite=self.overwrite,
            convert="crop" if self.name == "camelyon17-wilds" else self.convert or "none",
        )


def main() -> int:
    return run_command("shards.known", Command, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    sys.exit(main())
