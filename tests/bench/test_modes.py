"""The modes that several processes make slow, each once and tiny, beside the other tools."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import command
from bench.arguments import make_parser
from bench.baselines import PEERS
from bench.modes import augment, embedding, neighbours, scaling, side_by_side
from bench.plain_trainer import nchw
from bench.settings import VARIANTS
from eval.encoder import load
from models import snapshot
from models.config import ModelConfig
from models.vae import build
from pipeline import d4
from pipeline.config import TRAINABLE
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.schema import PATCH
from tests.helpers.spreads import is_spread
from train import launch

TINY = [
    *("--batch-size", "8", "--repeats", "2", "--steps", "1"),
    *("--window", "0.01", "--no-compiled", "--peers"),
]


def run_mode(
    mode: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> list[dict[str, Any]]:
    monkeypatch.setattr(launch, "threads_for", lambda *args: 1)
    target = folder / "results.json"
    argv = [mode, "--json", str(target), "--data", str(data), *TINY, *more]
    threads = torch.get_num_threads()
    assert command.main(make_parser().parse_args(argv)) == 0
    torch.set_num_threads(threads)
    results: list[dict[str, Any]] = json.loads(target.read_bytes())["results"]
    return results


def test_parts_of_the_augmentation_are_those_of_training() -> None:
    images = torch.randint(256, (8, 3, PATCH, PATCH), dtype=torch.uint8)
    calls = augment.ours(images, compiled=False)
    assert list(calls) == ["D4", *TRAINABLE[1:], "mixture", augment.ALL]
    x, mixed = images.float() / 255, calls["mixture"]()
    orbit = torch.stack([d4.act_one(x, g) for g in range(8)])
    assert (calls["D4"]() == orbit).flatten(2).all(2).any(0).all()
    assert torch.equal(mixed[:2], x[:2]) and not (mixed[2:] == x[2:]).flatten(1).all(1).any()
    for kind in TRAINABLE[1:]:
        assert not (calls[kind]() == x).flatten(1).all(1).any(), kind


@pytest.mark.parametrize("architecture", ["seed", "refined"])
def test_our_embeddings_are_those_of_the_plain_loop(
    architecture: Any, small_dataset: Path, tmp_path: Path
) -> None:
    model = build(ModelConfig(architecture), 0)
    snapshot.save(model, tmp_path / "snapshot", asdict(embedding.RUN_INFO))
    pixels = read_split(open_dataset(small_dataset).split("train"))
    plain = nchw(load(tmp_path, "cpu").model)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255
    expected = embedding.plain_embeddings(plain, iter(x.split(20)))
    assert expected.std() > 0.01
    embeddings = load(tmp_path, "cpu").encode(pixels)
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


@pytest.mark.long
def test_baselines_are_measured_with_the_plain_trainers(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "baselines.png"
    sizes = ["--batch-sizes", "4", "8", "--plot", str(picture)]
    records = run_mode("train", small_dataset, tmp_path, monkeypatch, *sizes)
    rungs = [r for r in records if r["kind"] == "rung"]
    keys = {(r["preset"], r["batch_size"], r["rung"]) for r in rungs}
    assert len(keys) == len(rungs) == 2 * 2 * len([*PEERS, *VARIANTS])
    for record in rungs:
        if record["rung"] in PEERS or record["ours"]:
            assert is_spread(record["images_per_s"]) and is_spread(record["ours_is_faster_by"])
    assert [r["ours_is_faster_by"]["median"] for r in rungs if r["ours"]] == [1.0] * 4
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_kornias_modules_are_measured_beside_ours(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run_mode("augment", small_dataset, tmp_path, monkeypatch)
    names = [r["name"] for r in records if r["kind"] == "augment"]
    ours = ["D4", "noise", "blur", "jpeg", "mixture", augment.ALL]
    assert names == ours + [f"kornia {name}" for name in ours]
    steps = [r["name"] for r in records if r["kind"] == "step"]
    for record in records:
        assert is_spread(record["us_an_image"])
        assert all(is_spread(record["share_of"][step]) for step in steps)


@pytest.mark.long
def test_several_runs_share_a_device(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "RUNS", (1, 2))
    records = run_mode("side-by-side", small_dataset, tmp_path, monkeypatch)
    assert [r["runs"] for r in records] == [1, 2]
    for record in records:
        total, each = record["images_per_s"], record["images_per_s_of_each"]
        assert is_spread(total) and each["repeats"] == 2 * record["runs"]
        assert record["runs"] * each["low"] <= total["low"] <= total["high"]
        assert total["high"] <= record["runs"] * each["high"]


@pytest.mark.long
def test_a_training_has_neighbours(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "SPINS", (1000, 0))
    monkeypatch.setattr(neighbours, "usable_cores", lambda: 1)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    records = run_mode("neighbours", small_dataset, tmp_path, monkeypatch)
    assert [r["spin"] for r in records] == [1000, 0] and os.environ["GOMP_SPINCOUNT"] == "7"
    for record in records:
        assert all(is_spread(record[n]) for n in ("alone", "both", "beside_a_niced_process"))


@pytest.mark.slow
def test_processes_share_the_packing_and_the_reading(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "usable_cores", lambda: 2)
    records = run_mode("scaling", small_dataset, tmp_path, monkeypatch, "--patches", "64")
    tasks = [(r["task"], r["processes"]) for r in records]
    assert tasks == [(t, n) for t in ("pack, stored", "read, stored, streamed") for n in (1, 2)]
    assert all(is_spread(r["patches_per_s"]) for r in records)


@pytest.mark.slow
def test_embeddings_are_measured_from_shards_to_the_disk(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = run_mode("embed", small_dataset, tmp_path, monkeypatch)
    names = [embedding.OURS, embedding.ENCODING, embedding.PLAIN]
    assert [r["name"] for r in records] == names
    assert all(is_spread(r["images_per_s"]) for r in records)
