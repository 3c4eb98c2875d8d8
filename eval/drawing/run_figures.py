"""Figures of a run, as PNG. Images are uint8 (n, 3, 32, 32) on the model's device."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from eval.drawing.figures import (
    CURVES,
    LIGHT,
    MARKERS,
    bare,
    grid,
    plain,
    principal_plane,
    save,
    show,
    style,
)
from eval.features import Features
from eval.measure.metrics import (
    ELEMENTS,
    Symmetry,
    elements_of,
    evaluating,
    kl_per_dimension,
    psnr,
    rho,
)
from eval.run import LogLine, load_metrics
from eval.session import RunSession, in_turn
from models.vae import VAE
from pipeline import d4
from pipeline.config import CorruptionConfig
from pipeline.corruptions import KINDS, corrupt_as
from pipeline.pixels import to_float
from pipeline.reader import read_split
from shards.codec.png import Pixels

PER_KIND = 3  # images of each kind of corruption
MAX_POINTS = 4000  # in the scatter plot of embeddings
DIMENSIONS = 6  # in the figure of traversals
STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # standard deviations of the code over patches
SAMPLE = 512  # patches behind the standard deviations and the KL
QUERIES, MAX_QUERIES, NEIGHBOURS = 6, 10, 8


def draw(session: RunSession, images: Tensor, features: Features) -> None:
    """Draw all figures of a run to RUN/figures.

    Args:
        images: patches of the metrics split, uint8 (n, 3, 32, 32).
        features: (n, d) of `session.probe_rows` of the metrics split.
    """
    folder, info, model = session.run / "figures", session.info, session.model
    split = session.metrics_split
    rows = session.probe_rows(split)
    if info.decodes:
        reconstructions(model, images, session.corruption, folder / "reconstructions.png")
        orbit(model, images[0], folder / "orbit.png", session.symmetry)
    if lines := load_metrics(session.run):
        curves(lines, folder / "curves.png")
    if len(features) > 2:
        classes = session.data.metadata.classes
        embedding(features, split.labels[rows], classes, folder / "embedding.png")
    if info.decodes:
        traversals(model, images, folder / "traversals.png", info.stochastic)
    if len(rows) > NEIGHBOURS:
        nearest_patches(session, features, folder / "neighbours.png")


def reconstructions(model: VAE, images: Tensor, corruption: CorruptionConfig, path: Path) -> Path:
    """Draw clean, corrupted and reconstructed patches: up to three of each kind of corruption."""
    kinds = list(corruption.shares)
    x = to_float(images[: PER_KIND * len(kinds)])
    by_kind = zip(kinds, x.split(PER_KIND), strict=False)
    x_tilde = torch.cat([corrupt_as(kind, batch, corruption) for kind, batch in by_kind])
    with evaluating(model):
        x_hat = model(x_tilde)
    figure = Figure((0.95 * len(x) + 1.2, 4.0), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for row, (name, batch) in enumerate([("clean", x), ("input", x_tilde), ("output", x_hat)]):
        for ax, image in zip(axes[row], batch, strict=True):
            show(ax, image)
        axes[row][0].set_ylabel(name, fontsize=10)
    for column, (before, after) in enumerate(zip(psnr(x_tilde, x), psnr(x_hat, x), strict=True)):
        kind = kinds[column // PER_KIND]
        if kind != "identity":
            axes[1][column].set_xlabel(f"{before:.1f} dB", fontsize=8)
        axes[2][column].set_xlabel(f"{after:.1f} dB", fontsize=8)
        if column % PER_KIND == 0:
            axes[0][column].set_title(KINDS[kind].title, fontsize=10, loc="left")
    figure.suptitle("Reconstruction from the posterior mean; PSNR to the clean patch", fontsize=11)
    return save(figure, path)


def orbit(model: VAE, image: Tensor, path: Path, symmetry: Symmetry) -> Path:
    """Draw how the code changes when a patch x (3, 32, 32) is moved.

    For every element g of D4 (C4 with regular fibres) there are g x, D(mu(g x)), D(rho(g) mu(x)),
    and the difference of the last two in grey levels.
    """
    x = to_float(image[None])
    elements = (0, *elements_of(symmetry))
    moved = torch.cat([d4.act_one(x, g) for g in elements])
    with evaluating(model):
        mu = model.encoder(x).mean
        x_hat = model(moved)
        x_hat_moved = model.decoder(torch.cat([rho(mu, g, symmetry) for g in elements]))
    difference = 255 * (x_hat - x_hat_moved).abs().mean(1).cpu()
    figure = Figure((1.25 * len(elements) + 1.2, 5.8), layout="constrained")
    ratios = [1.0] * len(elements) + [0.08]  # the last column holds the colour scale
    axes = figure.subplots(4, len(ratios), squeeze=False, width_ratios=ratios)
    rows = [(r"$g\,x$", moved), (r"$D(\mu(g\,x))$", x_hat), (r"$D(\rho(g)\,\mu(x))$", x_hat_moved)]
    for row, (name, batch) in enumerate(rows):
        axes[row][0].set_ylabel(name, fontsize=10)
        axes[row][-1].axis("off")
        for ax, picture in zip(axes[row], batch, strict=False):
            show(ax, picture)
    top = max(1.0, float(difference.max()))
    for g, ax in enumerate(axes[3][:-1]):
        heat = ax.imshow(difference[g].numpy(), vmin=0, vmax=top, cmap="viridis")
        bare(ax)
        ax.set_xlabel(f"mean {difference[g].mean():.1f}", fontsize=8)
        axes[0][g].set_title(ELEMENTS[g].replace(" ", "\n", 1), fontsize=9)
    axes[3][0].set_ylabel("difference", fontsize=10)
    figure.colorbar(heat, cax=axes[3][-1], label="grey levels of 255")
    figure.suptitle("Orbit of a patch: encoding the moved patch, and moving its code", fontsize=11)
    return save(figure, path)


def curves(lines: Sequence[LogLine], path: Path) -> Path:
    """Draw training loss, and PSNR, KL and equivariance error on val, against images seen."""
    figure = Figure((9.0, 6.22), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for ax, (kind, field, title) in zip(panels, CURVES, strict=True):
        points = [
            (line.images / 1000, value)
            for line in lines
            if line.kind == kind and (value := getattr(line, field)) is not None
        ]
        marker = MARKERS[0] if kind == "val" else None
        ax.plot(*np.array(points).reshape(-1, 2).T, color=LIGHT[0], marker=marker, markersize=4)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("images seen (thousands)", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        grid(ax)
    return save(figure, path)


def embedding(
    features: Features, labels: NDArray[np.int64], classes: Sequence[str], path: Path
) -> Path:
    """Draw the first two principal components of embeddings (n, d), coloured by class."""
    step = -(-len(features) // MAX_POINTS)
    features, labels = features[::step], labels[::step]
    xy, shares = principal_plane(features)
    figure = Figure((7.2, 5.2), layout="constrained")
    ax = figure.subplots()
    series = [(-1, "no label"), *enumerate(classes)] if (labels < 0).any() else enumerate(classes)
    for i, (label, name) in enumerate(series):
        x, y = xy[labels == label].T
        ax.scatter(x, y, s=9, alpha=0.6, linewidths=0, label=plain(name), **style(i))
    ax.set_xlabel(f"component 1 ({shares[0]:.1%} of the variance)")
    ax.set_ylabel(f"component 2 ({shares[1]:.1%})")
    ax.set_title(f"Principal components of the code, {len(xy):,} patches", fontsize=11)
    grid(ax)
    figure.legend(loc="outside right upper", fontsize=9, markerscale=2)
    return save(figure, path)


def traversals(model: VAE, images: Tensor, path: Path, stochastic: bool = True) -> Path:
    """Draw traversals of the dimensions with the largest KL (autoencoders: standard deviation).

    Each is moved by -3 to 3 standard deviations from the code of the first patch and decoded.

    Args:
        images: uint8 (n, 3, 32, 32) on the model's device.
    """
    with evaluating(model):
        q = model.encoder(to_float(images[:SAMPLE]))
        flat, shape = q.mean.flatten(1), q.mean.shape[1:]
        spread_D = flat.std(0, correction=0)
        weight_D = kl_per_dimension(q.mean, q.log_var) if stochastic else spread_D
        dimensions = weight_D.topk(min(DIMENSIONS, len(weight_D))).indices.tolist()
        rows = []
        for d in dimensions:
            codes = flat[:1].repeat(len(STEPS), 1)
            codes[:, d] += spread_D[d] * torch.tensor(STEPS, device=codes.device)
            rows.append(model.decoder(codes.unflatten(1, shape)))
    figure = Figure((1.0 * len(STEPS) + 2.4, 1.05 * len(dimensions) + 0.9), layout="constrained")
    axes = figure.subplots(len(dimensions), len(STEPS), squeeze=False)
    cells = shape[1] * shape[2]
    for row, d, batch in zip(axes, dimensions, rows, strict=True):
        for ax, image in zip(row, batch, strict=True):
            show(ax, image)
        channel, cell = divmod(d, cells)
        position = f"channel {channel}\nrow {cell // shape[2]}, column {cell % shape[2]}"
        weight = f"{float(weight_D[d]):.2f} {'nats' if stochastic else 'sd'}"
        label = f"{position}\n{weight}"
        row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    for ax, step in zip(axes[0], STEPS, strict=True):
        ax.set_title(f"{step:+.0f} sd" if step else "the patch", fontsize=9)
    figure.suptitle("The dimensions that carry most, moved one at a time and decoded", fontsize=11)
    return save(figure, path)


def nearest_patches(session: RunSession, features: Features, path: Path) -> Path:
    """Draw some patches of the metrics split and their nearest neighbours there."""
    split, rows = session.metrics_split, session.probe_rows(session.metrics_split)
    query_rows = queries(split.labels[rows])
    neighbour_rows, cosines = nearest(features, query_rows)
    shown = rows[np.concatenate([query_rows[:, None], neighbour_rows], axis=1).ravel()]
    names = [*session.data.metadata.classes, "no label"]  # -1 is the last
    return neighbours(
        pixels=read_split(split, shown),
        cosines=cosines,
        labels=[names[label] for label in split.labels[shown]],
        sources=split.table["source"].take(shown).to_pylist(),
        split=split.name,
        path=path,
    )


def queries(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw QUERIES rows, or one per class up to MAX_QUERIES: classes in turn, from a fixed seed."""
    return in_turn(labels, min(max(QUERIES, len(np.unique(labels))), MAX_QUERIES))


def nearest(features: Features, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Features]:
    """Find the nearest neighbours (q, k) of some rows by the cosine of centred features (n, d).

    A row is not its own neighbour. Also returns the cosines (q, k).
    """
    centred = features - features.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosines = centred[rows] @ centred.T
    cosines[np.arange(len(rows)), rows] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(features) - 1)]
    return order, np.take_along_axis(cosines, order, axis=1)


def neighbours(
    pixels: Pixels,
    cosines: Features,
    labels: Sequence[str],
    sources: Sequence[str],
    split: str,
    path: Path,
) -> Path:
    """Draw a row per query: the patch and its neighbours; frames show whether the class is shared.

    Args:
        pixels: (q * (1 + k), 32, 32, 3), row by row; labels and sources likewise.
        cosines: (q, k) of `nearest`.
    """
    count, width = len(cosines), 1 + cosines.shape[1]
    figure = Figure((1.05 * width + 0.4, 1.3 * count + 0.8), layout="constrained")
    axes = figure.subplots(count, width, squeeze=False)
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            cell = i * width + j
            ax.imshow(pixels[cell], interpolation="nearest")
            bare(ax)
            if j == 0:
                ax.set_title(plain(labels[cell])[:14], fontsize=8)
                continue
            same = labels[cell] == labels[i * width]
            for spine in ax.spines.values():
                spine.set(visible=True, color=LIGHT[0 if same else 1], linewidth=2.5)
                spine.set_linestyle("-" if same else "--")
            same_source = "\nsame source" if sources[cell] == sources[i * width] else ""
            ax.set_xlabel(f"{cosines[i, j - 1]:.2f}{same_source}", fontsize=7)
    figure.suptitle(
        f"A patch and its nearest in {split} by cosine; blue: same class, dashed orange: another",
        fontsize=10,
    )
    return save(figure, path)
