"""The evaluation of a run: RUN/results.json, scores.parquet, embeddings and figures."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from common.console import log
from common.machine import environment
from eval import run as runs
from eval.config import EVAL_DEFAULTS, EvalConfig
from eval.drawing import pictures, run_figures
from eval.export.model_card import write_card
from eval.features import Features, write_embeddings
from eval.measure import metrics, readouts
from eval.measure.probing import Probed, probe_protocol, probe_run
from eval.measure.readouts import PRIMARY
from eval.measure.scores import SCORES
from eval.results import (
    RESULTS,
    VERSION,
    DataFacts,
    Equivariance,
    Latent,
    ModelFacts,
    Parameters,
    Reconstruction,
    Results,
    RunFacts,
    save,
)
from eval.session import RunSession, Session, open_run, subset, timed
from pipeline.corruptions import TEST_SEED
from pipeline.pixels import to_tensor
from pipeline.reader import read_batches, read_split
from shards.remote.cache import local

READOUT_IMAGES = 256  # for the equivariance of readouts: orbits encode each image 64 times


def evaluate(
    run: Path,
    data: Path | str | None = None,
    config: EvalConfig = EVAL_DEFAULTS,
) -> Results:
    """Evaluate a finished run, whose lock is held; return what was written to RUN/results.json.

    Deterministic on CPU at an equal thread count, except for the field `seconds`.

    Args:
        data: the packed data set, or its URL; by default the one that the run was trained on.

    Raises:
        DataError: the run or the data set cannot be used.
    """
    session = open_run(Path(run), None if data is None else local(data), config)
    runs.remove_unfinished(session.run)
    rows = subset(len(session.metrics_split), config.test_images)
    images = to_tensor(read_split(session.metrics_split, rows), session.device)
    protocol = replace(
        probe_protocol(session),
        metrics_split=session.metrics_split.name,
        metrics_images=len(images),
        equivariance_images=min(len(images), metrics.EQUIVARIANCE_IMAGES),
        corruption=asdict(session.corruption),
        corruption_seed=TEST_SEED,
        active_units_above_nats=metrics.ACTIVE_NATS,
        embed_images=config.embed_images,
    )
    reconstruction = _reconstruction(session, images)
    latent = _latent(session, images)
    equivariance = _equivariance(session, images)
    embedded = embed_splits(session)
    probed = probe_run(session, embedded)
    if config.figures:
        with timed("figures"):
            pictures.draw(session)
            run_figures.draw(session, images, embedded[session.metrics_split.name])
    results = Results(
        run=RunFacts(**vars(session.info)),
        data=data_facts(session),
        model=_model_facts(session),
        protocol=protocol,
        reconstruction=reconstruction,
        latent=latent,
        equivariance=equivariance,
    )
    results = write(session.run, session, results, probed, session.hashes)
    write_card(session.run, results, probed.book if probed else None)
    return results


def embed_splits(session: RunSession) -> dict[str, Features]:
    """Write the embeddings of every split to RUN/embeddings; return those to probe, by split."""
    probed = {}
    for name, split in session.splits.items():
        rows = session.embed_rows(split)
        if len(rows) < len(split):
            session.notice(f"{name}: embeddings of {len(rows):,} random images of {len(split):,}")
        with timed(f"embedding {name}, {len(rows):,} images"):
            images = read_batches(split, rows)
            batches = readouts.embed_batches(session.model, images, [PRIMARY])
            probed[name] = write_embeddings(
                session.run / "embeddings" / f"{name}.parquet",
                split.table.take(rows),
                (batch[PRIMARY] for batch in batches),
                {"readout": PRIMARY, "split": name, **session.hashes},
                selected=np.isin(rows, session.probe_rows(split)),
            )
    return probed


def data_facts(session: Session) -> DataFacts:
    """Describe the data set of a session."""
    return DataFacts(hash=session.data.hash, root=str(session.data.root))


def write(
    out: Path, session: Session, results: Results, probed: Probed | None, hashes: Mapping[str, str]
) -> Results:
    """Add to results what every evaluation has, write them and the scores, and return them.

    Args:
        results: the sections that this kind of evaluation has.
        probed: sections and scores of the probes; None where the data cannot be probed.
        hashes: of the model and the data set, written as metadata of the scores.
    """
    if probed is not None:
        facts = {**hashes, "image_limits": results.protocol.image_limits}
        probed.book.write(out / SCORES, facts)
        results = replace(
            results,
            probe=probed.probe,
            other_probes=probed.other_probes,
            budgets=probed.budgets,
            robustness=probed.robustness,
        )
    results = replace(
        results,
        version=VERSION,
        notices=session.notices,
        environment=environment(),
        seconds=session.seconds,
    )
    save(out / RESULTS, results)
    log.info(f"{out / RESULTS} written after {results.seconds} s")
    return results


def _model_facts(session: RunSession) -> ModelFacts:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    model = session.model
    return ModelFacts(
        **asdict(model.config),
        parameters=Parameters(
            encoder=count(model.encoder), decoder=count(model.decoder), total=count(model)
        ),
        snapshot=runs.snapshot_hash(session.run),
    )


def _reconstruction(session: RunSession, images: torch.Tensor) -> Reconstruction:
    with timed(f"reconstruction of {len(images):,} images, four inputs each"):
        by_kind = metrics.denoising(session.model, images, session.corruption)
    if not session.info.decodes:
        session.notice("trained on labels: the decoder is untrained, so no PSNR and no SSIM")
        by_kind = {kind: replace(s, psnr=None, ssim=None) for kind, s in by_kind.items()}
    return Reconstruction(**asdict(by_kind["identity"]), by_kind=by_kind)


def _latent(session: RunSession, images: torch.Tensor) -> Latent:
    with timed(f"latent of {len(images):,} images"):
        latent = metrics.latent_summary(*metrics.posterior(session.model, images))
    if session.info.stochastic:
        return latent
    kind = "an autoencoder" if session.info.decodes else "a classifier"
    session.notice(f"{kind} has no posterior variance: no KL and no active units")
    return replace(latent, kl=None, active_units=None, posterior_std=None, kl_per_dimension=None)


def _equivariance(session: RunSession, images: torch.Tensor) -> Equivariance:
    few, symmetry = images[:READOUT_IMAGES], session.symmetry
    encoders = readouts.encoders_of(session.model)
    with timed("equivariance"), metrics.evaluating(session.model):
        errors = metrics.equivariance_errors(encoders["mean"], images, symmetry)
        by_readout = {
            name: metrics.summary_of_errors(
                readouts.equivariance_of(encoders, few, name, symmetry), symmetry.group
            )
            for name in session.config.readouts
        }
    summary = metrics.summary_of_errors(errors, symmetry.group)
    return Equivariance(**asdict(summary), by_readout=by_readout)
