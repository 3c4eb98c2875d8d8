"""The runs of a report: results.json files that are not trusted, read and named."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from eval import run as runs
from eval.measure.readouts import PRIMARY
from eval.report.document import shown

# of `run` in results.json: what one arm may differ in
UNEQUAL = ("seed", "noise_var", "dataset_hash")


@dataclass(frozen=True)
class Entry:
    """A run in the report."""

    folder: Path
    label: str  # unique; as it is shown
    slug: str  # unique and safe in a file name
    results: dict[str, Any]

    def at(self, *path: str) -> Any:
        """The value there in results.json, or None."""
        value: Any = self.results
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def section(self, *path: str) -> dict[str, dict[str, Any]]:
        """The objects by name there in results.json; none where it is absent or no object."""
        found = self.at(*path)
        items = found.items() if isinstance(found, dict) else ()
        return {str(name): value for name, value in items if isinstance(value, dict)}

    @property
    def preset(self) -> str:
        """What was trained; of embeddings that were not trained here, the name of the folder."""
        return shown(self.at("run", "preset") or self.label)

    @property
    def root(self) -> Path:
        """Of the data set it was evaluated on."""
        return Path(str(self.at("data", "root")))

    @property
    def seed(self) -> int:
        """0 where there is none."""
        seed = self.at("run", "seed")
        return seed if isinstance(seed, int) else 0

    @property
    def settings(self) -> dict[str, Any]:
        """What runs of one arm have in common."""
        about = self.at("run") if isinstance(self.at("run"), dict) else {}
        model = self.at("model") if isinstance(self.at("model"), dict) else {}
        kept = {name: value for name, value in about.items() if name not in UNEQUAL}
        return kept | {k: v for k, v in model.items() if k not in ("snapshot", "parameters")}


def load(folders: Iterable[Path]) -> list[Entry]:
    """The runs, each folder once.

    Raises:
        DataError: no run, or one that was not evaluated or whose results cannot be read.
    """
    entries: list[Entry] = []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        name = shown(folder.name)
        taken = {entry.label for entry in entries}
        label = name if name not in taken else shown(f"{folder.parent.name}/{folder.name}")
        slug = re.sub(r"[^a-z0-9-]+", "-", label.lower()).strip("-")[:40]
        entry = Entry(folder, label, f"{len(entries)}-{slug}", runs.load_results(folder))
        if not isinstance(entry.at("data", "hash"), str):
            raise DataError(
                f"{folder / runs.RESULTS} was not written by this version: "
                f"evaluate again with: python -m eval.main {folder}"
            )
        entries.append(entry)
    if not entries:
        raise DataError("no run to report: name one or more run folders")
    return entries


def near(path: Path) -> str:
    """As seen from the working directory where it lies below it: short, and the same elsewhere."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def by_data_set(entries: list[Entry]) -> list[list[Entry]]:
    """Runs are compared only where they were evaluated on one data set."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(str(entry.at("data", "hash")), []).append(entry)
    return list(found.values())


def baselines(group: list[Entry]) -> list[tuple[str, str, Entry]]:
    """(name as shown, name in results, a run that has it): once, random init by architecture."""
    found: dict[str, tuple[str, str, Entry]] = {}
    for entry in group:
        for name, probe in entry.section("probe").items():
            if name == PRIMARY or probe.get("features") != "baseline":
                continue
            architecture = f" ({entry.at('model', 'architecture')})"
            label = shown(name + (architecture if name == "random_init" else ""))
            found.setdefault(label, (label, name, entry))
    return list(found.values())


def first_of_each(group: list[Entry]) -> list[Entry]:
    """One run of every preset and budget: the one with the lowest seed."""
    found: dict[str, Entry] = {}
    for entry in sorted(group, key=lambda entry: entry.seed):
        found.setdefault(repr(sorted(entry.settings.items(), key=str)), entry)
    return [entry for entry in group if entry in found.values()]
