"""RUN/pictures.safetensors: the patches and the orbit that reports show of a run.

It holds pixels, not figures, so that a report can put the runs of one data set side by side. The
patches depend on the data set alone; their corruptions are those of the default configuration. All
of it is about 100 KB.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from sklearn.decomposition import PCA
from torch import Tensor

from common.errors import DataError
from common.files import write_atomically
from eval.measure.metrics import elements_of, evaluating, psnr, rho
from eval.session import RunSession, in_turn, subset
from models.config import LATENT_SIDE
from pipeline import d4
from pipeline.config import ORDER, CorruptionConfig
from pipeline.corruptions import corrupt_as
from pipeline.pixels import to_float, to_pixels, to_tensor
from pipeline.reader import read_split
from shards.codec.png import Pixels
from shards.schema import CHANNELS, PATCH

PICTURES = "pictures.safetensors"
CORRUPTION = CorruptionConfig()
KINDS = tuple(kind for kind, share in CORRUPTION.shares.items() if share > 0)
PER_KIND = 2  # patches of each kind of corruption
SAMPLE = 512  # patches that colours and the scale of errors are of
RANGE = 2.0  # standard deviations of a principal component from black to mid-grey
MAX_BYTES = 4 << 20
IMAGE, GRID = (PATCH, PATCH, CHANNELS), (LATENT_SIDE, LATENT_SIDE, CHANNELS)


@dataclass(frozen=True)
class Pictures:
    """P patches under the kinds of corruption in turn, and a patch x under E group elements g.

    Codes are drawn by their first three principal components, as red, green and blue: mu(g x), and
    rho(g) mu(x), which is what an equivariant encoder gives. Where channels are permuted too, they
    are permuted back for the drawing.
    """

    clean: Pixels  # (P, 32, 32, 3)
    corrupted: Pixels
    reconstructed: Pixels | None  # from the posterior mean; None without a trained decoder
    psnr: NDArray[np.float32]  # (2, P) to the clean patch: of the corrupted, the reconstructed
    orbit: Pixels  # (E, 32, 32, 3), g x
    codes: Pixels  # (E, 4, 4, 3)
    moved: Pixels  # (E, 4, 4, 3)
    errors: NDArray[np.float32]  # (E,) of mu(g x) against rho(g) mu(x), as `relative_errors`
    shares: NDArray[np.float32]  # (3,) of the variance of the components


def draw(session: RunSession) -> None:
    """Write RUN/pictures.safetensors."""
    split = session.metrics_split
    rows = in_turn(split.labels, PER_KIND * len(KINDS))
    patches = to_tensor(read_split(split, rows), session.device)
    sample = to_tensor(read_split(split, subset(len(split), SAMPLE)), session.device)
    pictures = pictures_of(session, patches, sample)
    arrays = {name: array for name, array in vars(pictures).items() if array is not None}
    facts = {"hashes": json.dumps(session.hashes)}  # one entry: safetensors does not sort them
    write_atomically(session.run / PICTURES, save(arrays, facts))


def pictures_of(session: RunSession, patches: Tensor, sample: Tensor) -> Pictures:
    """Encode and decode the patches (P, 3, 32, 32), the first of them also under every element.

    Args:
        sample: uint8 (n, 3, 32, 32), which the colours of codes are fitted on.
    """
    model, symmetry = session.model, session.symmetry
    x = to_float(patches)
    by_kind = zip(KINDS, x.split(PER_KIND), strict=False)
    corrupted = torch.cat([corrupt_as(kind, batch, CORRUPTION) for kind, batch in by_kind])
    elements = (0, *elements_of(symmetry))
    orbit = torch.cat([d4.act_one(x[:1], g) for g in elements])
    with evaluating(model):
        mu = model.encoder(orbit).mean
        sampled = model.encoder(to_float(sample)).mean
        x_hat = model(corrupted) if session.info.decodes else None
    back = torch.cat([rho(mu[g : g + 1], d4.inverse(g), symmetry) for g in elements])
    colours, shares = _colours(sampled, back)
    scale = 2 * (sampled - sampled.mean(0)).flatten(1).double().square().sum(1).mean()
    errors = ((back - mu[:1]).flatten(1).double().square().sum(1) / scale).sqrt()
    outputs = corrupted if x_hat is None else x_hat
    return Pictures(
        clean=to_pixels(x.clamp(0, 1)),
        corrupted=to_pixels(corrupted.clamp(0, 1)),
        reconstructed=None if x_hat is None else to_pixels(x_hat.clamp(0, 1)),
        psnr=torch.stack([psnr(corrupted, x), psnr(outputs, x)]).float().cpu().numpy(),
        orbit=to_pixels(orbit.clamp(0, 1)),
        codes=to_pixels(torch.stack([d4.act_one(colours[g], g) for g in elements])),
        moved=to_pixels(torch.stack([d4.act_one(colours[0], g) for g in elements])),
        errors=errors.float().cpu().numpy(),
        shares=shares,
    )


def _colours(sample: Tensor, codes: Tensor) -> tuple[Tensor, NDArray[np.float32]]:
    """Colour codes (E, C, 4, 4) by the principal components of the cells of a sample (n, C, 4, 4).

    Returns:
        Colours (E, 3, 4, 4) in [0, 1], and the shares of the variance.
    """
    cells = sample.permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy()
    pca = PCA(CHANNELS, svd_solver="covariance_eigh").fit(cells)
    spread = np.sqrt(np.maximum(pca.explained_variance_, np.finfo(float).tiny))
    flat = codes.permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy()
    colours = 0.5 + pca.transform(flat) / (2 * RANGE * spread)
    grid = torch.from_numpy(colours).view(len(codes), *codes.shape[2:], CHANNELS)
    shares = np.nan_to_num(pca.explained_variance_ratio_).astype(np.float32)
    return grid.permute(0, 3, 1, 2).clamp(0, 1), shares


def load(run: Path) -> tuple[Pictures, dict[str, str]]:
    """Read RUN/pictures.safetensors, and the hashes of what it is of.

    Raises:
        DataError: it is not a file of this format.
    """
    path = run / PICTURES
    remedy = f"evaluate again with: python -m eval.main {run}"
    if path.is_symlink() or path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} is a link or larger than {MAX_BYTES} bytes: {remedy}")
    try:
        with safe_open(path, "numpy") as file:
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
            hashes = json.loads((file.metadata() or {})["hashes"])
        pictures = Pictures(**{"reconstructed": None} | arrays)
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as pictures ({error}): {remedy}") from None
    count, elements = len(pictures.clean), len(pictures.orbit)
    expected = {
        "clean": (np.uint8, (count, *IMAGE)),
        "corrupted": (np.uint8, (count, *IMAGE)),
        "reconstructed": (np.uint8, (count, *IMAGE)),
        "psnr": (np.float32, (2, count)),
        "orbit": (np.uint8, (elements, *IMAGE)),
        "codes": (np.uint8, (elements, *GRID)),
        "moved": (np.uint8, (elements, *GRID)),
        "errors": (np.float32, (elements,)),
        "shares": (np.float32, (CHANNELS,)),
    }
    for field in fields(pictures):
        array, (dtype, shape) = getattr(pictures, field.name), expected[field.name]
        if array is not None and (array.dtype, array.shape) != (dtype, shape):
            raise DataError(
                f"{path}: {field.name} is {array.dtype} {array.shape}, expected "
                f"{np.dtype(dtype)} {shape}: {remedy}"
            )
    if not count or elements not in ORDER.values():
        raise DataError(f"{path} has {count} patches and {elements} elements: {remedy}")
    return pictures, dict(hashes)
