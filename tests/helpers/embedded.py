"""Embeddings as the embedding command leaves them, read back."""

from pathlib import Path

import numpy as np

from eval.features import Features, read_embeddings


def read_parts(out: Path) -> tuple[Features, list[str]]:
    """All embeddings (n, d) in a folder, and the paths of their patches, in order."""
    tables = [read_embeddings(path) for path in sorted(out.glob("part-*.parquet"))]
    paths = [path for _, table in tables for path in table["path"].to_pylist()]
    return np.concatenate([features for features, _ in tables]), paths
