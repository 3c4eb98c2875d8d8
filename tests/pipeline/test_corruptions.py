"""Corruptions stay in range, touch only their share, and match independent implementations."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.stats import chi2_contingency, chisquare

from models.config import ModelConfig, ObjectiveConfig
from models.objective import Objective
from models.vae import build
from pipeline import corruptions
from pipeline.config import NONE, TRAINABLE, CorruptionConfig
from pipeline.corruptions import GRADED, KINDS
from pipeline.corruptions.blur import blur
from pipeline.corruptions.jpeg import jpeg
from pipeline.corruptions.kind import Kind
from tests.helpers.patches import real_patches
from train.config import PRESETS
from train.step import TrainStep, generator_for

CPU = torch.device("cpu")


def random_images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_each_kind_has_its_share() -> None:
    x, config = random_images(64), CorruptionConfig()
    draws = corruptions.draw(config, 64, 32, torch.Generator().manual_seed(2))
    out = corruptions.corrupt(x, config, draws)
    changed = (out != x).flatten(1).any(1)
    assert config.counts(64) == {"identity": 16, "noise": 16, "blur": 16, "jpeg": 16}
    assert not changed[:16].any() and changed[16:].all()
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 30, 255])
def test_counts_add_up(batch: int) -> None:
    for config in (CorruptionConfig(), CorruptionConfig(identity=0), NONE):
        counts = config.counts(batch).values()
        assert sum(counts) == batch and min(counts) >= 0
        draws = corruptions.draw(config, batch, 32, torch.Generator().manual_seed(0))
        assert corruptions.corrupt(random_images(batch), config, draws).shape == (batch, 3, 32, 32)


def test_a_kind_beyond_the_first_four_is_off_where_it_is_not_asked_for() -> None:
    shares = CorruptionConfig().shares
    assert [name for name, share in shares.items() if share] == list(shares)[:4]
    assert set(shares) <= set(KINDS) and set(PRESETS["vae"]().corruption.shares.values()) == {0, 1}
    for kind in TRAINABLE:
        alone = CorruptionConfig().only("identity", kind)
        assert {name for name, share in alone.shares.items() if share} == {"identity", kind}


def test_numbers_in_seeds_are_unique() -> None:
    numbers = [kind.number for kind in KINDS.values()]
    assert len(set(numbers)) == len(numbers) and max(numbers) < 4 * corruptions.CHUNK


SUMS = [  # of the first version, whose seeds counted the kinds: results stay comparable
    *(6113.667940, 6110.236967, 6113.130667, 6126.475973),
    *(6096.167627, 6113.443254, 6108.013007, 6011.295429, 6304.523596),
]


def test_corrupted_test_images_do_not_depend_on_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def corrupted() -> list[torch.Tensor]:
        x, config = random_images(4), CorruptionConfig()
        trained = [corruptions.corrupt_as(name, x, config, 64) for name in TRAINABLE]
        return trained + [corruptions.corrupt_at(name, x, 2, 64) for name in GRADED]

    before = corrupted()
    others = {"new": Kind(title="new", number=200), **KINDS}
    monkeypatch.setattr(corruptions, "KINDS", others)
    assert all(map(torch.equal, before, corrupted()))
    assert [float(images.double().sum()) for images in before] == pytest.approx(SUMS, rel=1e-6)


def test_blur_matches_scipy() -> None:
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    sigma = torch.tensor([0.4, 0.9], dtype=torch.float64)
    for image, blurred, s in zip(x, blur(x, sigma), sigma.tolist(), strict=True):
        kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * s * s))
        kernel /= kernel.sum()
        expected = image.numpy()
        for axis in (1, 2):
            expected = correlate1d(expected, kernel, axis=axis, mode="mirror")
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-7)


@pytest.mark.realdata
@pytest.mark.parametrize("quality", [10, 20, 35, 50])
def test_jpeg_matches_libjpeg_on_real_patches(quality: int) -> None:
    pixels = real_patches(64)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    coded = jpeg(x, torch.full((len(x),), float(quality))).permute(0, 2, 3, 1).numpy() * 255
    differences = []
    for patch, ours in zip(pixels, coded, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(patch).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        differences.append(np.abs(ours - np.asarray(Image.open(buffer), np.float32)).mean())
    assert np.mean(differences) <= 2.5


def test_draws_depend_on_seed_images_and_rank() -> None:
    config = CorruptionConfig()

    def noise(seed: int, images: int, rank: int) -> torch.Tensor:
        generator = generator_for(seed, images, rank, CPU)
        return corruptions.draw(config, 16, 32, generator)["noise"][0]

    assert torch.equal(noise(0, 512, 1), noise(0, 512, 1))
    for other in [(1, 512, 1), (0, 513, 1), (0, 512, 0)]:
        assert not torch.equal(noise(0, 512, 1), noise(*other))


def test_elements_are_uniform_and_independent_of_the_corruption() -> None:
    objective = Objective(ObjectiveConfig(equivariance=0.3), 24)
    step = TrainStep(build(ModelConfig(), 0), objective, CorruptionConfig())
    kind = np.repeat(np.arange(4), list(step.corruption.counts(256).values()))
    augment, element = np.zeros((4, 8)), np.zeros((4, 8))
    for i in range(200):
        draws = step.draw(256, generator_for(3, i * 256, 0, CPU))
        np.add.at(augment, (kind, draws.augment_B.numpy()), 1)
        np.add.at(element, (kind, draws.element_B.numpy()), 1)
    assert not element[:, 0].any()
    for table in (augment, element[:, 1:]):  # kinds have equal shares: every cell has one mean
        assert chisquare(table.sum(0)).pvalue > 1e-3
        assert chisquare(table.ravel()).pvalue > 1e-3
        assert chi2_contingency(table).pvalue > 1e-3
