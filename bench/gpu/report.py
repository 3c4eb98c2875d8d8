"""The records of a GPU run, and their tables."""

from collections.abc import Iterator

import msgspec

from bench import roofline
from bench.gpu.points import COMPILED, Kernels, Point
from bench.modes import augment
from bench.modes.augment import Augmentation, WholeStep
from bench.records import CELL, Record, Spread, grouped
from bench.roofline import Peaks, Roofline
from bench.steps import StepPart, report_parts
from common.console import table
from common.machine import Environment

SHOWN = 12  # kernels in the table; the JSON file has more


class Machine(Record, tag="machine", frozen=True):
    """The machine of a GPU run."""

    environment: Environment
    cuda: str | None  # the version that torch was built for
    memory_bytes: int  # of the device


class SourceSpeed(Record, tag="source", frozen=True):
    """Speed of whole steps on batches from one storage, or on one that is on the device."""

    variant: str
    batch_size: int
    source: str
    images_per_s: Spread
    step_over_fixed: Spread


class Embedded(Record, tag="embedded", frozen=True):
    """Speed of one way to embed all images of the set."""

    name: str
    images_per_s: Spread


GpuRecord = (
    Machine
    | Point
    | SourceSpeed
    | StepPart
    | Augmentation
    | WholeStep
    | Embedded
    | Kernels
    | Peaks
    | Roofline
)


def decode(line: bytes) -> GpuRecord:
    """Read a line of records.jsonl."""
    record: GpuRecord = msgspec.json.decode(line, type=GpuRecord)
    return record


def report(records: list[GpuRecord]) -> str:
    """Join the tables of everything that was measured."""
    return "\n\n".join(tables(records))


def tables(records: list[GpuRecord]) -> Iterator[str]:
    """Show every kind of record as tables of its own."""
    yield from (roofline.report_peaks(r) for r in records if isinstance(r, Peaks))
    points = [r for r in records if isinstance(r, Point)]
    for (preset, size), group in grouped(points, lambda r: (r.preset, r.batch_size)).items():
        rows = [["", "images/s", "ms/step", "host ms", "GB", "first step, s", "graphs skipped"]]
        rows += [_point_row(point) for point in group]
        yield f"{preset}: whole steps at batch {size:,}: {CELL}\n{table(rows)}"
    sources = [r for r in records if isinstance(r, SourceSpeed)]
    for (variant, size), speeds in grouped(sources, lambda r: (r.variant, r.batch_size)).items():
        rows = [["batches from", "images/s", "step / fixed step"]]
        rows += [[r.source, f"{r.images_per_s}", f"{r.step_over_fixed:,.3f}"] for r in speeds]
        yield f"dvae, {variant}: batch {size:,} by storage: {CELL}\n{table(rows)}"
    if parts := [r for r in records if isinstance(r, StepPart)]:
        yield f"dvae, eager: {report_parts(parts)}"
    if augmentations := [r for r in records if isinstance(r, Augmentation)]:
        rows = augment.rows(augmentations, digits=3)
        yield f"corruption and D4, compiled alone: {CELL}\n{table(rows)}"
    if embeddings := [r for r in records if isinstance(r, Embedded)]:
        rows = [["embedding", "images/s"], *([r.name, f"{r.images_per_s}"] for r in embeddings)]
        yield table(rows)
    for record in records:
        if isinstance(record, Roofline):
            yield f"{record.preset}, {COMPILED}\n{roofline.report(record)}"
    yield from (_kernels(r) for r in records if isinstance(r, Kernels))


def _point_row(point: Point) -> list[str]:
    if point.images_per_s is None or point.step_s is None:
        return [point.variant, (point.not_measured or "")[:60], *[""] * 5]
    return [
        point.variant,
        f"{point.images_per_s}",
        f"{point.step_s.median * 1e3:,.2f}",
        f"{(point.host_s or 0) * 1e3:,.2f}",
        f"{(point.peak_bytes or 0) / 1e9:.2f}",
        f"{point.first_step_s or 0:.1f}",
        f"{point.cudagraph_skips}",
    ]


def _kernels(record: Kernels) -> str:
    rows = [["kernel", "launches", "ms", "share"]]
    rows += [
        [k.name[:70], f"{k.launches}", f"{k.seconds * 1e3:.3f}", f"{k.seconds / record.busy_s:.1%}"]
        for k in record.top[:SHOWN]
    ]
    return (
        f"{record.preset}, {record.variant}, batch {record.batch_size:,}: a step of "
        f"{record.step_s * 1e3:.2f} ms is {record.busy_s * 1e3:.2f} ms of {record.launches} "
        f"kernels and copies; the host starts {record.host_launches}\n{table(rows)}"
    )
