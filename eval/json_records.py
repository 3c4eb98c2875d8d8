"""Records (frozen dataclasses) in JSON files.

A field of value None is written as null, except those marked ABSENT, which are left out. Reading
tolerates missing and unknown fields, so that a report can show older results, and refuses values
of the wrong type.
"""

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.errors import DataError
from common.files import atomic_path

ABSENT = {"absent": True}  # metadata of a field that is not written where it is None

T = TypeVar("T")


def parse(raw: object, kind: type[T], path: Path, remedy: str) -> T:
    """Convert JSON to a record.

    Raises:
        DataError: a required field is missing or a value is not of its type; names both.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{path} was not written by this version ({error}): {remedy}") from None


def save(path: Path, record: object) -> None:
    """Write a record to a JSON file, whole or not at all."""
    text = json.dumps(as_json(record), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temp:
        temp.write_text(text + "\n", encoding="utf-8")


def as_json(value: Any) -> Any:
    """Convert records to plain JSON, with null for every number that is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: as_json(v) for f, v in pairs if v is not None or f.metadata != ABSENT}
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
