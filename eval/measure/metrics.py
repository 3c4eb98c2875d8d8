"""Reconstruction, rate and equivariance of a model, in float32, averaged over images.

Shapes: B batch, images (B, 3, 32, 32) uint8 or float in [0, 1], codes mu (B, 24, 4, 4), D = 384
latent dimensions. PSNR in dB, KL in nats.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.results import EquivarianceErrors, Latent, ReconstructionScores
from models.objective import kl_terms
from models.vae import VAE
from pipeline import d4
from pipeline.config import ORDER, CorruptionConfig
from pipeline.corruptions import CHUNK, corrupt_as
from pipeline.pixels import to_float

Encode = Callable[[Tensor], Tensor]  # float images (B, 3, 32, 32) to codes (B, C, 4, 4)

ACTIVE_NATS = 0.05  # a dimension carries information above this mean KL
PSNR_CAP = 100.0  # dB, for an image that is reproduced exactly
EQUIVARIANCE_IMAGES = 2048  # more would only narrow an error that is already below 1 %
# small passes stay in the cache, and their buffers are reused: 2.5 times faster than 256 on a core
BATCH = {"cpu": 64}
GPU_BATCH = 1024
ELEMENTS = (
    "identity",
    "rotation 90",
    "rotation 180",
    "rotation 270",
    "mirror left-right",
    "transpose",
    "mirror up-down",
    "anti-transpose",
)


@dataclass(frozen=True)
class Symmetry:
    """A symmetry group of patches and how it acts on codes."""

    group: str = "D4"  # or "C4"
    fibres: str = "trivial"  # "regular": group elements also permute channels


TRIVIAL_D4 = Symmetry()


@contextmanager
def evaluating(model: VAE) -> Iterator[None]:
    """Turn off gradients, autocast and TF32; restore the model's train or eval mode at the end."""
    was_training = model.training
    device = next(model.parameters()).device.type
    cudnn = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False
    )
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False), cudnn:
            yield
    finally:
        model.train(was_training)


def batch_for(device: torch.device) -> int:
    """Number of images per pass through a model; results do not depend on it."""
    return BATCH.get(device.type, GPU_BATCH)


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio (B,) in dB, peak 1.0, at most PSNR_CAP."""
    # imported here, since it takes as long as torch and most commands do not need it
    from torchmetrics.functional.image import peak_signal_noise_ratio

    each = peak_signal_noise_ratio(x_hat, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return each.clamp(max=PSNR_CAP)


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Compute the structural similarity (B,), Gaussian window 11x11 of sigma 1.5."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # as in `psnr`

    each = structural_similarity_index_measure(x_hat, x, data_range=1.0, reduction="none")
    return torch.as_tensor(each)


def kl_per_dimension(mean: Tensor, log_var: Tensor) -> Tensor:
    """Compute KL(q || N(0, 1)) of every latent dimension (D,) in nats, averaged over images."""
    return kl_terms(mean.float(), log_var.float()).flatten(1).mean(0)


def active_units(kl_D: Tensor) -> int:
    """Count the dimensions whose mean KL exceeds 0.05 nats."""
    return int((kl_D > ACTIVE_NATS).sum())


def latent_summary(mean: Tensor, log_var: Tensor) -> Latent:
    """Summarise posteriors (n, 24, 4, 4): the KL, active units and the scales of the code.

    `mean_std` is the standard deviation of mu over images, `posterior_std` the root mean square
    of sigma, both over all dimensions.
    """
    kl_D = kl_per_dimension(mean, log_var)
    flat = mean.flatten(1)
    return Latent(
        kl=float(kl_D.sum()),
        active_units=active_units(kl_D),
        dimensions=kl_D.numel(),
        mean_std=float((flat - flat.mean(0)).square().mean().sqrt()),
        posterior_std=float(log_var.exp().mean().sqrt()),
        kl_per_dimension=kl_D.tolist(),
    )


def rho(z_BCNN: Tensor, element: int, symmetry: Symmetry) -> Tensor:
    """Act on codes with a group element: cells move; for regular fibres channels do as well."""
    moved = d4.act_one(z_BCNN, element)
    if symmetry.fibres == "trivial":
        return moved
    return moved[:, d4.channel_index(z_BCNN.shape[1], symmetry.group)[element].to(moved.device)]


def elements_of(symmetry: Symmetry) -> range:
    """List the elements other than the identity whose error is defined.

    They are all 7 of D4, also for a model trained on C4, except for regular fibres of C4, on which
    reflections do not act.
    """
    return range(1, ORDER["C4" if symmetry == Symmetry("C4", "regular") else "D4"])


def equivariance_errors(
    encode: Encode,
    images: Tensor,
    symmetry: Symmetry = TRIVIAL_D4,
    elements: Iterable[int] = (),
) -> dict[int, float]:
    """Measure the relative error of the code, by group element g other than the identity.

        eps_g = sqrt(E ||mu(g x) - rho(g) mu(x)||^2 / (2 E ||mu - E mu||^2))

    0 is exact, about 1 unrelated; shrinking mu does not lower it. NaN where mu is constant.

    Args:
        encode: maps float images to codes.
        images: uint8 (n, 3, 32, 32); the first 2048 are used.
        elements: group elements; by default all that are defined (`elements_of`).
    """
    elements = tuple(elements) or elements_of(symmetry)
    images = images[:EQUIVARIANCE_IMAGES]
    return relative_errors(encode, images, lambda z, g: rho(z, g, symmetry), elements)


def relative_errors(
    encode: Encode, images: Tensor, act: Callable[[Tensor, int], Tensor], elements: Iterable[int]
) -> dict[int, float]:
    """Measure relative errors of features (b, ...), on which g acts as `act(features, g)`."""
    elements = tuple(elements)
    squared = dict.fromkeys(elements, 0.0)
    codes = []
    for batch in images.split(batch_for(images.device)):
        x = to_float(batch)
        mu = encode(x)
        codes.append(mu.flatten(1).double())
        for g in elements:
            difference = encode(d4.act_one(x, g)) - act(mu, g)
            squared[g] += float(difference.double().square().sum())
    mu = torch.cat(codes)
    spread = 2 * float((mu - mu.mean(0)).square().sum())
    return {g: (s / spread) ** 0.5 if spread else float("nan") for g, s in squared.items()}


def mean_error(errors: dict[int, float], symmetry_group: str = "D4") -> float:
    """Combine the errors of the elements of a symmetry group: their root mean square."""
    squares = [e * e for g, e in errors.items() if g < ORDER[symmetry_group]]
    return float((sum(squares) / len(squares)) ** 0.5)


def summary_of_errors(errors: dict[int, float], symmetry_group: str) -> EquivarianceErrors:
    """Summarise errors: of one group, of every group that is wholly measured, and by element."""
    measured = [name for name, order in ORDER.items() if order <= len(errors) + 1]
    return EquivarianceErrors(
        error=mean_error(errors, symmetry_group),
        by_group={name: mean_error(errors, name) for name in measured},
        by_element={ELEMENTS[g]: error for g, error in errors.items()},
    )


def denoising(
    model: VAE, images: Tensor, config: CorruptionConfig
) -> dict[str, ReconstructionScores]:
    """Measure PSNR and SSIM to the clean image, by kind of corruption.

    `psnr` and `ssim` are those of the reconstruction from the posterior mean, `input_psnr` and
    `input_ssim` those of the corrupted image (None for `identity`, whose input is the clean image).

    Args:
        images: uint8 (n, 3, 32, 32) on the model's device.
    """
    sums = {kind: defaultdict[str, float](float) for kind in config.shares}
    with evaluating(model):
        for first in range(0, len(images), CHUNK):
            x = to_float(images[first : first + CHUNK])
            for kind, totals in sums.items():
                x_tilde = corrupt_as(kind, x, config, first)
                x_hat = model(x_tilde)
                totals["psnr"] += psnr(x_hat, x).double().sum().item()
                totals["ssim"] += ssim(x_hat, x).double().sum().item()
                totals["input_psnr"] += psnr(x_tilde, x).double().sum().item()
                totals["input_ssim"] += ssim(x_tilde, x).double().sum().item()
    scores = {}
    for kind, totals in sums.items():
        means = {name: total / len(images) for name, total in totals.items()}
        if kind == "identity":  # nothing to compare: the input is the clean image
            del means["input_psnr"], means["input_ssim"]
        scores[kind] = ReconstructionScores(**means)
    return scores


def posterior(model: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode uint8 images (n, 3, 32, 32): mean and log variance (n, 24, 4, 4) of the code."""
    with evaluating(model):
        batches = images.split(batch_for(images.device))
        posteriors = [model.encoder(to_float(batch)) for batch in batches]
    return torch.cat([q.mean for q in posteriors]), torch.cat([q.log_var for q in posteriors])


def validate(
    model: VAE,
    images_u8: Tensor,
    symmetry: Symmetry = TRIVIAL_D4,
    batch: int | None = None,
) -> dict[str, float]:
    """Measure what the training loop logs: psnr, ssim, kl, active_units, equivariance_error.

    Args:
        images_u8: (n, 3, 32, 32) uint8 on the model's device; the equivariance error takes at
            most 2048 of them.
        symmetry: the group whose elements the equivariance error is over.
        batch: images per pass; by default what suits the device.
    """
    batch = batch or batch_for(images_u8.device)
    scores, kl = torch.zeros(2, dtype=torch.float64, device=images_u8.device), []
    with evaluating(model):
        for images in images_u8.split(batch):
            x = to_float(images)
            q = model.encoder(x)
            x_hat = model.decoder(q.mean)
            scores += torch.stack([psnr(x_hat, x).double().sum(), ssim(x_hat, x).double().sum()])
            kl.append(kl_per_dimension(q.mean, q.log_var) * len(x))
        elements = range(1, ORDER[symmetry.group])
        errors = equivariance_errors(lambda x: model.encoder(x).mean, images_u8, symmetry, elements)
    kl_D = torch.stack(kl).sum(0) / len(images_u8)
    means = (scores / len(images_u8)).tolist()
    return {
        "psnr": means[0],
        "ssim": means[1],
        "kl": float(kl_D.sum()),
        "active_units": float(active_units(kl_D)),
        "equivariance_error": mean_error(errors, symmetry.group),
    }
