"""The patches that a manifest lists: every file found and looked at, names read as in folders."""

from pathlib import Path
from typing import Any

from common.errors import DataError
from shards.sources.folder import Survey, barcode_notes
from shards.sources.layout import PLAIN, Accepted
from shards.sources.look import CHUNK, LookAll, in_parts, look_here
from shards.sources.manifest import Rows, suggestions
from shards.sources.patch import Patch

_SHOWN = 10


def survey_listed(
    root: Path,
    rows: Rows,
    group_regex: str | None = None,
    accepted: Accepted = PLAIN,
    look_all: LookAll = look_here,
) -> Survey:
    """The patches of `rows` under `root`, sorted by path.

    What the manifest has a column for is taken from it alone. Otherwise the place comes from the
    file name, and patient and site from a TCGA barcode in the slide or source.

    Raises:
        DataError: not a folder, a row whose file does not exist or whose link leaves `root`, a
            path the regex does not match.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: paths of {rows.file} are relative to it")
    given = {name: values for name, values in rows.values.items() if name != "path"}
    given.setdefault("split", ["train"] * len(rows))
    parts = in_parts(root, accepted, group_regex, rows.values["path"], given)
    patches: list[Patch] = []
    refused: list[tuple[str, str]] = []
    missing: list[str] = []
    for start, looked in zip(range(0, len(rows), CHUNK), look_all(parts), strict=True):
        if looked.error:
            raise DataError(f"{rows.place(start + looked.error[0])}: {looked.error[1]}")
        patches += looked.patches
        refused += looked.refused
        for i, reason in looked.missing:
            missing.append(
                f"  {rows.place(start + i)}: {rows.values['path'][start + i]!r}: {reason}"
            )
    if missing:
        raise _missing(root, rows, missing)
    patches.sort(key=lambda patch: patch.path)
    refused.sort()
    taken = [field for field in ("patient", "site") if field not in rows.used]
    notes = [_note(rows), *barcode_notes(patches, taken)]
    return Survey(patches, refused, 0, 0, None, "split" in rows.used, notes, [])


def manifest_provenance(rows: Rows) -> dict[str, Any]:
    """What dataset.json says of the manifest: the same table gives the same."""
    return {"name": rows.file.name, "xxh3": rows.xxh3, "rows": len(rows), "columns": rows.used}


def _note(rows: Rows) -> str:
    used = [f if f == column else f"{f} from {column}" for f, column in rows.used.items()]
    note = f"manifest {rows.file}: {len(rows):,} rows; {', '.join(used)}"
    unused = suggestions(rows)
    return f"{note}; not used: {', '.join(unused)}" if unused else note


def _missing(root: Path, rows: Rows, missing: list[str]) -> DataError:
    shown = "\n".join(missing[:_SHOWN])
    more = f"\n  ... and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return DataError(
        f"{len(missing)} of {len(rows)} files that {rows.file} lists cannot be found in "
        f"{root} (paths are relative to it, with / between folders):\n{shown}{more}"
    )
