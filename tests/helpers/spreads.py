"""The spreads of the bench as they lie in JSON."""

from typing import Any


def is_spread(value: Any) -> bool:
    """Whether `value` is a spread of positive numbers."""
    return (
        set(value) == {"median", "low", "high", "repeats"}
        and 0 < value["low"] <= value["median"] <= value["high"]
    )
