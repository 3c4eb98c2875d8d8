"""What differs between reconstruction and classification: the objective and the validation."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from eval.measure.metrics import Symmetry, batch_for, evaluating
from eval.measure.metrics import validate as validate_reconstruction
from models.classification import Classification
from models.classification import scores as classification_scores
from models.config import ObjectiveConfig
from models.objective import Learner, Objective
from models.vae import VAE
from pipeline.index import Dataset, Split
from pipeline.pixels import to_float, to_tensor
from pipeline.reader import read_split
from shards.schema import METADATA_NAME
from train.config import Config


class HeldOut(NamedTuple):
    """Patches to validate on, on the device of the model."""

    images: Tensor  # (n, 3, 32, 32) uint8
    labels: Tensor  # (n,) int64, -1 = none


class Task(NamedTuple):
    """What a run learns, and how it is validated."""

    objective: Learner
    validate: Callable[[VAE, VAE, HeldOut], tuple[dict[str, float], str]]
    """(model, its EMA, held-out patches) to scores for metrics.jsonl and a line for the console."""


def make_task(config: Config, dataset: Dataset) -> Task:
    """Make the objective of `config.objective.task` for this data set, and its validation."""
    channels = config.model.latent_channels
    if config.objective.task == "classify":
        classifier = Classification(config.objective, channels, len(dataset.metadata.classes))
        return Task(classifier, partial(_validate_classification, classifier))
    objective = Objective(config.objective, channels)
    return Task(objective, partial(_validate_reconstruction, config.objective))


def require_labels(config: Config, dataset: Dataset) -> None:
    """Check that the train split has labels to learn, if the task is classification.

    Raises:
        DataError: the train split has labels of fewer than two classes.
    """
    if config.objective.task != "classify":
        return
    labels = dataset.split("train").labels
    if (class_count := len(np.unique(labels[labels >= 0]))) < 2:
        raise DataError(
            f"{dataset.root / METADATA_NAME}: the train split has labels of {class_count} classes, "
            "but objective.task classify (the preset supervised) needs two or more: pack patches "
            "with labels, or choose another preset"
        )


def held_out(split: Split, count: int, device: torch.device) -> HeldOut:
    """Return the first `count` patches of a split, a fair sample since packing permutes patches."""
    rows = np.arange(min(len(split), count))
    images = to_tensor(read_split(split, rows), device)
    return HeldOut(images, torch.from_numpy(split.labels[rows]).to(device))


def _validate_reconstruction(
    config: ObjectiveConfig, model: VAE, ema: VAE, held: HeldOut
) -> tuple[dict[str, float], str]:
    """Score the EMA weights."""
    scores = validate_reconstruction(ema, held.images, Symmetry(config.group, config.fibres))
    return scores, (
        f"PSNR {scores['psnr']:.2f} dB  KL {scores['kl']:.0f} nats  active "
        f"{scores['active_units']:.0f}  equivariance error {scores['equivariance_error']:.3f}"
    )


def _validate_classification(
    classifier: Classification, model: VAE, ema: VAE, held: HeldOut
) -> tuple[dict[str, float], str]:
    """Score the current weights: the head has no EMA."""
    with evaluating(model):
        batches = held.images.split(batch_for(held.images.device))
        logits = torch.cat([classifier.logits(model, to_float(images)) for images in batches])
        scores = classification_scores(logits, held.labels)
    loss, accuracy = scores["loss"].item(), scores["accuracy"].item()
    line = f"cross-entropy {loss:.3f} nats  accuracy {accuracy:.3f}"
    return {"cross_entropy": loss, "accuracy": accuracy}, line
