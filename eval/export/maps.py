"""Classes and scores over a slide: GeoJSON for QuPath, and maps as PNG.

QuPath (0.4 and later) reads a FeatureCollection of objects whose `objectType` is `tile`, with
`classification` (`name`, `color` as red, green, blue) and `measurements` (a number by name);
coordinates are pixels of the full-resolution image.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from common.files import atomic_path
from eval.drawing.figures import LIGHT, bare, plain, save
from eval.export.table import EmbeddedTable, Slide, tile_side
from eval.export.values import PatchValues
from eval.features import file_name
from shards.schema import PATCH

INCHES = 6.0  # of the longer side of a map
COLOURS = tuple(LIGHT[i] for i in (0, 1, 2, 3, 4, 6, 7, 5))  # the second blue last
BAR = 0.25  # longest scale bar, as a share of the width


def write_maps(table: EmbeddedTable, values: PatchValues, out: Path) -> list[Path]:
    """Write GeoJSON and PNG of every slide: OUT/SLIDE-NAME.geojson, OUT/SLIDE-NAME.png, ...

    Raises:
        DataError: a patch has no place.
    """
    files = []
    for slide in table.slides:
        places = table.places(slide)
        side, mpp = tile_side(places), table.mpp(slide)
        stem = f"{slide.stem}-{values.name}"
        labels = values.labels[slide.rows]
        scores = {name: score[slide.rows] for name, score in values.scores.items()}
        corners = places[:, None] + side * np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
        path = out / f"{stem}.geojson"
        with atomic_path(path) as temp:
            collection = feature_collection(corners, values.classes, labels, scores)
            temp.write_text(json.dumps(collection, ensure_ascii=False), encoding="utf-8")
        files.append(path)
        microns = mpp * PATCH / side if mpp else None  # per pixel of the slide
        files.append(class_map(slide, corners, values, labels, microns, out / f"{stem}.png"))
        for name, score in scores.items():
            path = out / f"{stem}-{file_name(name)}.png"
            files.append(score_map(slide, corners, name, score, microns, path))
    return files


def feature_collection(
    corners: NDArray[np.int64],
    classes: list[str],
    labels: NDArray[np.int64],
    scores: Mapping[str, NDArray[np.float64]],
) -> dict[str, object]:
    """Describe patches, by their corners (n, 4, 2), as QuPath's tile objects."""
    features = []
    for i, square in enumerate(corners.tolist()):
        label = int(labels[i])
        color = [round(255 * part) for part in to_rgb(COLOURS[label % len(COLOURS)])]
        properties: dict[str, object] = {
            "objectType": "tile",
            "classification": {"name": classes[label], "color": color},
        }
        if scores:
            properties["measurements"] = {
                f"probability of {name}": round(float(score[i]), 4)
                for name, score in scores.items()
            }
        geometry = {"type": "Polygon", "coordinates": [[*square, square[0]]]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def class_map(
    slide: Slide,
    corners: NDArray[np.int64],
    values: PatchValues,
    labels: NDArray[np.int64],
    microns: float | None,
    path: Path,
) -> Path:
    """Draw the class of every patch of a slide, with a legend that counts them."""
    figure, ax = _canvas(slide, corners, microns)
    colours = [COLOURS[label % len(COLOURS)] for label in labels.tolist()]
    ax.add_collection(PolyCollection(list(corners), facecolors=colours, edgecolors="none"))
    counts = np.bincount(labels, minlength=len(values.classes)).tolist()
    handles = [
        Patch(color=COLOURS[i % len(COLOURS)], label=f"{plain(name)}: {counts[i]:,}")
        for i, name in enumerate(values.classes)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
    return save(figure, path)


def score_map(
    slide: Slide,
    corners: NDArray[np.int64],
    name: str,
    scores: NDArray[np.float64],
    microns: float | None,
    path: Path,
) -> Path:
    """Draw a score in [0, 1] of every patch of a slide, with a colour scale."""
    figure, ax = _canvas(slide, corners, microns)
    squares = PolyCollection(list(corners), array=scores, cmap="viridis", edgecolors="none")
    squares.set_clim(0, 1)
    ax.add_collection(squares)
    figure.colorbar(squares, ax=ax, label=f"probability of {plain(name)}", shrink=0.8)
    return save(figure, path)


def _canvas(slide: Slide, corners: NDArray[np.int64], microns: float | None) -> tuple[Figure, Axes]:
    """Make empty axes in pixels of the slide, y downwards, with a title and a scale bar."""
    low, high = corners.min((0, 1)), corners.max((0, 1))
    width, height = (high - low).tolist()
    scale = INCHES / max(width, height)
    figure = Figure((max(width * scale, 2.5) + 2.0, height * scale + 1.0), layout="constrained")
    ax = figure.subplots()
    bare(ax)
    length, text = bar_length(BAR * width, microns)
    below = high[1] + 0.04 * max(width, height)
    ax.plot([low[0], low[0] + length], [below, below], color="black", linewidth=3)
    ax.text(low[0] + length + 0.02 * width, below, text, fontsize=9, va="center")
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(below + 0.03 * max(width, height), low[1])
    ax.set_aspect("equal")
    ax.set_title(f"{plain(slide.name)}, {len(corners):,} patches", fontsize=10)
    return figure, ax


def bar_length(pixels: float, microns: float | None) -> tuple[float, str]:
    """Choose a round scale bar of at most `pixels`: its length in pixels, and its text."""
    most = pixels * (microns or 1.0)
    power = 10.0 ** np.floor(np.log10(most))
    size = max(step * power for step in (1, 2, 5) if step * power <= most)
    if microns is None:
        return size, f"{size:,.0f} px"
    unit = f"{size / 1000:g} mm" if size >= 1000 else f"{size:g} µm"
    return size / microns, unit
