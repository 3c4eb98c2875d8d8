"""The encoder of a run traced, written in other formats, read back and compared with PyTorch.

The graph takes patches (n, 3, 32, 32), for any n, and gives their embeddings (n, 384), the readout
`mean`: the conversion of bytes, the standardisation of the input and the posterior mean are inside.
Tied weights are expanded to those of an ordinary network. The same run gives the same bytes.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from common.console import log
from common.errors import DataError
from common.files import read_json, write_atomically
from models import snapshot
from models.config import EXPORT_DEFAULTS, ExportOptions
from models.hub import locate, run_folder
from models.tied import untie
from models.vae import VAE
from pipeline.pixels import to_float
from shards.schema import CHANNELS, PATCH

INPUT, OUTPUT = "images", "embeddings"
OPSET = 18
TOLERANCE = 1e-4  # of a difference, relative to the largest number of the embeddings
BATCHES = (1, 3, 64)  # sizes that a file is checked on

Run = Callable[[NDArray[np.generic]], NDArray[np.float32]]


class Embedder(nn.Module):
    """Patches (n, 3, 32, 32), uint8 in 0..255 or float in [0, 1], to posterior means (n, 384).

    Tied weights of the model are expanded in place.
    """

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.encoder = model.encoder
        untie(self.encoder)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = to_float(images_BCHW) if images_BCHW.dtype == torch.uint8 else images_BCHW
        mean: Tensor = self.encoder(x).mean
        return mean.flatten(1)


@dataclass(frozen=True)
class Target:
    """A format: its file, how it is written, and how a file of it runs."""

    file: str
    write: Callable[[ExportedProgram], bytes]
    open: Callable[[bytes], Run]


def to_archive(program: ExportedProgram) -> bytes:
    """Serialise for `torch.export.load`, without source lines (folder names) and addresses."""
    for node in program.graph.nodes:
        node.meta = {name: node.meta[name] for name in ("val",) if name in node.meta}
    archive = BytesIO()
    torch.export.save(program, archive)
    return archive.getvalue()


def open_archive(data: bytes) -> Run:
    module = torch.export.load(BytesIO(data)).module()
    return lambda images: module(torch.from_numpy(images)).numpy()


def to_onnx(program: ExportedProgram) -> bytes:
    """Serialise as ONNX, without the metadata of nodes, which hold folder names."""
    onnx, _ = _onnx()
    exported = torch.onnx.export(
        program, (), input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET, verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for item in (model, graph, *graph.node, *values):
        del item.metadata_props[:]
    for dimension in (d for value in values for d in value.type.tensor_type.shape.dim):
        if dimension.dim_param:  # the one symbol, which torch numbers
            dimension.dim_param = "n"
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def open_onnx(data: bytes) -> Run:
    _, onnxruntime = _onnx()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


TARGETS = {
    "torch-export": Target("encoder.pt2", to_archive, open_archive),
    "onnx": Target("encoder.onnx", to_onnx, open_onnx),
}


def export(run: Path | str, options: ExportOptions = EXPORT_DEFAULTS) -> list[Path]:
    """Write the encoder of a run in other formats, checked; return the files.

    Raises:
        DataError: the run cannot be used, a library is missing, or a file does not give the
            numbers of PyTorch; it is then not written.
    """
    if "onnx" in options.to:
        _onnx()
    out = options.out or run_folder(run) / "export"
    folder = locate(run)
    model = snapshot.load(folder)
    about = read_json(folder / snapshot.CONFIG).get("about")
    if isinstance(about, dict) and about.get("normalisation") is not None:
        log.warning(
            f"{run} was trained with normalised staining, which the exported graph leaves out: "
            "pass it patches that are normalised already"
        )
    dtype = torch.uint8 if options.input == "uint8" else torch.float32
    files = []
    for name in dict.fromkeys(options.to):
        target = TARGETS[name]
        path = out / target.file
        with warnings.catch_warnings(action="ignore"):  # torch warns of what it does itself
            data = target.write(traced(snapshot.load(folder), dtype))
            difference, limit = compare(target.open(data), model, dtype)
        if not difference <= limit:  # also for NaN
            raise DataError(
                f"{path} was not written: its embeddings differ from PyTorch's by {difference:.2g},"
                f" more than {limit:.2g}; report this with the versions of torch and {name}"
            )
        write_atomically(path, data)
        log.info(
            f"{path}: {len(data):,} bytes, {options.input} (n, {CHANNELS}, {PATCH}, {PATCH}) to "
            f"(n, {math.prod(model.config.latent_shape)}); largest difference from PyTorch "
            f"{difference:.2g}, limit {limit:.2g}"
        )
        files.append(path)
    return files


def traced(model: VAE, dtype: torch.dtype) -> ExportedProgram:
    """Trace the encoder of a model, whose tied weights are expanded in place, for any n."""
    example = torch.zeros((2, CHANNELS, PATCH, PATCH), dtype=dtype)
    with torch.no_grad():
        program = torch.export.export(
            Embedder(model).eval(), (example,), dynamic_shapes=({0: Dim("n", min=1)},)
        )
        return program.run_decompositions({})


def compare(run: Run, model: VAE, dtype: torch.dtype) -> tuple[float, float]:
    """Find the largest difference of embeddings from the model's own, and the tolerated one.

    The images are flat colours, from black to white, and noise on them.
    """
    rng = np.random.default_rng(0)
    largest, scale = 0.0, 0.0
    for size in BATCHES:
        colours = rng.integers(0, 256, (size, CHANNELS, 1, 1))
        noise = rng.normal(0, 64, (size, CHANNELS, PATCH, PATCH)) * rng.random((size, 1, 1, 1))
        pixels = np.clip(colours + noise, 0, 255).astype(np.uint8)
        with torch.no_grad():
            expected = model.encoder(to_float(torch.from_numpy(pixels))).mean.flatten(1).numpy()
        images = pixels if dtype == torch.uint8 else pixels.astype(np.float32) / np.float32(255)
        largest = max(largest, float(np.abs(run(images) - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return largest, TOLERANCE * max(scale, 1.0)


def _onnx() -> tuple[Any, Any]:
    try:
        onnx, onnxruntime, _ = map(import_module, ("onnx", "onnxruntime", "onnxscript"))
    except ImportError as error:
        raise DataError(
            f"onnx files need {error.name}: pip install 'eqdvae[export]', or --to torch-export"
        ) from None
    return onnx, onnxruntime
