"""Corruptions stay in range, touch only their share, and match independent implementations."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate1d
from scipy.stats import chi2_contingency, chisquare

from models.objective import Objective, ObjectiveConfig
from models.vae import ModelConfig, build
from pipeline.corruptions import kinds as corrupt
from pipeline.corruptions.kinds import CorruptionConfig
from tests.helpers.patches import real_patches
from train.step import TrainStep, generator_for

CPU = torch.device("cpu")


def test_each_kind_has_its_share() -> None:
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    config = CorruptionConfig()
    out = corrupt.corrupt(x, config, corrupt.draw(config, 64, 32, torch.Generator().manual_seed(2)))
    changed = (out != x).flatten(1).any(1)
    assert config.counts(64) == [16, 16, 16, 16]
    assert not changed[:16].any() and changed[16:].all()
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 30, 255])
def test_counts_add_up(batch: int) -> None:
    for config in (CorruptionConfig(), CorruptionConfig(identity=0), corrupt.NONE):
        counts = config.counts(batch)
        assert sum(counts) == batch and min(counts) >= 0
        x = torch.rand(batch, 3, 32, 32)
        draws = corrupt.draw(config, batch, 32, torch.Generator().manual_seed(0))
        assert corrupt.corrupt(x, config, draws).shape == x.shape


def test_blur_matches_scipy() -> None:
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    sigma = torch.tensor([0.4, 0.9], dtype=torch.float64)
    for image, blurred, s in zip(x, corrupt.blur(x, sigma), sigma.tolist(), strict=True):
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
    ours = corrupt.jpeg(x, torch.full((len(x),), float(quality))).permute(0, 2, 3, 1).numpy() * 255
    differences = []
    for patch, mine in zip(pixels, ours, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(patch).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        differences.append(np.abs(mine - np.asarray(Image.open(buffer), np.float32)).mean())
    assert np.mean(differences) <= 2.5


def test_draws_depend_on_seed_images_and_rank() -> None:
    config = CorruptionConfig()

    def noise(seed: int, images: int, rank: int) -> torch.Tensor:
        return corrupt.draw(config, 16, 32, generator_for(seed, images, rank, CPU)).noise

    assert torch.equal(noise(0, 512, 1), noise(0, 512, 1))
    for other in [(1, 512, 1), (0, 513, 1), (0, 512, 0)]:
        assert not torch.equal(noise(0, 512, 1), noise(*other))


def test_elements_are_uniform_and_independent_of_the_corruption() -> None:
    step = TrainStep(
        build(ModelConfig(), 0), Objective(ObjectiveConfig(equivariance=0.3), 24),
        CorruptionConfig(),
    )  # fmt: skip
    counts = step.corruption.counts(256)
    kind = np.repeat(np.arange(4), counts)
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
