"""`pack` and `read`: all packers and readers do the same work; tables show what was measured."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from bench import command, patches, readers
from bench.arguments import make_parser
from bench.modes import packing, reading
from bench.patches import PatchSet
from bench.peers import PEERS
from bench.readers import LIMIT, OURS, REFERENCE, Batch, Epochs, Reader
from bench.settings import DEFAULTS
from bench.timing import usage
from pipeline.index import open_dataset
from pipeline.reader import read_split
from train import launch

COUNT, BATCH = 96, 32
NEEDED = {"litdata": "litdata", "MosaicML streaming": "streaming", "HF datasets": "datasets"}
NEEDED["FFCV, raw"] = "ffcv"
SLOW = [name for name in PEERS if "workers" in name or name in NEEDED]
QUICK = [*OURS, *(name for name in PEERS if name not in SLOW)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    return PatchSet(tmp_path_factory.mktemp("made") / "set", base, np.arange(40) % 3, COUNT)


def contents_of(small: PatchSet) -> Counter[tuple[str, int]]:
    return Counter(
        (xxhash.xxh3_64_hexdigest(pixels.tobytes()), int(label))
        for pixels, label in zip(small.pixels, small.labels, strict=True)
    )


def contents(batches: Iterator[Batch]) -> Counter[tuple[str, int]]:
    """How often each pair of pixels (by hash) and label is among the batches."""
    counts: Counter[tuple[str, int]] = Counter()
    for images, labels in batches:
        if images.shape[1] == 3:
            images = np.moveaxis(images, 1, 3)
        for image, label in zip(images, labels, strict=True):
            counts[xxhash.xxh3_64_hexdigest(image.tobytes()), int(label)] += 1
    return counts


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_reader_gives_each_patch_once_in_changing_order(name: str, small: PatchSet) -> None:
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed (bench/peers.txt)")
    contestant = (OURS | PEERS)[name]
    epochs = contestant.open(contestant.make(small), BATCH)
    for number in range(2):
        assert contents(epochs(number)) == contents_of(small)
    labels = [np.concatenate([batch for _, batch in epochs(i)]).tolist() for i in (2, 3)]
    assert labels[0] != labels[1] and sorted(labels[0]) == sorted(labels[1])
    assert len(contents_of(small)) == COUNT  # copies of the base are shifted, not repeated


@pytest.mark.parametrize("name", [*packing.OURS, *packing.PEERS])
def test_every_packer_writes_every_patch(name: str, small: PatchSet, tmp_path: Path) -> None:
    (packing.OURS | packing.PEERS)[name](small.pngs(), tmp_path / "out")
    packed = PEERS[REFERENCE].open(tmp_path / "out", BATCH)
    assert contents(packed(0)) == contents_of(small)


def test_a_set_too_large_for_files_is_packed_from_mosaics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "MAX_FILES", 10)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (1024, 32, 32, 3), np.uint8)
    large = PatchSet(tmp_path / "set", base, np.arange(1024) // 600, 2048)
    split = open_dataset(large.packed("stored")).split("train")
    pixels = read_split(split)
    assert len(split) == 1024  # a whole mosaic of the first class; the rest fills none
    source = {(x.tobytes(), int(y)) for x, y in zip(large.pixels, large.labels, strict=True)}
    packed = {(x.tobytes(), int(y)) for x, y in zip(pixels, split.labels, strict=True)}
    assert packed < source and len(packed) == 1024


def test_processor_time_counts_children() -> None:
    work = [sys.executable, "-c", "sum(range(5_000_000))"]
    used = usage(lambda: subprocess.run(work, check=True))
    assert used.core_seconds > 0.02 and used.seconds > 0


@pytest.mark.long
def test_the_modes_write_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "threads_for", lambda *args: 1)
    for mode in ("pack", "read"):
        target = tmp_path / f"{mode}.json"
        argv = [mode, "--patches", "64", "--repeats", "1", "--json", str(target)]
        argv += ["--peers"] if mode == "pack" else []
        assert command.main(make_parser().parse_args(argv)) == 0
        document: dict[str, Any] = json.loads(target.read_bytes())
        records = document["results"]
        shown = capsys.readouterr().out
        for record in records:
            name = record["reader" if mode == "read" else "packer"]
            assert name in shown
            rate = record["patches_per_s"]
            assert 0 < rate["low"] <= rate["median"] <= rate["high"]


def test_a_tool_that_fails_is_a_line_below_the_table(
    small: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path, batch: int) -> Epochs:
        raise ValueError("no such wheel\nand more")

    failing = Reader(lambda patch_set: patch_set.folder, broken)
    contestants = {LIMIT: OURS[LIMIT], "theirs": failing}
    records = reading.race(contestants, small, BATCH, repeats=1)
    lines = reading.report(records, DEFAULTS["cpu"]).splitlines()
    assert lines[-1] == "not measured: theirs: ValueError: no such wheel"
    monkeypatch.setitem(readers.OURS, "theirs", failing)
    with pytest.raises(ValueError, match="no such wheel"):  # a fault of ours is not hidden
        reading.race(contestants, small, BATCH, repeats=1)
