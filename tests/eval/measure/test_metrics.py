"""Metrics against independent computations, and the equivariance error against its definition."""

import platform
import resource
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from common.machine import keep_freed_memory
from eval.measure import metrics
from eval.measure.metrics import Symmetry
from eval.measure.readouts import READOUTS, encoders_of, equivariance_of, readouts_of
from models.config import ModelConfig
from models.vae import build
from pipeline import d4
from pipeline.config import ORDER, TRAINABLE, CorruptionConfig

SMALL = ModelConfig(widths=(4, 8, 16), latent_channels=8)


def uint8_images(count: int, seed: int = 0) -> Tensor:
    """Smooth random images, (n, 3, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return (F.interpolate(coarse, (32, 32), mode="bilinear") * 255).round().byte()


def noisy(x: Tensor) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return (x + 0.1 * noise).clamp(0, 1)


def numpy_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004: Gaussian 11x11 of sigma 1.5, borders reflected."""

    def local(x: np.ndarray) -> np.ndarray:
        return np.stack([gaussian_filter(c, 1.5, radius=5, mode="mirror") for c in x])

    mu_a, mu_b = local(a), local(b)
    var_a, var_b = local(a * a) - mu_a**2, local(b * b) - mu_b**2
    covariance = local(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mu_a * mu_b + c1) * (2 * covariance + c2)
    return float((top / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_psnr_and_ssim_agree_with_numpy_image_by_image() -> None:
    x = uint8_images(5).float() / 255
    y = noisy(x)
    a, b = x.double().numpy(), y.double().numpy()
    expected = [-10 * np.log10(np.mean((p - q) ** 2)) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr(y, x).numpy(), expected, rtol=1e-5)
    expected = [numpy_ssim(p, q) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.ssim(y, x).numpy(), expected, atol=2e-4)


def test_an_exact_copy_has_a_finite_psnr_and_ssim_1() -> None:
    x = uint8_images(2).float() / 255
    assert metrics.psnr(x, x).tolist() == [metrics.PSNR_CAP] * 2
    assert metrics.ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_kl_agrees_with_torch_distributions_and_counts_active_units() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(50, 4, 4, 4, generator=generator)
    log_var = torch.randn(50, 4, 4, 4, generator=generator)
    mean[:, 1:], log_var[:, 1:] = 0.01 * mean[:, 1:], 0.01 * log_var[:, 1:]  # nearly the prior
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    p = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    expected = torch.distributions.kl_divergence(q, p).flatten(1).mean(0)
    measured = metrics.latent_summary(mean, log_var)
    torch.testing.assert_close(torch.tensor(measured.kl_per_dimension), expected)
    assert measured.kl == pytest.approx(float(expected.sum()), rel=1e-5)
    assert (measured.active_units, measured.dimensions) == (16, 64)


def pooled(x: Tensor) -> Tensor:
    """Average pooling, exactly equivariant with trivial fibres."""
    return F.avg_pool2d(x, 8)


def lifted(group: str) -> Callable[[Tensor], Tensor]:
    """phi(x)[h] = T_h f(T_h^-1 x) for an f without symmetry: equivariant with regular fibres."""
    ramp = torch.linspace(0, 1, 32 * 32).reshape(32, 32) ** 2

    def encode(x: Tensor) -> Tensor:
        moved = [
            d4.act_one(F.avg_pool2d(d4.act_one(x, d4.inverse(h)) * ramp, 8), h)
            for h in range(ORDER[group])
        ]
        return torch.stack(moved, 2).flatten(1, 2)  # channel = fibre * |G| + h

    return encode


@pytest.mark.parametrize("group", ["D4", "C4"])
def test_the_error_of_an_exactly_equivariant_encoder_is_0(group: str) -> None:
    images = uint8_images(40)
    trivial = metrics.equivariance_errors(pooled, images, Symmetry(group))
    assert set(trivial) == set(range(1, 8))  # all of D4 also for a model trained on C4
    assert max(trivial.values()) < 1e-5
    regular = metrics.equivariance_errors(lifted(group), images, Symmetry(group, "regular"))
    assert set(regular) == set(range(1, ORDER[group]))
    assert max(regular.values()) < 1e-5
    assert min(metrics.equivariance_errors(lifted(group), images, Symmetry(group)).values()) > 0.1


@pytest.mark.parametrize("readout", [n for n, r in READOUTS.items() if r.source == "mean"])
def test_every_readout_of_an_exactly_equivariant_encoder_is_exact(readout: str) -> None:
    images = uint8_images(40)
    for group in ("D4", "C4"):
        for encode, fibres in ((pooled, "trivial"), (lifted(group), "regular")):
            measured = equivariance_of({"mean": encode}, images, readout, Symmetry(group, fibres))
            assert len(measured) == ORDER[group] - 1 and max(measured.values()) < 2e-5


def test_readouts_of_an_orbit_are_exact_for_any_encoder() -> None:
    images, model = uint8_images(16), build(SMALL, 0).eval()
    with torch.no_grad():
        measured = {
            name: max(equivariance_of(encoders_of(model), images, name).values())
            for name in READOUTS
        }
    orbit = {name for name, readout in READOUTS.items() if readout.orbit}
    assert orbit == {"orbit_aligned", "orbit_invariant", "stage_stats_invariant"}
    assert max(measured[name] for name in orbit) < 2e-5
    assert min(measured[name] for name in READOUTS.keys() - orbit) > 0.01


@pytest.mark.parametrize("group", ["D4", "C4"])
def test_stage_statistics_of_a_tied_encoder_are_exact(group: str) -> None:
    model = build(ModelConfig("tied", group=group), 0).eval()
    with torch.no_grad():
        for name, fibres in (("stage_stats", "regular"), ("stage_stats_invariant", "trivial")):
            symmetry = Symmetry(group, fibres)
            errors = equivariance_of(encoders_of(model), uint8_images(16), name, symmetry)
            assert max(errors.values()) < 2e-5


def test_stage_statistics_are_means_and_deviations_of_the_stages() -> None:
    model, x = build(ModelConfig("refined"), 0).eval(), uint8_images(5).float() / 255
    with torch.no_grad():
        maps = model.stages(x)
        features = readouts_of(encoders_of(model), x, ["stage_stats"])["stage_stats"].numpy()
        assert torch.equal(maps[-1], model.encoder(x).features)
    assert [m.shape[1:] for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]
    stats = [(m.numpy().mean((2, 3)), m.numpy().std((2, 3))) for m in maps]
    expected = np.concatenate([np.concatenate(s, 1) for s in zip(*stats, strict=True)], 1)
    assert expected.shape == (5, 480)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_the_error_of_an_unrelated_code_is_1_and_shrinking_does_not_lower_it() -> None:
    def unrelated(scale: float) -> dict[int, float]:
        generator = torch.Generator().manual_seed(0)
        return metrics.equivariance_errors(
            lambda x: scale * (3 + torch.randn(len(x), 24, 4, 4, generator=generator)),
            uint8_images(100),
        )

    errors = unrelated(1.0)
    assert list(errors.values()) == pytest.approx([1.0] * 7, abs=0.03)
    assert list(unrelated(1e-3).values()) == pytest.approx(list(errors.values()), rel=1e-4)


def test_the_error_follows_its_formula() -> None:
    images, model = uint8_images(70), build(SMALL, 0).eval()
    x = images.float() / 255
    with torch.no_grad():
        measured = metrics.equivariance_errors(lambda v: model.encoder(v).mean, images)
        mu = model.encoder(x).mean.double()
        spread = 2 * (mu - mu.mean(0)).square().sum((1, 2, 3)).mean()
        squared = [
            (model.encoder(d4.act_one(x, g)).mean - d4.act_one(mu, g)).square().sum((1, 2, 3))
            for g in range(1, 8)
        ]
    each = [float((s.mean() / spread).sqrt()) for s in squared]
    assert list(measured.values()) == pytest.approx(each, rel=1e-4)
    total = float((torch.stack(squared).mean() / spread).sqrt())
    assert metrics.mean_error(measured) == pytest.approx(total, rel=1e-4)
    rotations = float((torch.stack(squared[:3]).mean() / spread).sqrt())
    assert metrics.mean_error(measured, "C4") == pytest.approx(rotations, rel=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_validate_is_the_metrics_and_leaves_the_model_as_it_was(training: bool) -> None:
    model, images = build(SMALL, 0).train(training), uint8_images(70)
    with torch.autocast("cpu", torch.bfloat16):
        measured = metrics.validate(model, images, batch=32)
    assert model.training is training
    x = images.float() / 255
    with torch.no_grad():
        q = model.encoder(x)
        x_hat = model.decoder(q.mean)
    summary = metrics.latent_summary(q.mean, q.log_var)
    assert measured == pytest.approx(
        {
            "psnr": float(metrics.psnr(x_hat, x).mean()),
            "ssim": float(metrics.ssim(x_hat, x).mean()),
            "kl": summary.kl,
            "active_units": summary.active_units,
            "equivariance_error": metrics.mean_error(
                metrics.equivariance_errors(lambda v: model.encoder(v).mean.detach(), images)
            ),
        },
        rel=1e-4,
    )
    assert metrics.validate(model, images, batch=7) == pytest.approx(measured, rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_every_model_sees_the_same_corruptions_in_the_ranges_of_the_run() -> None:
    grey = torch.full((80, 3, 32, 32), 128, dtype=torch.uint8)
    config = CorruptionConfig(noise=0.0, noise_sigma=(0.1,))  # its share does not matter here
    first, second = (metrics.denoising(build(SMALL, seed), grey, config) for seed in (0, 1))
    assert first["noise"].input_psnr == pytest.approx(20, abs=0.1)
    for kind in TRAINABLE:
        assert first[kind].input_psnr == second[kind].input_psnr
        assert first[kind].psnr != second[kind].psnr
    assert first["identity"].input_psnr is None
    x, model = grey.float() / 255, build(SMALL, 0).eval()
    with torch.no_grad():
        clean = float(metrics.psnr(model(x), x).mean())
    assert first["identity"].psnr == pytest.approx(clean, rel=1e-5)
    assert first == metrics.denoising(build(SMALL, 0), grey, config)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    """A block of 16 MB that is freed and asked for again causes no page faults.

    A system that reclaims memory meanwhile adds some to a call, but not to all.
    """
    assert keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(4 << 20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(faults() for _ in range(20)) < 100  # of 4096 pages
