"""The supervised ceiling: the encoder trained on labels, for what is there to be found at all.

    L = cross-entropy of a linear head on the posterior mean of the corrupted patch

Interface of `models.objective.Objective`. The decoder is left as it was built.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.objective import LATENT_SIDE, Action, ObjectiveConfig
from models.vae import VAE
from shards.schema import NO_LABEL


class Classification(nn.Module):
    """(corrupted, labels) to losses. Owns the head: 384 numbers to a logit a class, zero at first,
    so that it depends on no random state."""

    shown = "accuracy"
    terms = ("loss", "accuracy")

    def __init__(self, config: ObjectiveConfig, latent_channels: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.action = Action(config.group, config.fibres, latent_channels)
        self.head = nn.Linear(latent_channels * LATENT_SIDE**2, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def scalars(self) -> dict[str, Tensor]:
        return {}

    def untrained(self, model: VAE) -> tuple[nn.Module, ...]:
        return (model.decoder,)

    def logits(self, model: VAE, x: Tensor) -> Tensor:
        """(B, classes) float32 from images (B, 3, 32, 32) in [0, 1]."""
        mean: Tensor = model.encoder(x).mean
        with torch.autocast(x.device.type, enabled=False):
            return self.head(mean.flatten(1).float())

    def forward(
        self, model: VAE, x: Tensor, x_tilde: Tensor, noise: Tensor, g_B: Tensor, labels_B: Tensor
    ) -> dict[str, Tensor]:
        """`loss`, the cross-entropy in nats, and `accuracy`, scalars in float32.

        A patch without a label (-1) adds nothing to either.
        """
        return scores(self.logits(model, x_tilde), labels_B)


def scores(logits_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and accuracy over the labelled patches of a batch; 0 where there is none."""
    labelled = (labels_B != NO_LABEL).sum().clamp(min=1)
    total = F.cross_entropy(logits_BK, labels_B, ignore_index=NO_LABEL, reduction="sum")
    right = (logits_BK.detach().argmax(1) == labels_B).sum()
    return {"loss": total / labelled, "accuracy": right / labelled}
