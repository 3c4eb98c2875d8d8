"""Select the files that may be patches, and make a patch from each one's name, size and time."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from msgspec import Struct

from common.errors import DataError
from shards.codec.png import MAX_SOURCE_BYTES, inflate
from shards.sources.names import (
    barcode,
    group_pattern,
    read_name,
    source_image,
    source_rule,
)
from shards.sources.source import (
    Accepted,
    BatchPatches,
    FileBatch,
    LookUp,
    Patch,
    ReadPatch,
    read_file,
)
from shards.sources.spelling import other_spelling

CHUNK = 1024  # files per batch

PLAIN = Accepted(("png",), MAX_SOURCE_BYTES, "PNG file")

_JUNK_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".ds_store", "zbthumbnail.info")
_JUNK_SUFFIXES = (
    *(".txt", ".csv", ".tsv", ".json", ".md", ".xml", ".yaml", ".yml", ".parquet", ".geojson"),
    *(".log", ".pdf", ".html", ".docx", ".xlsx", ".md5", ".sha1", ".sha256", ".py", ".ipynb"),
    *("zone.identifier", "~", ".lnk", ".url"),
)
_JUNK_FOLDERS = (
    "__macosx",
    "@eadir",
    "#recycle",
    "network trash folder",
    "temporary items",
    "@recycle",
    "@recently-snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
)
_ADVICE = {
    ("jpg", "jpeg", "tif", "tiff"): "--convert takes it",
    ("bmp", "gif", "webp", "jp2", "ppm", "heic", "avif", "psd", "eps"): "save it as PNG",
    ("svs", "ndpi", "mrxs", "scn", "vms", "vmu", "bif", "svslide"): (
        "a whole slide: name the resolution of the patches to cut, as in --mpp 0.5"
    ),
    ("czi", "dcm", "isyntax", "qptiff", "vsi", "lif", "oir", "sld", "zvi"): (
        "a whole slide that is not read here: convert it to a pyramidal TIFF"
    ),
    ("h5", "hdf5", "npy", "npz", "mat", "pkl", "pt", "pth", "zarr", "safetensors"): (
        "arrays: python -m shards.known packs those of public sets (docs/known-data.md); of others "
        "write each patch to a PNG file first"
    ),
    ("zip", "gz", "tgz", "bz2", "xz", "zst", "7z", "rar"): (
        "an archive: unpack it and name the folder"
    ),
    ("tar",): "a tar: unpack it, or use WebDataset tars where they are by "
    "python -m shards.verify SOURCE --index OUT",
    ("csv", "tsv", "parquet", "txt", "json"): (
        "a table: name the folder of the images as SOURCE, and the table by --manifest"
    ),
    ("xlsx", "xls", "ods"): (
        "a spreadsheet: save it as CSV UTF-8, name the folder of the images as SOURCE, and the "
        "table by --manifest"
    ),
    ("lmdb", "mdb", "tfrecord", "rec"): "a database: write each patch to a PNG file first",
}


class FileSource(Struct, frozen=True, kw_only=True):
    """Files below a root, each a PNG of one patch unless another source converts them."""

    is_slow: ClassVar[bool] = False

    root: Path
    group_regex: str | None = None  # see `names.source_image`
    accepted: Accepted = PLAIN
    follow_links: bool = False  # also out of the root
    side: int | None = None  # pixels; None: images of any size are converted

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.resolve().name

    @property
    def rule(self) -> str:
        """What the source of a patch is."""
        return source_rule(self.group_regex)

    def looked_up(
        self, batches: list[FileBatch], look_up: LookUp
    ) -> tuple[list[Patch], list[tuple[str, str]]]:
        """Look up files that were just listed: patches, and what is refused with the reason.

        Raises:
            DataError: a link that leaves the root.
        """
        patches: list[Patch] = []
        refused: list[tuple[str, str]] = []
        for batch, result in zip(batches, look_up(batches), strict=True):
            if result.error:
                raise DataError(result.error[1])
            patches += result.patches
            refused += result.refused
            refused += [
                (batch.paths[i], f"cannot be looked at: {why}") for i, why in result.missing
            ]
        return patches, refused

    def batches(
        self,
        paths: list[str],
        columns: dict[str, list[Any]],
        numbered: bool = False,
        nested: bool = False,
        listed: bool = False,
    ) -> list[FileBatch]:
        """Cut paths, and the values of columns for them, into batches of CHUNK files."""
        return [
            FileBatch(
                root=str(self.root),
                accepted=self.accepted,
                group_regex=self.group_regex,
                follow_links=self.follow_links,
                numbered=numbered,
                nested=nested,
                listed=listed,
                paths=paths[start : start + CHUNK],
                columns={name: values[start : start + CHUNK] for name, values in columns.items()},
            )
            for start in range(0, len(paths), CHUNK)
        ]

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> Self:
        return self

    @contextmanager
    def open(self) -> Iterator[ReadPatch]:
        root = str(self.root)

        def read(key: int, patch: Patch) -> tuple[Patch, bytes, bytes]:
            data = read_file(root, patch)
            return patch, data, inflate(data)

        yield read


def look_up(batch: FileBatch) -> BatchPatches:
    """Return the patches of the files of a batch.

    Fields that `columns` lacks come from the file's name; patient and site from a TCGA barcode in
    the slide or source. `--group-regex` replaces what the name says of source, slide and patient.
    """
    accepted, columns = batch.accepted, batch.columns
    empty = [None] * len(batch.paths)
    values = [columns.get(name, empty) for name in ("label", "slide", "patient", "site")]
    values += [columns.get(name, empty) for name in ("x", "y", "mpp")]
    position_in_name = "x" not in columns and "y" not in columns
    has_patient, has_site, has_slide = (name in columns for name in ("patient", "site", "slide"))
    pattern = group_pattern(batch.group_regex)
    status_of = _Statuses(batch.root, batch.follow_links)
    patches: list[Patch] = []
    refused: list[tuple[str, str]] = []
    missing: list[tuple[int, str]] = []
    respelled: list[tuple[int, str]] = []
    error: tuple[int, str] | None = None
    rows = zip(batch.paths, columns["split"], *values, strict=True)
    for i, (path, split, label, slide, patient, site, x, y, mpp) in enumerate(rows):
        if batch.listed and (other := other_spelling(batch.root, path, accepted)):
            path = other
            respelled.append((i, path))
        stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
        if reason := refused_name(suffix if dot else "", accepted):
            refused.append((path, reason))
            continue
        try:
            status = status_of(path)
            if reason := refused_status(status, accepted):
                refused.append((path, reason))
                continue
            name = read_name(stem, label, batch.numbered)
            if pattern is None:
                slide = slide if has_slide else name.slide
                patient = patient if has_patient else name.patient
            source = source_image(path, name, slide, pattern)
        except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
            reason = getattr(problem, "strerror", None) or str(problem)
            missing.append((i, reason))
            continue
        except DataError as problem:
            error = i, str(problem)
            break
        if not (has_patient and has_site) and (tcga := barcode(slide or source)):
            patient = patient if has_patient else tcga[0]
            site = site if has_site else tcga[1]
        if batch.nested and patient and source != path and patient not in source:
            source = f"{patient}/{source}"
        if position_in_name:
            y, x = name.y, name.x
        size, time = status.st_size, status.st_mtime_ns
        # positional: keywords cost a tenth of the time of this loop
        patches.append(
            Patch(path, label, split, source, y, x, size, time, slide, patient, site, mpp)
        )
    return BatchPatches(
        patches=patches, refused=refused, missing=missing, respelled=respelled, error=error
    )


def look_up_here(batches: Sequence[FileBatch]) -> Iterable[BatchPatches]:
    """Look up one batch after the other in this process."""
    return map(look_up, batches)


class _Statuses:
    """Read the status of files; raise DataError where a folder or link leaves the root."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self._root = root
        self._real_root = "" if follow_links else os.path.realpath(root)
        self._folders: set[str] = set()

    def __call__(self, path: str) -> os.stat_result:
        full, folder = f"{self._root}/{path}", path.rpartition("/")[0]
        status = os.lstat(full)
        if stat.S_ISLNK(status.st_mode) or folder not in self._folders:
            check_link(full, Path(self._root), self._real_root)
            self._folders.add(folder)
            status = Path(full).stat()
        return status


def check_link(path: str, root: Path, real_root: str) -> None:
    """Refuse a path that leads out of the root; one that leads nowhere is not refused here.

    Args:
        real_root: the root without links; empty: every link is followed.

    Raises:
        DataError: the target of `path` exists, and lies outside of the root.
    """
    if not real_root:
        return
    target = os.path.realpath(path)
    if os.path.commonpath([target, real_root]) != real_root and Path(target).exists():
        raise DataError(
            f"{path} is a link to {target}, outside {root}: refused. Follow such links with "
            f"--follow-links, copy the files (cp -rL follows links), or name the folder they are in"
        )


def refused_name(suffix: str, accepted: Accepted) -> str:
    """Return why a file whose name ends in `.suffix` cannot be a patch, or nothing."""
    lower = suffix.lower()
    if suffix in accepted.suffixes or lower in accepted.suffixes:
        return ""
    return (
        f"not a {accepted.kind} ({f'.{suffix}' if suffix else 'no suffix'}){suffix_advice(lower)}"
    )


def suffix_advice(suffix: str) -> str:
    """Return what can be done with a file of another kind, after a semicolon; empty if unknown."""
    for suffixes, advice in _ADVICE.items():
        if suffix in suffixes:
            return f"; {advice}"
    return ""


def folder_advice(path: Path, expected: str) -> str:
    """Say why SOURCE is not a folder, and what to do with such a file."""
    if not path.exists():
        return f"{path} is not a folder: it does not exist; {expected}"
    suffix = path.name.rpartition(".")[2].lower()
    image = suffix in ("png", "jpg", "jpeg", "tif", "tiff")
    advice = "; one image: name its folder" if image else suffix_advice(suffix)
    return f"{path} is not a folder but a file{advice or f'; {expected}'}"


def is_junk_file(name: str) -> bool:
    """Whether a file is a note, or was left by a file manager: not even a bad patch."""
    lower = name.lower()
    return lower.endswith(_JUNK_SUFFIXES) or is_system_file(name)


def is_system_file(name: str) -> bool:
    """Whether a file was left by a file manager."""
    return name.lower() in _JUNK_FILES or name.startswith(("._", "~$"))


def is_junk_folder(name: str) -> bool:
    """Whether a folder was left by a file manager, an archive or a network drive."""
    return name.lower() in _JUNK_FOLDERS


def refused_status(status: os.stat_result, accepted: Accepted) -> str:
    """Return why a file cannot be a patch, whatever is in it, or nothing."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > accepted.max_bytes:
        return f"{status.st_size} bytes, expected at most {accepted.max_bytes}"
    return ""
