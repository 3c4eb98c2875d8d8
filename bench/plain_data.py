"""The data side of a plain trainer: PNG files and webdataset tars, read by DataLoader workers."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from common.machine import usable_cores
from pipeline.index import Split
from pipeline.reader import read_split

PATCHES = 4096  # written out at most, or four batches where that is more
MOST_WORKERS = 8
SHARDS_A_WORKER = 4
SHUFFLE = 1000  # samples of webdataset's buffer

Batches = Generator[Tensor, None, None]  # float32 (B, 3, 32, 32) in [0, 1], on the host


def workers() -> int:
    """A DataLoader worker a core, as its documentation advises, 8 at most."""
    return min(MOST_WORKERS, usable_cores())


def write_out(split: Split, folder: Path, batch: int) -> None:
    """The patches of a split as `folder/png/CLASS/*.png` by PIL and `folder/tar/*.tar` by
    webdataset's ShardWriter, of the same files."""
    count = min(len(split), max(PATCHES, 4 * batch))
    pixels = read_split(split, np.arange(count))
    (folder / "tar").mkdir()
    tars = str(folder / "tar" / "train-%06d.tar")
    with wds.ShardWriter(tars, -(-count // (SHARDS_A_WORKER * workers())), verbose=0) as writer:
        for i, (image, label) in enumerate(zip(pixels, split.labels[:count], strict=True)):
            path = folder / "png" / f"class{label}" / f"{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            sample = {"__key__": path.stem, "png": path.read_bytes(), "cls": int(label)}
            writer.write(sample)


def webdataset_batches(folder: Path, batch: int, pin: bool) -> Batches:
    """Endless, as the webdataset documentation has it."""
    urls = sorted(str(path) for path in (folder / "tar").glob("*.tar"))
    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE)
    dataset = dataset.decode("torchrgb").to_tuple("png", "cls").repeat()
    yield from _images(DataLoader(dataset, batch, num_workers=workers(), pin_memory=pin))


def tar_batches(folder: Path, batch: int, pin: bool) -> Batches:
    """Every sample of the tars once, in the order of the workers."""
    urls = sorted(str(path) for path in (folder / "tar").glob("*.tar"))
    dataset = wds.WebDataset(urls, shardshuffle=False).decode("torchrgb").to_tuple("png", "cls")
    yield from _images(DataLoader(dataset, batch, num_workers=workers(), pin_memory=pin))


def image_folder_batches(folder: Path, batch: int, pin: bool) -> Batches:
    """Endless, epoch after epoch on the same workers."""
    dataset = ImageFolder(str(folder / "png"), ToTensor())
    loader = DataLoader(
        dataset, batch, shuffle=True, drop_last=True, num_workers=workers(), pin_memory=pin,
        persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from _images(loader)


def _images(loader: "DataLoader[tuple[Tensor, Tensor]]") -> Iterator[Tensor]:
    for images, _ in loader:
        yield images.float()


LOADERS: dict[str, Callable[[Path, int, bool], Batches]] = {
    "plain, webdataset": webdataset_batches,
    "plain, ImageFolder": image_folder_batches,
}
