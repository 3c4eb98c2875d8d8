"""A trainer as one writes it without this project: the peer of `train.loop.Trainer`.

Eager float32 in NCHW, kornia's random modules, AdamW as it comes, EMA by torch. The architecture,
the objective, the clipping and the batch are ours, so that the work is the same. It is spared what
many scripts do beside: it logs nothing, so nothing waits for the device.
"""

import copy

import kornia.augmentation as K
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.objective import LATENT_SIDE, Objective
from models.vae import build
from pipeline.corruptions import CorruptionConfig
from pipeline.corruptions.blur import KERNEL
from train.config import Config

EMA_DECAY = 0.999


def augmentation() -> nn.Module:
    """D4 by kornia: two flips and a quarter turn, which it interpolates."""
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomRotation90(times=(0, 3), p=1.0),
    )


def corruption_modules(config: CorruptionConfig) -> dict[str, K.IntensityAugmentationBase2D]:
    """kornia's random modules by kind, each on its share of the images.

    Its noise has one sigma: the mean of ours. An image may be hit by several kinds or by none.
    """
    total = sum(config.shares.values())
    p = {kind: share / total for kind, share in config.shares.items()}
    sigma = sum(config.noise_sigma) / len(config.noise_sigma)
    modules = {
        "noise": K.RandomGaussianNoise(0.0, sigma, p=p["noise"]),
        "blur": K.RandomGaussianBlur((KERNEL, KERNEL), config.blur_sigma, p=p["blur"]),
        "jpeg": K.RandomJPEG(config.jpeg_quality, p=p["jpeg"]),
    }
    return {kind: module for kind, module in modules.items() if p[kind] > 0}


def mixture(config: CorruptionConfig) -> nn.Module:
    """All kinds of corruption, one after the other."""
    return K.AugmentationSequential(*corruption_modules(config).values())


class PlainTrainer:
    def __init__(self, config: Config, device: torch.device) -> None:
        nchw = torch.contiguous_format
        self.config, self.device, self.done = config, device, 0
        model = build(config.model, config.seed)
        self.model = model.to(device, memory_format=nchw)  # type: ignore[call-overload]
        self.objective = Objective(config.objective, config.model.latent_channels).to(device)
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        # on the device, where kornia then draws its random numbers too
        self.augment = augmentation().to(device) if config.augment else nn.Identity()
        self.corrupt = mixture(config.corruption).to(device)
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
        )
        # torch's AveragedModel would wait for the device in every step, to count them
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.average = get_ema_multi_avg_fn(EMA_DECAY)

    def update(self, images_BCHW: Tensor) -> None:
        """One optimizer step on float images in [0, 1] on the host."""
        x = self.augment(images_BCHW.to(self.device, non_blocking=True))
        loss = self.losses(x, self.corrupt(x).clamp(0, 1))["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip)
        self.optimizer.step()
        self.average(list(self.ema.parameters()), list(self.model.parameters()), None)
        self.done += 1

    def losses(self, x: Tensor, x_tilde: Tensor) -> dict[str, Tensor]:
        """Those of `Objective`, on random tensors of torch's global generator."""
        cells = (len(x), self.config.model.latent_channels, LATENT_SIDE, LATENT_SIDE)
        noise = torch.randn(cells, device=self.device)
        g_B = torch.randint(1, self.objective.action.order, (len(x),), device=self.device)
        losses: dict[str, Tensor] = self.objective(self.model, x, x_tilde, noise, g_B)
        return losses
