"""Other tools on the work of `read`, each as its documentation has it.

Those that are not installed (`uv run --with-requirements bench/peers.txt`) are reported with the
error.
"""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from bench.made import Made
from bench.modes.reading import REFERENCE, Batch, Epochs, Reading
from shards.schema import CHANNELS, PATCH

SHUFFLE = 1000  # samples in webdataset's buffer
SHARD = 1024
START = "fork"  # what Linux does by itself, unless one of the tools has changed that for all


def _numpy(images: Any, labels: Any) -> Batch:
    return np.asarray(images, np.uint8), np.asarray(labels, np.int64)


def _stacked(samples: Iterable[tuple[Any, Any]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return _numpy(np.stack([np.asarray(image) for image in images]), labels)


def _as_it_is(batch: Any) -> Any:
    """Batches are made in the workers: nothing is left to collate."""
    return batch


def _context(workers: int) -> str | None:
    return START if workers else None


def _made_once(name: str, made: Made) -> tuple[Path, bool]:
    """A folder for one tool's form of the set, and whether it is new."""
    root = made.folder / name
    return root, not root.exists()


def _samples(made: Made) -> Iterator[tuple[bytes, int]]:
    root = made.pngs()
    for path in sorted(root.rglob("*.png")):
        yield path.read_bytes(), int(path.parent.name.removeprefix("class"))


def _make_tars(made: Made) -> Path:
    root, fresh = _made_once("webdataset", made)
    if fresh:
        root.mkdir()
        with wds.ShardWriter(str(root / "train-%06d.tar"), maxcount=SHARD, verbose=0) as writer:
            for i, (png, label) in enumerate(_samples(made)):
                writer.write({"__key__": f"s{i:09d}", "png": png, "cls": label})
    return root


def _webdataset(decoder: str, workers: int, root: Path, batch: int) -> Epochs:
    urls = sorted(str(path) for path in root.glob("*.tar"))

    def epoch(number: int) -> Iterator[Batch]:
        dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=number, empty_check=False)
        dataset = dataset.shuffle(SHUFFLE, seed=number).decode(decoder).to_tuple("png", "cls")
        dataset = dataset.batched(batch, collation_fn=_stacked)
        yield from DataLoader(
            dataset,
            None,
            num_workers=workers,
            collate_fn=_as_it_is,
            multiprocessing_context=_context(workers),
        )

    return epoch


def _pngs(made: Made) -> Path:
    return made.pngs()


def _image_folder(workers: int, root: Path, batch: int) -> Epochs:
    dataset = ImageFolder(str(root), PILToTensor())

    def epoch(number: int) -> Iterator[Batch]:
        torch.manual_seed(number)
        loader = DataLoader(
            dataset, batch, shuffle=True, num_workers=workers,
            multiprocessing_context=_context(workers),
        )  # fmt: skip
        for images, labels in loader:
            yield images.numpy(), labels.numpy()

    return epoch


def _litdata_sample(pixels: str, labels: str, index: int) -> dict[str, Any]:
    image = torch.from_numpy(np.load(pixels, mmap_mode="r")[index].copy())
    return {"image": image, "label": int(np.load(labels, mmap_mode="r")[index])}


def _make_litdata(made: Made) -> Path:
    from litdata import optimize

    root, fresh = _made_once("litdata", made)
    if fresh:
        sample = partial(_litdata_sample, str(made.array), str(made.label_array))
        optimize(
            sample, list(range(made.count)), str(root), chunk_bytes="16MB", num_workers=1,
            start_method=START,
        )  # fmt: skip
    return root


def _litdata(root: Path, batch: int) -> Epochs:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(root), shuffle=True, drop_last=False)
    loader = StreamingDataLoader(dataset, batch_size=batch)

    def epoch(number: int) -> Iterator[Batch]:
        for found in loader:
            yield found["image"].numpy(), found["label"].numpy()

    return epoch


def _make_mosaic(made: Made) -> Path:
    from streaming import MDSWriter

    root, fresh = _made_once("mosaicml", made)
    if fresh:
        columns = {"image": f"ndarray:uint8:{PATCH},{PATCH},{CHANNELS}", "label": "int"}
        with MDSWriter(out=str(root), columns=columns) as writer:
            for image, label in zip(made.pixels, made.labels, strict=True):
                writer.write({"image": np.array(image), "label": int(label)})
    return root


def _mosaic(root: Path, batch: int) -> Epochs:
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(root), shuffle=True, batch_size=batch)

    def epoch(number: int) -> Iterator[Batch]:
        for found in DataLoader(dataset, batch):
            yield found["image"].numpy(), found["label"].numpy()

    return epoch


def _make_hf(made: Made) -> Path:
    from datasets import Dataset, Features, Image, Value

    root, fresh = _made_once("datasets", made)
    if fresh:
        samples = [{"image": {"bytes": p, "path": None}, "label": y} for p, y in _samples(made)]
        features = Features({"image": Image(), "label": Value("int64")})
        Dataset.from_list(samples, features=features).save_to_disk(str(root))
    return root


def _hf(root: Path, batch: int) -> Epochs:
    from datasets import load_from_disk

    dataset = load_from_disk(str(root)).with_format("numpy")

    def epoch(number: int) -> Iterator[Batch]:
        for found in dataset.shuffle(seed=number, keep_in_memory=True).iter(batch):
            yield _numpy(found["image"], found["label"])

    return epoch


def _make_ffcv(made: Made) -> Path:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    root, fresh = _made_once("ffcv", made)
    if fresh:
        root.mkdir()
        fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
        writer = DatasetWriter(str(root / "train.beton"), fields, num_workers=1)
        writer.from_indexed_dataset(list(zip(made.pixels, made.labels.tolist(), strict=True)))
    return root


def _ffcv(root: Path, batch: int) -> Epochs:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor()],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }
    path, cores = str(root / "train.beton"), len(os.sched_getaffinity(0))
    loader = Loader(path, batch, cores, order=OrderOption.RANDOM, pipelines=pipelines)

    def epoch(number: int) -> Iterator[Batch]:
        for images, labels in loader:
            yield images.numpy(), labels.numpy()

    return epoch


def _plain_tars(made: Made) -> Path:
    return made.packed("keep")


PEERS = {
    REFERENCE: Reading(_make_tars, partial(_webdataset, "pil", 0)),
    f"{REFERENCE}, 2 workers": Reading(_make_tars, partial(_webdataset, "pil", 2)),
    "webdataset, rgb8, its own tar": Reading(_make_tars, partial(_webdataset, "rgb8", 0)),
    "webdataset, rgb8, our tar": Reading(_plain_tars, partial(_webdataset, "rgb8", 0)),
    "ImageFolder": Reading(_pngs, partial(_image_folder, 0)),
    "ImageFolder, 2 workers": Reading(_pngs, partial(_image_folder, 2)),
    "litdata": Reading(_make_litdata, _litdata),
    "MosaicML streaming": Reading(_make_mosaic, _mosaic),
    "HF datasets": Reading(_make_hf, _hf),
    "FFCV, raw": Reading(_make_ffcv, _ffcv),
}
