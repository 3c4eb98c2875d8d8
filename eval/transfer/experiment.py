"""The experiments of a transfer: probes between data sets, without one site, and of the site.

Every function yields rows of transfer.json and adds the scores behind them to the books of the
trial.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.console import log
from common.errors import DataError
from eval.config import Stain
from eval.features import Features
from eval.measure.probe import Labelled, Probe, ProbeResult, fit
from eval.measure.readouts import Transform
from eval.measure.scores import Condition, ScoreBook
from eval.transfer.datasets import ProbedData, SiteLabels, View, Views, with_labels
from eval.transfer.results import LeftOutRow, MatrixRow, SiteProbeRow
from pipeline.index import Dataset
from pipeline.reader import read_split
from shards.codec.png import Pixels
from shards.sources.splits import SPLITS

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
OTHER_SITES = "other sites"  # what the probe is fitted on when a site is left out


@dataclass(frozen=True)
class Encoding:
    """Features to transfer: the readout of a run, or a baseline for several runs."""

    features: str
    runs: tuple[str, ...]
    fit: Callable[[Pixels], Transform]  # from the images that the probe is fitted on
    fixed: bool  # `fit` does not depend on its images, so that features can be cached
    # data sets by name as the run normalises them: it takes no other normalisation; none: as views
    normalised: Mapping[str, Dataset] = field(default_factory=dict)


@dataclass
class Trial:
    """Inputs of the experiments (data sets, encodings), and their outputs (notices, scores)."""

    datasets: dict[str, ProbedData]
    encodings: list[Encoding]
    notices: list[str] = field(default_factory=list)
    books: dict[tuple[str, str], ScoreBook] = field(default_factory=dict)  # by run and test set

    def __post_init__(self) -> None:
        self.views = Views(self.datasets)
        self._features: dict[tuple[int, View], Features] = {}

    def features(
        self,
        encoding: Encoding,
        train: Sequence[View],
        views: Sequence[View],
        rows: Mask | None = None,
    ) -> list[Features]:
        """Encode views by an encoding fitted on the `train` views, or on some of their rows."""
        if not encoding.fixed:
            pixels = np.concatenate([self.views.pixels(view) for view in train])
            transform = encoding.fit(pixels if rows is None else pixels[rows])
            return [transform(self.views.pixels(view)) for view in views]
        for view in views:
            if (id(encoding), view) not in self._features:
                if (dataset := encoding.normalised.get(view.data)) is None:
                    pixels = self.views.pixels(view)
                else:
                    split = dataset.split(view.split)
                    rows_of = self.datasets[view.data].session.probe_rows
                    pixels = read_split(split, rows_of(split))
                self._features[id(encoding), view] = encoding.fit(pixels)(pixels)
        return [self._features[id(encoding), view] for view in views]

    def encodings_in(self, stain: Stain) -> list[Encoding]:
        """Return the encodings to transfer in a stain normalisation."""
        return [each for each in self.encodings if stain == "none" or not each.normalised]

    def add_scores(
        self,
        encoding: Encoding,
        test: str,
        empty: ScoreBook,
        condition: Condition,
        scores: NDArray[np.floating],
        classes: Labels,
    ) -> None:
        """Add scores on a test set to the books of the runs that have the encoding."""
        for run in encoding.runs:
            book = self.books.setdefault((run, test), ScoreBook(empty.rows, empty.classes))
            book.add(condition, scores, classes)

    def notice(self, text: str) -> None:
        """Log a notice and keep it for the results."""
        self.notices.append(text)
        log.info(f"notice: {text}")


def matrix(trial: Trial, stain: Stain) -> Iterator[MatrixRow]:
    """Fit probes on train and val of each data set, and test them on test of every one."""
    for name, source in trial.datasets.items():
        train, val = (trial.views.view(name, split, stain, name) for split in SPLITS[:2])
        tests = [trial.views.view(other, "test", stain, name) for other in trial.datasets]
        for encoding in trial.encodings_in(stain):
            start = time.monotonic()
            features = trial.features(encoding, [train], [train, val, *tests])
            train_labels, val_labels = (source.rows.labels[split] for split in SPLITS[:2])
            try:
                probe = fit(Labelled(features[0], train_labels), Labelled(features[1], val_labels))
            except DataError as error:
                trial.notice(f"no probe of {encoding.features} from {name}: {error}")
                continue
            aurocs = []
            for other, of_test in zip(trial.datasets, features[2:], strict=True):
                target = trial.datasets[other]
                test = Labelled(of_test, target.rows.labels["test"])
                result = _tested(trial, probe, test, other)
                if result is None:
                    continue
                trial.add_scores(
                    encoding=encoding,
                    test=other,
                    empty=target.empty_book(),
                    condition=Condition(encoding.features, train=name, stain=stain),
                    scores=probe.scores(of_test),
                    classes=probe.classes,
                )
                aurocs.append(f"{other} {result.auroc:.3f}")
                yield MatrixRow(
                    features=encoding.features,
                    runs=list(encoding.runs),
                    stain=stain,
                    train=name,
                    test=other,
                    **asdict(result),
                )
            _log(encoding, stain, f"from {name} to {', '.join(aurocs)}", start)


def left_out(trial: Trial, data: ProbedData, stain: Stain) -> Iterator[LeftOutRow]:
    """Test on each site a probe fitted on all other sites, and one fitted on all sites."""
    views = [trial.views.view(data.name, split, stain, data.name) for split in SPLITS]
    sites = {split: data.column("site", split) for split in SPLITS}
    named = {split: np.array([s is not None for s in sites[split]], bool) for split in SPLITS}
    for encoding in trial.encodings_in(stain):
        scores = np.full((len(sites["test"]), len(data.classes)), np.nan)  # NaN: not scored
        with_all = _fitted(trial, encoding, data, views, named)
        for name in data.sites:
            start = time.monotonic()
            others = {split: named[split] & (sites[split] != name) for split in SPLITS}
            without = _fitted(trial, encoding, data, views, others)
            rows = sites["test"] == name
            if not with_all or not without or not rows.any():
                continue
            labels = data.rows.labels["test"][rows]
            probe, features = without
            result = _tested(trial, probe, Labelled(features[rows], labels), name)
            all_sites = _tested(trial, with_all[0], Labelled(with_all[1][rows], labels), name)
            if result is None or all_sites is None:
                continue
            scores[rows] = 0
            scores[np.ix_(rows, probe.classes)] = probe.scores(features[rows])
            _log(encoding, stain, f"without {name} to it {result.auroc:.3f}", start)
            yield LeftOutRow(
                features=encoding.features,
                runs=list(encoding.runs),
                stain=stain,
                data=data.name,
                site=name,
                auroc_all_sites=all_sites.auroc,
                **asdict(result),
            )
        if not np.isnan(scores).all():
            trial.add_scores(
                encoding=encoding,
                test=data.name,
                empty=data.empty_book(),
                condition=Condition(encoding.features, train=OTHER_SITES, stain=stain),
                scores=scores,
                classes=np.arange(len(data.classes)),
            )


def _fitted(
    trial: Trial, encoding: Encoding, data: ProbedData, views: list[View], rows: dict[str, Mask]
) -> tuple[Probe, Features] | None:
    """Fit a probe on some rows of train and val, and encode test; None, with a notice, if not."""
    train, val, test = trial.features(encoding, views[:1], views, rows["train"])
    labels = data.rows.labels
    try:
        probe = fit(
            Labelled(train[rows["train"]], labels["train"][rows["train"]]),
            Labelled(val[rows["val"]], labels["val"][rows["val"]]),
        )
    except DataError as error:
        trial.notice(f"no probe of {encoding.features} on a part of {data.name}: {error}")
        return None
    return probe, test


def _tested(trial: Trial, probe: Probe, test: Labelled, name: str) -> ProbeResult | None:
    try:
        return probe.test(test)
    except DataError as error:
        trial.notice(f"{name} is not tested: {error}")
        return None


def site_probe(
    trial: Trial, name: str, datasets: Sequence[ProbedData], sites: SiteLabels, stain: Stain
) -> Iterator[SiteProbeRow]:
    """Measure how well a probe predicts the site from features: lower is better.

    Patches of several data sets are concatenated, normalised to the staining of the first.
    """
    views = {
        split: [trial.views.view(data.name, split, stain, datasets[0].name) for data in datasets]
        for split in SPLITS
    }
    for encoding in trial.encodings_in(stain):
        start = time.monotonic()
        every = [view for split in SPLITS for view in views[split]]
        features = iter(trial.features(encoding, views["train"], every))
        train, val, test = (
            Labelled(np.concatenate([next(features) for _ in views[split]]), sites.labels[split])
            for split in SPLITS
        )
        try:
            probe = fit(train, val)
            result = probe.test(test)
        except DataError as error:
            trial.notice(f"no site probe of {encoding.features} in {name}: {error}")
            continue
        tables = pa.concat_tables([data.rows.tables["test"] for data in datasets])
        trial.add_scores(
            encoding=encoding,
            test=f"{name}+sites",
            empty=ScoreBook(with_labels(tables, sites.labels["test"]), len(sites.names)),
            condition=Condition(encoding.features, train=name, stain=stain),
            scores=probe.scores(test.features),
            classes=probe.classes,
        )
        _log(encoding, stain, f"site read off in {name} {result.auroc:.3f}", start)
        yield SiteProbeRow(
            features=encoding.features,
            runs=list(encoding.runs),
            stain=stain,
            data=name,
            sites=sites.names,
            **asdict(result),
            chance_auroc=0.5,
            chance_balanced_accuracy=1 / result.n_classes,
        )


def _log(encoding: Encoding, stain: Stain, what: str, start: float) -> None:
    runs = f" of {encoding.runs[0]}" if len(encoding.runs) == 1 else ""
    seconds = time.monotonic() - start
    log.info(f"stain {stain}, {encoding.features}{runs} {what}: {seconds:.1f} s")
