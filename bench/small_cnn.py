"""An ordinary small CNN trained on the labels: what a data set allows, beside `supervised`.

    python bench/small_cnn.py --data DIR [--images 100000] [--jitter] [--test]

Six 3x3 convolutions with batch normalisation, two halvings, global average, a linear layer; D4
augmentation, AdamW with one cosine cycle. If it is no better than `supervised`, the encoder is not
what keeps that one down. Scores are of val; `--test` scores test, once the settings are chosen.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import tyro
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.nn import functional as F

from common.console import log, show_messages
from eval.measure.probe import macro_auroc
from pipeline import d4, jitter
from pipeline.config import JitterConfig
from pipeline.index import Split, open_dataset
from pipeline.loader import Loader
from pipeline.pixels import CPU, to_float, to_tensor
from pipeline.reader import read_split
from shards.schema import CHANNELS, NO_LABEL, PATCH
from train.step import generator_for
from train.sweep.recipes import JITTER

BATCH = 64
WIDTHS = (32, 64, 128)


@dataclass(frozen=True)
class Options:
    """Train a small CNN on the labels of a packed data set and score it on val."""

    data: Path
    """packed data set"""
    images: int = 100_000
    """training budget in images seen"""
    lr: float = 2e-3
    """highest learning rate"""
    weight_decay: float = 0.01
    """weight decay of AdamW"""
    jitter: bool = False
    """colour jitter, as strong as in the recipe `colour`"""
    test: bool = False
    """score test as well"""
    seed: int = 0
    """seed of weights, order, augmentation and jitter"""


def make_network(classes: int) -> nn.Sequential:
    """Map float images (B, 3, 32, 32) to logits (B, classes)."""
    layers: list[nn.Module] = []
    before = CHANNELS
    for width in WIDTHS:
        layers += [nn.MaxPool2d(2)] if layers else []
        for inputs in (before, width):
            convolution = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def train(options: Options, split: Split, classes: int) -> nn.Sequential:
    """Train for `options.images` images."""
    torch.manual_seed(options.seed)
    network, table = make_network(classes), d4.pixel_index(PATCH)
    config = JITTER if options.jitter else JitterConfig()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=options.weight_decay)
    steps = -(-options.images // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, steps)
    loader = Loader(split, BATCH, options.seed, CPU, "host")
    for step, batch in enumerate(loader.batches(0, steps * BATCH)):
        generator = generator_for(options.seed, step * BATCH, 0, CPU)
        moved = torch.randint(8, (BATCH,), generator=generator)
        x = to_float(d4.act(batch.images, moved, table))
        if config.on:
            x = jitter.apply(x, config, jitter.draw(config, BATCH, generator))
        loss = F.cross_entropy(network(x), batch.labels, ignore_index=NO_LABEL)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 10) == 0:
            log.info(f"{(step + 1) * BATCH:,} images, loss {loss.item():.3f}")
    return network.eval()


def scores(network: nn.Module, split: Split) -> dict[str, float]:
    """Compute macro one-vs-rest AUROC, accuracy and balanced accuracy over the labelled patches."""
    rows = np.flatnonzero(split.labels != NO_LABEL)
    images = to_tensor(read_split(split, rows))
    with torch.inference_mode():
        outputs: list[Tensor] = [network(to_float(x)).softmax(1) for x in images.split(512)]
    shares, labels = torch.cat(outputs).double().numpy(), split.labels[rows]
    shares /= shares.sum(1, keepdims=True)
    predicted = shares.argmax(1)
    return {
        "auroc": macro_auroc(shares, np.arange(shares.shape[1]), labels),
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
    }


def main(argv: list[str]) -> None:
    show_messages()
    options = tyro.cli(Options, args=argv)
    dataset = open_dataset(options.data)
    network = train(options, dataset.split("train"), len(dataset.metadata.classes))
    for name in ("val", "test") if options.test else ("val",):
        print(name, json.dumps(scores(network, dataset.split(name))))


if __name__ == "__main__":
    main(sys.argv[1:])
