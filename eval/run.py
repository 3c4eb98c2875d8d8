"""The files of a run folder and their readers.

RUN/config.json      the resolved configuration and the data set (`RunRecord`), by training
RUN/status.json      running, done, failed or interrupted (`Status`), by training
RUN/metrics.jsonl    one line per logging step and per validation, by training
RUN/snapshot/        the model and, in its config.json, its description (`RunInfo`), by training
RUN/stain.json       statistics of staining (`StainTable`) of a run that normalises, by training
RUN/results.json     scores (`eval.results`), by eval.main, for eval.report
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import xxhash

from common import files
from common.errors import DataError
from common.files import read_json
from common.machine import Environment
from common.records import convert
from models import snapshot
from models.hub import locate
from pipeline.config import CorruptionConfig
from pipeline.normalisation import Normalisation
from pipeline.units import StainTable

CONFIG, STATUS, METRICS = "config.json", "status.json", "metrics.jsonl"
STAIN = "stain.json"
FOLDERS = ("snapshot", "embeddings", "figures")  # of a run, to which its evaluation writes

T = TypeVar("T")


class DataRecord(msgspec.Struct, frozen=True):
    """The data set of a run."""

    root: str  # absolute path of the folder
    hash: str  # of its dataset.json


class Phase(msgspec.Struct, frozen=True):
    """A part of a run that was trained with a smaller budget, before it was continued."""

    images: int  # the budget, and with it the length of the cosine schedule
    until: int  # images seen when the larger budget began


class RunRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The contents of RUN/config.json: the settings that a run was started with."""

    preset: str
    config: dict[str, Any]  # for `train.config.from_json`
    data: DataRecord
    environment: Environment | None = None
    continued: list[Phase] = []  # where the budget was raised later
    name: str | None = None  # hash of what the run began with: in its checkpoints and snapshot


class Status(msgspec.Struct, frozen=True):
    """The contents of RUN/status.json; launchers do not pass on exit codes."""

    status: str  # running, done, failed or interrupted
    pid: int
    time: str = ""  # local, ISO 8601
    error: str | None = None  # why it failed


@dataclass(frozen=True)
class RunInfo:
    """Training of a model, recorded with its snapshot: `about` in its config.json."""

    preset: str
    seed: int
    images_seen: int
    noise_var: float | None  # None: trained on labels
    beta: float
    equivariance: float  # lambda
    group: Literal["D4", "C4"]
    fibres: Literal["trivial", "regular"]
    stochastic: bool  # False: an autoencoder
    dataset_hash: str
    decodes: bool = True  # False: trained on labels, the decoder not at all
    normalisation: Normalisation | None = None  # of the staining of patches; None: as they are


class LogLine(msgspec.Struct, frozen=True):
    """A line of RUN/metrics.jsonl: the metrics that are drawn."""

    images: int  # seen so far
    kind: str | None = None  # train or val
    loss: float | None = None
    psnr: float | None = None
    kl: float | None = None
    equivariance_error: float | None = None


def remove_unfinished(run: Path) -> None:
    """Remove what was being written to a run, whose lock is held, when its writer was killed."""
    for folder in (run, *(run / name for name in FOLDERS)):
        files.remove_unfinished(folder)


def run_name(run: Path) -> str | None:
    """Read the name of a run from RUN/config.json; None without the file, and for older runs."""
    path = run / CONFIG
    return load_record(path).name if path.is_file() else None


def require_own_snapshot(run: Path) -> None:
    """Check that RUN/config.json and RUN/snapshot are of one run, as far as both say of which.

    Raises:
        DataError: they are of different runs.
    """
    path = locate(run) / snapshot.CONFIG
    about = read_json(path).get("about")
    names = run_name(run), about.get("run") if isinstance(about, dict) else None
    if None not in names and names[0] != names[1]:
        raise DataError(
            f"{path} is of another run than {run / CONFIG}: a file was copied from another "
            "folder. Restore it, or write the snapshot again by training with --resume"
        )


def load_info(run: Path | str) -> RunInfo:
    """Read what the config.json of a snapshot says of the training.

    Args:
        run: as in `models.hub.locate`.

    Raises:
        DataError: there is no snapshot, or a field is missing or not of its type.
    """
    path = locate(run) / snapshot.CONFIG
    raw = read_json(path, f"{run} is not the folder of a finished run")
    return _converted(raw.get("about"), RunInfo, f"{path}: about: save the snapshot again")


def load_record(path: Path) -> RunRecord:
    """Read a run's config.json, or one of the settings files of a sweep.

    Raises:
        DataError: the file is missing or not of a run.
    """
    return _converted(read_json(path), RunRecord, f"{path} is not a run's config.json")


def load_status(run: Path) -> Status | None:
    """Read RUN/status.json; None where the run has not begun.

    Raises:
        DataError: the file is not a status.
    """
    path = run / STATUS
    if not path.is_file():
        return None
    return _converted(read_json(path), Status, f"{path} is not a run's status")


def load_corruption(run: Path) -> CorruptionConfig:
    """Read the corruption that the run trained with from RUN/config.json.

    Raises:
        DataError: the file is missing or the section is not a corruption.
    """
    path = run / CONFIG
    try:
        return convert(load_record(path).config.get("corruption"), CorruptionConfig)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: config.corruption: {error}") from None


def load_stain(run: Path | str) -> StainTable | None:
    """Read RUN/stain.json; None without the file, as in a snapshot by itself.

    Raises:
        DataError: the file is not a table of statistics.
    """
    path = Path(run) / STAIN
    if not path.is_file():
        return None
    return _converted(read_json(path), StainTable, f"{path} is not a table of staining")


def data_root(run: Path) -> Path:
    """Read the folder of the data set that the run was trained on from RUN/config.json."""
    return Path(load_record(run / CONFIG).data.root)


def _converted(raw: Any, kind: type[T], context: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{context}: {error}") from None


def load_metrics(run: Path) -> list[LogLine]:
    """Read the lines of RUN/metrics.jsonl; none without the file.

    A line that was cut by a crash is left out.
    """
    path = run / METRICS
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            rows.append(msgspec.convert(json.loads(line), LogLine))
        except (ValueError, RecursionError):  # the latter from thousands of brackets
            continue
    return rows


def snapshot_hash(run: Path | str) -> str:
    """Hash the weights (xxh3-64): the name of the model in embeddings and results.

    Args:
        run: as in `models.hub.locate`.
    """
    return xxhash.xxh3_64_hexdigest((locate(run) / snapshot.WEIGHTS).read_bytes())
