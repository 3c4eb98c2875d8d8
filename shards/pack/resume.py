"""The output folder: whole files only, and packing resumed after a kill.

While a data set is packed its folder holds `.packing.json` (the plan's digest and the names of all
shards, of this plan and of the data set it replaces), one hidden record a finished shard and, where
several tasks share the work, `.plan.parquet`. `dataset.json` is written last; then the others go.
"""

import json
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import atomic_file, sync_folder
from shards.pack.plan import Plan
from shards.schema import METADATA_NAME, PACKING_NAME, load_metadata

PLAN_NAME = ".plan.parquet"
_SHARD = r"[a-z][a-z0-9_]{0,31}-\d{6}"
_NAME = re.compile(_SHARD)
_RECORD = re.compile(rf"\.{_SHARD}\.json")
_LOCK = re.compile(r"\.(plan|task-\d+)\.lock")
_TEMP = re.compile(
    rf"\.((?P<shard>{_SHARD})\.(tar|parquet)|\.(?P<record>{_SHARD})\.json|(?P<tiles>tiles(-\d+)?)"
    rf"|\.packing\.json|\.plan\.parquet|dataset\.json)\.\d+\.tmp"
)


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Look at OUT before the long work.

    Raises:
        DataError: a data set is there and `overwrite` is not set, or only files of others.
    """
    packing = (out / PACKING_NAME).exists()
    if (out / METADATA_NAME).exists():
        if not overwrite and not packing:  # both: stopped before it had cleaned up
            raise DataError(f"{out} already holds a data set; replace it with --overwrite")
        return
    foreign = sorted(e.name for e in out.iterdir() if not e.name.startswith("."))
    if foreign and not packing:
        raise DataError(
            f"{out} is not empty and holds no data set of this tool ({foreign[:5]}); "
            f"choose another OUT"
        )


def prepare(out: Path, plan: Plan, overwrite: bool) -> None:
    """Make OUT ready for `plan`: what is left holds finished shards of this plan and nothing old.

    Raises:
        DataError: an unfinished pack of another plan is there and `overwrite` is not set, or a
            shard of this plan would replace a file that is not ours.
    """
    unfinished = _read_json(out / PACKING_NAME)
    if unfinished and unfinished.get("plan") != plan.digest and not overwrite:
        raise DataError(
            f"{out} holds an unfinished pack of another source, of other options or by another "
            f"version of this program, or files have changed since; start again with --overwrite"
        )
    old = {name for name in unfinished.get("shards", []) if _NAME.fullmatch(str(name))}
    if (out / METADATA_NAME).exists():
        splits = load_metadata(out).splits.values()
        old |= {shard.name for split in splits for shard in split.shards}
    new = [shard.name for shard in plan.shards]
    for name in set(new) - old:
        for path in shard_files(out, name):
            if path.exists():
                raise DataError(f"{path} is not part of a data set: move it, or choose another OUT")
    packing = {"plan": plan.digest, "shards": sorted(old.union(new))}
    with atomic_file(out / PACKING_NAME) as file:
        file.write(json.dumps(packing).encode())
    for name in (METADATA_NAME, PLAN_NAME):
        (out / name).unlink(missing_ok=True)
    sync_folder(out)
    sweep(out)
    for name in sorted(old):
        if name not in new or read_record(out, name, plan.digest) is None:
            _remove_shard(out, name)


def finish(out: Path) -> None:
    """Remove what only an unfinished pack needs; the plan first: without it nothing is merged."""
    (out / PLAN_NAME).unlink(missing_ok=True)
    (out / PACKING_NAME).unlink(missing_ok=True)  # from here on the data set is complete
    sweep(out)
    for entry in list(out.iterdir()):
        if _RECORD.fullmatch(entry.name) or _LOCK.fullmatch(entry.name):
            entry.unlink()
    sync_folder(out)


def sweep(out: Path, owners: Container[str] | None = None) -> None:
    """Remove the temporary files of packers that were killed.

    Args:
        owners: names of shards, and of `tiles_name`: other tasks write beside this one, and only
            what belongs to these is removed. None: everything.
    """
    for entry in list(out.iterdir()):
        found = _TEMP.fullmatch(entry.name)
        if found is None:
            continue
        owner = found["shard"] or found["record"] or found["tiles"]
        if owners is None or owner in owners:
            entry.unlink(missing_ok=True)


def shard_files(out: Path, name: str) -> tuple[Path, Path]:
    """The tar and the sidecar of a shard."""
    return out / f"{name}.tar", out / f"{name}.parquet"


def tiles_name(task: int | None) -> str:
    """What the file of tiles is called, of a task or of a packer that does everything."""
    return "tiles" if task is None else f"tiles-{task}"


def tiles_file(out: Path, task: int | None = None) -> Path:
    """Where tiles wait; `sweep` removes it. Processes of two machines may have one number."""
    return out / f".{tiles_name(task)}.{os.getpid()}.tmp"


def write_record(out: Path, digest: str, record: dict[str, Any]) -> None:
    """Say that the shard `record["name"]` of the plan `digest` is finished."""
    with atomic_file(out / f".{record['name']}.json") as file:
        file.write(json.dumps({"plan": digest, "record": record}).encode())


def read_record(out: Path, name: str, digest: str) -> dict[str, Any] | None:
    """The record of a finished shard of this plan, if both its files have the recorded sizes."""
    saved = _read_json(out / f".{name}.json")
    if saved.get("plan") != digest:
        return None
    record: dict[str, Any] = saved["record"]
    sizes = [path.stat().st_size if path.exists() else 0 for path in shard_files(out, name)]
    return record if sizes == [record["size"], record["sidecar_size"]] else None


def _remove_shard(out: Path, name: str) -> None:
    for path in (out / f".{name}.json", *shard_files(out, name)):
        path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file of ours; empty when it is missing or was cut by a crash."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
