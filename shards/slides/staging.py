"""Cut the patches of slides into one scratch file, region after region.

The regions of all slides are shared by threads, which decode and resample without holding the
interpreter. A slide whose patches are all on disk is noted in a list beside the file, so that an
interrupted pack does not decode it again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import local
from typing import TypeVar

from common.console import log, progress
from shards.slides.cutting import KeyedPatch, cut, regions
from shards.slides.grid import resolution_of
from shards.slides.reader import Slide, SlideError, open_slide
from shards.sources.source import refuse_change
from shards.sources.staged import open_scratch, read_done, write_done, write_reason, write_rows

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class _Region:
    """Patches of a slide that are decoded together."""

    slide: Path
    path: str  # of the slide, as it was listed
    patches: list[KeyedPatch]
    is_last: bool  # of its slide


def stage_slides(
    root: Path, patches: Iterable[KeyedPatch], scratch: Path, workers: int, cut_elsewhere: set[str]
) -> None:
    """Cut patches, keyed by their place in the file `scratch`.

    Args:
        cut_elsewhere: paths of slides whose patches another file has.

    Raises:
        DataError: a slide changed since it was listed, or the disk is full.
    """
    keyed = sorted(patches, key=lambda item: (item[1].path, item[1].y, item[1].x))
    slides = {path: list(group) for path, group in groupby(keyed, key=lambda item: item[1].path)}
    done = read_done(scratch)
    if already := slides.keys() & {*done, *cut_elsewhere}:
        log.info(f"continuing: {len(already):,} of {len(slides):,} slides are cut")
    missing = {path: group for path, group in slides.items() if path not in already}
    total = sum(map(len, missing.values()))
    with (
        open_scratch(scratch) as handle,
        closing(_Handles()) as handles,
        progress("cutting slides", total, "patches") as advance,
    ):
        stage = partial(_stage, handle, handles)
        for region, _ in in_turn(stage, _regions(root, missing), workers):
            advance(len(region.patches))
            if region.is_last:
                refuse_change(region.slide, region.patches[0][1])
                done.append(region.path)
                write_done(handle, scratch, done)


def _regions(root: Path, slides: dict[str, list[KeyedPatch]]) -> Iterator[_Region]:
    """Yield the regions of every slide. A slide that cannot be opened is one: its patches get the
    reason when they are cut."""
    for path, patches in slides.items():
        try:
            with open_slide(root / path) as slide:
                level = resolution_of(slide, patches[0][1]).level
                groups = regions(patches, slide.downsamples[level])
        except SlideError:
            groups = [patches]
        for i, group in enumerate(groups, 1):
            yield _Region(slide=root / path, path=path, patches=group, is_last=i == len(groups))


def in_turn(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """Yield each item and the result of the work on it, when those before it are done, too.

    An exception in the work, or while the results are waited for, cancels what has not begun.
    """
    begun: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                begun.append((item, pool.submit(work, item)))
                if len(begun) > 2 * workers:
                    first, future = begun.popleft()
                    yield first, future.result()
            while begun:
                first, future = begun.popleft()
                yield first, future.result()
        finally:
            for _, future in begun:
                future.cancel()


class _Handles:
    """The slide that each thread has open."""

    def __init__(self) -> None:
        self._of_thread = local()
        self._open: dict[int, AbstractContextManager[Slide]] = {}

    def slide(self, path: Path) -> Slide:
        """Return the slide, opened by this thread; another one that it had open is closed.

        Raises:
            SlideError: the file cannot be read.
        """
        if getattr(self._of_thread, "path", None) != path:
            self.drop()
            opening = open_slide(path)
            self._of_thread.slide = opening.__enter__()
            self._of_thread.path, self._of_thread.opening = path, opening
            self._open[id(opening)] = opening
        slide: Slide = self._of_thread.slide
        return slide

    def drop(self) -> None:
        """Close the slide of this thread: after an error in it a handle is of no more use."""
        if getattr(self._of_thread, "path", None) is not None:
            self._of_thread.path = None
            self._open.pop(id(self._of_thread.opening)).__exit__(None, None, None)

    def close(self) -> None:
        """Close the slides of all threads, which have ended."""
        for opening in self._open.values():
            opening.__exit__(None, None, None)


def _stage(handle: int, handles: _Handles, region: _Region) -> None:
    """Cut a region; where it cannot be decoded, each patch by itself, to lose no other."""
    if not _cut_into(handle, handles, region.slide, region.patches):
        for keyed in region.patches:
            _cut_into(handle, handles, region.slide, [keyed])


def _cut_into(handle: int, handles: _Handles, path: Path, patches: list[KeyedPatch]) -> bool:
    """Cut patches into the file and return whether they could be decoded; write the reason for a
    single one that could not."""
    try:
        slide = handles.slide(path)
        how = resolution_of(slide, patches[0][1])
        rows = cut(slide, how, [patch for _, patch in patches])
    except SlideError as error:
        handles.drop()
        if len(patches) == 1:
            write_reason(handle, patches[0][0], str(error))
        return False
    for (key, _), row in zip(patches, rows.reshape(len(rows), -1), strict=True):
        write_rows(handle, key, row.data)
    return True
