"""The training step, the module that is compiled: a uint8 batch and random tensors to losses.

Random tensors are drawn outside, from a generator seeded by (seed, images seen, rank): a resumed
run repeats them, and a generator inside a full graph is unsupported.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from models.objective import Inputs, Learner
from models.vae import VAE
from pipeline import corruptions, d4, jitter
from pipeline.config import ORDER, CorruptionConfig, JitterConfig
from pipeline.corruptions import Parameters
from pipeline.pixels import to_float
from shards.schema import PATCH

Precision = Literal["bf16", "fp32"]
NO_JITTER = JitterConfig()


class Draws(NamedTuple):
    """The random tensors of one local batch."""

    augment_B: Tensor  # D4 elements, i.i.d. uniform; all 0 without augmentation
    element_B: Tensor  # elements of the symmetry group other than the identity, for L_eq
    latent_noise: Tensor  # (B, 24, 4, 4) standard normal
    corruption: dict[str, Parameters]
    jitter: Tensor | None = None  # (B, 8), of `pipeline.jitter`; None where it is off


def generator_for(seed: int, images_seen: int, rank: int, device: torch.device) -> Generator:
    """Make a generator that depends on (seed, images seen, rank) only."""
    state = np.random.SeedSequence([seed, images_seen, rank]).generate_state(1, np.uint64)
    return Generator(device).manual_seed(int(state[0] >> 1))


class TrainStep(nn.Module):
    """Augmentation, colour jitter, corruption, model and losses of one local batch."""

    objective: Learner
    pixels: Tensor

    def __init__(
        self,
        model: VAE,
        objective: Learner,
        corruption: CorruptionConfig,
        precision: Precision = "fp32",
        augment: bool = True,
        jitter: JitterConfig = NO_JITTER,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.corruption = model, objective, corruption
        self.bf16, self.augment, self.jitter = precision == "bf16", augment, jitter
        self.order = ORDER[objective.config.group]
        self.register_buffer("pixels", d4.pixel_index(PATCH), persistent=False)
        for module in objective.untrained(model):
            module.requires_grad_(False)  # DDP waits for every parameter that asks for a gradient

    def draw(self, batch: int, generator: Generator) -> Draws:
        """Draw the random tensors of a local batch, on the generator's device."""
        on: Any = {"generator": generator, "device": generator.device}
        return Draws(
            torch.randint(8 if self.augment else 1, (batch,), **on),
            torch.randint(1, self.order, (batch,), **on),
            torch.randn((batch, *self.model.config.latent_shape), **on),
            corruptions.draw(self.corruption, batch, PATCH, generator),
            # last, so that runs without it keep their random numbers
            jitter.draw(self.jitter, batch, generator) if self.jitter.on else None,
        )

    def forward(
        self, images_BCHW: Tensor, draws: Draws, labels_B: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Map uint8 images (B, 3, 32, 32), draws and labels to the losses, float32 scalars."""
        x = to_float(d4.act(images_BCHW, draws.augment_B, self.pixels))
        if draws.jitter is not None:
            x = jitter.apply(x, self.jitter, draws.jitter)
        x_tilde = corruptions.corrupt(x, self.corruption, draws.corruption)
        inputs = Inputs(x, x_tilde, draws.latent_noise, draws.element_B, labels_B)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return self.objective(self.model, inputs)
