"""Any encoder: `python -m eval.external FEATURES --data DIR --name NAME --out OUT`.

FEATURES is what `eval.given` reads. OUT gets results.json and scores.parquet in the format of
eval.main, so eval.report and eval.stats.contrasts put it beside runs. From Python,
`equivariance` and `robustness_of` measure an encoder that is at hand: a function from pixels to
features.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from common.command import run_command
from common.errors import DataError
from common.machine import environment
from eval import run as runs
from eval.given import Given, matched, read_given
from eval.main import VERSION, finite, probe_protocol, summary_of_errors, write_json
from eval.measure import budgets, metrics, robustness
from eval.measure.baselines import BASELINES
from eval.measure.probe import Labelled, fit
from eval.measure.readouts import PRIMARY, Features, Pixels
from eval.measure.scores import SCORES
from eval.measure.suite import SPLITS, FeatureSet, Rows, obstacle, probe_sets, rows_of
from eval.session import EvalConfig, Say, Session
from models.vae import ModelConfig, build
from pipeline.index import open_dataset
from pipeline.pixels import to_pixels, to_tensor
from pipeline.reader import READ_SIZE
from shards.remote.cache import local

Embed = Callable[[Pixels], NDArray[np.floating]]  # (n, 32, 32, 3) uint8 to (n, d) or (n, C, N, N)

# an untrained encoder says something only of its own architecture
BESIDE = tuple(name for name in BASELINES if name != "random_init")


@dataclass(frozen=True)
class ExternalConfig:
    """What to evaluate, and on how much; as in eval.main."""

    baselines: tuple[str, ...] = BESIDE
    """Features that need no training, probed beside the embeddings."""
    probes: tuple[str, ...] = EvalConfig.probes
    """Classifiers."""
    budgets: bool = EvalConfig.budgets
    """Probe with labels of 1, 2, 5 groups a class and of 1, 5, 10 % of them, 20 draws each."""
    probe_images: int = EvalConfig.probe_images
    """Of a split, at most: a seeded random subset."""
    seed: int = 0
    """Of the encoder's training: equal names with several seeds are one arm in reports."""

    def __post_init__(self) -> None:
        if unknown := set(self.baselines) - set(BESIDE):
            raise ValueError(f"unknown baselines {sorted(unknown)}; there are {list(BESIDE)}")
        self.protocol()

    def protocol(self) -> EvalConfig:
        return EvalConfig(
            self.baselines, self.probes, self.budgets, robustness=False, figures=False,
            readouts=(PRIMARY,), probe_images=self.probe_images,
        )  # fmt: skip


def evaluate_embeddings(
    features: Path, data: Path | str, name: str, out: Path,
    config: ExternalConfig = ExternalConfig(),
    say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probe embeddings made elsewhere and return what was written to OUT/results.json.

    Raises:
        DataError: the embeddings cannot be read, or are not those of the data set, one a patch;
            or the data set cannot be probed.
    """
    start, say = time.monotonic(), say or _print
    job = Session(open_dataset(local(data)), config.protocol(), say)
    if reason := obstacle(job):
        raise DataError(f"{job.data.root}: {reason}")
    with job.timed(f"reading {features}"):
        given = read_given(features)
        embedded, unused = matched(given, job.data, SPLITS)
    if unused and given.by != "order":
        job.notice(f"{unused:,} embeddings of {features} are of no patch of train, val or test")
    job.notice("no encoder: reconstruction, equivariance and robustness are not measured")
    snapshot = _hash(embedded)
    rows = rows_of(job)
    sections, _ = probe_sets(job, rows, _sets(job, rows, embedded))
    results = {
        "version": VERSION,
        "run": {"preset": name, "seed": config.seed},
        "data": {"hash": job.data.hash, "root": str(job.data.root)},
        "model": {"snapshot": snapshot},
        "external": _about(features, given) | {"config": asdict(config)},
        "protocol": probe_protocol(job),
        **sections,
        "notices": job.notices,
        "environment": environment(),
        "seconds": round(time.monotonic() - start, 1),
    }
    results = finite(results)
    rows.book.write(out / SCORES, {"snapshot_xxh3": snapshot, "dataset_hash": job.data.hash})
    write_json(out / runs.RESULTS, results)
    say(f"{out / runs.RESULTS} written after {results['seconds']} s")
    return results


def equivariance(
    embed: Embed, pixels: Pixels, group: str = "D4", fibres: str = "trivial"
) -> dict[str, Any]:
    """The section `equivariance` of results.json for any encoder.

    Args:
        embed: patches (n, 32, 32, 3) uint8 to grids (n, C, N, N), which have to move with the
            patch, or to vectors (n, d), which have to stay as they are (the invariance error).
        pixels: at most 2048 are used.
        group: "D4" or "C4"; fibres: "trivial", or "regular" for channels that are permuted.
    """
    images = to_tensor(pixels)
    errors = metrics.equivariance_errors(lambda x: _grid(embed, x), images, group, fibres)
    return summary_of_errors(errors, group)


def robustness_of(
    embed: Embed, data: Path | str, config: ExternalConfig = ExternalConfig(),
    say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The section `robustness` of results.json, without PSNR, for any encoder.

    The probe is fitted on clean patches of train, and tested on corrupted ones of test.

    Raises:
        DataError: the data set cannot be probed.
    """
    job = Session(open_dataset(local(data)), config.protocol(), say or _print)
    if reason := obstacle(job):
        raise DataError(f"{job.data.root}: {reason}")
    rows = rows_of(job)
    found = rows.labelled({split: _vectors(embed, rows.pixels[split]) for split in SPLITS})
    probe = fit(found["train"], found["val"])
    clean, _ = budgets.auroc(probe, found["test"])

    def score(kind: str, severity: int, seen: Pixels) -> float:
        test = Labelled(_vectors(embed, seen), rows.labels["test"])
        auroc, _ = budgets.auroc(probe, test)
        job.say(f"{kind}, severity {severity}: AUROC {auroc:.3f}")
        return auroc

    return robustness.curves(None, rows.pixels["test"], score, clean)


def _sets(job: Session, rows: Rows, embedded: dict[str, Features]) -> Iterator[FeatureSet]:
    """The embeddings stand where a run's primary readout does."""
    chosen = {split: job.probe_rows(job.splits[split]) for split in SPLITS}
    yield PRIMARY, "readout", {split: embedded[split][chosen[split]] for split in SPLITS}
    none = build(ModelConfig(), 0)  # no baseline of BESIDE looks at it
    for name in job.config.baselines:
        with job.timed(f"baseline {name}"):
            transform = BASELINES[name](rows.pixels["train"], none)
            made = {split: transform(rows.pixels[split]) for split in SPLITS}
        yield name, "baseline", made


def _about(features: Path, given: Given) -> dict[str, Any]:
    return {
        "features": str(features),
        "matched_by": given.by,
        "dimensions": given.vectors.shape[1],
    }


def _hash(embedded: dict[str, Features]) -> str:
    """xxh3-64 of the embeddings in the order of the data set, whatever file they came in."""
    state = xxhash.xxh3_64()
    for split in SPLITS:
        state.update(np.ascontiguousarray(embedded[split]).data)
    return state.hexdigest()


def _grid(embed: Embed, x_BCHW: Tensor) -> Tensor:
    """Codes (B, C, N, N); of vectors, a grid of one cell, on which the group does nothing."""
    codes = torch.from_numpy(np.array(embed(to_pixels(x_BCHW)), np.float32))
    return codes[:, :, None, None] if codes.ndim == 2 else codes


def _vectors(embed: Embed, pixels: Pixels) -> Features:
    parts = [pixels[i : i + READ_SIZE] for i in range(0, len(pixels), READ_SIZE)]
    return np.concatenate([np.asarray(embed(p), np.float32).reshape(len(p), -1) for p in parts])


def _print(line: str) -> None:
    print(line, flush=True)


_Features = Annotated[Path, tyro.conf.arg(metavar="FEATURES", help=".parquet, .npy, .h5, a folder")]
_Config = Annotated[ExternalConfig, tyro.conf.arg(name="")]


def _command(
    features: tyro.conf.Positional[_Features],
    data: str,
    name: str,
    out: Path,
    config: _Config = ExternalConfig(),
) -> Callable[[], None]:
    """Probe embeddings made elsewhere: OUT/results.json and OUT/scores.parquet.

    Args:
        data: the packed data set that they are of, or its URL.
        name: of the encoder, in reports.
    """

    def action() -> None:
        evaluate_embeddings(features, data, name, out, config)

    return action


def main() -> int:
    return run_command("eval.external", _command)


if __name__ == "__main__":
    sys.exit(main())
