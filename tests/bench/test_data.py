"""`pack` and `read`: every contestant does the same work, and the tables show what was measured."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from bench import made, throughput
from bench.made import Made
from bench.modes import packing, reading
from bench.modes.reading import LIMIT, OURS, REFERENCE, contents
from bench.peers import PEERS
from bench.settings import DEFAULTS
from bench.spent import spent
from pipeline.index import open_dataset
from pipeline.reader import Reader
from train import launch

COUNT, BATCH = 96, 32
NEEDED = {"litdata": "litdata", "MosaicML streaming": "streaming", "HF datasets": "datasets"}
NEEDED["FFCV, raw"] = "ffcv"
SLOW = [name for name in PEERS if "workers" in name or name in NEEDED]
QUICK = [*OURS, *(name for name in PEERS if name not in SLOW)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    return Made(tmp_path_factory.mktemp("made") / "set", base, np.arange(40) % 3, COUNT)


def expected(small: Made) -> Counter[tuple[str, int]]:
    return Counter(
        (xxhash.xxh3_64_hexdigest(pixels.tobytes()), int(label))
        for pixels, label in zip(small.pixels, small.labels, strict=True)
    )


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_every_reader_gives_each_patch_once_in_changing_order(name: str, small: Made) -> None:
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed (bench/peers.txt)")
    contestant = (OURS | PEERS)[name]
    epochs = contestant.epochs(contestant.make(small), BATCH)
    for number in range(2):
        assert contents(epochs(number)) == expected(small)
    labels = [np.concatenate([found for _, found in epochs(i)]).tolist() for i in (2, 3)]
    assert labels[0] != labels[1] and sorted(labels[0]) == sorted(labels[1])
    assert len(expected(small)) == COUNT  # copies of the base are shifted, not repeated


@pytest.mark.parametrize("name", [*packing.OURS, *packing.PEERS])
def test_every_packer_writes_every_patch(name: str, small: Made, tmp_path: Path) -> None:
    (packing.OURS | packing.PEERS)[name](small.pngs(), tmp_path / "out")
    tars = made.Path(tmp_path / "out")
    found = contents(PEERS[REFERENCE].epochs(tars, BATCH)(0))
    assert found == expected(small)


def test_a_set_too_large_for_files_is_packed_from_mosaics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "FEW", 10)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (1024, 32, 32, 3), np.uint8)
    large = Made(tmp_path / "set", base, np.arange(1024) // 600, 2048)
    split = open_dataset(large.packed("stored")).split("train")
    pixels = Reader(split).read(np.arange(len(split)))
    assert len(split) == 1024  # a whole mosaic of the first class; the rest fills none
    known = {(image.tobytes(), int(y)) for image, y in zip(large.pixels, large.labels, strict=True)}
    found = {(image.tobytes(), int(y)) for image, y in zip(pixels, split.labels, strict=True)}
    assert found < known and len(found) == 1024


def test_processor_time_counts_children() -> None:
    work = [sys.executable, "-c", "sum(range(5_000_000))"]
    taken = spent(lambda: subprocess.run(work, check=True))
    assert taken.core_seconds > 0.02 and taken.seconds > 0


@pytest.mark.long
def test_the_modes_write_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)
    for mode in ("pack", "read"):
        target = tmp_path / f"{mode}.json"
        argv = [mode, "--patches", "64", "--repeats", "1", "--json", str(target)]
        argv += ["--peers"] if mode == "pack" else []
        assert throughput.main(argv) == 0
        document: dict[str, Any] = json.loads(target.read_bytes())
        records = document["results"]
        shown = throughput.load_mode(mode).report(records, DEFAULTS["cpu"])
        for record in records:
            name = record["reader" if mode == "read" else "packer"]
            assert name in shown
            rate = record["patches_per_s"]
            assert 0 < rate["low"] <= rate["median"] <= rate["high"]


def test_a_tool_that_fails_is_a_line_below_the_table(
    small: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path, batch: int) -> reading.Epochs:
        raise ValueError("no such wheel\nand more")

    settings = replace(DEFAULTS["cpu"], repeats=1, patches=(COUNT,))
    failing = reading.Reading(lambda made: made.folder, broken)
    contestants = {LIMIT: OURS[LIMIT], "theirs": failing}
    records = reading._race(contestants, small, BATCH, settings, lambda line: None)
    lines = reading.report(records, settings).splitlines()
    assert lines[-1] == "  not measured: theirs: ValueError: no such wheel"
    monkeypatch.setitem(reading.OURS, "theirs", failing)
    with pytest.raises(ValueError, match="no such wheel"):  # a fault of ours is not hidden
        reading._race(contestants, small, BATCH, settings, lambda line: None)
