"""What differs between learning images and learning labels: the objective and the validation."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from eval.measure.metrics import batch_for, evaluating
from eval.measure.metrics import validate as validate_reconstruction
from models.classification import Classification, scores
from models.objective import Objective
from models.vae import VAE
from pipeline.index import Dataset, Split
from pipeline.pixels import to_float, to_tensor
from pipeline.reader import read_split
from shards.schema import METADATA_NAME
from train.config import Config
from train.step import TrainStep


class HeldOut(NamedTuple):
    """Patches to validate on, on the device of the model."""

    images: Tensor  # (n, 3, 32, 32) uint8
    labels: Tensor  # (n,) int64, -1 = none


def make_objective(config: Config, dataset: Dataset) -> Objective | Classification:
    """The objective of `config.objective.task` for this data set."""
    channels = config.model.latent_channels
    if config.objective.task == "classify":
        return Classification(config.objective, channels, len(dataset.metadata.classes))
    return Objective(config.objective, channels)


def require_labels(config: Config, dataset: Dataset) -> None:
    """See that there is something to classify, where that is the task.

    Raises:
        DataError: the train split has labels of fewer than two classes.
    """
    if config.objective.task != "classify":
        return
    labels = dataset.split("train").labels
    if (found := len(np.unique(labels[labels >= 0]))) < 2:
        raise DataError(
            f"{dataset.root / METADATA_NAME}: the train split has labels of {found} classes, but "
            "objective.task classify (the preset supervised) needs two or more: pack patches with "
            "labels, or choose another preset"
        )


def held_out(split: Split, count: int, device: torch.device) -> HeldOut:
    """The first patches of a split: shards are permuted, so that they are a fair sample."""
    rows = np.arange(min(len(split), count))
    images = to_tensor(read_split(split, rows), device)
    return HeldOut(images, torch.from_numpy(split.labels[rows]).to(device))


def validate(step: TrainStep, ema: VAE, held: HeldOut) -> tuple[dict[str, float], str]:
    """Scores for the log, and a line for people.

    Of the EMA weights; a classifier is validated at the current ones, since its head has no EMA.
    """
    objective = step.objective
    if isinstance(objective, Classification):
        return _classification(step.model, objective, held)
    config = objective.config
    found = validate_reconstruction(ema, held.images, config.group, config.fibres)
    return found, (
        f"PSNR {found['psnr']:.2f} dB  KL {found['kl']:.0f} nats  active "
        f"{found['active_units']:.0f}  equivariance error {found['equivariance_error']:.3f}"
    )


def _classification(
    model: VAE, objective: Classification, held: HeldOut
) -> tuple[dict[str, float], str]:
    with evaluating(model):
        parts = held.images.split(batch_for(held.images.device))
        logits = torch.cat([objective.logits(model, to_float(part)) for part in parts])
        found = {name: value.item() for name, value in scores(logits, held.labels).items()}
    return {"cross_entropy": found["loss"], "accuracy": found["accuracy"]}, (
        f"cross-entropy {found['loss']:.3f} nats  accuracy {found['accuracy']:.3f}"
    )
