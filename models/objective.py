"""The losses of a VAE, and the protocol of what a run can learn.

    L = L_rec + beta KL + lambda L_eq

Losses are sums over pixels or latent entries and means over the batch, all in float32. The total is
divided by D = 3072, which leaves the minimum where it is and gives gradient norms of order 1.

Shapes: B batch, images (B, 3, 32, 32) in [0, 1], latents (B, 24, 4, 4).
"""

import math
from typing import NamedTuple, Protocol

import torch
from kornia.losses import ssim_loss
from torch import Tensor, nn

from models.blocks import Posterior
from models.config import LATENT_SIDE, NOISE_VAR_FLOOR, ObjectiveConfig
from models.vae import VAE
from pipeline import d4
from pipeline.config import ORDER
from shards.schema import PATCH

SSIM_WINDOW = 11
SPREAD_FLOOR = 1e-3  # squared spread of codes, summed over a latent, that divides the relative term


class Inputs(NamedTuple):
    """One batch, as input of the losses; each learner uses the fields that it needs."""

    x: Tensor  # clean images (B, 3, 32, 32) in [0, 1], the targets
    x_tilde: Tensor  # input of the encoder, possibly corrupted, of the same shape
    noise: Tensor  # standard normal (B, 24, 4, 4)
    g_B: Tensor  # (B,) one group element per sample, never the identity
    labels_B: Tensor | None = None  # (B,) class indices, -1 = none


class Learner(Protocol):
    """A module that maps a model and a batch to losses; it owns what is learned with the model."""

    config: ObjectiveConfig
    shown: str  # the term that progress lines show beside the loss

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses, in order; `loss` is the one to optimise."""
        ...

    def scalars(self) -> dict[str, Tensor]:
        """Learned scalars that a log should follow."""
        ...

    def log_scales(self) -> list[nn.Parameter]:
        """Parameters that are logarithms; they learn at `optim.noise_var_lr` times the rate."""
        ...

    def untrained(self, model: VAE) -> tuple[nn.Module, ...]:
        """Parts of the model that get no gradient."""
        ...

    def __call__(self, model: VAE, inputs: Inputs) -> dict[str, Tensor]:
        """Compute the losses, scalars in float32."""
        ...


def reconstruction_nll(x: Tensor, x_hat: Tensor, noise_var: Tensor | float) -> Tensor:
    """Compute D/2 log(2 v) + ||x - x^||^2 / (2 v), in nats up to a constant, mean over the batch.

    v = 0.5 is exactly ||x - x^||^2. The learned v is sigma-VAE (Rybkin et al. 2021).
    """
    d = x[0].numel()
    v = torch.as_tensor(noise_var, dtype=torch.float32, device=x.device)
    squared = (x - x_hat).square().sum() / len(x)
    return d / 2 * torch.log(2 * v) + squared / (2 * v)


def kl_terms(mean: Tensor, log_var: Tensor) -> Tensor:
    """Compute KL(q || N(0, I)) of every latent entry, in nats, shaped like the mean."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def sample(posterior: Posterior, noise: Tensor) -> Tensor:
    """Sample z = mean + exp(log_var / 2) noise."""
    return posterior.mean + torch.exp(0.5 * posterior.log_var) * noise


def structural_loss(x: Tensor, x_hat: Tensor) -> Tensor:
    """Compute D (1 - SSIM), mean over the batch; kornia returns (1 - SSIM) / 2."""
    with torch.autocast(x.device.type, enabled=False):
        return 2 * x[0].numel() * ssim_loss(x_hat, x, SSIM_WINDOW, max_val=1.0)


class NoiseVariance(nn.Module):
    """v = 1e-4 + exp(raw), one learned scalar; or a constant without parameters."""

    constant: Tensor

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.learned = config.noise_var == "learned"
        if self.learned:
            start = math.log(config.noise_var_init - NOISE_VAR_FLOOR)
            self.raw = nn.Parameter(torch.tensor(start))
        else:
            self.register_buffer("constant", torch.tensor(float(config.noise_var)))

    def forward(self) -> Tensor:
        return NOISE_VAR_FLOOR + self.raw.exp() if self.learned else self.constant


class Action(nn.Module):
    """Actions of group elements on images and latents, with the tables of `pipeline.d4` as buffers.

    Trivial fibres move the cells of the latent; regular ones permute its channels as well.
    """

    pixels: Tensor
    cells: Tensor
    channels: Tensor

    def __init__(self, group: str, fibres: str, latent_channels: int) -> None:
        super().__init__()
        self.order = ORDER[group]
        self.regular = fibres == "regular"
        self.register_buffer("pixels", d4.pixel_index(PATCH), persistent=False)
        self.register_buffer("cells", d4.pixel_index(LATENT_SIDE), persistent=False)
        if self.regular:
            table = d4.channel_index(latent_channels, group)
            self.register_buffer("channels", table, persistent=False)

    def on_images(self, x: Tensor, g_B: Tensor) -> Tensor:
        return d4.act(x, g_B, self.pixels)

    def on_latents(self, z: Tensor, g_B: Tensor) -> Tensor:
        moved = d4.act(z, g_B, self.cells)
        return d4.act_channels(moved, g_B, self.channels) if self.regular else moved


class Objective(nn.Module):
    """The losses of a VAE; owns the noise variance."""

    shown = "mse"

    def __init__(self, config: ObjectiveConfig, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        self.noise_var = NoiseVariance(config)
        self.action = Action(config.group, config.fibres, latent_channels)

    @property
    def terms(self) -> tuple[str, ...]:
        config = self.config
        optional = {
            "kl": config.stochastic,
            "equivariance": config.equivariance > 0,
            "ssim": config.ssim > 0,
        }
        return ("loss", "reconstruction", "mse", *(name for name, on in optional.items() if on))

    def scalars(self) -> dict[str, Tensor]:
        return {"noise_var": self.noise_var()}

    def log_scales(self) -> list[nn.Parameter]:
        return list(self.noise_var.parameters())

    def untrained(self, model: VAE) -> tuple[nn.Module, ...]:
        return ()

    def forward(self, model: VAE, inputs: Inputs) -> dict[str, Tensor]:
        """Compute `loss` and its terms in nats or squared units."""
        config, x = self.config, inputs.x
        q, q_moved = self.encode(model, inputs)
        z = sample(q, inputs.noise) if config.stochastic else q.mean
        x_hat = model.decoder(z)
        nll = reconstruction_nll(x, x_hat, self.noise_var())
        terms = {"reconstruction": nll, "mse": (x - x_hat.detach()).square().mean()}
        total = nll
        if config.stochastic:
            terms["kl"] = kl_terms(q.mean, q.log_var).sum() / len(x)
            total = total + config.beta * terms["kl"]
        if config.equivariance > 0:
            if config.form == "implicit":
                moved = self.action.on_images(x, inputs.g_B)
                expected = model.decoder(self.action.on_latents(z, inputs.g_B))
            else:
                compared = "features" if config.form == "features" else "mean"
                moved = getattr(q_moved, compared)
                expected = self.action.on_latents(getattr(q, compared), inputs.g_B)
            terms["equivariance"] = self.equivariance(moved, expected)
            total = total + config.equivariance * terms["equivariance"]
        if config.ssim > 0:
            terms["ssim"] = structural_loss(x, x_hat)
            total = total + config.ssim * terms["ssim"]
        # detached: a graph of the step would carry a gradient of zeros for each of them
        return {"loss": total / x[0].numel(), **{name: t.detach() for name, t in terms.items()}}

    def equivariance(self, moved: Tensor, expected: Tensor) -> Tensor:
        """Compute E_{g in G} ||phi(F(g x~)) - rho(g) phi(F(x~))||^2, phi the mean or the features;
        or E ||g x - D(rho(g) z)||^2, the implicit form (EQ-VAE, Kouzelis et al. 2025).

        The relative form divides by the spread of the codes, which shrinking them cannot lower:
        384 eps^2, where eps^2 = E ||mu(gx) - rho(g) mu(x)||^2 / (2 E ||mu - mean mu||^2) is the
        error that evaluation reports, over the local batch. The plain form makes codes smaller,
        and with them the rate, before it makes them equivariant.

        Estimated with one g != e per sample, times (|G|-1)/|G| because the identity's term is 0,
        so that lambda means the same for D4 and C4.
        """
        order = self.action.order
        error = (order - 1) / order * (moved - expected).square().sum() / len(moved)
        if self.config.form != "relative":
            return error
        means = torch.cat([moved, expected])
        spread = (means - means.mean(0)).square().sum() / len(means)
        return moved[0].numel() * error / (2 * spread + SPREAD_FLOOR)

    def encode(self, model: VAE, inputs: Inputs) -> tuple[Posterior, Posterior]:
        """Encode x~ and, where the equivariance term compares codes, g x~ in the same call.

        Where it does not, both posteriors are that of x~.
        """
        if self.config.equivariance == 0 or self.config.form == "implicit":
            q: Posterior = model.encoder(inputs.x_tilde)
            return q, q
        moved = self.action.on_images(inputs.x_tilde, inputs.g_B)
        both = model.encoder(torch.cat([inputs.x_tilde, moved]))
        mean, log_var, features = (tensor.chunk(2) for tensor in both)
        return Posterior(mean[0], log_var[0], features[0]), Posterior(
            mean[1], log_var[1], features[1]
        )
