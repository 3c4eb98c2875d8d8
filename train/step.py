"""The step: one module from (uint8 batch, random tensors) to losses. It is what gets compiled.

Random tensors are drawn outside, from a generator seeded by (seed, images seen, rank): a resumed
run repeats them, and a generator inside a full graph is unsupported.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from models.classification import Classification
from models.objective import LATENT_SIDE, Objective
from models.vae import VAE
from pipeline import corruptions, d4
from pipeline.corruptions import CorruptionConfig
from pipeline.pixels import to_float
from shards.schema import PATCH

Precision = Literal["bf16", "fp32"]


class Draws(NamedTuple):
    """The random tensors of one local batch."""

    augment_B: Tensor  # D4 elements, i.i.d. uniform; all 0 without augmentation
    element_B: Tensor  # elements of the group other than the identity, for L_eq
    latent_noise: Tensor  # (B, 24, 4, 4) standard normal
    corruption: corruptions.Draws


def generator_for(seed: int, images_seen: int, rank: int, device: torch.device) -> Generator:
    """A generator that depends on (seed, images seen, rank) only."""
    state = np.random.SeedSequence([seed, images_seen, rank]).generate_state(1, np.uint64)
    return Generator(device).manual_seed(int(state[0] >> 1))


class TrainStep(nn.Module):
    def __init__(
        self, model: VAE, objective: Objective | Classification,
        corruption: CorruptionConfig, precision: Precision = "fp32", augment: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.objective, self.corruption = model, objective, corruption
        self.bf16, self.augment = precision == "bf16", augment
        for part in objective.untrained(model):
            part.requires_grad_(False)  # DDP waits for the gradient of every parameter that has one

    def draw(self, batch: int, generator: Generator) -> Draws:
        on: Any = {"generator": generator, "device": generator.device}
        order = self.objective.action.order
        cells = (batch, self.model.config.latent_channels, LATENT_SIDE, LATENT_SIDE)
        return Draws(
            torch.randint(8 if self.augment else 1, (batch,), **on),
            torch.randint(1, order, (batch,), **on),
            torch.randn(cells, **on),
            corruptions.draw(self.corruption, batch, PATCH, generator),
        )

    def forward(
        self, images_BCHW: Tensor, draws: Draws, labels_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        """uint8 (B, 3, 32, 32), draws and labels to the objective's losses, float32 scalars."""
        moved = d4.act(images_BCHW, draws.augment_B, self.objective.action.pixels)
        x = to_float(moved)
        x_tilde = corruptions.corrupt(x, self.corruption, draws.corruption)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            losses: dict[str, Tensor] = self.objective(
                self.model, x, x_tilde, draws.latent_noise, draws.element_B, labels_B
            )
        return losses
