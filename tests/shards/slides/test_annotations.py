"""GeoJSON of QuPath: classes of positions, by the smallest annotation around each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.slides.annotations import classes_at, read_annotations
from shards.slides.reader import SlideError


def square(left: float, top: float, side: float) -> list[list[float]]:
    right, bottom = left + side, top + side
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(name: str | None, *rings: list[list[float]], kind: str = "Polygon") -> dict[str, Any]:
    classification = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    coordinates: Any = list(rings) if kind == "Polygon" else [[ring] for ring in rings]
    return {
        "type": "Feature",
        "id": "5a4b",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", "isLocked": False, **classification},
    }


FEATURES = [
    feature("Tumor", square(0, 0, 100), square(20, 20, 20)),  # with a hole
    feature("Necrosis", square(60, 60, 20)),  # inside of it
    feature("Ignore*", square(80, 0, 10)),
    feature("Stroma", square(200, 0, 50), square(300, 0, 50), kind="MultiPolygon"),
    feature(None, square(400, 0, 50)),
    {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}},
]
COLLECTION: dict[str, Any] = {"type": "FeatureCollection", "features": FEATURES}
PLACES = {
    (10.0, 10.0): "Tumor",
    (30.0, 30.0): None,  # the hole
    (70.0, 70.0): "Necrosis",
    (85.0, 5.0): None,
    (225.0, 25.0): "Stroma",
    (325.0, 25.0): "Stroma",
    (275.0, 25.0): None,
    (425.0, 25.0): None,
}


@pytest.mark.parametrize("content", [COLLECTION, FEATURES])
def test_a_position_has_the_class_of_the_smallest_annotation(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "s.geojson"
    file.write_text(json.dumps(content))
    x, y = np.array(list(PLACES)).T
    assert classes_at(read_annotations(file), x, y) == list(PLACES.values())


def test_a_single_feature_and_a_derived_class_are_read(tmp_path: Path) -> None:
    derived = feature(None, square(0, 0, 9))
    for classification in ({"names": ["Tumor", "Positive"]}, "Tumor: Positive"):
        derived["properties"]["classification"] = classification
        (tmp_path / "s.json").write_text(json.dumps(derived))
        assert [a.name for a in read_annotations(tmp_path / "s.json")] == ["Tumor: Positive"]


def test_positions_agree_with_a_polygon_drawn_by_another_library(tmp_path: Path) -> None:
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 60))
    radii = rng.uniform(40, 100, 60)
    ring = np.stack([120 + radii * np.cos(angles), 120 + radii * np.sin(angles)], 1)
    (tmp_path / "s.geojson").write_text(json.dumps([feature("A", ring.tolist())]))
    points = rng.uniform(0, 240, (4000, 2))
    got = np.array(classes_at(read_annotations(tmp_path / "s.geojson"), *points.T)) == "A"
    assert (got == Outline(np.concatenate([ring, ring[:1]])).contains_points(points)).all()
    assert 0.2 < got.mean() < 0.8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04", "unpacked"),
        (b"{", "not GeoJSON"),
        (b"[" * 100_000, "not GeoJSON"),
        (b'{"type": "FeatureCollection", "features": [{"properties": 1}]}', r"features\[0\]"),
        (json.dumps([feature("A", [[0, 0], [1, 1]])]).encode(), "three points"),
        (json.dumps([feature("A", [[0, 0], [1e400, 1], [2, 2]])]).encode(), "not GeoJSON"),
        (json.dumps([feature(None, square(0, 0, 9))]).encode(), "none of 1 annotations"),
    ],
)
def test_what_is_no_annotation_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "s.geojson").write_bytes(content)
    with pytest.raises(SlideError, match=reason):
        read_annotations(tmp_path / "s.geojson")
