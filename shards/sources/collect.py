"""From SOURCE and the options to the list of patches: found or listed, cut into tiles, split."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import DataError
from shards.pack.plan import PackOptions
from shards.sources.assign import achieved, assign
from shards.sources.convert import CONVERTIBLE
from shards.sources.folder import Survey, split_warnings, survey
from shards.sources.layout import PLAIN
from shards.sources.listed import manifest_provenance, survey_listed
from shards.sources.look import LookAll, look_here
from shards.sources.manifest import read_manifest
from shards.sources.tiles import tile


@dataclass(frozen=True)
class Intake:
    """What to pack, and where it comes from."""

    source: str  # as it was named on the command line
    name: str  # of the folder
    survey: Survey
    said: dict[str, Any]  # for the provenance in dataset.json


def gather(source: Path, options: PackOptions, look_all: LookAll = look_here) -> Intake:
    """What to pack, and what dataset.json says of where it comes from.

    Raises:
        DataError: as `survey`, `read_manifest`, `survey_listed` and `assign`; fractions asked of
            a source that has splits; a class that train lacks.
    """
    accepted = PLAIN if options.convert == "none" else CONVERTIBLE
    if options.manifest is None:
        found = survey(source, options.group_regex, options.layout, accepted, look_all)
        said: dict[str, Any] = {"layout": found.layout}
    else:
        rows = read_manifest(options.manifest, options.columns)
        found = survey_listed(source, rows, options.group_regex, accepted, look_all)
        said = {"manifest": manifest_provenance(rows)}
    if options.convert != "none":
        said["convert"] = {"rule": options.convert}
    if options.convert == "tile":
        found = _tiled(source, found, said["convert"])
    if (options.val or options.test) and found.patches:
        found, said["splits"] = _split(source, found, options)
    warnings = found.warnings + split_warnings(source, found.patches)
    found = replace(found, warnings=warnings)
    return Intake(str(source), source.resolve().name, found, said)


def _tiled(source: Path, found: Survey, said: dict[str, Any]) -> Survey:
    done = tile(source, found.patches)
    said |= {
        "images": done.images,
        "images_with_remainder": done.cut,
        "pixels": done.pixels,
        "pixels_left": done.pixels_left,
    }
    note = (
        f"tile: {done.images:,} images cut into {len(done.patches):,} tiles; {done.cut:,} images "
        f"had a remainder, {done.pixels_left / max(done.pixels, 1):.1%} of all pixels, left out"
    )
    refused = sorted([*found.refused, *done.refused])
    return replace(found, patches=done.patches, refused=refused, notes=[*found.notes, note])


def _split(source: Path, found: Survey, options: PackOptions) -> tuple[Survey, dict[str, Any]]:
    if found.has_splits:
        folders = options.manifest is None
        where = "folders" if folders else f"column in {options.manifest}"
        one = " (one split folder can be SOURCE by itself)" if folders else ""
        raise DataError(
            f"{source} has splits already (split {where}), and --val and --test draw new ones: "
            f"leave out the options, or the splits{one}"
        )
    members = [(patch.group, patch.label) for patch in found.patches]
    split, warnings = assign(members, options.val, options.test, options.seed)
    patches = [patch._replace(split=split[patch.group]) for patch in found.patches]
    kinds = sorted({kind for kind, _ in split})
    note = (
        f"splits drawn by {' or '.join(kinds)}: {len(split):,} groups, asked for "
        f"val {options.val:g}, test {options.test:g}"
    )
    said = {
        "by": kinds,
        "val": options.val,
        "test": options.test,
        "achieved": achieved((p.split, p.group, p.label) for p in patches),
    }
    drawn = replace(
        found,
        patches=patches,
        notes=[*found.notes, note],
        warnings=[*found.warnings, *warnings],
    )
    return drawn, said
