"""Classes of positions on a slide, from a GeoJSON file as QuPath exports it.

Coordinates are pixels of level 0, counted from the corner of the scanned area where the file of the
slide names one (`Slide.bounds_corner`), as QuPath crops to it. Annotations with a class count; a
position gets the class of the smallest one that it lies in, so that a class drawn inside of another
is seen. A class whose name ends in * (`Ignore*`), which QuPath itself leaves out of its results,
takes its positions out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shards.slides.reader import SlideError

_MAX_BYTES = 1 << 30
ANNOTATION_FILES = ("{}.geojson", "{}.json")  # of a slide of this name, in a folder

Ring = NDArray[np.float64]  # (n, 2)


class _Classification(msgspec.Struct):
    name: str | None = None
    names: list[str] | None = None  # of a class derived from another, since QuPath 0.5


class _Properties(msgspec.Struct):
    classification: _Classification | str | None = None  # QuPath reads a name alone, too


class _Geometry(msgspec.Struct):
    type: str
    coordinates: msgspec.Raw = msgspec.Raw(b"null")
    geometries: list["_Geometry"] = []


class _Feature(msgspec.Struct):
    geometry: _Geometry | None = None
    properties: _Properties | None = None


class _Kind(msgspec.Struct):
    type: str | None = None


class _Collection(msgspec.Struct):
    features: list[_Feature]


@dataclass(frozen=True)
class Annotation:
    """An area of a class."""

    name: str
    rings: list[Ring]  # outlines and holes: inside is what an odd number of them surrounds

    @property
    def area(self) -> float:
        """Area inside of the first outline, in square pixels."""
        x, y = (self.rings[0] - self.rings[0][0]).T
        return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def read_annotations(file: Path) -> list[Annotation]:
    """Read the annotations that have a class, the smallest first.

    Raises:
        SlideError: not GeoJSON, or no annotation with a class and an area in it.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise SlideError(f"{file.name} has more than {_MAX_BYTES} bytes")
        features = _features(file.read_bytes())
        annotations = [
            Annotation(name, rings)
            for feature in features
            if feature.geometry and (name := _class_of(feature))
            for rings in _polygons(feature.geometry)
        ]
    except (OSError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SlideError(f"{file.name} is not GeoJSON as QuPath exports it: {error}") from None
    if not annotations:
        raise SlideError(
            f"{file.name}: none of {len(features)} annotations has a class and an area"
        )
    return sorted(annotations, key=lambda annotation: (annotation.area, annotation.name))


def classes_at(annotations: list[Annotation], x: NDArray[Any], y: NDArray[Any]) -> list[str | None]:
    """Return the class at each position; None outside, and where a class is to be ignored.

    Args:
        annotations: the smallest first.
        x, y: (n,) pixels of level 0.
    """
    number = np.full(len(x), -1)
    order = np.argsort(y, kind="stable")
    ordered = y[order]
    for i, annotation in enumerate(annotations):
        (left, top), (right, bottom) = annotation.rings[0].min(0), annotation.rings[0].max(0)
        near = order[slice(*np.searchsorted(ordered, (top, np.nextafter(bottom, np.inf))))]
        near = near[(x[near] >= left) & (x[near] <= right) & (number[near] < 0)]
        number[near[_inside(annotation.rings, x[near], y[near])]] = i
    names = [None if a.name.endswith("*") else a.name for a in annotations]
    return [names[i] if i >= 0 else None for i in number.tolist()]


def _features(data: bytes) -> list[_Feature]:
    """Return the features: of a collection, a list, or a single one. QuPath writes all three."""
    start = data[: 1 << 10].lstrip()[:1]
    if start == b"[":
        return msgspec.json.decode(data, type=list[_Feature])
    if start != b"{":
        raise ValueError("it begins neither with { nor with [ (a .zip or .gz is to be unpacked)")
    try:
        return msgspec.json.decode(data, type=_Collection).features
    except msgspec.ValidationError:
        if msgspec.json.decode(data, type=_Kind).type == "FeatureCollection":
            raise
        return [msgspec.json.decode(data, type=_Feature)]


def _class_of(feature: _Feature) -> str | None:
    classification = feature.properties and feature.properties.classification
    if not classification:
        return None
    if isinstance(classification, str):
        return classification
    return classification.name or ": ".join(classification.names or []) or None


def _polygons(geometry: _Geometry) -> list[list[Ring]]:
    """Return the rings of every polygon; points and lines have no area and give none."""
    polygons: list[list[list[list[float]]]] = []
    if geometry.type == "Polygon":
        polygons = [msgspec.json.decode(geometry.coordinates, type=list[list[list[float]]])]
    elif geometry.type == "MultiPolygon":
        polygons = msgspec.json.decode(geometry.coordinates, type=list[list[list[list[float]]]])
    elif geometry.type == "GeometryCollection":
        return [rings for part in geometry.geometries for rings in _polygons(part)]
    return [[_ring(points) for points in polygon] for polygon in polygons if polygon]


def _ring(points: list[list[float]]) -> Ring:
    ring = np.array([point[:2] for point in points], np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError("a polygon has a ring without three points")
    return ring


def _inside(rings: list[Ring], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which positions, in the order of y, an odd number of rings surrounds: row by row, by
    where the rings cross the row."""
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    inside = np.zeros(len(x), bool)
    rows, first = np.unique(y, return_index=True)
    ends = np.append(first[1:], len(y))
    for row, *span in zip(rows, first, ends[: len(rows)], strict=True):
        members = slice(*span)
        crossed = (start[:, 1] <= row) != (end[:, 1] <= row)
        (x0, y0), (x1, y1) = start[crossed].T, end[crossed].T
        crossings = np.sort(x0 + (row - y0) / (y1 - y0) * (x1 - x0))
        inside[members] = np.searchsorted(crossings, x[members]) % 2 == 1
    return inside
