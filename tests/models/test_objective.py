"""The objective against independent few-line computations of its equations."""

import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torchmetrics.functional.image import structural_similarity_index_measure

from models.config import ModelConfig, ObjectiveConfig
from models.objective import Inputs, Objective, kl_terms, reconstruction_nll, structural_loss
from models.vae import build
from pipeline import d4
from pipeline.config import ORDER, CorruptionConfig, JitterConfig
from train.step import TrainStep, generator_for

D = 3 * 32 * 32


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(4, 3, 32, 32, generator=generator) for _ in range(2))  # type: ignore


def test_half_is_the_plain_squared_error() -> None:
    x, x_hat = pair()
    plain = sum(float(((a - b) ** 2).sum()) for a, b in zip(x, x_hat, strict=True)) / len(x)
    assert float(reconstruction_nll(x, x_hat, 0.5)) == pytest.approx(plain, rel=1e-6)


def test_likelihood_is_the_normal_one_up_to_its_constant() -> None:
    x, x_hat = pair()
    v = 0.013
    nll = -Normal(x_hat, math.sqrt(v)).log_prob(x).sum() / len(x)
    expected = nll - D / 2 * math.log(2 * math.pi) + D / 2 * math.log(2)
    assert float(reconstruction_nll(x, x_hat, v)) == pytest.approx(float(expected), rel=1e-5)


def test_kl_is_the_one_of_torch() -> None:
    mean, log_var = torch.randn(3, 24, 4, 4), torch.randn(3, 24, 4, 4)
    expected = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0))
    assert torch.allclose(kl_terms(mean, log_var), expected, atol=1e-5)


def inputs(batch: int = 8) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 3, 32, 32, generator=generator)
    x_tilde = torch.rand(batch, 3, 32, 32, generator=generator)
    noise = torch.randn(batch, 24, 4, 4, generator=generator)
    return Inputs(x, x_tilde, noise, torch.randint(1, 4, (batch,), generator=generator))


@pytest.mark.parametrize("group", ["D4", "C4"])
@pytest.mark.parametrize("form", ["mean", "features", "implicit"])
@pytest.mark.parametrize("fibres", ["trivial", "regular"])
def test_total_is_the_sum_of_independent_terms(group: str, form: str, fibres: str) -> None:
    if (form, fibres) == ("features", "regular"):
        with pytest.raises(ValueError, match="regular"):
            ObjectiveConfig(form="features", fibres="regular")
        return
    config = ObjectiveConfig(
        beta=2.0,
        noise_var=0.5,
        equivariance=0.3,
        group=group,
        form=form,
        fibres=fibres,  # type: ignore
    )
    model = build(ModelConfig("refined"), 0)
    batch = inputs()
    x, x_tilde, noise, g, _ = batch
    losses = Objective(config, 24)(model, batch)

    q = model.encoder(x_tilde)
    z = q.mean + (q.log_var / 2).exp() * noise
    squared = ((x - model.decoder(z)) ** 2).sum((1, 2, 3)).mean()
    kl = (
        kl_divergence(Normal(q.mean, (q.log_var / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    )

    def rho(phi: Tensor, element: int) -> Tensor:
        moved = d4.act_one(phi, element)
        if fibres == "trivial":
            return moved
        order = ORDER[group]
        old = [d4.product(d4.inverse(element), h) for h in range(order)]
        return torch.stack([moved[(c // order) * order + old[c % order]] for c in range(24)])

    terms = []
    for i, element in enumerate(g.tolist()):
        if form == "implicit":
            a, b = d4.act_one(x[i], element), model.decoder(rho(z[i], element)[None])[0]
        else:
            moved = model.encoder(d4.act_one(x_tilde[i], element)[None])
            a, b = getattr(moved, form)[0], rho(getattr(q, form)[i], element)
        terms.append(((a - b) ** 2).sum())
    order = ORDER[group]
    equivariance = torch.stack(terms).mean() * (order - 1) / order
    expected = (squared + 2 * kl + 0.3 * equivariance) / D
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["equivariance"].item() == pytest.approx(equivariance.item(), rel=1e-3)


def test_autoencoder_has_no_noise_and_no_kl() -> None:
    model = build(ModelConfig(), 0)
    objective = Objective(ObjectiveConfig(beta=0.0, stochastic=False, noise_var=0.5), 24)
    batch = inputs()
    losses = objective(model, batch)
    assert "kl" not in losses
    other = objective(model, batch._replace(noise=-batch.noise))
    assert torch.equal(losses["loss"], other["loss"])


def test_learned_noise_variance_finds_the_mean_squared_error() -> None:
    objective = Objective(ObjectiveConfig(), 24)
    x = torch.zeros(2, 3, 32, 32)
    x_hat = torch.full_like(x, 0.1)
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = reconstruction_nll(x, x_hat, objective.noise_var()) / D
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert float(objective.noise_var()) == pytest.approx(0.01, rel=1e-2)


def test_ssim_term_is_the_one_of_torchmetrics() -> None:
    x, noise = pair()
    x = F.avg_pool2d(x, 5, 1, 2)  # smooth, so that there is structure to lose
    x_hat = (x + 0.1 * noise).clamp(0, 1)
    reference = structural_similarity_index_measure(x_hat, x, data_range=1.0)
    assert float(structural_loss(x, x_hat)) == pytest.approx(D * (1 - float(reference)), rel=1e-4)
    assert float(structural_loss(x, x)) == pytest.approx(0, abs=1e-3)


def test_ssim_term_is_added_with_its_weight() -> None:
    model = build(ModelConfig(), 0)
    plain, with_ssim = (Objective(ObjectiveConfig(ssim=w), 24)(model, inputs()) for w in (0, 0.7))
    added = 0.7 * with_ssim["ssim"] / D
    assert "ssim" not in plain and float(added) > 0.05
    assert float(with_ssim["loss"]) == pytest.approx(float(plain["loss"] + added), rel=1e-5)


def test_gradient_reaches_both_branches_of_the_equivariance_term() -> None:
    model = build(ModelConfig(), 0)
    q, moved = Objective(ObjectiveConfig(equivariance=0.3), 24).encode(model, inputs())
    assert q.mean.requires_grad and moved.mean.requires_grad


def test_relative_term_is_the_reported_error_and_shrinking_codes_does_not_lower_it() -> None:
    """384 eps^2 with eps by its equation, for codes and for codes of a tenth of the size."""
    config = ObjectiveConfig(equivariance=1.0, form="relative", fibres="regular")
    objective = Objective(config, 24)
    generator = torch.Generator().manual_seed(4)
    moved, expected = (torch.randn(64, 24, 4, 4, generator=generator) for _ in range(2))
    expected = 0.8 * moved + 0.2 * expected
    means = torch.cat([moved, expected])
    error = sum(float((a - b).square().sum()) for a, b in zip(moved, expected, strict=True)) / 64
    spread = sum(float((m - means.mean(0)).square().sum()) for m in means) / 128
    by_hand = 7 / 8 * 384 * error / (2 * spread)
    for scale in (1.0, 0.1):
        term = objective.equivariance(scale * moved, scale * expected)
        assert float(term) == pytest.approx(by_hand, rel=1e-3)


def test_step_is_one_graph_without_recompilation() -> None:
    # without jitter: `test_classification`
    torch._dynamo.reset()
    jitter = JitterConfig(0.2, 0.05, 0.1, 0.1)
    objective = Objective(ObjectiveConfig(equivariance=0.3), 24)
    step = TrainStep(build(ModelConfig(), 0), objective, CorruptionConfig(), jitter=jitter)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=False)
    for i in range(3):
        images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        draws = step.draw(8, generator_for(0, 8 * i, 0, torch.device("cpu")))
        assert torch.equal(compiled(images, draws)["loss"], step(images, draws)["loss"])
    assert counter.frame_count == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_is_reproducible_to_the_bit(precision: str) -> None:
    def gradients() -> list[Tensor]:
        objective = Objective(ObjectiveConfig(equivariance=0.3), 24)
        step = TrainStep(build(ModelConfig(), 0), objective, CorruptionConfig(), precision)  # type: ignore
        images = torch.arange(16 * D).remainder(251).to(torch.uint8).view(16, 32, 32, 3)
        draws = step.draw(16, generator_for(0, 256, 0, torch.device("cpu")))
        step(images.permute(0, 3, 1, 2), draws)["loss"].backward()
        return [p.grad for p in step.parameters() if p.grad is not None]

    first, second = gradients(), gradients()
    assert len(first) > 100 and all(map(torch.equal, first, second))
