"""The supervised ceiling: the encoder trained on labels, an upper reference for the probes.

    L = cross-entropy of a linear head on the posterior mean of the corrupted patch

The decoder is not trained.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import LATENT_SIDE, ObjectiveConfig
from models.objective import Inputs
from models.vae import VAE
from shards.schema import NO_LABEL


class Classification(nn.Module):
    """The loss of a classifier; owns the linear head from the 384 latent numbers to class logits.

    The head starts at zero, so that it does not depend on a random state.
    """

    shown = "accuracy"
    terms = ("loss", "accuracy")

    def __init__(self, config: ObjectiveConfig, latent_channels: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(latent_channels * LATENT_SIDE**2, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def scalars(self) -> dict[str, Tensor]:
        return {}

    def log_scales(self) -> list[nn.Parameter]:
        return []

    def untrained(self, model: VAE) -> tuple[nn.Module, ...]:
        return (model.decoder,)

    def logits(self, model: VAE, x: Tensor) -> Tensor:
        """Classify images (B, 3, 32, 32) in [0, 1]: (B, classes) in float32."""
        mean: Tensor = model.encoder(x).mean
        with torch.autocast(x.device.type, enabled=False):
            return self.head(mean.flatten(1).float())

    def forward(self, model: VAE, inputs: Inputs) -> dict[str, Tensor]:
        """Compute `loss`, the cross-entropy in nats, and `accuracy`.

        Patches without a label (-1) are left out of both.
        """
        assert inputs.labels_B is not None
        return scores(self.logits(model, inputs.x_tilde), inputs.labels_B)


def scores(logits_BK: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    """Compute cross-entropy and accuracy over the labelled patches; 0 if there is none."""
    labelled = (labels_B != NO_LABEL).sum().clamp(min=1)
    total = F.cross_entropy(logits_BK, labels_B, ignore_index=NO_LABEL, reduction="sum")
    right = (logits_BK.detach().argmax(1) == labels_B).sum()
    return {"loss": total / labelled, "accuracy": right / labelled}
