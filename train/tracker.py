"""Metrics of a run: JSON lines, and trackers beside them.

Nothing here synchronises the device except `Sums.flush` and `Sums.bad`.
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from accelerate.tracking import GeneralTracker, MLflowTracker, WandBTracker
from torch import Tensor

from common.console import log
from common.errors import DataError
from common.files import read_json, sync_folder, write_atomically, writing
from eval.run import METRICS

IDS = "trackers.json"
PROJECT = "eqdvae"


class Sink(Protocol):
    def write(self, kind: str, images: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Write scalars under RUN/tensorboard; the horizontal axis is in images."""

    def __init__(self, run: Path, images_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=images_seen)

    def write(self, kind: str, images: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, images)

    def close(self) -> None:
        self.writer.close()


class AccelerateTracker:
    """Pass metrics to a tracker of Accelerate, which has the service's own settings and modes.

    RUN/trackers.json holds the service's id of the run, by which a resumed run continues it. A
    service that fails during the run is left out from then on: metrics.jsonl has everything.

    Raises:
        DataError: the service cannot be reached, or refuses the user.
    """

    def __init__(self, name: str, run: Path, settings: Mapping[str, object]) -> None:
        self.name, self._ids = name, run / IDS
        ids = read_json(self._ids) if self._ids.is_file() else {}
        stored = ids.get(name)
        self._id = stored or (secrets.token_hex(4) if name == "wandb" else None)
        try:
            self._tracker = {"wandb": self._wandb, "mlflow": self._mlflow}[name](run)
            self._tracker.start()
            if stored is None:
                self._id = self._id or str(self._tracker.tracker.info.run_id)  # that MLflow gave
                self._tracker.store_init_configuration(dict(settings))
                write_atomically(self._ids, json.dumps({**ids, name: self._id}).encode())
        except Exception as error:  # each service has its own
            raise DataError(
                f"--track {name} cannot start: {_line(error)}. Log in, choose its offline mode, or "
                f"leave out --track {name}"
            ) from error
        self._failed = False

    def _wandb(self, run: Path) -> GeneralTracker:
        return WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._id,
            resume="allow",
            name=os.environ.get("WANDB_NAME", run.resolve().name),
            dir=str(run),
        )

    def _mlflow(self, run: Path) -> GeneralTracker:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ["MLFLOW_TRACKING_URI"] = mlflow_uri(run)
            # newer versions refuse folders without it
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        return MLflowTracker(PROJECT, run_id=self._id, run_name=run.resolve().name)

    def write(self, kind: str, images: int, values: dict[str, float]) -> None:
        scalars = {f"{kind}/{name}": value for name, value in values.items()}
        self._call(lambda: self._tracker.log(scalars, step=images))

    def close(self) -> None:
        self._call(self._tracker.finish)

    def _call(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            log.warning(f"{self.name} gets no more metrics, {METRICS} does: {_line(error)}")


def mlflow_uri(run: Path) -> str:
    """Return where MLflow writes without a server: RUN/mlruns."""
    return (run.resolve() / "mlruns").as_uri()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or repr(error)


TRACKERS: dict[str, Callable[[Path, int, Mapping[str, object]], Sink]] = {
    "tensorboard": lambda run, images_seen, settings: TensorBoard(run, images_seen),
    "wandb": lambda run, images_seen, settings: AccelerateTracker("wandb", run, settings),
    "mlflow": lambda run, images_seen, settings: AccelerateTracker("mlflow", run, settings),
}
EXTRAS = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # tracker, and extra, to package


def require_trackers(names: Collection[str]) -> None:
    """Check that trackers exist and their packages are installed.

    Raises:
        ValueError: a tracker does not exist.
        DataError: a package is missing; names the extra.
    """
    if unknown := set(names) - set(TRACKERS):
        raise ValueError(f"unknown tracker {sorted(unknown)}; there are {sorted(TRACKERS)}")
    for name in names:
        if name in EXTRAS and find_spec(name) is None:
            raise DataError(
                f"--track {name} needs {EXTRAS[name]}: install the extra, uv sync --extra {name} "
                f"(or pip install {EXTRAS[name]})"
            )


class Sums:
    """Sums of the loss terms on the device, and where each first was non-finite."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self.first_bad = torch.full(
            (len(names),), -1, dtype=torch.int64, device=device
        )  # images seen

    def add(self, losses: dict[str, Tensor], images_seen: int) -> None:
        values = torch.stack([losses[name].detach() for name in self.names])
        newly_bad = ~values.isfinite() & (self.first_bad < 0)
        self.first_bad.masked_fill_(newly_bad, images_seen)
        self.totals[:-1] += values
        self.totals[-1] += 1

    def flush(self) -> dict[str, float]:
        """Return means since the last flush; synchronises."""
        *totals, steps = self.totals.tolist()
        self.totals.zero_()
        return {name: total / max(steps, 1) for name, total in zip(self.names, totals, strict=True)}

    def bad(self) -> tuple[int, list[str]] | None:
        """Return images seen before the first bad step, and its non-finite terms; synchronises."""
        first_bad = dict(zip(self.names, self.first_bad.tolist(), strict=True))
        first = min((images for images in first_bad.values() if images >= 0), default=None)
        if first is None:
            return None
        return first, [name for name, images in first_bad.items() if images == first]

    def tensors(self) -> dict[str, Tensor]:
        return {"totals": self.totals, "first_bad": self.first_bad}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.totals.copy_(tensors["totals"])
        self.first_bad.copy_(tensors["first_bad"])


class Tracker:
    """Appends records to RUN/metrics.jsonl and passes them to the sinks, on the main rank.

    Args:
        resume_bytes: length of metrics.jsonl at the checkpoint that the run continues from: what
            was written after it is cut off. None on other ranks, which write nothing.
    """

    def __init__(self, run: Path, sinks: list[Sink], resume_bytes: int | None = None) -> None:
        self.path = run / METRICS
        if resume_bytes is not None:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size < resume_bytes:
                log.warning(
                    f"{self.path} has {size:,} bytes, but had {resume_bytes:,} at the checkpoint: "
                    "records are missing from it, and training continues without them"
                )
            if size:
                with open(self.path, "r+b") as file:
                    file.truncate(min(resume_bytes, size))
        self.sinks, self.started = sinks, time.monotonic()

    def write(self, kind: str, images: int, values: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        record = {"kind": kind, "images": images, **values, "time_s": seconds}
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        for sink in self.sinks:
            sink.write(kind, images, values)

    def synced_bytes(self) -> int:
        """Return the length of metrics.jsonl, which is on disk up to there."""
        if not self.path.exists():
            return 0
        with writing(self.path), open(self.path, "rb") as file:
            os.fsync(file.fileno())
            sync_folder(self.path.parent)
            return os.fstat(file.fileno()).st_size

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
