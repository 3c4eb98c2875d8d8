"""Find training data: a named data set, else data/shards, data/raw, or a synthetic set."""

from pathlib import Path

from common.console import log, progress
from common.errors import DataError
from shards.pack.packing import pack
from shards.remote.cache import local
from shards.schema import METADATA_NAME, refuse_unfinished
from shards.synthetic.generate import SyntheticConfig, generate

SHARDS, RAW, SYNTHETIC = Path("data/shards"), Path("data/raw"), Path("data/synthetic")
SYNTHETIC_IMAGES = 25_600  # training budget on the synthetic set: about a minute on two cores


def find_data(named: str | Path | None) -> Path:
    """Find the packed folder to train on; fetch, pack or generate it first where needed.

    Args:
        named: a folder or a URL; None looks for data/shards, data/raw and data/synthetic.

    Raises:
        DataError: `named` is not a packed data set, or data/raw cannot be packed.
    """
    if named is not None:
        folder = _require_packed(local(named))
        log.info(f"data: {named}")
        return folder
    if (SHARDS / METADATA_NAME).exists() or (SHARDS.exists() and not RAW.exists()):
        folder = _require_packed(SHARDS)
        log.info(f"data: {SHARDS}")
        return folder
    if RAW.exists():  # an interrupted packing continues
        pack(RAW, SHARDS)
        log.info(f"data: {SHARDS}, packed from {RAW}")
        return SHARDS
    shards = SYNTHETIC / "shards"
    if not (shards / METADATA_NAME).exists():
        raw = SYNTHETIC / "raw"
        if not raw.exists():
            config = SyntheticConfig()
            total = config.train + config.val + config.test
            with progress("generating a synthetic set", total, "patches") as advance:
                generate(raw, config, advance)
        pack(raw, shards)
    log.info(
        f"data: {shards}, SYNTHETIC patches, since neither {SHARDS} nor {RAW} exists; "
        "pack your own with: python -m shards.pack SOURCE data/shards"
    )
    return shards


def is_synthetic(data: Path) -> bool:
    return data == SYNTHETIC / "shards"


def _require_packed(folder: Path) -> Path:
    if folder.is_file():
        packed = (folder.parent / METADATA_NAME).is_file()
        raise DataError(
            f"{folder} is a file; --data takes the folder of a packed data set"
            + (f", here {folder.parent}" if packed else f", which holds {METADATA_NAME}")
        )
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; name a packed folder with --data")
    if not (folder / METADATA_NAME).exists():
        refuse_unfinished(folder)
        inside = sorted(path.parent for path in folder.glob(f"*/{METADATA_NAME}"))
        if inside:
            advice = f"There are such in it, as {inside[0]}"
        elif any(folder.glob("*.tar")):
            advice = (
                f"WebDataset tars are indexed with: python -m shards.verify {folder} --index OUT"
            )
        else:
            advice = f"Pack patches with: python -m shards.pack {folder} OUT"
        raise DataError(f"{folder} has no {METADATA_NAME}: it is not a packed data set. {advice}")
    return folder
