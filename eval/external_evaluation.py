"""The evaluation of any encoder, by its embeddings or by a function from pixels to features.

From embeddings in files (`eval.external_features`) come OUT/results.json and OUT/scores.parquet in
the format of eval.main, so that eval.report and eval.stats.contrasts compare them with runs.
`equivariance` and `robustness_of` measure an encoder that can be called from Python.
"""

from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from common.console import log
from common.errors import DataError
from eval.config import EXTERNAL_DEFAULTS, ExternalConfig
from eval.evaluation import data_facts, write
from eval.external_features import match_samples, read_external
from eval.features import Features
from eval.measure import metrics, robustness
from eval.measure.probe import Labelled, fit
from eval.measure.probing import (
    FeatureSet,
    baseline_sets,
    obstacle,
    probe_protocol,
    probe_sets,
    read_rows,
)
from eval.measure.readouts import PRIMARY
from eval.results import (
    EquivarianceErrors,
    ExternalFacts,
    ExternalRunFacts,
    ModelFacts,
    Results,
    Robustness,
)
from eval.session import Session, timed
from models.config import ModelConfig
from models.vae import build
from pipeline.index import open_dataset
from pipeline.pixels import to_pixels, to_tensor
from pipeline.reader import READ_SIZE
from shards.codec.png import Pixels
from shards.remote.cache import local
from shards.sources.splits import SPLITS

Embed = Callable[[Pixels], NDArray[np.floating]]  # (n, 32, 32, 3) uint8 to (n, d) or (n, C, N, N)


def evaluate_embeddings(
    features: Path,
    data: Path | str,
    name: str,
    out: Path,
    config: ExternalConfig = EXTERNAL_DEFAULTS,
) -> Results:
    """Probe embeddings made elsewhere and return what was written to OUT/results.json.

    Raises:
        DataError: the embeddings cannot be read, or are not those of the data set, one per patch;
            or the data set cannot be probed.
    """
    session = _open(data, config)
    with timed(f"reading {features}"):
        external = read_external(features)
        embedded, unused = match_samples(external, session.data, SPLITS)
    if unused and external.named_by != "order":
        session.notice(f"{unused:,} embeddings of {features} are of no patch of train, val or test")
    session.notice("no encoder: reconstruction, equivariance and robustness are not measured")
    hasher = xxhash.xxh3_64()  # in the order of the data set, for any file format
    for split in SPLITS:
        hasher.update(np.ascontiguousarray(embedded[split]).data)
    snapshot = hasher.hexdigest()
    rows = read_rows(session)
    probed_rows = {split: session.probe_rows(session.splits[split]) for split in SPLITS}
    primary = {split: embedded[split][probed_rows[split]] for split in SPLITS}
    no_model = build(ModelConfig(), 0)  # its baselines do not use it
    # the embeddings take the place of the primary readout of a run
    sets = chain(
        [FeatureSet(PRIMARY, "readout", primary)], baseline_sets(session, rows.pixels, no_model)
    )
    results = Results(
        run=ExternalRunFacts(preset=name, seed=config.seed),
        data=data_facts(session),
        model=ModelFacts(snapshot=snapshot),
        external=ExternalFacts(
            features=str(features),
            matched_by=external.named_by,
            dimensions=external.vectors.shape[1],
            config=asdict(config),
        ),
        protocol=probe_protocol(session),
    )
    hashes = {"snapshot_xxh3": snapshot, "dataset_hash": session.data.hash}
    return write(out, session, results, probe_sets(session, rows, sets), hashes)


def equivariance(
    embed: Embed, pixels: Pixels, group: str = "D4", fibres: str = "trivial"
) -> EquivarianceErrors:
    """Measure the section `equivariance` of results.json for any encoder.

    Args:
        embed: maps patches (n, 32, 32, 3) uint8 to grids (n, C, N, N), which have to move with the
            patch, or to vectors (n, d), which have to stay as they are (the invariance error).
        pixels: patches (n, 32, 32, 3); at most 2048 are used.
        group: the symmetry group, "D4" or "C4".
        fibres: "trivial", or "regular" where group elements also permute the channels.
    """

    def grid(x_BCHW: Tensor) -> Tensor:
        codes = torch.from_numpy(np.array(embed(to_pixels(x_BCHW)), np.float32))
        # a vector is a grid of one cell, which nothing moves
        return codes[:, :, None, None] if codes.ndim == 2 else codes

    symmetry = metrics.Symmetry(group, fibres)
    errors = metrics.equivariance_errors(grid, to_tensor(pixels), symmetry)
    return metrics.summary_of_errors(errors, group)


def robustness_of(
    embed: Embed, data: Path | str, config: ExternalConfig = EXTERNAL_DEFAULTS
) -> Robustness:
    """Measure the section `robustness` of results.json, without PSNR, for any encoder.

    The probe is fitted on clean patches of train and tested on corrupted ones of test.

    Raises:
        DataError: the data set cannot be probed.
    """
    session = _open(data, config)
    rows = read_rows(session)
    clean = rows.labelled({split: _vectors(embed, rows.pixels[split]) for split in SPLITS})
    probe = fit(clean["train"], clean["val"])

    def score(kind: str, severity: int, corrupted: Pixels) -> float:
        auroc, _ = probe.auroc(Labelled(_vectors(embed, corrupted), rows.labels["test"]))
        log.info(f"{kind}, severity {severity}: AUROC {auroc:.3f}")
        return auroc

    return robustness.curves(None, rows.pixels["test"], score, probe.auroc(clean["test"])[0])


def _open(data: Path | str, config: ExternalConfig) -> Session:
    session = Session(open_dataset(local(data)), config.protocol())
    if reason := obstacle(session):
        raise DataError(f"{session.data.root}: {reason}")
    return session


def _vectors(embed: Embed, pixels: Pixels) -> Features:
    batches = [pixels[i : i + READ_SIZE] for i in range(0, len(pixels), READ_SIZE)]
    return np.concatenate([np.asarray(embed(x), np.float32).reshape(len(x), -1) for x in batches])
