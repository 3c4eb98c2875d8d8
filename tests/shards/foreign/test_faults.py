"""Damaged tars of other tools: named by place, or counted; nothing is lost silently."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from pipeline.index import open_dataset
from pipeline.reader import Reader, read_split
from shards.foreign.index import index_tars
from shards.foreign.provenance import IndexOptions
from shards.schema import METADATA_NAME
from shards.verify.check import verify
from tests.helpers.tars import (
    END,
    WRITERS,
    image_of,
    json_body,
    members,
    open_tar,
    samples,
    scan,
    without_end,
    write_tar,
)

FEW = samples(4)
GOOD = image_of("k")


@pytest.mark.parametrize("writer", ["ShardWriter", "tarfile gnu"])
def test_a_cut_at_every_128_bytes_is_named(writer: str, tmp_path: Path) -> None:
    WRITERS[writer](tmp_path / "whole.tar", FEW)
    clean, whole = scan(tmp_path / "whole.tar"), (tmp_path / "whole.tar").read_bytes()
    end = len(without_end(tmp_path / "whole.tar"))
    for cut in range(0, len(whole), 128):
        result = scan(tmp_path / "cut.tar", whole[:cut])
        if cut >= end + 1024:  # only filling was lost
            assert result.table.equals(clean.table) and result.broken is None
            continue
        assert result.broken is not None and result.broken.tar == "train-0.tar", cut
        assert 0 <= result.broken.offset <= cut, cut
        whole_before = [row for row in clean.table.to_pylist() if row["offset"] + 4096 < cut]
        begun = int(result.broken.reason.split("; ")[1].split(" samples")[0])
        assert len(whole_before) <= begun <= len(clean.table)


@pytest.mark.parametrize("writer", ["tarfile ustar", "tarfile pax"])
def test_a_flip_in_any_byte_of_a_header_changes_nothing_or_is_named(
    writer: str, tmp_path: Path
) -> None:
    WRITERS[writer](tmp_path / "whole.tar", FEW[:2])
    clean, whole = scan(tmp_path / "whole.tar"), (tmp_path / "whole.tar").read_bytes()
    silent = []
    for place in range(512):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        result = scan(tmp_path / "flipped.tar", bytes(flipped))
        if result.broken is not None:
            assert result.broken.offset <= place
        else:
            assert result.table.equals(clean.table) and result.bad == []
            silent.append(place)
    assert set(silent) <= {148, 154, 155}  # space around the checksum: the number is the same


def test_every_flip_in_a_payload_is_detected_after_indexing(tmp_path: Path) -> None:
    tar = tmp_path / "train-0.tar"
    WRITERS["jpeg"](tar, FEW[:2])
    rows = scan(tar).table.to_pylist()
    index_tars(str(tar), tmp_path / "out")
    split, whole = open_dataset(tmp_path / "out").split("train"), tar.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        row = rows[rng.integers(len(rows))]
        flipped = bytearray(whole)
        flipped[row["offset"] + int(rng.integers(row["size"]))] ^= 1 << int(rng.integers(8))
        tar.write_bytes(flipped)
        with pytest.raises(DataError, match=rf"train-0\.tar: sample s\d+ at byte {row['offset']}"):
            Reader(split).read(np.arange(2))
    problems = verify(tmp_path / "out").problems
    assert any(f"{tar}: hash" in str(p) or "altered" in p.what for p in problems)
    assert any(p.offset == row["offset"] and "checksum differs" in p.what for p in problems)


def test_a_tar_replaced_after_indexing_is_found_before_the_first_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tar(tmp_path / f"{name}.tar", members(samples(3, name)))
    shutil.copyfile(tmp_path / "one.tar", tmp_path / "train.tar")
    index_tars(str(tmp_path / "train.tar"), tmp_path / "out")
    assert (tmp_path / "two.tar").stat().st_size == (tmp_path / "train.tar").stat().st_size
    shutil.copyfile(tmp_path / "two.tar", tmp_path / "train.tar")
    with pytest.raises(DataError, match=r"train\.tar does not hold .* since it was indexed"):
        open_dataset(tmp_path / "out")


def encoded(size: tuple[int, int], mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def two_frames() -> bytes:
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (32, 32), c) for c in ("red", "blue"))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


CLASS = ("k.cls", b"1")
BAD: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "empty image": ([("k.png", b""), CLASS], "empty file"),
    "half an image": ([("k.png", GOOD[: len(GOOD) // 2]), CLASS], "truncated"),
    "half a JPEG": ([("k.jpg", image_of("k", "JPEG")[:500]), CLASS], "corrupt JPEG"),
    "another size": ([("k.png", encoded((33, 32), "RGB", "PNG")), CLASS], "33x32 pixels"),
    "JPEG, another size": ([("k.jpg", encoded((32, 31), "RGB", "JPEG")), CLASS], "32x31"),
    "grey": ([("k.png", encoded((32, 32), "L", "PNG")), CLASS], "grey"),
    "16 bit": ([("k.png", encoded((32, 32), "I;16", "PNG")), CLASS], "16-bit"),
    "CMYK": ([("k.jpg", encoded((32, 32), "CMYK", "JPEG")), CLASS], "mode CMYK"),
    "several frames": ([("k.jpg", two_frames()), CLASS], "2 images in one JPEG"),
    "a JPEG named png": ([("k.png", image_of("k", "JPEG")), CLASS], "not a PNG"),
    "a PNG named jpg": ([("k.jpg", GOOD), CLASS], "not a JPEG"),
    "no image": ([("k.cls", b"1")], "key 'k' has cls and no image"),
    "no class": ([("k.png", GOOD)], "key 'k' has no cls, other samples have"),
    "an empty class": ([("k.png", GOOD), ("k.cls", b" \n")], "a class of 0 letters"),
    "a class that is no text": ([("k.png", GOOD), ("k.cls", b"\xff\xfe")], "codec can't decode"),
    "a long class": ([("k.png", GOOD), ("k.cls", b"x" * 257)], "a class of 257 letters"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_is_named_and_left_out_only_when_asked(name: str, tmp_path: Path) -> None:
    bad, reason = BAD[name]
    good = list(members(FEW))
    write_tar(tmp_path / "train.tar", [*good[:4], *bad, *good[4:]])
    with tarfile.open(tmp_path / "train.tar") as tar:
        place = tar.getmembers()[4].offset
    with pytest.raises(DataError, match=r"--skip-bad 1$") as caught:
        index_tars(str(tmp_path / "train.tar"), tmp_path / "out")
    assert f"train.tar at byte {place}: " in str(caught.value) and reason in str(caught.value)
    assert not (tmp_path / "out").exists()
    metadata = index_tars(str(tmp_path / "train.tar"), tmp_path / "out", IndexOptions(skip_bad=1))
    assert metadata.splits["train"].count == 4 and metadata.provenance["skipped"]["count"] == 1
    pixels = read_split(open_dataset(tmp_path / "out").split("train"))
    assert np.allclose(pixels.mean((0, 1, 2)) / 255, metadata.channel_mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 60_000, "not valid JSON"),
        (b"[1]", "a JSON list"),
        (json_body(patient="p"), "no field 'label'"),
        (json_body(label=True), "expected text"),
        (json_body(label=[1]), "expected text"),
        (json_body(label="a", x=1.5), "expected a whole number"),
        (json_body(label="a", y=1 << 40), "expected a whole number"),
        (b'{"label": "a", "mpp": NaN}', "expected microns"),
        (json_body(label="a", site={"a": 1}), "expected text"),
        (b'{"label": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_json_is_not_believed(body: bytes, reason: str, tmp_path: Path) -> None:
    content = open_tar([("k.png", GOOD), ("k.json", body)], tmp_path) + END
    result = scan(tmp_path / "t.tar", content, label_field="label")
    assert result.bad_count == 1 and reason in result.bad[0].reason, result.bad


def test_concatenated_tars_and_keys_twice_are_refused(tmp_path: Path) -> None:
    first, second = (open_tar(list(members(samples(2, name))), tmp_path) for name in ("a", "b"))
    result = scan(tmp_path / "t.tar", first + END + second + END)
    assert result.broken and result.broken.offset == len(first)
    assert "does not end here with two blocks of zeros" in result.broken.reason
    result = scan(tmp_path / "t.tar", first + second + first + END)
    assert result.broken and result.broken.offset == len(first + second)
    assert "is a second image of the key" in result.broken.reason
    write_tar(tmp_path / "t.tar", [("k.png", GOOD), ("k.jpg", GOOD)])
    broken = scan(tmp_path / "t.tar").broken
    assert broken and "'k.jpg' is a second image" in broken.reason


def test_tars_that_do_not_belong_together(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", members(FEW))
    write_tar(tmp_path / "train-1.tar", [("k.png", GOOD)])
    with pytest.raises(DataError, match=r"\[\] beside the image in train-1.tar and \['cls'\]"):
        index_tars(str(tmp_path), tmp_path / "out")
    shutil.copyfile(tmp_path / "train-0.tar", tmp_path / "train-1.tar")
    with pytest.raises(DataError, match=r"train-1\.tar has the bytes of train-0\.tar"):
        index_tars(str(tmp_path), tmp_path / "out")
    write_tar(tmp_path / "train-1.tar", [("k.png", GOOD), ("k.cls", b"9")])
    with pytest.raises(DataError, match=r"labels \['9'\] are none of the classes"):
        index_tars(str(tmp_path), tmp_path / "out", IndexOptions(classes="a,b,c"))
    assert not (tmp_path / "out" / METADATA_NAME).exists()
