"""Convert plain JSON values to records (dataclasses or msgspec structs), and compare them."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

T = TypeVar("T")


def convert(raw: object, kind: type[T]) -> T:
    """Build a record from plain values; its types are checked and unknown names refused.

    Raises:
        msgspec.ValidationError: a value of another type or range, or a missing or unknown name.
    """
    record = msgspec.convert(raw, kind)
    if isinstance(raw, dict):
        names = flatten(raw).keys() - flatten(msgspec.to_builtins(record)).keys()
        if names:
            raise msgspec.ValidationError(f"unknown names: {', '.join(sorted(names)[:3])}"[:200])
    return record


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Map dotted names to values: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    leaves: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def differences(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    """List `name: a -> b` for every dotted name whose values differ; None stands for absent."""
    left, right = flatten(a), flatten(b)
    return [
        f"{name}: {left.get(name)} -> {right.get(name)}"
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    ]
