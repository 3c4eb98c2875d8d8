"""Readers by other tools for the mode `read`, each used as its documentation shows.

A tool that is not installed is reported with its error; all are installed by
`uv run --with-requirements bench/peers.txt`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from bench.patches import PatchSet
from bench.readers import REFERENCE, Batch, Epochs, Reader, our_shards
from common.machine import usable_cores
from shards.schema import CHANNELS, PATCH

SHUFFLE = 1000  # samples in webdataset's buffer
SHARD = 1024
START = "fork"  # the default on Linux, which one of the tools may have changed


def _stacked(samples: Iterable[tuple[Any, Any]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    pixels = np.stack([np.asarray(image, np.uint8) for image in images])
    return pixels, np.asarray(labels, np.int64)


def _data_loader(
    dataset: Any, batch: int | None, workers: int, **options: Any
) -> "DataLoader[Any]":
    """Make a DataLoader whose workers, if it has any, are forked."""
    start = START if workers else None
    return DataLoader(dataset, batch, num_workers=workers, multiprocessing_context=start, **options)


def _made_once(name: str, write: Callable[[PatchSet, Path], None]) -> Callable[[PatchSet], Path]:
    """Write a set in a tool's format to a folder of its own, at its first use."""

    def make(patches: PatchSet) -> Path:
        root = patches.folder / name
        if not root.exists():
            write(patches, root)
        return root

    return make


def _png_samples(patches: PatchSet) -> Iterator[tuple[bytes, int]]:
    for path in sorted(patches.pngs().rglob("*.png")):
        yield path.read_bytes(), int(path.parent.name.removeprefix("class"))


def write_tars(patches: PatchSet, root: Path) -> None:
    """Write webdataset tars."""
    root.mkdir()
    with wds.ShardWriter(str(root / "train-%06d.tar"), maxcount=SHARD, verbose=0) as writer:
        for i, (png, label) in enumerate(_png_samples(patches)):
            writer.write({"__key__": f"s{i:09d}", "png": png, "cls": label})


def read_webdataset(decoder: str, workers: int, root: Path, batch: int) -> Epochs:
    """Read tars with webdataset, decoded by `decoder`."""
    urls = sorted(str(path) for path in root.glob("*.tar"))

    def epoch(number: int) -> Iterator[Batch]:
        dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=number, empty_check=False)
        dataset = dataset.shuffle(SHUFFLE, seed=number).decode(decoder).to_tuple("png", "cls")
        dataset = dataset.batched(batch, collation_fn=_stacked)
        yield from _data_loader(dataset, None, workers, collate_fn=lambda batch: batch)

    return epoch


def read_image_folder(workers: int, root: Path, batch: int) -> Epochs:
    """Read PNG files with torchvision's ImageFolder."""
    dataset = ImageFolder(str(root), PILToTensor())

    def epoch(number: int) -> Iterator[Batch]:
        torch.manual_seed(number)
        for images, labels in _data_loader(dataset, batch, workers, shuffle=True):
            yield images.numpy(), labels.numpy()

    return epoch


def _litdata_sample(pixels: str, labels: str, index: int) -> dict[str, torch.Tensor | int]:
    image = torch.from_numpy(np.load(pixels, mmap_mode="r")[index].copy())
    return {"image": image, "label": int(np.load(labels, mmap_mode="r")[index])}


def write_litdata(patches: PatchSet, root: Path) -> None:
    """Write chunks of litdata."""
    from litdata import optimize

    sample = partial(_litdata_sample, str(patches.array), str(patches.label_array))
    indices = list(range(patches.count))
    optimize(sample, indices, str(root), chunk_bytes="16MB", num_workers=1, start_method=START)


def read_litdata(root: Path, batch: int) -> Epochs:
    """Read chunks with litdata."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(root), shuffle=True, drop_last=False)
    loader = StreamingDataLoader(dataset, batch_size=batch)
    return lambda number: _dict_batches(loader)


def _dict_batches(loader: Iterable[dict[str, torch.Tensor]]) -> Iterator[Batch]:
    for samples in loader:
        yield samples["image"].numpy(), samples["label"].numpy()


def write_mosaicml(patches: PatchSet, root: Path) -> None:
    """Write MDS shards of MosaicML streaming."""
    from streaming import MDSWriter

    columns = {"image": f"ndarray:uint8:{PATCH},{PATCH},{CHANNELS}", "label": "int"}
    with MDSWriter(out=str(root), columns=columns) as writer:
        for image, label in zip(patches.pixels, patches.labels, strict=True):
            writer.write({"image": np.array(image), "label": int(label)})


def read_mosaicml(root: Path, batch: int) -> Epochs:
    """Read MDS shards with MosaicML streaming."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(root), shuffle=True, batch_size=batch)
    return lambda number: _dict_batches(DataLoader(dataset, batch))


def write_hf(patches: PatchSet, root: Path) -> None:
    """Write a data set of Hugging Face datasets, PNGs inside."""
    from datasets import Dataset, Features, Image, Value

    samples = [
        {"image": {"bytes": png, "path": None}, "label": label}
        for png, label in _png_samples(patches)
    ]
    features = Features({"image": Image(), "label": Value("int64")})
    Dataset.from_list(samples, features=features).save_to_disk(str(root))


def read_hf(root: Path, batch: int) -> Epochs:
    """Read a data set with Hugging Face datasets."""
    from datasets import load_from_disk

    dataset = load_from_disk(str(root)).with_format("numpy")

    def epoch(number: int) -> Iterator[Batch]:
        for samples in dataset.shuffle(seed=number, keep_in_memory=True).iter(batch):
            images, labels = samples["image"], samples["label"]
            yield np.asarray(images, np.uint8), np.asarray(labels, np.int64)

    return epoch


def write_ffcv(patches: PatchSet, root: Path) -> None:
    """Write raw pixels as a beton file of FFCV."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    root.mkdir()
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    writer = DatasetWriter(str(root / "train.beton"), fields, num_workers=1)
    writer.from_indexed_dataset(list(zip(patches.pixels, patches.labels.tolist(), strict=True)))


def read_ffcv(root: Path, batch: int) -> Epochs:
    """Read a beton file with FFCV."""
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor()],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }
    path = str(root / "train.beton")
    loader = Loader(path, batch, usable_cores(), order=OrderOption.RANDOM, pipelines=pipelines)

    def epoch(number: int) -> Iterator[Batch]:
        for images, labels in loader:
            yield images.numpy(), labels.numpy()

    return epoch


_THEIR_TARS = _made_once("webdataset", write_tars)

PEERS = {
    REFERENCE: Reader(_THEIR_TARS, partial(read_webdataset, "pil", 0)),
    f"{REFERENCE}, 2 workers": Reader(_THEIR_TARS, partial(read_webdataset, "pil", 2)),
    "webdataset, rgb8, its own tar": Reader(_THEIR_TARS, partial(read_webdataset, "rgb8", 0)),
    "webdataset, rgb8, our tar": Reader(our_shards("keep"), partial(read_webdataset, "rgb8", 0)),
    "ImageFolder": Reader(PatchSet.pngs, partial(read_image_folder, 0)),
    "ImageFolder, 2 workers": Reader(PatchSet.pngs, partial(read_image_folder, 2)),
    "litdata": Reader(_made_once("litdata", write_litdata), read_litdata),
    "MosaicML streaming": Reader(_made_once("mosaicml", write_mosaicml), read_mosaicml),
    "HF datasets": Reader(_made_once("datasets", write_hf), read_hf),
    "FFCV, raw": Reader(_made_once("ffcv", write_ffcv), read_ffcv),
}
