"""The output folder of a pack: its locks, and resuming after a kill.

While a data set is packed its folder holds `.packing.json` (the plan's digest and the names of all
shards, of this plan and of the data set it replaces), one hidden record per finished shard and,
where several tasks share the work, `.plan.parquet`. `dataset.json` is written last, and
`.packed.json` with a digest of options and patches, by which the same command knows that it is
done; then the other files are removed.

`.lock` is held exclusively by a packer or a merge, and shared by the tasks of one pack. A task also
holds `.task-I.lock`, so that it runs once, and `.plan.lock` while the plan is made or read.
"""

import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from common.console import printable
from common.errors import DataError
from common.files import atomic_file, sync_folder
from common.locks import locked
from shards.pack.plan import Plan
from shards.schema import METADATA_NAME, PACKING_NAME, load_metadata, read_columns
from shards.slides.source import FOLDER_NAME
from shards.sources.staged import done_list

T = TypeVar("T")

LOCK_NAME = ".lock"
PLAN_LOCK_NAME = ".plan.lock"
PLAN_NAME = ".plan.parquet"
PACKED_NAME = ".packed.json"

_SCRATCH = "tiles"  # only tiles need scratch files
_SHARD = r"[a-z][a-z0-9_]{0,31}-\d{6}"
_STAGED = re.compile(r"\.staged(-\d+)?(\.done)?|\.unpacked-.+")
_NAME = re.compile(_SHARD)
_RECORD = re.compile(rf"\.{_SHARD}\.json")
_LOCK = re.compile(r"\.(plan|task-\d+)\.lock")
_TEMP = re.compile(
    rf"\.((?P<shard>{_SHARD})\.(tar|parquet)|\.(?P<record>{_SHARD})\.json"
    rf"|(?P<scratch>{_SCRATCH}(-\d+)?)|\.packing\.json|\.packed\.json|\.plan\.parquet|dataset\.json)\.\d+\.tmp"
)


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard; one without any usable patch has no files."""

    name: str
    split: str
    count: int = 0
    size: int = 0
    xxh3: str = ""
    sidecar_size: int = 0
    sidecar_xxh3: str = ""
    class_counts: list[int] = field(default_factory=list)
    channel_sums: list[int] = field(default_factory=list)  # of the values 0-255, RGB
    bad: int
    bad_first: list[tuple[str, str]]  # path and reason of the first MAX_LISTED
    fingerprints: str = ""  # 16 hexadecimal digits per sample: the xxh3 of its PNG

    @property
    def fingerprint_array(self) -> npt.NDArray[np.uint64]:
        """`fingerprints` as (count,) numbers.

        The CRC-32 of a PNG would not do: its chunks end in their own, which leaves 16 bits that
        depend on the pixels.
        """
        return np.frombuffer(bytes.fromhex(self.fingerprints), np.uint64)


class _Packing(msgspec.Struct):
    """The content of `.packing.json`."""

    plan: str  # digest
    shards: list[str]


class _Packed(msgspec.Struct):
    """The content of `.packed.json`."""

    content: str  # see `Plan.content_digest`
    times: str | None = None  # see `Plan.times_digest`; None: written by an earlier version
    newest: int | None = None  # see `Plan.newest`


class _SavedRecord(msgspec.Struct):
    """The content of a hidden record."""

    plan: str
    record: ShardRecord


@contextmanager
def packer_lock(out: Path) -> Iterator[None]:
    """Hold `OUT/.lock` exclusively; create OUT, and remove it again if it is left empty.

    Raises:
        DataError: another packer holds the lock, or OUT cannot be made.
    """
    is_new = not out.exists()
    with locked(out / LOCK_NAME, _busy(out), remove=True):
        try:
            yield
        finally:
            if is_new and [entry.name for entry in out.iterdir()] == [LOCK_NAME]:
                (out / LOCK_NAME).unlink()
                out.rmdir()


@contextmanager
def task_lock(out: Path, index: int) -> Iterator[None]:
    """Share `OUT/.lock` with other tasks, and hold `OUT/.task-INDEX.lock` exclusively.

    Raises:
        DataError: a packer that does not share the work runs, or this task runs already.
    """
    own = out / f".task-{index}.lock"
    running = f"{own} is locked: task {index} runs already. Wait for it, or stop it"
    with locked(out / LOCK_NAME, _busy(out), shared=True), locked(own, running, remove=True):
        yield


@contextmanager
def plan_lock(out: Path) -> Iterator[None]:
    """Hold `OUT/.plan.lock` exclusively; wait while another task makes the plan."""
    with locked(out / PLAN_LOCK_NAME, "waiting for the task that makes the plan", wait=True):
        yield


def _busy(out: Path) -> str:
    path = out / LOCK_NAME
    return f"{path} is locked: another packer writes to {out}. Wait for it, or stop it"


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Check, before the long work, that OUT can be packed into.

    Raises:
        DataError: OUT holds a data set and `overwrite` is not set, or only files of other programs.
            A data set that says from which plan it was packed is left to `is_complete`.
    """
    packing = (out / PACKING_NAME).exists()
    if (out / METADATA_NAME).exists():
        # both: stopped before the clean-up
        if not overwrite and not packing and not (out / PACKED_NAME).exists():
            raise DataError(f"{out} already holds a data set; replace it with --overwrite")
        return
    # the folder of contact sheets is there before it is certain what is packed
    names = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
    foreign = sorted({*names} - {FOLDER_NAME})
    if foreign and not packing:
        raise DataError(
            f"{out} is not empty and holds no data set of this tool ({foreign[:5]}); "
            f"choose another OUT"
        )


def is_complete(out: Path, plan: Plan) -> bool:
    """Whether OUT holds the data set of this plan, complete: the same files and options.

    Files are the same if their paths, sizes and times are, and none has changed since they were
    packed. Clocks may have gone back: a file that is older than the data set may have changed.

    Raises:
        DataError: OUT holds another data set, or a file of it is missing or has another size.
    """
    if (out / PACKING_NAME).exists() or not (out / METADATA_NAME).exists():
        return False
    packed = _read(out / PACKED_NAME, _Packed)
    same = (
        packed is not None
        and packed.content == plan.content_digest()
        and packed.times in (None, plan.times_digest())
        and (packed.newest == plan.newest or plan.newest <= (out / PACKED_NAME).stat().st_mtime_ns)
    )
    if not same:
        raise DataError(
            f"{out} already holds a data set, of another source or other options, or files have "
            f"changed since: {_difference(out, plan)}; replace it with --overwrite"
        )
    for shard in load_metadata(out).shards:
        sizes = (shard.size, shard.sidecar_size)
        for path, size in zip(shard_files(out, shard.name), sizes, strict=True):
            if not path.exists() or path.stat().st_size != size:
                raise DataError(
                    f"{path} is missing or has not its {size} bytes: pack again with --overwrite"
                )
    return True


def _difference(out: Path, plan: Plan) -> str:
    """Say in what the complete data set in OUT differs from a plan."""
    metadata = load_metadata(out)
    skipped = metadata.provenance.get("skipped", {}).get("first", [])
    past = {path for path, _ in skipped}
    for shard in metadata.shards:
        sidecar = shard_files(out, shard.name)[1]
        if sidecar.exists():
            past.update(read_columns(sidecar, ["path"])["path"].to_pylist())
    patches = [patch for shard in plan.shards for patch in shard.patches]
    now = {patch.path for patch in patches}
    packed = (out / PACKED_NAME).stat().st_mtime_ns
    lists = {
        "are new": now - past,
        "are gone": past - now - {path for path, _ in skipped},
        "were written since": {patch.path for patch in patches if patch.mtime_ns > packed} & past,
    }
    differences = [
        f"{len(paths):,} files {what} (as {printable(min(paths))})"
        for what, paths in lists.items()
        if paths
    ]
    same = (
        "the packed files have the same names; their sizes or times, options, values of a manifest "
        "or skipped files differ"
    )
    return ", ".join(differences) or same


def prepare(out: Path, plan: Plan, overwrite: bool) -> None:
    """Make OUT ready for `plan`: it then holds finished shards of this plan and nothing old.

    Raises:
        DataError: an unfinished pack of another plan is there and `overwrite` is not set, or a
            shard of this plan would replace a file that is not ours.
    """
    unfinished = _read(out / PACKING_NAME, _Packing)
    if unfinished and unfinished.plan != plan.digest and not overwrite:
        raise DataError(
            f"{out} holds an unfinished pack of another source, of other options or by another "
            f"version of this program, or files have changed since; start again with --overwrite"
        )
    old = {name for name in unfinished.shards if _NAME.fullmatch(name)} if unfinished else set()
    if (out / METADATA_NAME).exists():
        old |= {shard.name for shard in load_metadata(out).shards}
    new = [shard.name for shard in plan.shards]
    for name in set(new) - old:
        for path in shard_files(out, name):
            if path.exists():
                raise DataError(f"{path} is not part of a data set: move it, or choose another OUT")
    if not unfinished or unfinished.plan != plan.digest:
        _remove_all(out, _STAGED)
        sync_folder(out)  # before the new plan is there: it would take them for its own
    packing = _Packing(plan=plan.digest, shards=sorted(old.union(new)))
    # on disk before the removals: a folder of shards that no file names is refused
    with atomic_file(out / PACKING_NAME) as file:
        file.write(msgspec.json.encode(packing))
    for name in (METADATA_NAME, PACKED_NAME, PLAN_NAME):
        (out / name).unlink(missing_ok=True)
    sync_folder(out)
    sweep(out)
    for name in sorted(old):
        if name not in new or read_record(out, name, plan.digest) is None:
            for path in (out / f".{name}.json", *shard_files(out, name)):
                path.unlink(missing_ok=True)


def record_complete(out: Path, plan: Plan) -> None:
    """Record from which plan the data set in OUT was packed."""
    with atomic_file(out / PACKED_NAME) as file:
        packed = _Packed(plan.content_digest(), plan.times_digest(), plan.newest)
        file.write(msgspec.json.encode(packed))


def finish(out: Path) -> None:
    """Remove the files that only an unfinished pack needs; the plan, which merge reads, first."""
    (out / PLAN_NAME).unlink(missing_ok=True)
    (out / PACKING_NAME).unlink(missing_ok=True)  # from here on the data set is complete
    sweep(out)
    for pattern in (_STAGED, _RECORD, _LOCK):
        _remove_all(out, pattern)
    sync_folder(out)


def _remove_all(out: Path, pattern: re.Pattern[str]) -> None:
    for entry in list(out.iterdir()):
        if pattern.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def sweep(out: Path, owners: Container[str] | None = None) -> None:
    """Remove the temporary files of packers that were killed.

    Args:
        owners: shards and scratch files (`scratch_name`) whose temporary files are removed; those
            of tasks that run beside this one stay. None: remove all.
    """
    for entry in list(out.iterdir()):
        match = _TEMP.fullmatch(entry.name)
        if match is None:
            continue
        owner = match["shard"] or match["record"] or match["scratch"]
        if owners is None or owner in owners:
            entry.unlink(missing_ok=True)


def shard_files(out: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of the tar and the sidecar of a shard."""
    return out / f"{name}.tar", out / f"{name}.parquet"


def scratch_name(task: int | None) -> str:
    """Name the scratch file of a task; None: of a packer that does not share the work."""
    return _SCRATCH if task is None else f"{_SCRATCH}-{task}"


def scratch_file(out: Path, task: int | None = None) -> Path:
    """Return the path of a scratch file, which `sweep` removes.

    Its name holds the task, because processes on two machines may have the same number.
    """
    return out / f".{scratch_name(task)}.{os.getpid()}.tmp"


def staged_file(out: Path, task: int | None = None) -> Path:
    """Return the path of a scratch file that an interrupted pack of the same plan continues."""
    return out / (".staged" if task is None else f".staged-{task}")


def remove_staged(out: Path, task: int | None = None) -> None:
    """Remove a scratch file, and the list of what is in it before."""
    file = staged_file(out, task)
    done_list(file).unlink(missing_ok=True)
    sync_folder(out)
    file.unlink(missing_ok=True)


def write_record(out: Path, digest: str, record: ShardRecord) -> None:
    """Record that a shard of the plan `digest` is finished."""
    with atomic_file(out / f".{record.name}.json") as file:
        file.write(msgspec.json.encode(_SavedRecord(plan=digest, record=record)))


def read_record(out: Path, name: str, digest: str) -> ShardRecord | None:
    """Read the record of a finished shard of this plan, if both its files have their sizes."""
    saved = _read(out / f".{name}.json", _SavedRecord)
    if saved is None or saved.plan != digest:
        return None
    sizes = [path.stat().st_size if path.exists() else 0 for path in shard_files(out, name)]
    return saved.record if sizes == [saved.record.size, saved.record.sidecar_size] else None


def _read(path: Path, kind: type[T]) -> T | None:
    """Read a file that packing wrote; None when it is missing or was cut by a crash."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError):
        return None
