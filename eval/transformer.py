"""A trained encoder as a step of scikit-learn pipelines: `EmbeddingTransformer(run)`."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from eval.encoder import HWC, load
from eval.features import Features
from shards.schema import PATCH_BYTES


class EmbeddingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embed patches with a trained encoder, which is loaded by `fit` and learns nothing there.

    Args:
        run: as for `eval.encoder.load`: a run, a snapshot or a model on the hub.
        readout: as for `PatchEncoder.encode`.
        device: as for `eval.encoder.load`.
    """

    def __init__(
        self,
        run: Path | str,
        readout: str = "mean",
        device: str | torch.device | None = None,
    ) -> None:
        self.run, self.readout, self.device = run, readout, device

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Load the encoder, and check the form of the patches.

        Raises:
            DataError: there is no snapshot, or one that is damaged.
            ValueError: as `transform`, an unknown readout, or a run that normalises staining: its
                embedding of a patch depends on the other patches.
        """
        _patches(X)
        encoder = load(self.run, self.device)
        if encoder.normalisation is not None:
            raise ValueError(
                f"{self.run} normalises the staining of patches by the others of their unit: embed "
                "them with eval.encoder.load, which takes the units"
            )
        self.encoder_, self.readout_, self.n_features_in_ = encoder, self.readout, PATCH_BYTES
        self._n_features_out = encoder.embed(np.zeros((1, *HWC), np.uint8), self.readout).shape[1]
        return self

    def transform(self, X: ArrayLike) -> Features:
        """Embed patches: float32 (n, d) in their order.

        Args:
            X: (n, 32, 32, 3), or (n, 3072) as `images.reshape(n, -1)` gives them; uint8 in 0..255
                or float in [0, 1].

        Raises:
            ValueError: another shape, dtype or range.
        """
        check_is_fitted(self)
        return self.encoder_.encode(_patches(X), self.readout_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True  # scikit-learn has no tag for four
        return tags


def _patches(X: ArrayLike) -> NDArray[np.generic]:
    """View patches as (n, 32, 32, 3)."""
    images = np.asarray(X)
    if images.dtype.kind in "OSU":
        raise ValueError(
            f"patches have dtype {images.dtype}, expected uint8 or float: read files with "
            "np.stack([np.asarray(PIL.Image.open(path)) for path in paths])"
        )
    if images.shape[1:] not in (HWC, (PATCH_BYTES,)):
        raise ValueError(
            f"patches have shape {images.shape}, expected (n, 32, 32, 3) or (n, {PATCH_BYTES})"
        )
    return images.reshape(-1, *HWC)
