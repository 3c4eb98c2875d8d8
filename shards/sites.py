"""Write manifests that leave one site out: `python -m shards.sites LIST DIR`.

LIST is a manifest or a packed data set. In DIR/<site>.csv that site is test and all others are
train and val, drawn by patient (or slide, or source); splits in LIST are not used. Pack each with
`python -m shards.pack SOURCE OUT --manifest DIR/<site>.csv`.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import tyro

from common.command import run_command
from common.console import log, printable, table
from common.errors import DataError
from common.files import atomic_file
from shards.schema import NO_LABEL, load_metadata, read_columns
from shards.sources.manifest import FIELDS, Columns, read_manifest
from shards.sources.names import read_name, source_image
from shards.sources.splits import SPLITS, Group, draw_splits, split_warnings

Values = dict[str, list[Any]]  # a value per row, by field of a manifest

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class SiteOptions:
    val: float = 0.15
    """Fraction of the patches of the other sites to use for val."""
    seed: int = 0
    """Seed of the train/val draw."""
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        if not 0 <= self.val < 1:
            raise ValueError(f"val is {self.val}, expected 0 or more, below 1")


def leave_one_out(listed: Path, out: Path, options: SiteOptions | None = None) -> list[Path]:
    """Write one manifest per site into `out`, and log the counts of each.

    Args:
        listed: a manifest or the folder of a packed data set.

    Returns:
        The files, sorted by site.

    Raises:
        DataError: `listed` cannot be read, a row has no site, there is only one site or a group
            lies in two of them, two sites would share a file, a file of `out` holds another
            list.
    """
    options = options or SiteOptions()
    values = _packed(listed) if listed.is_dir() else read_manifest(listed, options.columns).values
    groups = _groups(listed, values)
    labels = values.get("label") or [None] * len(groups)
    sites = sorted(set(values["site"]))
    if len(sites) < 2:
        raise DataError(f"{listed} has one site only ({sites[0]!r}): there is none to leave out")
    names = {site: _UNSAFE.sub("_", site).strip(".") + ".csv" for site in sites}
    if len({name.lower() for name in names.values()}) < len(sites):
        raise DataError(f"{listed}: two sites would share one file name: {names}; rename a site")
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, tuple[str, ...]] = {}
    # lists that exist first: those of another command are refused before anything is written
    for site, name in sorted(names.items(), key=lambda item: not (out / item[1]).exists()):
        members = zip(groups, labels, values["site"], strict=True)
        others = [(group, label) for group, label, of_site in members if of_site != site]
        drawn, warnings = draw_splits(others, options.val, 0, options.seed)
        for warning in warnings:
            log.warning(f"without {printable(site)}: {warning}")
        splits = [drawn.get(group, "test") for group in groups]
        _write(out / name, values | {"split": splits})
        try:  # what packing this list would warn of, or refuse
            warnings = split_warnings(out / name, zip(splits, labels, strict=True))
        except DataError as error:
            warnings = [str(error)]
        for warning in warnings:
            log.warning(f"{name}: {warning}")
        patches, groups_of = Counter(splits), Counter(drawn.values())
        counts = (*(patches[split] for split in SPLITS), groups_of["train"], groups_of["val"])
        rows[site] = (printable(site), *(f"{count:,}" for count in counts))
    header = ("site", *(f"{split} patches" for split in SPLITS), "train groups", "val groups")
    log.info(table([header, *(rows[site] for site in sites)]))
    return [out / name for name in names.values()]


def _packed(root: Path) -> Values:
    """Read the rows of a packed data set as a manifest of its source would have them."""
    metadata = load_metadata(root)
    if "convert" in metadata.provenance:
        raise DataError(
            f"{root} was packed with --convert: its x and y are not those of the files any more. "
            f"Make the lists from its manifest"
        )
    if "slides" in metadata.provenance:
        raise DataError(f"{root} was cut from slides: make the lists from a manifest of the slides")
    columns = ["label", "source", *(name for name in FIELDS if name not in ("label", "split"))]
    try:
        tables = [read_columns(shard.sidecar(root), columns) for shard in metadata.shards]
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise DataError(
            f"{root}: a sidecar cannot be read: {error}; see python -m shards.verify {root}"
        ) from None
    values: Values = pa.concat_tables(tables).sort_by("path").to_pydict()
    labels = dict(enumerate(metadata.classes)) | {NO_LABEL: None}
    values["label"] = [labels[label] for label in values["label"]]
    return values


def _groups(listed: Path, values: Values) -> list[Group]:
    """Return the patient, slide or source of every row, none of them at two sites."""
    paths = values["path"]
    empty = [None] * len(paths)
    sites, slides = values.get("site", empty), values.get("slide", empty)
    if None in sites:
        raise DataError(
            f"{listed} gives no site for {paths[sites.index(None)]!r} ({sites.count(None)} of "
            f"{len(sites)} patches have none): each needs one, in the column site (or name the "
            f"column with --columns.site), or by a TCGA barcode in a packed set"
        )
    sources = values.get("source") or [
        source_image(path, read_name(path.rpartition("/")[2].rpartition(".")[0]), slide)
        for path, slide in zip(paths, slides, strict=True)
    ]
    groups: list[Group] = []
    home: dict[Group, str] = {}
    columns = (values.get("patient", empty), slides, sources, sites)
    for patient, slide, source, site in zip(*columns, strict=True):
        named = [("patient", patient), ("slide", slide), ("source", source)]
        group = next((kind, name) for kind, name in named if name is not None)
        if home.setdefault(group, site) != site:
            raise DataError(
                f"{listed}: {group[0]} {group[1]!r} is at the sites {home[group]!r} and {site!r}: "
                f"leaving one out would not leave the {group[0]} out"
            )
        groups.append(group)
    return groups


def _write(path: Path, values: Values) -> None:
    """Write a list, unless an earlier run of the same command has written it."""
    types = {"x": pa.int64(), "y": pa.int64(), "mpp": pa.float64()}
    columns: dict[str, pa.Array] = {}
    for field_name in FIELDS:
        column = pa.array(values.get(field_name, []), types.get(field_name, pa.string()))
        if column.null_count < len(column):
            columns[field_name] = column
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(pa.table(columns), sink)
    data = memoryview(sink.getvalue())
    if path.exists():
        if path.read_bytes() != data:
            raise DataError(f"{path} exists with another list: remove it, or choose another folder")
        return
    with atomic_file(path) as file:
        file.write(data)


_List = Annotated[Path, tyro.conf.arg(metavar="LIST", help="manifest, or packed data set")]
_Dir = Annotated[Path, tyro.conf.arg(metavar="DIR", help="folder for the lists")]


@dataclass(frozen=True)
class _Command:
    """Write one manifest per site, with that site as test and the others as train and val."""

    listed: tyro.conf.Positional[_List]
    out: tyro.conf.Positional[_Dir]
    options: Annotated[SiteOptions, tyro.conf.arg(name="")] = field(default_factory=SiteOptions)

    def __call__(self) -> None:
        leave_one_out(self.listed, self.out, self.options)


def main() -> int:
    return run_command("shards.sites", _Command)


if __name__ == "__main__":
    sys.exit(main())
