"""The patches that a manifest lists: every file found and looked at, names read as in folders."""

import os
import stat
from pathlib import Path
from typing import Any

from shards.layout import PLAIN, Accepted, check_link, refusal
from shards.manifest import Rows, suggestions
from shards.names import group_pattern, position, source_image
from shards.schema import DataError
from shards.sources import Patch, Survey, barcode, barcode_notes

_SHOWN = 10


def survey_listed(
    root: Path, rows: Rows, group_regex: str | None = None, accepted: Accepted = PLAIN
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
    statuses = _statuses(root, rows)
    pattern = group_pattern(group_regex)
    get = rows.values.get
    empty = [None] * len(rows)
    has_place = "x" in rows.used or "y" in rows.used
    has_patient, has_site = "patient" in rows.used, "site" in rows.used
    columns = [get(name, empty) for name in ("label", "slide", "patient", "site", "x", "y", "mpp")]
    splits = get("split") or ["train"] * len(rows)
    patches, refused = [], []
    for path, status, split, label, slide, patient, site, x, y, mpp in zip(
        rows.values["path"], statuses, splits, *columns, strict=True
    ):
        stem, _, suffix = path.rpartition("/")[2].rpartition(".")
        if reason := refusal(suffix, status, accepted):
            refused.append((path, reason))
            continue
        source = source_image(path, stem, slide, pattern)
        if not (has_patient and has_site) and (known := barcode(slide or source)):
            patient = patient if has_patient else known[0]
            site = site if has_site else known[1]
        if not has_place:
            y, x = position(stem)
        patches.append(
            Patch(path, label, split, source, y, x, status.st_size, status.st_mtime_ns,
                  slide, patient, site, mpp)
        )  # fmt: skip
    patches.sort(key=lambda patch: patch.path)
    refused.sort()
    taken = [field for field in ("patient", "site") if field not in rows.used]
    notes = [_note(rows), *barcode_notes(patches, taken)]
    return Survey(patches, refused, 0, 0, None, "split" in rows.used, notes, [])


def manifest_provenance(rows: Rows) -> dict[str, Any]:
    """What the card says of the manifest: the same table gives the same."""
    return {"name": rows.file.name, "xxh3": rows.xxh3, "rows": len(rows), "columns": rows.used}


def _note(rows: Rows) -> str:
    used = [f if f == column else f"{f} from {column}" for f, column in rows.used.items()]
    note = f"manifest {rows.file}: {len(rows):,} rows; {', '.join(used)}"
    unused = suggestions(rows)
    return f"{note}; not used: {', '.join(unused)}" if unused else note


def _statuses(root: Path, rows: Rows) -> list[os.stat_result]:
    """What the file system says of every file; folders and links may not leave the root."""
    real_root = os.path.realpath(root)
    folders: set[str] = set()
    missing: list[str] = []
    found: list[os.stat_result] = []
    for i, path in enumerate(rows.values["path"]):
        full, folder = f"{root}/{path}", path.rpartition("/")[0]
        try:
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode) or folder not in folders:
                check_link(full, root, real_root)
                folders.add(folder)
                status = Path(full).stat()
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            reason = getattr(error, "strerror", None) or str(error)
            missing.append(f"  {rows.place(i)}: {path!r}: {reason}")
            continue
        except DataError as error:
            raise DataError(f"{rows.place(i)}: {error}") from None
        found.append(status)
    if missing:
        shown = "\n".join(missing[:_SHOWN])
        more = f"\n  ... and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(rows)} files that {rows.file} lists cannot be found in "
            f"{root} (paths are relative to it, with / between folders):\n{shown}{more}"
        )
    return found
