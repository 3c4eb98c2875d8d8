"""Pictures of one run: reconstructions, the orbit of a patch, learning curves, the embedding.

Agg only, no global state of matplotlib. Images are uint8 (n, 3, 32, 32) on the model's device.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from common.files import atomic_path
from eval.measure.metrics import ELEMENTS, elements_of, evaluating, psnr, rho
from models.vae import VAE
from pipeline import d4
from pipeline.corruptions import KINDS, CorruptionConfig, corrupt_as
from pipeline.pixels import to_float

# Okabe and Ito: told apart with every common colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A")
MARKERS = "osD^vP*X"
DPI = 150
PER_KIND = 3  # images of each corruption kind
MAX_POINTS = 4000  # of the embedding
CURVES = (  # kind of line, field, title with unit
    ("train", "loss", "training loss (nats per value)"),
    ("val", "psnr", "validation PSNR (dB)"),
    ("val", "kl", "validation KL (nats per image)"),
    ("val", "equivariance_error", "relative equivariance error"),
)


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as temp:
        figure.savefig(temp, dpi=DPI, metadata={"Software": None})
    return path


def style(index: int) -> dict[str, Any]:
    """Colour and marker of series `index`: distinct for the first 64."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
    }


def reconstructions(model: VAE, images: Tensor, corruption: CorruptionConfig, path: Path) -> Path:
    """Rows clean, corrupted, reconstruction; columns up to three images of each corruption kind."""
    kinds = list(corruption.shares)
    x = to_float(images[: PER_KIND * len(kinds)])
    by_kind = zip(kinds, x.split(PER_KIND), strict=False)
    seen = torch.cat([corrupt_as(kind, batch, corruption) for kind, batch in by_kind])
    with evaluating(model):
        x_hat = model(seen)
    figure = Figure((0.95 * len(x) + 1.2, 4.0), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for row, (name, batch) in enumerate([("clean", x), ("input", seen), ("output", x_hat)]):
        for ax, image in zip(axes[row], batch, strict=True):
            show(ax, image)
        axes[row][0].set_ylabel(name, fontsize=10)
    for column, (before, after) in enumerate(zip(psnr(seen, x), psnr(x_hat, x), strict=True)):
        kind = kinds[column // PER_KIND]
        if kind != "identity":
            axes[1][column].set_xlabel(f"{before:.1f} dB", fontsize=8)
        axes[2][column].set_xlabel(f"{after:.1f} dB", fontsize=8)
        if column % PER_KIND == 0:
            axes[0][column].set_title(KINDS[kind].title, fontsize=10, loc="left")
    figure.suptitle("Reconstruction from the posterior mean; PSNR to the clean patch", fontsize=11)
    return save(figure, path)


def orbit(
    model: VAE, image: Tensor, path: Path, group: str = "D4", fibres: str = "trivial"
) -> Path:
    """What the code does when the patch (3, 32, 32) is moved: for every element g of D4 (of C4
    with its regular fibres), g x, D(mu(g x)), D(rho(g) mu(x)), and the difference of these two
    in grey levels."""
    x = to_float(image[None])
    elements = (0, *elements_of(group, fibres))
    moved = torch.cat([d4.act_one(x, g) for g in elements])
    with evaluating(model):
        mu = model.encoder(x).mean
        own = model(moved)
        carried = model.decoder(torch.cat([rho(mu, g, group, fibres) for g in elements]))
    difference = 255 * (own - carried).abs().mean(1).cpu()
    figure = Figure((1.25 * len(elements) + 1.2, 5.8), layout="constrained")
    ratios = [1.0] * len(elements) + [0.08]  # the last column holds the colour scale
    axes = figure.subplots(4, len(ratios), squeeze=False, width_ratios=ratios)
    rows = [(r"$g\,x$", moved), (r"$D(\mu(g\,x))$", own), (r"$D(\rho(g)\,\mu(x))$", carried)]
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


def curves(runs: Mapping[str, Iterable[Mapping[str, Any]]], path: Path) -> Path:
    """Training loss, and PSNR, KL and equivariance error on validation, against images seen.

    Args:
        runs: the lines of metrics.jsonl (`eval.run.load_metrics`) by the name of the run.
    """
    figure = Figure((9.0, 6.0 + 0.22 * len(runs)), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for ax, (kind, field, title) in zip(panels, CURVES, strict=True):
        for i, (name, rows) in enumerate(runs.items()):
            points = [
                (row["images"] / 1000, row[field])
                for row in rows
                if row.get("kind") == kind and isinstance(row.get(field), int | float)
            ]
            look = style(i) if kind == "val" else {"color": style(i)["color"]}
            ax.plot(*np.array(points).reshape(-1, 2).T, label=plain(name), markersize=4, **look)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("images seen (thousands)", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        grid(ax)
    if len(runs) > 1:
        handles, names = panels[1].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    return save(figure, path)


def embedding(
    features: NDArray[np.floating], labels: NDArray[np.int64], classes: Sequence[str], path: Path
) -> Path:
    """The first two principal components of embeddings (n, d), coloured by class."""
    step = -(-len(features) // MAX_POINTS)
    features, labels = features[::step], labels[::step]
    centred = features - features.mean(0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    xy = centred @ axes[:2].T
    share = 100 * scale[:2] ** 2 / max(float((scale**2).sum()), 1e-12)
    figure = Figure((7.2, 5.2), layout="constrained")
    ax = figure.subplots()
    groups = [(-1, "no label"), *enumerate(classes)] if (labels < 0).any() else enumerate(classes)
    for i, (label, name) in enumerate(groups):
        x, y = xy[labels == label].T
        ax.scatter(x, y, s=9, alpha=0.6, linewidths=0, label=plain(name), **style(i))
    ax.set_xlabel(f"component 1 ({share[0]:.1f} % of the variance)")
    ax.set_ylabel(f"component 2 ({share[1]:.1f} %)")
    ax.set_title(f"Principal components of the code, {len(xy):,} patches", fontsize=11)
    grid(ax)
    figure.legend(loc="outside right upper", fontsize=9, markerscale=2)
    return save(figure, path)


def show(ax: Axes, image: Tensor) -> None:
    """A float image (3, 32, 32) in [0, 1], its pixels as they are."""
    ax.imshow(image.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), interpolation="nearest")
    bare(ax)


def bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def grid(ax: Axes) -> None:
    ax.grid(True, color="#DDDDDD", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def plain(name: str) -> str:
    """A name as a label: `$` starts no formula, a leading `_` does not hide it, 40 characters."""
    shown = "".join(c if c.isprintable() else " " for c in name).replace("$", r"\$").strip()
    return (f" {shown}" if shown.startswith("_") else shown)[:40]
