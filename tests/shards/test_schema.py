"""The format: sizes that follow from the patch, and a `dataset.json` that nobody trusts."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from common.errors import DataError
from common.files import without_checksum
from shards import schema
from shards.codec import png
from shards.codec.tar_writer import BLOCK, STORED_STRIDE_LABELLED, STORED_STRIDE_UNLABELLED
from shards.schema import DatasetMetadata, Shard, SplitMetadata, dumps_metadata, loads_metadata

SHARD = Shard("train-000000", 2, 10_240, "0" * 16, 9, "f" * 16)
METADATA = DatasetMetadata(
    png="stored",
    classes=["a", "b"],
    splits={"train": SplitMetadata(2, [1, 1], [SHARD])},
    channel_mean=[0.5, 0.25, 1.0],
    provenance={"source": "raw", "label_field": None},
)


def test_sizes_of_a_stored_sample_are_those_of_the_format() -> None:
    """Data sets have these sizes: they may not move while PATCH is 32."""
    assert (schema.PATCH, schema.CHANNELS) == (32, 3)
    assert (png.STORED_PIXELS, png.STORED_PNG_BYTES) == (48, 3172)
    assert (STORED_STRIDE_UNLABELLED, STORED_STRIDE_LABELLED) == (4096, 5120)
    assert schema.MIN_SAMPLE_BYTES == 2 * BLOCK


def test_the_bytes_and_the_hash_are_those_of_the_format() -> None:
    text = dumps_metadata(METADATA)
    assert loads_metadata(text, "x") == METADATA
    assert text.startswith(b'{\n "channel_mean": [\n  0.5,') and text.endswith(b"}\n")
    assert json.loads(text)["provenance"] == {"source": "raw", "label_field": None}
    assert schema.dataset_hash(METADATA) == "a689a52b036c2d29"


def change(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(fields: Any) -> None:
        for key in keys[:-1]:
            fields = fields[key]
        fields[keys[-1]] = to

    return apply


def remove(*keys: str | int) -> Callable[[dict[str, Any]], None]:
    def apply(fields: Any) -> None:
        for key in keys[:-1]:
            fields = fields[key]
        del fields[keys[-1]]

    return apply


TRAIN = ("splits", "train")
FIRST = (*TRAIN, "shards", 0)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("version"), "version is None, this code reads 1"),
        (change("version", to=2), "version is 2, this code reads 1"),
        (change("png", to="jpeg"), "png is 'jpeg', expected one of"),
        (remove("classes"), "missing required field `classes`"),
        (change("classes", to=["a", "a"]), "a class is listed twice"),
        (change("classes", to=["a"]), "train counts 2 classes of 1"),
        (change("classes", 0, to=7), r"Expected `str`, got `int` - at `\$.classes\[0\]`"),
        (change("splits", to={}), "there are no splits"),
        (change("channel_mean", to=[0.5, 0.5]), r"channel_mean is \[0.5, 0.5\]"),
        (change("channel_mean", 0, to=1.5), r"channel_mean is \[1.5"),
        (change("channel_mean", 0, to=float("nan")), r"channel_mean is \[nan"),
        (change(*TRAIN, "count", to=3), "train has count 3, its shards 2"),
        (change(*TRAIN, "shards", to=None), "Expected `array`, got `null`"),
        (change(*FIRST, "count", to="2"), "Expected `int`, got `str`"),
        (change(*FIRST, "count", to=0), "train-000000 has count 0"),
        (change(*FIRST, "count", to=11), "train-000000 has count 11"),
        (change(*FIRST, "size", to=2.5), "Expected `int`, got `float`"),
        (change(*FIRST, "xxh3", to="0" * 15), "train-000000 has a malformed hash"),
        (change(*FIRST, "path", to="x.tar"), "a shard of stored PNGs has a path"),
        (change("provenance", to=[]), "Expected `object`, got `array`"),
    ],
)
def test_damaged_metadata_is_refused_by_field(
    damage: Callable[[dict[str, Any]], None], reason: str
) -> None:
    fields = without_checksum(json.loads(dumps_metadata(METADATA)), "FILE")
    damage(fields)
    with pytest.raises(DataError, match=f"^FILE: .*{reason}.*; pack the data set again$"):
        loads_metadata(json.dumps(fields).encode(), "FILE")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^FILE is not valid JSON"):
        loads_metadata(data, "FILE")


def test_altered_metadata_is_refused_unless_it_has_no_checksum() -> None:
    fields = json.loads(dumps_metadata(METADATA))
    fields["provenance"] = {"source": "another"}
    with pytest.raises(DataError, match="FILE was altered"):
        loads_metadata(json.dumps(fields).encode(), "FILE")
    del fields["checksum"]
    assert loads_metadata(json.dumps(fields).encode(), "FILE").provenance["source"] == "another"
