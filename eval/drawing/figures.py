"""What figures of runs and reports share: colours, styles and the projection.

Only the Agg backend is used, and no global state of matplotlib.
"""

from pathlib import Path
from typing import TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from common.files import atomic_path

# Okabe and Ito's colours, told apart by colour-blind readers too, at 3:1 on white or near-black
LIGHT = ("#0072B2", "#C04E00", "#00805F", "#B0558A", "#9A6B00", "#2B86BA", "#333333", "#757575")
DARK = ("#56B4E9", "#F28C4B", "#2FC79A", "#E29CC4", "#E6B233", "#8CCBF0", "#DDDDDD", "#A0A0A0")
MARKERS = "osD^vP*X"
DPI = 150
CURVES = (  # kind of line, field of LogLine, title with unit
    ("train", "loss", "Training loss (nats per value)"),
    ("val", "psnr", "Validation PSNR (dB)"),
    ("val", "kl", "Validation KL (nats per patch)"),
    ("val", "equivariance_error", "Relative equivariance error"),
)


class Style(TypedDict):
    """Keyword arguments of a matplotlib series."""

    color: str
    marker: str


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temp:
        figure.savefig(temp, dpi=DPI, metadata={"Software": None})
    return path


def style(index: int) -> Style:
    """Choose colour and marker of series `index`: distinct for the first 64."""
    return {
        "color": LIGHT[index % len(LIGHT)],
        "marker": MARKERS[(index + index // len(LIGHT)) % len(MARKERS)],
    }


def show(ax: Axes, image: Tensor) -> None:
    """Show a float image (3, 32, 32) in [0, 1], its pixels as they are."""
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
    """Make a name safe as a label: no formula by `$`, not hidden by `_`, at most 40 characters."""
    shown = "".join(c if c.isprintable() else " " for c in name).replace("$", r"\$").strip()
    return (f" {shown}" if shown.startswith("_") else shown)[:40]


def principal_plane(
    features: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project features (n, d) on their first two principal components.

    The sign of a component is such that its largest loading is positive.

    Returns:
        Coordinates (n, 2), and the share of the variance of both components (2,).
    """
    pca = PCA(2, svd_solver="covariance_eigh")
    with np.errstate(invalid="ignore"):  # without any variance the shares are 0 / 0
        xy = pca.fit_transform(features.astype(np.float64))
    return xy, np.nan_to_num(pca.explained_variance_ratio_)
