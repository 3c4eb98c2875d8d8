"""`read`: shuffled epochs of uint8 batches with labels, by our loader and by other tools.

Every reader yields each patch once per epoch, in a new order each time, as uint8 arrays and labels;
ours check the CRC of every sample read from a shard. Memory is that of this process.
"""

import time
from functools import partial
from typing import NamedTuple

from accelerate import Accelerator

from bench.patches import MAX_FILES, PatchSet, patch_sets
from bench.readers import LARGE, LIMIT, OURS, REFERENCE, Epochs, Reader, consume
from bench.records import CELL, NotMeasured, Record, Spread, grouped
from bench.settings import Settings
from bench.timing import Usage, log, resident, rounds, usage
from common.console import table

BATCH = 512
MIN_SECONDS = 0.5  # of a round: an epoch from memory takes milliseconds


class ReadSpeed(Record, tag="read", frozen=True):
    """Speed of a reader on a number of patches."""

    reader: str
    patches: int
    patches_per_s: Spread
    patches_per_core_s: Spread
    opened_bytes: int  # memory that opening and the first epoch take
    grown_bytes: int  # memory that the timed epochs add
    bytes_per_patch: float  # on disk


class ReadFailure(Record, tag="read", frozen=True):
    """A reader that could not be measured."""

    reader: str
    patches: int
    patches_per_s: NotMeasured


class _Opened(NamedTuple):
    epochs: Epochs
    memory: int  # bytes
    disk: int  # bytes


def measure(settings: Settings, accelerator: Accelerator) -> list[ReadSpeed | ReadFailure]:
    """Race the readers on each number of patches."""
    readers = OURS
    if settings.peers:
        from bench.peers import PEERS

        readers = OURS | PEERS
    # whole batches, so that no epoch of ours shares a batch with the next
    counts = [count // min(BATCH, count) * min(BATCH, count) for count in settings.patches]
    records: list[ReadSpeed | ReadFailure] = []
    for patches in patch_sets(settings, counts):
        few = patches.count <= MAX_FILES
        racing = readers if few else {name: OURS[name] for name in LARGE}
        records += race(racing, patches, min(BATCH, patches.count), settings.repeats)
    return records


def race(
    readers: dict[str, Reader], patches: PatchSet, batch: int, repeats: int
) -> list[ReadSpeed | ReadFailure]:
    """Time the readers in turn; a failure of another tool is a record, one of ours is raised."""
    opened: dict[str, _Opened] = {}
    failures: dict[str, ReadFailure] = {}
    for name, reader in readers.items():
        log.info(f"read: {patches.count:,} patches: preparing {name}")
        try:
            opened[name] = _open(reader, patches, batch)
        except Exception as error:  # other tools may fail in any way: the table reports it
            if name in OURS:
                raise
            reason = NotMeasured(f"{type(error).__name__}: {error}")
            failures[name] = ReadFailure(name, patches.count, reason)
    timed: dict[str, list[tuple[int, Usage]]] = {name: [] for name in opened}

    def block(name: str) -> float:
        first = 1 + sum(epochs for epochs, _ in timed[name])
        epochs, used = _read_epochs(opened[name].epochs, first)
        timed[name].append((epochs, used))
        return used.seconds

    rounds({name: partial(block, name) for name in opened}, repeats)
    speeds = {
        name: ReadSpeed(
            reader=name,
            patches=patches.count,
            patches_per_s=Spread.of([patches.count * n / used.seconds for n, used in runs]),
            patches_per_core_s=Spread.of(
                [patches.count * n / used.core_seconds for n, used in runs]
            ),
            opened_bytes=opened[name].memory,
            grown_bytes=sum(used.grown for _, used in runs),
            bytes_per_patch=opened[name].disk / patches.count,
        )
        for name, runs in timed.items()
    }
    return [speeds[name] if name in speeds else failures[name] for name in readers]


def _open(reader: Reader, patches: PatchSet, batch: int) -> _Opened:
    """Write the set in the reader's format, open it and read the first epoch."""
    root = reader.make(patches)
    before = resident()
    epochs = reader.open(root, batch)
    consume(epochs(0))
    memory = resident() - before
    files = [path for path in root.rglob("*") if path.is_file()]
    if root == patches.folder:  # the arrays, without the forms that other readers made beside
        files = [patches.array, patches.label_array]
    return _Opened(epochs, memory, sum(path.stat().st_size for path in files))


def _read_epochs(epochs: Epochs, first: int) -> tuple[int, Usage]:
    """Read whole epochs from number `first` on, until MIN_SECONDS have passed; return how many."""
    done = 0

    def work() -> None:
        nonlocal done
        began = time.perf_counter()
        while not done or time.perf_counter() - began < MIN_SECONDS:
            consume(epochs(first + done))
            done += 1

    used = usage(work)
    return done, used


HEADER = ["reader", "patches/s", "patches/s per core", "x PIL", "of the limit", "bytes/patch"]
HEADER += ["opened MB", "grown MB"]


def report(records: list[ReadSpeed | ReadFailure], settings: Settings) -> str:
    """Show a table per number of patches; below it, readers that failed, with the reason."""
    tables = []
    for count, group in grouped(records, lambda r: r.patches).items():
        speeds = {r.reader: r for r in group if isinstance(r, ReadSpeed)}
        limit, reference = speeds[LIMIT], speeds.get(REFERENCE)
        most, rows = limit.patches_per_core_s.median, [HEADER]
        for speed in speeds.values():
            rate, ratio = speed.patches_per_core_s.median, "-"
            if reference is not None:
                ratio = f"{rate / reference.patches_per_core_s.median:.1f}"
            numbers = [f"{rate / most:.1%}", f"{speed.bytes_per_patch:,.0f}"]
            memory = [f"{n / 1e6:,.1f}" for n in (speed.opened_bytes, speed.grown_bytes)]
            rates = [f"{speed.patches_per_s}", f"{speed.patches_per_core_s}"]
            rows.append([speed.reader, *rates, ratio, *numbers, *memory])
        failed = [
            f"not measured: {r.reader}: {r.patches_per_s.not_measured.splitlines()[0]}"
            for r in group
            if isinstance(r, ReadFailure)
        ]
        title = f"{count:,} patches, shuffled batches of {min(BATCH, count)}: {CELL}"
        tables.append("\n".join([title, table(rows), *failed]))
    return "\n\n".join(tables)
