"""Size and speed beside the scores, from what `bench/throughput.py model --json FILE` wrote."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import read_json
from eval.report.arms import Arm
from eval.report.document import MISSING, NOT_MEASURED, Table, number, shown
from eval.report.runs import Entry

IDENTITY = ("snapshot", "parameters")  # of `model` in results.json: not the architecture
Record = dict[str, Any]


@dataclass(frozen=True)
class Efficiency:
    """What was measured of each architecture, and on what."""

    machine: str
    sizes: list[Record]
    speeds: list[Record]


def load(path: Path) -> Efficiency:
    """What a benchmark of the models wrote.

    Raises:
        DataError: there is no such file, or it is not of `bench/throughput.py model`.
    """
    made = "make it with: python bench/throughput.py model --json FILE"
    if not path.is_file():
        raise DataError(f"{path} does not exist: {made}")
    found = read_json(path)
    try:
        about, records = found["environment"], found["results"]
        machine = f"{about['device']}, {about['threads']} threads, torch "
        machine += f"{about['packages']['torch']}, commit {str(about['commit'])[:10]}"
        sizes = [record for record in records if record["kind"] == "size"]
        speeds = [record for record in records if record["kind"] == "speed"]
        if not sizes or any("model" not in record for record in sizes + speeds):
            raise KeyError("model")
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not of this version's models ({error!r}): {made}") from None
    return Efficiency(shown(machine), sizes, speeds)


def table(arms: Iterable[Arm], found: Efficiency | None) -> Table:
    """A row an arm: its size, what an image costs, and how many a second pass."""
    rows = []
    for arm in arms:
        entry = next(iter(arm.runs.values()))
        total, encoder = (entry.at("model", "parameters", part) for part in ("total", "encoder"))
        rows.append([arm.name, number(total, 0), number(encoder, 0), *_cost(entry, found)])
    header = ["arm", "parameters", "of the encoder", *COLUMNS]
    return Table("Size and speed", header, rows, _caption(found))


COLUMNS = (
    "encoder MMACs", "MMACs", "MFLOPs forward", "encode (images/s)", "training step (images/s)",
)  # fmt: skip


def _caption(found: Efficiency | None) -> str:
    if found is None:
        return "Costs and speeds come from bench/throughput.py model --json FILE, by --efficiency."
    return (
        "Of one image, convolutions only: millions of multiply-adds (MMACs) and of floating-point "
        "operations (two each, counted apart). Speed: median of the fastest variant measured, in "
        "brackets lowest and highest; a training step is that of dvae, or of eq-dvae where the "
        f"objective has an equivariance term, without optimizer and data. On {found.machine}."
    )


def _cost(entry: Entry, found: Efficiency | None) -> list[str]:
    sizes = _of(entry, found.sizes if found else [])
    if not sizes:
        return [NOT_MEASURED] * len(COLUMNS)
    size, speeds = sizes[0], _of(entry, found.speeds if found else [])
    macs, flops = size.get("macs"), size.get("flops")
    millions = [_millions(macs, "encoder"), _millions(macs, "total"), _millions(flops, "forward")]
    return [*millions, _fastest(speeds, "encode"), _fastest(speeds, _step(entry))]


def _of(entry: Entry, records: list[Record]) -> list[Record]:
    """The records of the architecture of a run."""
    about = entry.at("model")
    facts = about if isinstance(about, dict) else {}
    wanted = {name: value for name, value in facts.items() if name not in IDENTITY}
    return [record for record in records if record["model"] == wanted]


def _step(entry: Entry) -> str:
    """The measured step that does the work of this run's; none for a run without a decoder."""
    weight = entry.at("run", "equivariance")
    preset = "eq-dvae" if isinstance(weight, int | float) and weight > 0 else "dvae"
    return f"{preset} forward+backward" if entry.at("run", "decodes") else ""


def _millions(counts: Any, name: str) -> str:
    value = counts.get(name) if isinstance(counts, dict) else None
    cell = number(value / 1e6, 1) if isinstance(value, int | float) else MISSING
    return NOT_MEASURED if cell == MISSING else cell


def _fastest(speeds: list[Record], name: str) -> str:
    found = [
        (rate["median"], rate["low"], rate["high"], record.get("variant"))
        for record in speeds
        if record.get("pass") == name
        and isinstance(rate := record.get("images_per_s"), dict)
        and all(isinstance(rate.get(k), int | float) for k in ("median", "low", "high"))
    ]
    if not found:
        return NOT_MEASURED
    median, low, high, variant = max(found, key=lambda rate: rate[0])
    return shown(f"{median:,.0f} ({low:,.0f}–{high:,.0f}) {variant}")
