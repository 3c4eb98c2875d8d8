"""The files of a run folder and their readers.

RUN/config.json      the resolved configuration and the data set (`RunRecord`), by training
RUN/status.json      running, done, failed or interrupted (`Status`), by training
RUN/metrics.jsonl    one line per logging step and per validation, by training
RUN/snapshot/        the model and, in its config.json, its description (`About`), by training
RUN/results.json     scores, by eval.main, for eval.report
"""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import xxhash

from common.errors import DataError
from common.files import read_json
from common.records import convert
from models import snapshot
from pipeline.corruptions import CorruptionConfig

CONFIG, STATUS, METRICS, RESULTS = "config.json", "status.json", "metrics.jsonl", "results.json"

T = TypeVar("T")


class DataRecord(msgspec.Struct, frozen=True):
    """The data set of a run."""

    root: str  # absolute path of the folder
    hash: str  # of its dataset.json


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """RUN/config.json: what a run was started from."""

    preset: str
    config: dict[str, Any]  # for `train.config.from_json`
    data: DataRecord
    environment: dict[str, Any] = {}


class Status(msgspec.Struct, frozen=True):
    """RUN/status.json: how far a run came; exit codes do not survive the launchers."""

    status: str  # running, done, failed or interrupted
    pid: int
    time: str = ""  # local, ISO 8601
    error: str | None = None  # why it failed


@dataclass(frozen=True)
class About:
    """What a snapshot says of itself."""

    preset: str
    seed: int
    images_seen: int
    noise_var: float | None  # None: trained on labels
    beta: float
    equivariance: float  # lambda
    group: str  # D4 or C4
    fibres: str  # trivial or regular
    stochastic: bool  # False: an autoencoder
    dataset_hash: str
    decodes: bool = True  # False: trained on labels, the decoder not at all


def load_about(run: Path) -> About:
    """The `about` of RUN/snapshot/config.json.

    Raises:
        DataError: the run has no snapshot, or a field is missing or not what it should be.
    """
    path = run / "snapshot" / snapshot.CONFIG
    if not path.is_file():
        raise DataError(
            f"{path} does not exist: {run} is not the folder of a finished run. "
            f"Train one with: python train/main.py --out {run}"
        )
    raw = _section(read_json(path), "about", path)
    try:
        given = [f for f in fields(About) if f.name in raw or f.default is MISSING]
        about = About(**{f.name: _typed(f.name, f.type, raw[f.name]) for f in given})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: about: {error!r}; save the snapshot again") from None
    if about.group not in ("D4", "C4") or about.fibres not in ("trivial", "regular"):
        raise DataError(f"{path}: about: group {about.group!r}, fibres {about.fibres!r}")
    return about


def _typed(name: str, kind: Any, value: Any) -> Any:
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")
    if kind == (float | None):
        return None if value is None else float(value)
    return kind(value)


def load_record(path: Path) -> RunRecord:
    """The record in a run's config.json, or in one of the settings files of a sweep.

    Raises:
        DataError: the file is missing or not of a run.
    """
    return _converted(read_json(path), RunRecord, f"{path} is not a run's config.json")


def load_status(run: Path) -> Status | None:
    """RUN/status.json; None where the run has not begun.

    Raises:
        DataError: the file is not a status.
    """
    path = run / STATUS
    if not path.is_file():
        return None
    return _converted(read_json(path), Status, f"{path} is not a run's status")


def load_corruption(run: Path) -> CorruptionConfig:
    """The corruption that the run trained with, from RUN/config.json.

    Raises:
        DataError: the file is missing or the section is not a corruption.
    """
    path = run / CONFIG
    try:
        return convert(load_record(path).config.get("corruption"), CorruptionConfig)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: config.corruption: {error}") from None


def data_root(run: Path) -> Path:
    """The data set that the run trained on, from RUN/config.json."""
    return Path(load_record(run / CONFIG).data.root)


def _converted(raw: Any, kind: type[T], context: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{context}: {error}") from None


def load_results(run: Path) -> dict[str, Any]:
    """RUN/results.json.

    Raises:
        DataError: the run was not evaluated; the message names the command.
    """
    path = run / RESULTS
    if not path.is_file():
        raise DataError(f"{path} does not exist: evaluate with: python -m eval.main {run}")
    return read_json(path)


def load_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl; none without the file. A line cut by a crash is left out."""
    path = run / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("images"), int):
            rows.append(row)
    return rows


def snapshot_hash(run: Path) -> str:
    """xxh3-64 of the weights: it names the model in embeddings and results."""
    return xxhash.xxh3_64_hexdigest((run / "snapshot" / snapshot.WEIGHTS).read_bytes())


def _section(raw: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = raw.get(name)
    if not isinstance(section, dict):
        raise DataError(f"{path} has no section {name!r}; it was not written by this version")
    return section
