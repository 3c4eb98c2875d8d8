"""A trainer and its loaders written without this project, for comparison.

The peer of `train.loop.Trainer`: eager float32 in NCHW, kornia's random modules, AdamW as it comes,
EMA by torch; PNG files or webdataset tars, read by DataLoader workers. The architecture, the
objective, the clipping and the batch are ours, so that the work is the same. It logs nothing, so
that it never waits for the device.
"""

import copy
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from common.machine import usable_cores
from models.objective import Inputs, Objective
from models.vae import VAE, build
from pipeline.config import CorruptionConfig
from pipeline.corruptions.blur import KERNEL
from pipeline.index import Split
from pipeline.reader import read_split
from train.config import Config

EMA_DECAY = 0.999
MAX_PATCHES = 4096  # written out; four batches where that is more
MAX_WORKERS = 8
SHARDS_PER_WORKER = 4
SHUFFLE = 1000  # samples of webdataset's buffer

Batches = Generator[Tensor, None, None]  # float32 (B, 3, 32, 32) in [0, 1], on the host


def augmentation() -> nn.Module:
    """D4 by kornia: two flips and a quarter turn, which it interpolates."""
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomRotation90(times=(0, 3), p=1.0),
    )


def corruption_modules(config: CorruptionConfig) -> dict[str, K.IntensityAugmentationBase2D]:
    """Make kornia's random modules by kind, each for its share of the images.

    Its noise has one sigma, the mean of ours. An image may get several kinds of corruption or none.
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
    """Chain all kinds of corruption."""
    return K.AugmentationSequential(*corruption_modules(config).values())


def nchw(model: VAE) -> VAE:
    """Convert a model to torch's default memory format."""
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class PlainTrainer:
    """A trainer of a preset in one process, on float batches from the host."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device, self.done = config, device, 0
        self.model = nchw(build(config.model, config.seed).to(device))
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
        """Compute the losses of `Objective`, with random tensors of torch's global generator."""
        noise = torch.randn((len(x), *self.config.model.latent_shape), device=self.device)
        g_B = torch.randint(1, self.objective.action.order, (len(x),), device=self.device)
        losses: dict[str, Tensor] = self.objective(self.model, Inputs(x, x_tilde, noise, g_B))
        return losses


def workers() -> int:
    """Number of DataLoader workers: one per core, at most 8."""
    return min(MAX_WORKERS, usable_cores())


def write_out(split: Split, folder: Path, batch: int) -> None:
    """Write patches of a split as `folder/png/CLASS/*.png` by PIL and `folder/tar/*.tar`.

    webdataset's ShardWriter writes the tars from the same files.
    """
    count = min(len(split), max(MAX_PATCHES, 4 * batch))
    pixels = read_split(split, np.arange(count))
    (folder / "tar").mkdir()
    tars = str(folder / "tar" / "train-%06d.tar")
    with wds.ShardWriter(tars, -(-count // (SHARDS_PER_WORKER * workers())), verbose=0) as writer:
        for i, (image, label) in enumerate(zip(pixels, split.labels[:count], strict=True)):
            path = folder / "png" / f"class{label}" / f"{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            sample = {"__key__": path.stem, "png": path.read_bytes(), "cls": int(label)}
            writer.write(sample)


def webdataset_batches(folder: Path, batch: int, pin: bool) -> Batches:
    """Yield endless shuffled batches, as the webdataset documentation shows."""
    urls = _tars(folder)
    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE)
    yield from _images(dataset.decode("torchrgb").to_tuple("png", "cls").repeat(), batch, pin)


def tar_batches(folder: Path, batch: int, pin: bool) -> Batches:
    """Yield every sample of the tars once, in the order of the workers."""
    dataset = wds.WebDataset(_tars(folder), shardshuffle=False)
    yield from _images(dataset.decode("torchrgb").to_tuple("png", "cls"), batch, pin)


def _tars(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "tar").glob("*.tar"))


def image_folder_batches(folder: Path, batch: int, pin: bool) -> Batches:
    """Yield shuffled epochs without end, by the same workers."""
    dataset = ImageFolder(str(folder / "png"), ToTensor())
    options = {"shuffle": True, "drop_last": True, "persistent_workers": True}
    yield from _images(dataset, batch, pin, epochs=sys.maxsize, **options)


def _images(
    dataset: Any, batch: int, pin: bool, epochs: int = 1, **options: Any
) -> Iterator[Tensor]:
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        dataset, batch, num_workers=workers(), pin_memory=pin, **options
    )
    for _ in range(epochs):
        for images, _ in loader:
            yield images.float()


LOADERS: dict[str, Callable[[Path, int, bool], Batches]] = {
    "plain, webdataset": webdataset_batches,
    "plain, ImageFolder": image_folder_batches,
}
