"""Check a data set: `python -m shards.verify OUT`; or, with --index, make one of foreign tars."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from common.command import DONE, UNUSABLE_DATA, run_command
from common.console import log, table
from shards.foreign.index import index_tars
from shards.foreign.provenance import IndexOptions
from shards.verify.check import verify
from shards.verify.duplicates import LOW_CONTRAST

_SHOWN = 50

_Source = Annotated[
    str, tyro.conf.arg(metavar="SOURCE", help="data set; with --index a folder or pattern of tars")
]
_NoDuplicates = Annotated[bool, tyro.conf.arg(help="skip the search for patches in two splits")]
_Out = Annotated[
    Path | None,
    tyro.conf.arg(metavar="OUT", help="index the WebDataset tars in SOURCE, as a data set in OUT"),
]
_Options = Annotated[IndexOptions, tyro.conf.arg(name="")]


_DEFAULTS = IndexOptions()


def _command(
    source: tyro.conf.Positional[_Source],
    no_duplicates: _NoDuplicates = False,
    index: _Out = None,
    options: _Options = _DEFAULTS,
) -> Callable[[], int]:
    """Check a data set: hashes, members, pixels, keys, counts, leakage, duplicates. With --index,
    instead, scan tars of another tool once, and make a data set of them where they are."""
    if index is not None:
        return partial(_index, source, index, options)
    if options != _DEFAULTS:
        raise ValueError("--split, --classes, --skip-bad, ... are about --index, which is missing")
    return partial(_verify, Path(source), not no_duplicates)


def _index(source: str, out: Path, options: IndexOptions) -> int:
    index_tars(source, out, options)
    return DONE


def _verify(root: Path, duplicates: bool) -> int:
    """Check a data set, and print a table, the warnings and the first problems."""
    report = verify(root, duplicates)
    rows = [("split", "shards", "samples", "bytes", "problems")]
    for name, split in report.metadata.splits.items():
        size = sum(shard.size + shard.sidecar_size for shard in split.shards)
        bad = sum(n for file, n in report.counts.items() if file.startswith(f"{name}-"))
        rows.append((name, f"{len(split.shards):,}", f"{split.count:,}", f"{size:,}", f"{bad:,}"))
    print(table(rows))
    if report.duplicates is not None and (flat := sum(report.duplicates.flat.values())):
        print(
            f"{flat:,} patches have hardly any contrast (standard deviation of the grey values "
            f"below {LOW_CONTRAST:g}): not compared with others"
        )
    for warning in report.warnings:
        log.warning(warning)
    for problem in report.problems[:_SHOWN]:
        print(f"problem: {problem}", file=sys.stderr)
    verdict = f"{report.problem_count} problems" if report.problem_count else "sound"
    print(f"{root}: {verdict}")
    return UNUSABLE_DATA if report.problem_count else DONE


def main() -> int:
    """Run the command; exit status 1 also stands for a data set with problems."""
    return run_command(
        "shards.verify", _command, "nothing was changed", (tyro.conf.FlagCreatePairsOff,)
    )


if __name__ == "__main__":
    sys.exit(main())
