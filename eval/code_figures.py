"""Pictures of what the code of a run holds: traversals of its dimensions, nearest neighbours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from eval.figures import COLOURS, bare, plain, save, show
from eval.measure.metrics import evaluating, kl_per_dimension
from eval.measure.readouts import Features, Pixels
from eval.session import Job
from models.vae import VAE
from pipeline.pixels import to_float
from pipeline.reader import read_split

DIMENSIONS = 6  # of a traversal
STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # standard deviations of the code over patches
SAMPLE = 512  # patches that the standard deviations and the KL are of
QUERIES, MOST, NEIGHBOURS = 6, 10, 8


def draw(job: Job, images: Tensor, features: Features, folder: Path) -> None:
    """Both pictures; `features` (n, d) are of `job.probe_rows` of the metrics split."""
    if job.about.decodes:
        traversals(job.model, images, folder / "traversals.png", job.about.stochastic)
    split, rows = job.metrics_split, job.probe_rows(job.metrics_split)
    if len(rows) <= NEIGHBOURS:
        return
    found, cosines = nearest(features, chosen := queries(split.labels[rows]))
    shown = rows[np.concatenate([chosen[:, None], found], axis=1).ravel()]
    order, back = np.unique(shown, return_inverse=True)
    names = [*job.data.metadata.classes, "no label"]  # -1 is the last
    labels = [names[label] for label in split.labels[shown]]
    groups = split.table["source"].take(shown).to_pylist()
    pixels = read_split(split, order)[back]
    neighbours(pixels, found, cosines, labels, groups, folder / "neighbours.png")


def traversals(model: VAE, images: Tensor, path: Path, stochastic: bool = True) -> Path:
    """The dimensions with the largest KL (of an autoencoder: standard deviation), each moved by
    -3 to 3 standard deviations from the code of the first patch and decoded.

    Args:
        images: uint8 (n, 3, 32, 32) on the model's device.
    """
    with evaluating(model):
        q = model.encoder(to_float(images[:SAMPLE]))
        flat, shape = q.mean.flatten(1), q.mean.shape[1:]
        spread_D = flat.std(0, correction=0)
        weight_D = kl_per_dimension(q.mean, q.log_var) if stochastic else spread_D
        chosen = weight_D.topk(min(DIMENSIONS, len(weight_D))).indices.tolist()
        rows = []
        for d in chosen:
            codes = flat[:1].repeat(len(STEPS), 1)
            codes[:, d] += spread_D[d] * torch.tensor(STEPS, device=codes.device)
            rows.append(model.decoder(codes.unflatten(1, shape)))
    figure = Figure((1.0 * len(STEPS) + 2.4, 1.05 * len(chosen) + 0.9), layout="constrained")
    axes = figure.subplots(len(chosen), len(STEPS), squeeze=False)
    cells = shape[1] * shape[2]
    for row, d, batch in zip(axes, chosen, rows, strict=True):
        for ax, image in zip(row, batch, strict=True):
            show(ax, image)
        channel, cell = divmod(d, cells)
        place = f"channel {channel}\nrow {cell // shape[2]}, column {cell % shape[2]}"
        weight = f"{float(weight_D[d]):.2f} {'nats' if stochastic else 'sd'}"
        label = f"{place}\n{weight}"
        row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    for ax, step in zip(axes[0], STEPS, strict=True):
        ax.set_title(f"{step:+.0f} sd" if step else "the patch", fontsize=9)
    figure.suptitle("The dimensions that carry most, moved one at a time and decoded", fontsize=11)
    return save(figure, path)


def queries(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """QUERIES rows, or one a class of up to MOST; classes in turns, drawn from a fixed seed."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    turn = np.zeros(len(labels), np.int64)  # how many of its class come before
    classes = np.unique(labels)
    for label in classes:
        mine = shuffled[labels[shuffled] == label]
        turn[mine] = np.arange(len(mine))
    return np.lexsort((labels, turn))[: min(max(QUERIES, len(classes)), MOST)]


def nearest(features: Features, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], Features]:
    """(q, k) rows nearest to the chosen ones by the cosine of centred features (n, d), without
    themselves, and those cosines."""
    centred = features - features.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosines = centred[chosen] @ centred.T
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    found = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(features) - 1)]
    return found, np.take_along_axis(cosines, found, axis=1)


def neighbours(
    pixels: Pixels, found: NDArray[np.int64], cosines: Features, labels: Sequence[str],
    groups: Sequence[str], path: Path,
) -> Path:  # fmt: skip
    """A row a query: the patch, then its neighbours; the frame says whether the class is shared.

    Args:
        pixels: (q * (1 + k), 32, 32, 3), row by row; labels and groups as long, in that order.
        found, cosines: (q, k) of `nearest`.
    """
    count, width = len(found), 1 + found.shape[1]
    figure = Figure((1.05 * width + 0.4, 1.3 * count + 0.8), layout="constrained")
    axes = figure.subplots(count, width, squeeze=False)
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            at = i * width + j
            ax.imshow(pixels[at], interpolation="nearest")
            bare(ax)
            if j == 0:
                ax.set_title(plain(labels[at])[:14], fontsize=8)
                continue
            same = labels[at] == labels[i * width]
            _frame(ax, COLOURS[0] if same else COLOURS[1], "-" if same else "--")
            place = "\nsame source" if groups[at] == groups[i * width] else ""
            ax.set_xlabel(f"{cosines[i, j - 1]:.2f}{place}", fontsize=7)
    figure.suptitle(
        "A patch and its nearest in test by cosine; blue: same class, dashed orange: another",
        fontsize=10,
    )
    return save(figure, path)


def _frame(ax: Axes, colour: str, line: str) -> None:
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5, linestyle=line)
