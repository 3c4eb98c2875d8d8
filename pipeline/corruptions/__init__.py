"""Corruptions of a clean batch: drawn in training, fixed for evaluation, graded for robustness.

kind               `Kind`: how parameters are drawn and applied
noise, blur, jpeg  the kinds that training draws
colour             brightness and staining, which are never trained

A new kind is a module with a `Kind`, an entry in `KINDS` and, where training may draw it, a share
(default 0) and a range in `pipeline.config.CorruptionConfig`. Figures, tables and benchmarks read
the registry.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from pipeline.config import CorruptionConfig
from pipeline.corruptions.blur import BLUR
from pipeline.corruptions.colour import BRIGHTNESS, STAIN
from pipeline.corruptions.jpeg import JPEG
from pipeline.corruptions.kind import Kind, Parameters
from pipeline.corruptions.noise import NOISE

__all__ = ["GRADED", "KINDS", "Kind", "Parameters"]

KINDS: dict[str, Kind] = {
    "identity": Kind(title="uncorrupted", number=0),
    "noise": NOISE,
    "blur": BLUR,
    "jpeg": JPEG,
    "brightness": BRIGHTNESS,
    "stain": STAIN,
}
GRADED = {name: kind for name, kind in KINDS.items() if kind.levels}

CHUNK = 64  # test images per generator: results depend on it
TEST_SEED = 20_240_501  # for test images corrupted as in training
LEVEL_SEED = 20_240_502  # for test images corrupted at a level


def trained(name: str) -> bool:
    """Return whether training draws a kind by default."""
    return CorruptionConfig().shares.get(name, 0.0) > 0


def extents(config: CorruptionConfig) -> list[str]:
    """Describe the strongest corruption of each kind that training draws."""
    words = [KINDS[name].extent(config) for name, share in config.shares.items() if share > 0]
    return [text for text in words if text]


def draw(
    config: CorruptionConfig, batch: int, size: int, generator: Generator
) -> dict[str, Parameters]:
    """Draw random parameters for images (batch, 3, size, size), on the generator's device.

    Returns:
        Parameters by kind, in the order of the batch.
    """
    counts = config.counts(batch)
    return {name: KINDS[name].draw(config, n, size, generator) for name, n in counts.items()}


def corrupt(x_BCHW: Tensor, config: CorruptionConfig, draws: dict[str, Parameters]) -> Tensor:
    """Corrupt a batch, cut into contiguous parts, one for each kind, so that shapes are static.

    Float images in [0, 1] stay in that range; each image is processed once.
    """
    counts = config.counts(len(x_BCHW))
    slices = zip(counts, x_BCHW.split(list(counts.values())), strict=True)
    return torch.cat([KINDS[name].apply(x, *draws[name]) for name, x in slices if counts[name]])


def corrupt_as(name: str, x_BCHW: Tensor, config: CorruptionConfig, first: int = 0) -> Tensor:
    """Corrupt a whole batch of test images by one kind, in the ranges of `config`.

    Parameters are drawn on the host from the kind and `first`, the index of the first image:
    every model and device sees the same corrupted images.
    """
    seed = TEST_SEED + 4 * first + KINDS[name].number  # apart, as `first` is a multiple of CHUNK
    generator = torch.Generator().manual_seed(seed)
    parameters = KINDS[name].draw(config, len(x_BCHW), x_BCHW.shape[-1], generator)
    return KINDS[name].apply(x_BCHW, *(tensor.to(x_BCHW.device) for tensor in parameters))


def corrupt_at(name: str, x_BCHW: Tensor, severity: int, first: int = 0) -> Tensor:
    """Corrupt a whole batch of test images on the host by one kind at severity 1 to 5.

    Parameters are drawn from the kind, the severity and `first`, the index of the first image.
    """
    kind = KINDS[name]
    entropy = [LEVEL_SEED, kind.number - 1, severity, first]  # counted from noise
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(state)
    return kind.apply_at(x_BCHW, kind.levels[severity - 1], generator)
