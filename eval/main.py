"""Evaluate a run: `python -m eval.main RUN [--data DIR]` writes RUN/results.json, embeddings and
figures. Deterministic on CPU at an equal thread count, but for the field `seconds`.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
import torch
import tyro

from common.command import run_command
from common.files import atomic_path
from common.machine import environment
from eval import code_figures, figures
from eval import run as runs
from eval.measure import embedded as embeddings
from eval.measure import metrics, readouts
from eval.measure.probe import PROBES
from eval.measure.readouts import Features
from eval.measure.suite import probe_all
from eval.session import EvalConfig, Job, Say, Session, open_job, subset
from pipeline import corruptions, d4
from pipeline.index import Dataset, Split, groups
from pipeline.pixels import to_tensor
from pipeline.reader import read_split
from shards.remote.cache import local
from shards.schema import NO_LABEL
from shards.sources.splits import GROUPS, leak_warning, leaks

VERSION = 2
READOUT_IMAGES = 256  # of the equivariance of readouts: an orbit encodes each 64 times


def evaluate(
    run: Path,
    data: Path | str | None = None,
    config: EvalConfig = EvalConfig(),  # noqa: B008 - frozen
    say: Say | None = None,
) -> dict[str, Any]:
    """Evaluate a finished run and return what was written to RUN/results.json.

    Args:
        data: the packed data set, or its URL; by default the one the run trained on.
        say: takes lines for people; by default they are printed.

    Raises:
        DataError: the run or the data set cannot be used.
    """
    start = time.monotonic()
    found = None if data is None else local(data)
    job = open_job(Path(run), found, config, say or _print)
    rows = subset(len(job.metrics_split), config.test_images)
    pixels = read_split(job.metrics_split, rows)
    images = to_tensor(pixels, job.device)
    results: dict[str, Any] = {
        "version": VERSION,
        "run": asdict(job.about),
        "data": {"hash": job.data.hash, "root": str(job.data.root)},
        "model": _describe(job),
        "protocol": _protocol(job, len(images)),
        **_metrics(job, images),
    }
    embedded = embeddings.write_all(job)
    results |= probe_all(job, embedded)
    if config.figures:
        with job.timed("figures"):
            _draw(job, images, embedded)
    results["notices"] = job.notices
    results["environment"] = environment()
    results["seconds"] = round(time.monotonic() - start, 1)
    results = finite(results)
    write_json(job.run / runs.RESULTS, results)
    job.say(f"{job.run / runs.RESULTS} written after {results['seconds']} s")
    return results


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temp:
        temp.write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """The same JSON with null for every number that is not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe(job: Job) -> dict[str, Any]:
    def count(part: torch.nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    model = job.model
    return {
        **asdict(model.config),
        "parameters": {
            "encoder": count(model.encoder),
            "decoder": count(model.decoder),
            "total": count(model),
        },
        "snapshot": runs.snapshot_hash(job.run),
    }


def _protocol(job: Job, images: int) -> dict[str, Any]:
    return {
        "metrics_split": job.metrics_split.name,
        "metrics_images": images,
        "equivariance_images": min(images, metrics.EQUIVARIANCE_IMAGES),
        "corruption": asdict(job.corruption),
        "corruption_seed": corruptions.TEST_SEED,
        "active_units_above_nats": metrics.ACTIVE_NATS,
        "embed_images": job.config.embed_images,
        **probe_protocol(job),
    }


def probe_protocol(job: Session) -> dict[str, Any]:
    """How the probes are made, and what the splits hold."""
    return {
        "probe": "standardised logistic regression with an L2 penalty, fitted on train; C selected "
        "on val by macro one-vs-rest AUROC; test scored once with the selected probe",
        "probe_C_grid": list(PROBES["logistic"].grid),
        "probe_images": job.config.probe_images,
        "classes": job.data.metadata.classes,
        "splits": {name: _composition(split, job.data) for name, split in job.splits.items()},
        "groups_in_several_splits": _crossing(job),
    }


def _composition(split: Split, data: Dataset) -> dict[str, Any]:
    """Patches and groups (patients, else slides, else source images) of a split, by class."""
    table = split.table
    rows = table.select(["label"]).append_column("group", groups(table))
    by_label = rows.group_by("label").aggregate([("group", "count"), ("group", "count_distinct")])
    counts = {row["label"]: row for row in by_label.to_pylist()}
    classes = {
        name: {
            "patches": counts.get(i, {}).get("group_count", 0),
            "groups": counts.get(i, {}).get("group_count_distinct", 0),
        }
        for i, name in enumerate(data.metadata.classes)
    }
    return {
        "patches": len(split),
        "groups": pc.count_distinct(rows["group"]).as_py(),
        "unlabelled": counts.get(NO_LABEL, {}).get("group_count", 0),
        "classes": classes,
    }


def _crossing(job: Session) -> dict[str, int]:
    """How many source images, slides and patients are in more than one split."""
    found, tables = {}, {name: split.table.select(GROUPS) for name, split in job.splits.items()}
    for column in GROUPS:
        members = {
            (name, group)
            for name, table in tables.items()
            for group in table[column].unique().to_pylist()
            if group is not None
        }
        if members:
            found[column] = len(crossing := leaks(members))
        if members and crossing:
            job.notice(leak_warning(column, crossing))
    return found


def _metrics(job: Job, images: torch.Tensor) -> dict[str, Any]:
    about, model, n = job.about, job.model, len(images)
    with job.timed(f"reconstruction of {n:,} images, four inputs each"):
        kinds = metrics.denoising(model, images, job.corruption)
    with job.timed(f"latent of {n:,} images"):
        latent = metrics.latent_summary(*metrics.posterior(model, images))
    if not about.decodes:
        for scores in kinds.values():
            scores |= {"psnr": None, "ssim": None}
        job.notice("trained on labels: the decoder is untrained, so no PSNR and no SSIM")
    if not about.stochastic:
        latent |= {"kl": None, "active_units": None, "posterior_std": None}
        latent["kl_per_dimension"] = None
        what = "an autoencoder" if about.decodes else "a classifier"
        job.notice(f"{what} has no posterior variance: no KL and no active units")
    with job.timed("equivariance"), metrics.evaluating(model):
        errors = metrics.equivariance_errors(
            lambda x: model.encoder(x).mean, images, about.group, about.fibres
        )
        few = images[:READOUT_IMAGES]
        by_readout = {
            name: summary_of_errors(
                readouts.equivariance_of(lambda x: model.encoder(x).mean, few, name, job.symmetry),
                about.group,
            )
            for name in job.config.readouts
        }
    return {
        "reconstruction": {**kinds["identity"], "by_kind": kinds},
        "latent": latent,
        "equivariance": {**summary_of_errors(errors, about.group), "by_readout": by_readout},
    }


def summary_of_errors(errors: dict[int, float], group: str) -> dict[str, Any]:
    """Equivariance errors over the group, over those whose elements are known, and by element."""
    groups = [name for name, order in d4.ORDER.items() if order <= len(errors) + 1]
    return {
        "error": metrics.mean_error(errors, group),
        "by_group": {name: metrics.mean_error(errors, name) for name in groups},
        "by_element": {metrics.ELEMENTS[g]: error for g, error in errors.items()},
    }


def _draw(job: Job, images: torch.Tensor, embedded: dict[str, Features]) -> None:
    folder, about, split = job.run / "figures", job.about, job.metrics_split
    if about.decodes:
        figures.reconstructions(job.model, images, job.corruption, folder / "reconstructions.png")
        figures.orbit(job.model, images[0], folder / "orbit.png", about.group, about.fibres)
    if log := runs.load_metrics(job.run):
        figures.curves({about.preset: log}, folder / "curves.png")
    if len(embedded[split.name]) > 2:
        labels, classes = split.labels[job.probe_rows(split)], job.data.metadata.classes
        figures.embedding(embedded[split.name], labels, classes, folder / "embedding.png")
    code_figures.draw(job, images, embedded[split.name], folder)


def _print(line: str) -> None:
    print(line, flush=True)


_Run = Annotated[Path, tyro.conf.arg(metavar="RUN", help="folder of a finished run")]
_Data = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help="data set or URL; default: the run's own")
]
_Config = Annotated[EvalConfig, tyro.conf.arg(name="")]


def _command(
    run: tyro.conf.Positional[_Run],
    data: _Data = None,
    config: _Config = EvalConfig(),  # noqa: B008 - tyro reads the defaults here
) -> Callable[[], None]:
    """Evaluate a run: RUN/results.json, RUN/embeddings, RUN/figures."""

    def action() -> None:
        evaluate(run, data, config)

    return action


def main() -> int:
    return run_command("eval.main", _command)


if __name__ == "__main__":
    sys.exit(main())
