"""Read the text members of a foreign sample: a class in `.cls`, fields in `.json`."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MAX_LABEL = 256  # characters of a class name
_INT32 = 1 << 31
_WHOLE = re.compile(r"(-?)0*(\d+)\.0+")  # of a label that was a float


@dataclass(frozen=True, slots=True)
class Fields:
    """Fields of KEY.json that become columns; see `shards.schema.SIDECAR`."""

    source: str | None = None
    slide: str | None = None
    patient: str | None = None
    site: str | None = None
    x: int | None = None
    y: int | None = None
    mpp: float | None = None


NONE = Fields()


def class_text(body: bytes) -> str:
    """Read the class in a label member: a number or a name, without surrounding space.

    Raises:
        ValueError: not UTF-8, empty, binary, or longer than MAX_LABEL.
    """
    text = body.decode("utf-8").strip("\ufeff \t\r\n")
    if "\0" in text:
        raise ValueError(f"a class of the bytes {body!r:.60}: expected a number or a name as text")
    return _label(text)


def json_fields(body: bytes, label_field: str | None) -> tuple[str | None, Fields]:
    """Read the label, if `label_field` is given, and the fields of a `.json` member.

    Raises:
        ValueError: not a JSON object, no label, or a field of another type than its column.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"a JSON {type(values).__name__}, expected an object")
    fields = Fields(
        source=_text("source", values.get("source")),
        slide=_text("slide", values.get("slide")),
        patient=_text("patient", values.get("patient")),
        site=_text("site", values.get("site")),
        x=_pixel("x", values.get("x")),
        y=_pixel("y", values.get("y")),
        mpp=_microns(values.get("mpp")),
    )
    if label_field is None:
        return None, fields
    if values.get(label_field) is None:
        raise ValueError(f"no field {label_field!r}, only {sorted(values)[:10]}")
    value = values[label_field]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _label(_text(label_field, value) or ""), fields


def _label(text: str) -> str:
    """Return a class; a whole number that was a float, as `2.0`, without its point.

    Raises:
        ValueError: empty, or longer than MAX_LABEL.
    """
    if number := _WHOLE.fullmatch(text):
        text = number[1] + number[2]
    if not 0 < len(text) <= MAX_LABEL:
        raise ValueError(f"a class of {len(text)} letters, expected 1 to {MAX_LABEL}")
    return text


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        if isinstance(value, str):
            value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"field {name!r} is {value!r:.40}, expected text")


def _pixel(name: str, value: Any) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    if not whole or not -_INT32 <= value < _INT32:
        raise ValueError(f"field {name!r} is {value!r:.40}, expected a whole number of pixels")
    return int(value)


def _microns(value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < math.inf):
        raise ValueError(f"field 'mpp' is {value!r:.40}, expected microns per pixel")
    return float(value)
