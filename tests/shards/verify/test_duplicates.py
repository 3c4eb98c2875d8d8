"""Patches in two splits: exact and near copies are found and named, chance resemblance is not."""

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from shards.codec.png import store
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.verify.__main__ import main
from shards.verify.check import verify
from shards.verify.duplicates import (
    LOW_CONTRAST,
    Duplicates,
    Fingerprints,
    find_duplicates,
    fingerprints,
)
from tests.helpers.patches import real_patches

Pixels = NDArray[np.uint8]


def tissue(count: int, seed: int) -> Pixels:
    """(count, 32, 32, 3) textures with the falling spectrum of natural images."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32))) + 1 / 32
    noise = np.fft.fft2(rng.normal(size=(count, 32, 32))) / frequency
    grey = np.fft.ifft2(noise).real
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    colour = rng.uniform(0.6, 1, (count, 1, 1, 3))
    return ((150 + 35 * grey[..., None]) * colour).clip(0, 255).astype(np.uint8)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    out = []
    for patch in pixels:
        file = io.BytesIO()
        Image.fromarray(patch).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)))
    return np.stack(out)


def noisy(pixels: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def resampled(pixels: Pixels) -> Pixels:
    large = [Image.fromarray(patch).resize((64, 64), Image.Resampling.BICUBIC) for patch in pixels]
    return np.stack([np.asarray(i.resize((32, 32), Image.Resampling.BOX)) for i in large])


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG 90": lambda p: jpeg(p, 90),
    "JPEG 75": lambda p: jpeg(p, 75),
    "noise": lambda p: noisy(p, 3),
    "brighter": lambda p: (p * 0.9 + 20).astype(np.uint8),
    "another stain": lambda p: (p * np.array([1, 0.85, 0.95])).astype(np.uint8),
    "resampled": resampled,
}


def compare(*splits: Pixels) -> Duplicates:
    names, start, prints = ("train", "val", "test"), 0, {}
    for name, pixels in zip(names, splits, strict=False):
        prints[name] = fingerprints(list(range(start, start + len(pixels))), pixels)
        start += len(pixels)
    return find_duplicates(prints)


def crossings_of(result: Duplicates) -> dict[tuple[str, str, str], int]:
    return {(c.kind, c.first, c.second): c.count for c in result.crossings}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_others_are_not(change: str) -> None:
    train, others = tissue(600, 0), tissue(500, 1)
    test = np.concatenate([others, CHANGES[change](train[:100])])
    (crossing,) = compare(train, test).crossings
    assert crossing.kind == "nearly the same" and 93 <= crossing.count <= 100
    assert crossing.examples == [(i, 1100 + i) for i, _ in crossing.examples]
    assert len(crossing.examples) == 5


@pytest.mark.realdata
def test_real_patches_resemble_their_copies_only() -> None:
    pixels = real_patches(900)
    result = compare(pixels[::2], pixels[1::2])
    assert crossings_of(result) == {}
    train = pixels[::2]
    contrasted = int((~fingerprints(list(range(len(train))), train).flat).sum())
    (crossing,) = compare(train, jpeg(train, 75)).crossings
    assert crossing.count >= 0.97 * contrasted


def test_every_pair_of_splits_is_compared_and_equal_pixels_are_not_near_too() -> None:
    train, val, test = tissue(50, 0), tissue(40, 1), tissue(30, 2)
    val[:3], test[:2], test[2:4] = train[:3], train[4], val[5:7]
    result = compare(train, val, test)
    assert crossings_of(result) == {
        ("the same pixels", "train", "val"): 3,
        ("the same pixels", "train", "test"): 2,
        ("the same pixels", "val", "test"): 2,
    }
    assert result.compared == {"train": 50, "val": 40, "test": 30}
    assert crossings_of(compare(np.concatenate([train, train]))) == {}


def test_blank_patches_are_counted_apart() -> None:
    rng = np.random.default_rng(0)
    blank = rng.normal(240, 2, (400, 32, 32, 3)).clip(0, 255).astype(np.uint8)
    white = np.full((100, 32, 32, 3), 255, np.uint8)
    train = np.concatenate([tissue(50, 0), blank[:200], white])
    test = np.concatenate([tissue(50, 1), blank[200:], white])
    result = compare(train, test)
    assert crossings_of(result) == {} and result.flat == {"train": 300, "val": 300}
    grey = tissue(50, 0) @ np.array([0.299, 0.587, 0.114])
    assert grey.std((1, 2)).min() > LOW_CONTRAST


def test_coefficients_agree_with_scipy() -> None:
    pixels = tissue(20, 3)
    got = fingerprints(list(range(20)), pixels)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(20, 64)[:, 1:]
    assert np.abs(got.low - low).max() < 1.5  # float16 of values to 2,000
    above = low > np.median(low, axis=1, keepdims=True)
    bits = np.unpackbits(got.bits.view(np.uint8).reshape(20, 8), axis=1)[:, 1:]
    assert (bits == above).mean() > 0.999


def random_fingerprints(count: int, seed: int) -> Fingerprints:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 2**63, (2, count)).astype(np.uint64)
    low = rng.normal(size=(count, 63)).astype(np.float16)
    return Fingerprints(np.arange(count), numbers[0], numbers[1], low, np.zeros(count, bool))


@pytest.mark.parametrize("differing", [0, 1, 2, 3])
def test_up_to_three_bits_never_hide_a_copy(differing: int) -> None:
    train, rng = random_fingerprints(3000, 0), np.random.default_rng(1)
    bits = [rng.choice(64, differing, replace=False) for _ in range(3000)]
    flips = np.array([sum(1 << int(bit) for bit in positions) for positions in bits], np.uint64)
    test = replace(train, exact=train.exact + np.uint64(1), bits=train.bits ^ flips)
    assert crossings_of(find_duplicates({"train": train, "test": test})) == {
        ("nearly the same", "train", "test"): 3000
    }
    other = replace(test, low=random_fingerprints(3000, 2).low)  # like bits, unlike coefficients
    assert crossings_of(find_duplicates({"train": train, "test": other})) == {}


def test_many_patches_and_a_hash_that_all_share_take_a_moment() -> None:
    start = time.process_time()
    find_duplicates(
        {"train": random_fingerprints(100_000, 0), "test": random_fingerprints(50_000, 1)}
    )
    flood = replace(random_fingerprints(5000, 0), bits=np.zeros(5000, np.uint64))
    unlike = replace(random_fingerprints(5000, 1), bits=np.zeros(5000, np.uint64))
    find_duplicates({"train": flood, "test": unlike})
    assert time.process_time() - start < 8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 test patches are in train: 6 exactly, 1 nearly; 2 patches are blank."""
    folder = tmp_path_factory.mktemp("duplicates")
    train, test = tissue(40, 0), tissue(30, 1)
    test[:6], test[6] = train[:6], noisy(train[6:7], 2)[0]
    train[-1], test[-1] = 255, 255
    for name, pixels in (("train", train), ("test", test)):
        (folder / "raw" / name / "a").mkdir(parents=True)
        for i, blob in enumerate(store(pixels)):
            (folder / "raw" / name / "a" / f"{name}{i:02d}.png").write_bytes(blob.tobytes())
    pack(folder / "raw", folder / "out", PackOptions(workers=1, shard_size=16))
    return folder / "out"


def test_verify_names_them_and_passes(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = verify(packed)
    assert report.problem_count == 0 and report.duplicates is not None
    assert crossings_of(report.duplicates) == {
        ("the same pixels", "train", "test"): 6,
        ("nearly the same", "train", "test"): 1,
    }
    unknown, same, near = report.warnings
    assert "source is unknown" in unknown
    assert same.startswith("6 of the 29 patches of test are in train too, with the same pixels: s")
    assert same.count("(train/a/train0") == same.count("(test/a/test0") == 5
    assert same.endswith("; ...")
    assert "(train/a/train06.png) and s" in near and near.endswith("(test/a/test06.png)")
    monkeypatch.setattr("sys.argv", ["verify", str(packed)])
    assert main() == 0
    printed = capsys.readouterr()
    assert f"warning: {same}" in printed.err and "2 patches have hardly any contrast" in printed.out


def test_the_search_can_be_left_out(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = verify(packed, duplicates=False)
    assert report.duplicates is None and len(report.warnings) == 1
    monkeypatch.setattr("sys.argv", ["verify", str(packed), "--no-duplicates"])
    assert main() == 0
    printed = capsys.readouterr()
    assert "contrast" not in printed.out and "same pixels" not in printed.err
