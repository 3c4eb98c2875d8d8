"""A run folder as evaluation sees it: what training left there, and whole files written beside it.

RUN/snapshot/        the model and, in config.json, what it is (`about`)
RUN/config.json      the resolved configuration and where the data are
RUN/metrics.jsonl    one line a logging step
RUN/results.json     written by eval.main, read by eval.report
"""

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from common.errors import DataError
from common.files import read_json
from models import snapshot
from pipeline.corruptions.kinds import CorruptionConfig

MAX_JSON_BYTES = 64 << 20
RESULTS = "results.json"


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


def load_corruption(run: Path) -> CorruptionConfig:
    """The corruption that the run trained with, from RUN/config.json.

    Raises:
        DataError: the file is missing or the section is not a corruption.
    """
    path = run / "config.json"
    raw = _section(_section(read_json(path), "config", path), "corruption", path)
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return CorruptionConfig(**values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: config.corruption: {error}") from None


def data_root(run: Path) -> Path:
    """The data set that the run trained on, from RUN/config.json."""
    path = run / "config.json"
    root = _section(read_json(path), "data", path).get("root")
    if not isinstance(root, str):
        raise DataError(f"{path} names no data set: pass one with --data DIR")
    return Path(root)


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
    """The lines of RUN/metrics.jsonl; none without the file, a line cut by a crash is left out."""
    path = run / "metrics.jsonl"
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
