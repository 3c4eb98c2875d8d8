"""The transfer of probes between data sets: OUT/transfer.json, OUT/transfer.md and OUT/scores.

Each data set is a site; if a data set has several sites in its column `site`, each is also left out
in turn. Only the probe is transferred; the results name the data that the encoder was trained on.
`eval.stats.contrasts` computes intervals from OUT/scores/RUN/DATA.parquet, in the format of
`eval.measure.scores`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.console import log
from common.errors import DataError
from common.files import atomic_path
from common.machine import environment
from eval import run as runs
from eval.config import TRANSFER_DEFAULTS, EvalConfig, TransferConfig
from eval.measure.readouts import BASELINES, PRIMARY, Transform, embed_mean
from eval.report.document import Document
from eval.report.writers import to_markdown
from eval.results import as_json, save
from eval.session import device_named, stain_table
from eval.transfer import experiment
from eval.transfer.datasets import ProbedData, open_datasets, short_names, site_labels
from eval.transfer.experiment import Encoding, Trial
from eval.transfer.results import (
    TRANSFER,
    VERSION,
    LeftOutRow,
    MatrixRow,
    SiteProbeRow,
    Transfer,
    TransferData,
    TransferProtocol,
    TransferRun,
    TransferSplit,
)
from eval.transfer.tables import sections
from models import snapshot
from models.config import ModelConfig
from models.vae import VAE
from pipeline.index import Dataset
from pipeline.normalisation import Normalisation, Statistics, Unit
from pipeline.units import StainTable, fit_dataset, normalised
from shards.codec.png import Pixels
from shards.sources.splits import SPLITS

TABLES = "transfer.md"
BETWEEN = "between-data-sets"
FITTED = ("pca384",)  # baselines that are fitted on the images of train


def transfer(
    run_folders: list[Path],
    data: list[Path | str],
    out: Path,
    config: TransferConfig = TRANSFER_DEFAULTS,
) -> Transfer:
    """Transfer the probes of runs between data sets; return what was written to OUT/transfer.json.

    Raises:
        DataError: a run or a data set cannot be used, class names differ between data sets, or
            there is a single site.
    """
    start = time.monotonic()
    folders = dict(zip(short_names(run_folders), run_folders, strict=True))
    infos = {name: runs.load_info(folder) for name, folder in folders.items()}
    device = device_named(config.device)
    models = {n: snapshot.load(folder / "snapshot").to(device) for n, folder in folders.items()}
    datasets = open_datasets(data, EvalConfig(probe_images=config.probe_images))
    first = next(iter(datasets.values()))
    if len(datasets) == 1 and len(first.sites) < 2:
        raise DataError(
            f"{data[0]} names {len(first.sites)} sites: transfer needs two data sets, or one with "
            "two sites in its column `site`"
        )
    moved = _normalised_by_run(datasets, folders, infos)
    trial = Trial(datasets, encodings_of(models, config.baselines, moved))
    for name in moved:
        trial.notice(
            f"{name} normalises staining itself, as it was trained: it has rows of stain none alone"
        )
    hashes = {name: runs.snapshot_hash(folder) for name, folder in folders.items()}
    matrix, left_out, site_probe = _experiments(trial, config)
    for (run, test), book in trial.books.items():
        facts = {"snapshot_xxh3": hashes[run], "test": test}
        book.write(out / "scores" / run / f"{test}.parquet", facts)
    results = Transfer(
        version=VERSION,
        runs={
            name: TransferRun(folder=str(folder), snapshot=hashes[name], **vars(infos[name]))
            for name, folder in folders.items()
        },
        data={name: _composition(data) for name, data in datasets.items()},
        protocol=TransferProtocol(**as_json(config), classes=first.classes),
        matrix=matrix,
        left_out=left_out,
        site_probe=site_probe,
        notices=trial.notices,
        environment=environment(),
        seconds=round(time.monotonic() - start, 1),
    )
    document = Document("Probes transferred between sites", "", sections(results))
    with atomic_path(out / TABLES) as temp:
        temp.write_text(to_markdown(document), encoding="utf-8")
    save(out / TRANSFER, results)
    log.info(f"{out / TRANSFER} written after {results.seconds} s")
    return results


def _normalised_by_run(
    datasets: Mapping[str, ProbedData],
    folders: Mapping[str, Path],
    infos: Mapping[str, runs.RunInfo],
) -> dict[str, dict[str, Dataset]]:
    """The data sets as the runs that normalise staining see them, by run and data set."""
    fitted: dict[tuple[str, Unit], StainTable] = {}

    def fit_once(dataset: Dataset, unit: Unit, target: Statistics) -> StainTable:
        # statistics are of the data set; only the target is of the run
        if (dataset.hash, unit) not in fitted:
            fitted[dataset.hash, unit] = fit_dataset(dataset, unit, target)
        return replace(fitted[dataset.hash, unit], normalisation=Normalisation(unit, target))

    return {
        name: {
            data.name: normalised(
                data.session.data,
                stain_table(data.session.data, folder, normalisation, fit_once),
            )
            for data in datasets.values()
        }
        for name, folder in folders.items()
        if (normalisation := infos[name].normalisation) is not None
    }


def encodings_of(
    models: dict[str, VAE],
    baselines: tuple[str, ...],
    moved: Mapping[str, Mapping[str, Dataset]],
) -> list[Encoding]:
    """List the primary readout of every run, baselines once, untrained ones per architecture.

    Args:
        moved: normalised data sets by name, by the run that normalises them.
    """
    encodings = [
        Encoding(
            PRIMARY,
            (name,),
            _bound(lambda train, model: partial(embed_mean, model), model),
            fixed=True,
            normalised=moved.get(name, {}),
        )
        for name, model in models.items()
    ]
    runs_of: dict[tuple[str, ModelConfig | None], list[str]] = {}
    for baseline in baselines:
        for name, model in models.items():
            key = model.config if baseline == "random_init" else None
            runs_of.setdefault((baseline, key), []).append(name)
    for (baseline, _), names in runs_of.items():
        make = _bound(BASELINES[baseline], models[names[0]])
        encodings.append(Encoding(baseline, tuple(names), make, fixed=baseline not in FITTED))
    return encodings


def _bound(make: Callable[[Pixels, VAE], Transform], model: VAE) -> Callable[[Pixels], Transform]:
    return lambda train: make(train, model)


def _composition(data: ProbedData) -> TransferData:
    labels = data.rows.labels
    return TransferData(
        root=str(data.session.data.root),
        hash=data.session.data.hash,
        sites=data.sites,
        splits={
            split: TransferSplit(
                patches=len(labels[split]),
                groups=len(set(data.rows.groups(split))),
                classes={c: int((labels[split] == i).sum()) for i, c in enumerate(data.classes)},
            )
            for split in SPLITS
        },
    )


def _experiments(
    trial: Trial, config: TransferConfig
) -> tuple[list[MatrixRow], list[LeftOutRow], list[SiteProbeRow]]:
    """Run every experiment in every stain normalisation."""
    datasets = list(trial.datasets.values())
    with_sites = [data for data in datasets if len(data.sites) > 1]
    probed = {data.name: [data] for data in with_sites}
    if len(datasets) > 1:
        probed[BETWEEN] = datasets
    sites = {name: site_labels(members) for name, members in probed.items()}
    for name, labels in sites.items():
        if labels.crossing:
            trial.notice(
                f"{name}: {labels.crossing} patches of val and test are left out of the site "
                "probe, since their group is in an earlier split"
            )
    matrix: list[MatrixRow] = []
    left_out: list[LeftOutRow] = []
    site_probe: list[SiteProbeRow] = []
    for stain in config.stain:
        matrix += experiment.matrix(trial, stain)
        for data in with_sites:
            left_out += experiment.left_out(trial, data, stain)
        for name, members in probed.items():
            site_probe += experiment.site_probe(trial, name, members, sites[name], stain)
    return matrix, left_out, site_probe
