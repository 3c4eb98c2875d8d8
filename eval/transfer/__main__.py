"""Probes carried to other sites: `python -m eval.transfer RUN... --data A B C --out DIR`.

Each data set is a site; where one names sites in its column `site`, each of them is also left out
in turn. What is carried is the probe: which data the encoder was trained on is in the results.
DIR gets transfer.json, transfer.md, and scores/RUN/DATA.parquet (the format of
eval.measure.scores) with conditions such as `train=oral,stain=site`, for intervals by
eval.stats.contrasts.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from common.command import run_command
from common.errors import DataError
from common.files import atomic_path
from common.machine import environment
from eval import run as runs
from eval.main import finite, write_json
from eval.measure.baselines import BASELINES, Transform
from eval.measure.readouts import PRIMARY, Pixels, embed_pixels
from eval.measure.suite import SPLITS
from eval.report.document import Document
from eval.report.writers import to_markdown
from eval.session import EvalConfig, Say, device_named
from eval.transfer import experiment as carry
from eval.transfer.experiment import Encoding, Row, Trial
from eval.transfer.sites import Site, open_sites, places_of, short_names
from eval.transfer.staining import Stain
from eval.transfer.tables import RESULTS, sections
from models import snapshot
from models.vae import VAE

VERSION = 1
TABLES = "transfer.md"
BETWEEN = "between-data-sets"
FITTED = ("pca384",)  # baselines that look at the images of train


@dataclass(frozen=True)
class TransferConfig:
    """What is carried, and on how much."""

    stain: tuple[Stain, ...] = ("none", "site")
    """Normalise staining (Reinhard in CIELAB) to the train site: none, by site, by source image."""
    baselines: tuple[str, ...] = ("mean_rgb", "colour_grid", "pca384", "random_init")
    """Features that need no training, carried beside the models'."""
    probe_images: int = EvalConfig.probe_images
    """Of a split, at most: a seeded random subset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where torch can use one."""

    def __post_init__(self) -> None:
        EvalConfig(baselines=self.baselines, probe_images=self.probe_images)  # refuses as there
        if not self.stain:
            raise ValueError("no stain is named; expected one or more of none, site, source")


def transfer(
    run_folders: list[Path], data: list[Path | str], out: Path,
    config: TransferConfig = TransferConfig(),
    say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Carry the probes of runs between data sets and return what was written to OUT/transfer.json.

    Raises:
        DataError: a run or a data set cannot be used, class names differ between data sets, or
            there is a single site.
    """
    start, say = time.monotonic(), say or _print
    folders = dict(zip(short_names(run_folders), run_folders, strict=True))
    about = {name: runs.load_about(folder) for name, folder in folders.items()}
    device = device_named(config.device)
    models = {n: snapshot.load(folder / "snapshot").to(device) for n, folder in folders.items()}
    chosen = EvalConfig(probe_images=config.probe_images)
    sites = open_sites(data, chosen, say)
    if len(sites) == 1 and not any(len(site.sites) > 1 for site in sites.values()):
        raise DataError(
            f"{data[0]} names {len(next(iter(sites.values())).sites)} sites: transfer needs two "
            "data sets, or one with two sites in its column `site`"
        )
    trial = Trial(sites, encodings_of(models, config.baselines), say)
    results: dict[str, Any] = {
        "version": VERSION,
        "runs": {
            name: {"folder": str(folder), "snapshot": runs.snapshot_hash(folder)}
            | asdict(about[name])
            for name, folder in folders.items()
        },
        "data": {name: _composition(site) for name, site in sites.items()},
        "protocol": asdict(config) | {"classes": next(iter(sites.values())).classes},
        **_experiments(trial, config),
    }
    for (run, place), book in trial.books.items():
        facts = {"snapshot_xxh3": results["runs"][run]["snapshot"], "test": place}
        book.write(out / "scores" / run / f"{place}.parquet", facts)
    results["notices"] = trial.notices
    results["environment"] = environment()
    results["seconds"] = round(time.monotonic() - start, 1)
    results = finite(results)
    document = Document("Probes carried between sites", "", sections(results))
    with atomic_path(out / TABLES) as temp:
        temp.write_text(to_markdown(document), encoding="utf-8")
    write_json(out / RESULTS, results)
    say(f"{out / RESULTS} written after {results['seconds']} s")
    return results


def encodings_of(models: dict[str, VAE], baselines: tuple[str, ...]) -> list[Encoding]:
    """The primary readout of every run; baselines once, untrained ones once an architecture."""
    found = [
        Encoding(PRIMARY, (name,), partial(_readout, model=model), fixed=True)
        for name, model in models.items()
    ]
    alike: dict[tuple[str, Any], list[str]] = {}
    for baseline in baselines:
        for name, model in models.items():
            key = model.config if baseline == "random_init" else None
            alike.setdefault((baseline, key), []).append(name)
    for (baseline, _), names in alike.items():
        make = partial(_baseline, name=baseline, model=models[names[0]])
        found.append(Encoding(baseline, tuple(names), make, fixed=baseline not in FITTED))
    return found


def _readout(train: Pixels, model: VAE) -> Transform:
    return lambda pixels: embed_pixels(model, pixels, [PRIMARY])[PRIMARY]


def _baseline(train: Pixels, name: str, model: VAE) -> Transform:
    return BASELINES[name](train, model)


def _composition(site: Site) -> dict[str, Any]:
    labels, data = site.rows.labels, site.session.data
    return {
        "root": str(data.root),
        "hash": data.hash,
        "sites": site.sites,
        "splits": {
            split: {
                "patches": len(labels[split]),
                "groups": len(set(site.rows.groups(split))),
                "classes": {c: int((labels[split] == i).sum()) for i, c in enumerate(site.classes)},
            }
            for split in SPLITS
        },
    }


def _experiments(trial: Trial, config: TransferConfig) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {"matrix": [], "left_out": [], "site_probe": []}
    sites = list(trial.sites.values())
    probed = {site.name: [site] for site in sites if len(site.sites) > 1}
    if len(sites) > 1:
        probed[BETWEEN] = sites
    places = {name: places_of(parts) for name, parts in probed.items()}
    for name, where in places.items():
        if where.crossing:
            trial.notice(f"{name}: {where.crossing} patches of val and test are left out of the "
                         "site probe, since their group is in an earlier split")  # fmt: skip
    for stain in config.stain:
        found["matrix"] += carry.matrix(trial, stain)
        for site in sites:
            if len(site.sites) > 1:
                found["left_out"] += carry.left_out(trial, site, stain)
        for name, parts in probed.items():
            found["site_probe"] += carry.site_probe(trial, name, parts, places[name], stain)
    return found


def _print(line: str) -> None:
    print(line, flush=True)


_Runs = Annotated[list[Path], tyro.conf.arg(metavar="RUN...", help="folders of finished runs")]
_Data = Annotated[list[str], tyro.conf.arg(metavar="DATA...", help="packed data sets or URLs")]
_Config = Annotated[TransferConfig, tyro.conf.arg(name="")]


def _command(
    run_folders: tyro.conf.Positional[_Runs],
    data: _Data,
    out: Path,
    config: _Config = TransferConfig(),
) -> Callable[[], None]:
    """Carry probes between data sets: OUT/transfer.json, OUT/transfer.md, OUT/scores."""

    def action() -> None:
        transfer(run_folders, list(data), out, config)
        print((out / TABLES).read_text(encoding="utf-8"))

    return action


def main() -> int:
    return run_command("eval.transfer", _command)


if __name__ == "__main__":
    sys.exit(main())
