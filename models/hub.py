"""Where the snapshot of a model is: in the folder of a run, by itself, or on the Hugging Face hub.

The hub is reached through huggingface_hub alone: its cache, its credentials, HF_HUB_OFFLINE. Only
the two files of a snapshot are fetched, and they are read like any others.
"""

import re
from pathlib import Path

from common.errors import DataError
from models.snapshot import CONFIG, WEIGHTS

SNAPSHOT = "snapshot"  # folder in a run
HUB_ID = re.compile(r"(?:hf://)?([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?")


def locate(name: Path | str) -> Path:
    """Find the folder of a snapshot.

    Args:
        name: folder of a run, or of the snapshot itself; or `owner/model` on the Hugging Face hub,
            also as `owner/model@revision`, where no such folder exists.

    Raises:
        DataError: there is no snapshot; for a hub id the extra `hub` is not installed, or the
            files can be neither fetched nor read from the cache.
    """
    folder = Path(name)
    if (folder / SNAPSHOT).is_dir():
        return folder / SNAPSHOT
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return folder
    match = HUB_ID.fullmatch(str(name))
    if match is None or folder.exists():
        raise DataError(
            f"{name} is not the folder of a finished run, nor of its snapshot ({WEIGHTS} and "
            f"{CONFIG}). Train one with: python train/main.py --out {name}"
        )
    return _fetch(match[1], match[2])


def run_folder(run: Path | str) -> Path:
    """Return the folder of a run, for files beside its snapshot.

    Raises:
        DataError: it is not a run, but only its snapshot: the folder has to be named.
    """
    if not (Path(run) / SNAPSHOT).is_dir():
        raise DataError(f"{run} is not the folder of a run: name one for the files with --out DIR")
    return Path(run)


def _fetch(repository: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise DataError(
            f"{repository} is not a folder; for a model on the Hugging Face hub: "
            "pip install 'eqdvae[hub]'"
        ) from None
    try:
        config, _ = (
            huggingface_hub.hf_hub_download(repository, file, revision=revision)
            for file in (CONFIG, WEIGHTS)
        )
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:500]
        raise DataError(
            f"{repository} is neither a folder nor in the cache of the Hugging Face hub, and "
            f"cannot be fetched from there: {reason}"
        ) from None
    return Path(config).parent
