"""Size and speed beside the scores, from what `bench/throughput.py model --json FILE` wrote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from common.errors import DataError
from common.files import read_json
from eval.report.arms import Arm
from eval.report.document import NOT_MEASURED, Missing, Part, Table, number, shown
from eval.results import Parameters

REMEDY = "make it with: python bench/throughput.py model --json FILE"
COLUMNS = (
    "encoder MMACs",
    "MMACs",
    "MFLOPs forward",
    "encode (images/s)",
    "training step (images/s)",
)
MEASURE = "python bench/throughput.py model --json FILE, then eval.report with --efficiency FILE"
CAPTION = (
    "Cost of one image, convolutions only: millions of multiply-adds (MMACs) and of floating-point "
    "operations (two per multiply-add, counted separately). Speed: median of the fastest variant "
    "measured, in brackets the lowest and the highest; the training step is that of dvae, or of "
    "eq-dvae where the objective has an equivariance term, without optimizer and data."
)


class Rate(msgspec.Struct, frozen=True):
    """Images per second over repeats; empty where the variant was not measured."""

    median: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def measured(self) -> bool:
        return None not in (self.median, self.low, self.high)


class ModelRecord(msgspec.Struct, frozen=True, rename={"step": "pass"}):
    """One record of the benchmark: the cost of a model ("size"), or its rate ("speed")."""

    kind: str
    model: dict[str, Any]  # its architecture
    macs: dict[str, float | str] = {}  # counts and what they count, or why there are none
    flops: dict[str, float | str] = {}
    step: str = ""
    variant: str = ""
    images_per_s: Rate = Rate()


@dataclass(frozen=True)
class Efficiency:
    """What a benchmark measured, and on what machine."""

    machine: str
    records: list[ModelRecord]


def load(path: Path) -> Efficiency:
    """Load what a benchmark of the models wrote.

    Raises:
        DataError: there is no such file, or it is not from `bench/throughput.py model`.
    """
    raw = read_json(path, REMEDY)
    try:
        environment = raw["environment"]
        machine = (
            f"{environment['device']}, {environment['threads']} threads, "
            f"torch {environment['packages']['torch']}, commit {str(environment['commit'])[:10]}"
        )
        measured = [record for record in raw["results"] if record["kind"] in ("size", "speed")]
        records = msgspec.convert(measured, list[ModelRecord])
        if all(record.kind != "size" for record in records):
            raise ValueError("no size of a model")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not of this version's models ({error!r}): {REMEDY}") from None
    return Efficiency(shown(machine), records)


def parts(arms: Sequence[Arm], efficiency: Efficiency | None) -> list[Part]:
    """The table, and what is missing without a benchmark."""
    missing = [Missing("cost and speed of the models", MEASURE)] if efficiency is None else []
    return [table(arms, efficiency), *missing]


def table(arms: Iterable[Arm], efficiency: Efficiency | None) -> Table:
    """A row per arm: its size, the cost of an image, and the images per second of each pass."""
    rows = []
    for arm in arms:
        run = arm.first
        facts = run.results.run
        parameters = run.results.model.parameters or Parameters()
        records = efficiency.records if efficiency else []
        alike = [record for record in records if record.model == run.architecture]
        size = next((record for record in alike if record.kind == "size"), None)
        costs = [NOT_MEASURED] * len(COLUMNS)
        if size is not None:
            speeds = [record for record in alike if record.kind == "speed"]
            preset = "eq-dvae" if facts.equivariance else "dvae"
            step = f"{preset} forward+backward" if facts.decodes else ""
            costs = [
                _millions(size.macs, "encoder"),
                _millions(size.macs, "total"),
                _millions(size.flops, "forward"),
                _fastest(speeds, "encode"),
                _fastest(speeds, step),
            ]
        counts = [number(parameters.total, 0), number(parameters.encoder, 0)]
        rows.append([arm.name, *counts, *(costs if efficiency else [])])
    header = ["arm", "parameters", "of the encoder", *(COLUMNS if efficiency else [])]
    caption = f"{CAPTION} On {efficiency.machine}." if efficiency else ""
    return Table("Size and speed", header, rows, caption)


def _millions(counts: Mapping[str, float | str], name: str) -> str:
    count = counts.get(name)
    return number(count / 1e6, 1) if isinstance(count, int | float) else NOT_MEASURED


def _fastest(speeds: Iterable[ModelRecord], step: str) -> str:
    fastest = max(
        (record for record in speeds if record.step == step and record.images_per_s.measured),
        key=lambda record: record.images_per_s.median or 0.0,
        default=None,
    )
    if fastest is None:
        return NOT_MEASURED
    rate = fastest.images_per_s
    return shown(f"{rate.median:,.0f} ({rate.low:,.0f}–{rate.high:,.0f}) {fastest.variant}")
