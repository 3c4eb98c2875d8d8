"""Pack a folder of patches into shards: collect, plan, build, write the metadata."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from common.console import log, progress
from common.errors import DataError
from common.machine import usable_cores
from shards.codec.png import PngError
from shards.pack import resume
from shards.pack.metadata import (
    log_skipped,
    log_summary,
    too_many_bad,
    without_skipped,
    write_metadata,
)
from shards.pack.plan import PackOptions, Plan, ShardPlan, make_plan
from shards.pack.resume import ShardRecord
from shards.pack.shard import Job
from shards.pack.tasks import PackTask, SharedPlan, read_plan, record_plan, refuse_difference
from shards.pack.workers import WorkerPool
from shards.schema import DatasetMetadata, load_metadata
from shards.slides.listing import SLIDES, SlideFolder
from shards.slides.source import FOLDER_NAME, SlideSource
from shards.sources.collect import AnySource, collect
from shards.sources.convert import CONVERTIBLE, ConvertedSource, TileSource
from shards.sources.files import PLAIN
from shards.sources.folder import FolderSource
from shards.sources.manifest import ManifestSource
from shards.sources.names import require_utf8
from shards.sources.source import Collection, Patch, gc_paused
from shards.sources.splits import (
    GROUPS,
    UNKNOWN,
    describe_groups,
    group_facts,
    leak_warning,
    leaks,
    unknown_warning,
)

MAX_SLIDE_TASKS = 200  # of 256 or more files that a process may have open
_COMPLETE = "{} is complete already, from the same files and options: nothing to do"


def pack(source: Path, out: Path, options: PackOptions | None = None) -> DatasetMetadata:
    """Pack the patches in `source` into `out` and return the metadata written there.

    Raises:
        DataError: the source or the output folder cannot be used, more bad patches than
            `options.skip_bad`, a source file that changed, a full disk. `out` then holds no
            `dataset.json`; after an interruption or a full disk the same call continues.
    """
    root, out, options = Path(source), Path(out), options or PackOptions()
    _refuse_paths(root, out)
    return pack_source(choose_source(root, options, out), out, options)


def pack_source(source: AnySource, out: Path, options: PackOptions) -> DatasetMetadata:
    """Pack the patches of a source: see `pack`; what `options` say of the source is not read."""
    start = time.monotonic()
    with resume.packer_lock(out):
        resume.refuse_occupied(out, options.overwrite)
        try:
            with WorkerPool(options.workers, options.shard_size) as pool:
                collection, plan = _plan(source, options, pool)
                if not options.overwrite and resume.is_complete(out, plan):
                    resume.finish(out)  # a packer may have been killed while it cleaned up
                    log.info(_COMPLETE.format(out))
                    return load_metadata(out)
                resume.prepare(out, plan, options.overwrite)
                records = _build(source, out, plan, plan.shards, options, pool)
        finally:
            resume.sweep(out)
        collection = without_skipped(out, collection, records)
        metadata = write_metadata(out, collection, plan, records, options)
    log_summary(metadata, collection.memberships, time.monotonic() - start)
    return metadata


def pack_task(source: Path, out: Path, options: PackOptions, task: PackTask) -> list[ShardRecord]:
    """Build one task's share of the shards of `out`; `shards.merge` completes the data set.

    The tasks may run at the same time, on any machines that share `out`, and again after a failure.
    The first one lists the source and records the plan; the others read it. Of slides, of which
    every shard has patches, a task cuts its share, and the merge builds all shards.

    Raises:
        DataError: as `pack`, and a task that runs already, or whose options differ from those
            of the recorded plan.
    """
    root, out = Path(source), Path(out)
    _refuse_paths(root, out)
    if options.overwrite:
        raise DataError(
            f"--overwrite in a task would erase what the others have built: remove {out}, or "
            f"choose another OUT"
        )
    start = time.monotonic()
    files = choose_source(root, options, out)
    if isinstance(files, SlideSource) and task.count > MAX_SLIDE_TASKS:
        raise DataError(
            f"num-tasks is {task.count}, expected at most {MAX_SLIDE_TASKS} for slides: the merge "
            f"has the files of all tasks open; give each more --workers"
        )
    with resume.task_lock(out, task.index):
        own = {resume.scratch_name(task.index)}
        try:
            with WorkerPool(options.workers, options.shard_size) as pool:
                shared = _shared_plan(files, out, options, task.count, pool)
                if shared is None:
                    log.info(_COMPLETE.format(out))
                    return []
                refuse_difference(out, shared, root.resolve().name, options, task.count)
                shards = task.shards(shared.plan)
                own |= {shard.name for shard in shards}
                resume.sweep(out, own)
                if isinstance(files, SlideSource):
                    _cut_share(files, out, shared.plan, task, options.skip_bad)
                    return []
                records = _build(files, out, shared.plan, shards, options, pool, task.index)
        finally:
            resume.sweep(out, own)
    bad = [pair for record in records for pair in record.bad_first]
    packed, total = sum(record.count for record in records), sum(record.bad for record in records)
    log.info(
        f"{task}: {len(records)} of {len(shared.plan.shards)} shards are finished; "
        f"{packed + total:,} read, {packed:,} packed, {total:,} skipped; "
        f"{time.monotonic() - start:.1f} s"
    )
    log_skipped(bad, total)
    log.info(f"when all tasks have ended: python -m shards.merge {out}")
    if total > options.skip_bad:
        raise too_many_bad(str(root), bad, total)  # the shards stay, for a merge that allows more
    return records


def _cut_share(source: SlideSource, out: Path, plan: Plan, task: PackTask, skip_bad: int) -> None:
    """Cut one task's share of the slides into a file beside the shards.

    Raises:
        DataError: as `SlideSource.stage`, or more bad patches than `skip_bad`: what is cut stays.
    """
    start = time.monotonic()
    counts = slide_counts(plan.shards)
    slides = {*task.slides(counts)}
    patches = [keyed for keyed in _keyed(plan.shards) if keyed[1].path in slides]
    bad = _unreadable(
        source.stage(patches, resume.staged_file(out, task.index), source.workers), patches
    )
    log.info(
        f"{task}: {len(slides):,} of {len(counts):,} slides are cut, {len(patches):,} patches, "
        f"{len(bad):,} of them not usable; {time.monotonic() - start:.1f} s"
    )
    log_skipped(bad, len(bad))
    log.info(f"when all tasks have ended: python -m shards.merge {out}")
    if len(bad) > skip_bad:
        raise too_many_bad(str(source.slides.root), bad, len(bad))


def build_cut(out: Path, shared: SharedPlan, workers: int) -> list[ShardRecord]:
    """Build the shards of slides that tasks have cut; return the records of all.

    Args:
        workers: processes; 0: one per usable core.
    """
    options = shared.options
    source = choose_source(Path(shared.collection.root), options, out)
    with WorkerPool(workers, options.shard_size) as pool:
        return _build(source, out, shared.plan, shared.plan.shards, options, pool)


def slide_counts(shards: Iterable[ShardPlan]) -> Counter[str]:
    """Count the patches of shards by the path of their slide."""
    return Counter(patch.path for shard in shards for patch in shard.patches)


def _keyed(shards: Iterable[ShardPlan]) -> Iterator[tuple[int, Patch]]:
    return chain.from_iterable(enumerate(shard.patches, shard.first_key) for shard in shards)


def _refuse_paths(root: Path, out: Path) -> None:
    for path in (root.resolve(), out.resolve()):
        require_utf8(str(path))
    if out.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{out} lies inside {root}: its shards would be scanned as patches")


def choose_source(root: Path, options: PackOptions, out: Path) -> AnySource:
    """Return the source that the options name."""
    slides, regex, links = options.slides.asked, options.group_regex, options.follow_links
    accepted = SLIDES if slides else PLAIN if options.convert == "none" else CONVERTIBLE
    listed: ManifestSource | None = None
    if options.manifest is not None:
        listed = ManifestSource(
            root=root,
            group_regex=regex,
            accepted=accepted,
            manifest=options.manifest,
            columns=options.columns,
            missing=options.missing,
            follow_links=links,
        )
    if slides:
        folder = SlideFolder(
            root=root.parent if root.is_file() else root,
            only=root.name if root.is_file() else None,
            group_regex=regex,
            follow_links=links,
            layout=options.layout,
        )
        return SlideSource(
            slides=listed or folder,
            options=options.slides,
            folder=out / FOLDER_NAME,
            workers=options.workers or usable_cores(),
        )
    files = listed or FolderSource(
        root=root, group_regex=regex, accepted=accepted, layout=options.layout, follow_links=links
    )
    match options.convert:
        case "none":
            return files
        case "tile":
            return TileSource(files=files)
        case rule:
            return ConvertedSource(files=files, rule=rule)


def _plan(source: AnySource, options: PackOptions, pool: WorkerPool) -> tuple[Collection, Plan]:
    with gc_paused():
        draw = (options.val, options.test, options.seed)
        collection = collect(source, *draw, pool.look_up, tidy=options.tidy_labels)
        log_collection(collection)
        refused = collection.refused
        if len(refused) > options.skip_bad:  # one list: the contents of the others count, too
            keyed = enumerate(collection.patches)
            others = [] if source.is_slow else _unreadable(source, [*keyed])
            bad = [*refused, *others]
            every = len(others) == len(collection.patches)
            raise too_many_bad(collection.root, bad, len(bad), every)
        if not collection.patches:
            raise DataError(f"{collection.root}: no usable patch is left")
        return collection, make_plan(collection.patches, options)


def log_collection(collection: Collection) -> None:
    """Log counts and notes of a collection, and warn of flaws such as groups that cross splits."""
    memberships, count = collection.memberships, len(collection.patches)
    log.info(f"{collection.root}: {count:,} patches")
    groups = group_facts(collection.patches, collection.rule)
    for line in (*collection.notes[:1], *describe_groups(groups), *collection.notes[1:]):
        log.info(line)
    if collection.hidden or collection.ignored:
        log.info(
            f"not looked at: {collection.hidden} hidden, {collection.ignored} notes or system files"
        )
    warnings = list(collection.warnings)
    for kind in GROUPS:
        names = ((member.split, getattr(member, kind)) for member in memberships)
        if crossing := leaks((split, name) for split, name in names if name):
            warnings.append(leak_warning(kind, crossing))
    unknown = groups.patches.get(UNKNOWN, 0)
    if unknown:
        warnings.append(unknown_warning(unknown, count))
    elif len({member.source for member in memberships}) == count > 1:
        warnings.append(
            "every patch is its own source image: no leakage between splits can be seen and no "
            "interval by source image computed; name the source with --group-regex"
        )
    for warning in warnings:
        log.warning(warning)


def _unreadable(source: AnySource, patches: list[tuple[int, Patch]]) -> list[tuple[str, str]]:
    """Read patches by their keys, and return path and reason of those that are not usable."""
    bad: list[tuple[str, str]] = []
    with progress("checking", len(patches), "patches") as advance, source.open() as read_patch:
        for key, patch in patches:
            try:
                read_patch(key, patch)
            except PngError as error:
                bad.append((patch.path, str(error)))
            advance(1)
    return bad


def _shared_plan(
    source: AnySource, out: Path, options: PackOptions, tasks: int, pool: WorkerPool
) -> SharedPlan | None:
    """Return the recorded plan; if there is none, make and record it.

    None where the data set is complete already.
    """
    with resume.plan_lock(out):
        shared = read_plan(out)
        if shared is None:
            resume.refuse_occupied(out, overwrite=False)
            collection, plan = _plan(source, options, pool)
            if resume.is_complete(out, plan):
                return None
            resume.prepare(out, plan, overwrite=False)
            shared = SharedPlan(collection=collection, options=options, tasks=tasks, plan=plan)
            record_plan(out, shared)
    return shared


def _build(
    source: AnySource,
    out: Path,
    plan: Plan,
    shards: Sequence[ShardPlan],
    options: PackOptions,
    pool: WorkerPool,
    task: int | None = None,
) -> list[ShardRecord]:
    """Build the unfinished shards; return the records of all, in the order of `shards`."""
    records: dict[str, ShardRecord] = {}
    missing: list[ShardPlan] = []
    for shard in shards:
        record = resume.read_record(out, shard.name, plan.digest)
        if record is None:
            missing.append(shard)
        else:
            records[shard.name] = record
    if records:
        log.info(f"continuing: {len(records)} of {len(shards)} shards are finished")
    total = sum(len(shard.patches) for shard in missing)
    workers = pool.start(total, len(missing))
    scratch = resume.staged_file(out, task) if source.is_slow else resume.scratch_file(out, task)
    job = Job(
        source=source.stage(_keyed(missing), scratch, workers),
        out=out,
        png=options.png,
        classes=plan.classes,
        digest=plan.digest,
    )
    with progress("packing", total, "patches") as advance:
        for record in pool.build(job, missing):
            records[record.name] = record
            advance(record.count + record.bad)
    if source.is_slow:
        resume.remove_staged(out, task)
    return [records[shard.name] for shard in shards]
