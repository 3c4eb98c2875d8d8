"""What is carried to another site: probes between data sets, probes of all sites but one, and how
well the site itself can be read off the features.

Every function yields rows of plain JSON, and keeps the scores behind them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import DataError
from eval.measure.baselines import Transform
from eval.measure.probe import PRIMARY_PROBE, Labelled, Probe, fit
from eval.measure.readouts import Features, Pixels
from eval.measure.scores import Condition, ScoreBook
from eval.measure.suite import SPLITS
from eval.session import Say
from eval.transfer.sites import Places, Site, relabelled
from eval.transfer.staining import Stain, View, Views

Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Row = dict[str, Any]


@dataclass(frozen=True)
class Encoding:
    """Features to carry: the readout of a run, or a baseline that stands beside several."""

    features: str
    runs: tuple[str, ...]
    fit: Callable[[Pixels], Transform]  # of the images that the probe is fitted on
    fixed: bool  # whatever they are: then the features of a view are made once


@dataclass
class Trial:
    """The sites, what is carried between them, and what was found."""

    sites: dict[str, Site]
    encodings: list[Encoding]
    say: Say
    notices: list[str] = field(default_factory=list)
    books: dict[tuple[str, str], ScoreBook] = field(default_factory=dict)  # by run and test set

    def __post_init__(self) -> None:
        self.views = Views(self.sites)
        self._features: dict[tuple[int, View], Features] = {}

    def features(
        self, encoding: Encoding, train: Sequence[View], views: Sequence[View],
        rows: Mask | None = None,
    ) -> list[Features]:  # fmt: skip
        """Of every view, by an encoding that may look at (some rows of) the `train` views."""
        if not encoding.fixed:
            pixels = np.concatenate([self.views.pixels(view) for view in train])
            transform = encoding.fit(pixels if rows is None else pixels[rows])
            return [transform(self.views.pixels(view)) for view in views]
        for view in views:
            if (id(encoding), view) not in self._features:
                pixels = self.views.pixels(view)
                self._features[id(encoding), view] = encoding.fit(pixels)(pixels)
        return [self._features[id(encoding), view] for view in views]

    def keep(
        self, encoding: Encoding, place: str, empty: ScoreBook, condition: str,
        scores: NDArray[np.floating], classes: Labels,
    ) -> None:  # fmt: skip
        """The scores on the test set `place`, in the books of the runs that the encoding is of."""
        for run in encoding.runs:
            book = self.books.setdefault((run, place), ScoreBook(empty.rows, empty.classes))
            book.add(Condition(encoding.features, PRIMARY_PROBE, condition), scores, classes)

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self.say(f"notice: {text}")


def matrix(trial: Trial, stain: Stain) -> Iterator[Row]:
    """Every probe fitted on train and selected on val of one data set, tested on test of each."""
    for name, source in trial.sites.items():
        train, val = (trial.views.view(name, split, stain, name) for split in SPLITS[:2])
        tests = [trial.views.view(other, "test", stain, name) for other in trial.sites]
        for encoding in trial.encodings:
            start = time.monotonic()
            found = trial.features(encoding, [train], [train, val, *tests])
            fitted, chosen = (source.rows.labels[split] for split in SPLITS[:2])
            try:
                probe = fit(Labelled(found[0], fitted), Labelled(found[1], chosen))
            except DataError as error:
                trial.notice(f"no probe of {encoding.features} from {name}: {error}")
                continue
            aurocs = []
            for (other, target), features in zip(trial.sites.items(), found[2:], strict=True):
                row = _tested(trial, probe, Labelled(features, target.rows.labels["test"]), other)
                if row is None:
                    continue
                condition = f"train={name},stain={stain}"
                scores = probe.scores(features)
                trial.keep(encoding, other, target.book(), condition, scores, probe.classes)
                aurocs.append(f"{other} {row['auroc']:.3f}")
                yield _about(encoding, stain) | {"train": name, "test": other} | row
            _tell(trial, encoding, stain, f"from {name} to {', '.join(aurocs)}", start)


def left_out(trial: Trial, site: Site, stain: Stain) -> Iterator[Row]:
    """For each site of a data set: the probe of all others, and of all, on its test patches."""
    views = [trial.views.view(site.name, split, stain, site.name) for split in SPLITS]
    where = {split: site.column("site", split) for split in SPLITS}
    known = {split: where[split] != None for split in SPLITS}  # noqa: E711 - element by element
    for encoding in trial.encodings:
        whole = np.full((len(where["test"]), len(site.classes)), np.nan)  # NaN: not scored
        seen = _fitted(trial, encoding, site, views, known)
        for name in site.sites:
            start = time.monotonic()
            others = {split: known[split] & (where[split] != name) for split in SPLITS}
            unseen = _fitted(trial, encoding, site, views, others)
            rows = where["test"] == name
            if not seen or not unseen or not rows.any():
                continue
            row = _tested(trial, unseen[0], _only(site, unseen[1], rows), name)
            all_sites = _tested(trial, seen[0], _only(site, seen[1], rows), name)
            if row is None or all_sites is None:
                continue
            whole[rows] = 0
            whole[np.ix_(rows, unseen[0].classes)] = unseen[0].scores(unseen[1][rows])
            _tell(trial, encoding, stain, f"without {name} to it {row['auroc']:.3f}", start)
            yield (
                _about(encoding, stain)
                | {"data": site.name, "site": name, "auroc_all_sites": all_sites["auroc"]}
                | row
            )
        if np.isnan(whole).all():
            continue
        condition, classes = f"train=other sites,stain={stain}", np.arange(len(site.classes))
        trial.keep(encoding, site.name, site.book(), condition, whole, classes)


def _fitted(
    trial: Trial, encoding: Encoding, site: Site, views: list[View], rows: dict[str, Mask]
) -> tuple[Probe, Features] | None:
    """A probe of some rows of train and val, and the features of test; None with a notice."""
    train, val, test = trial.features(encoding, views[:1], views, rows["train"])
    labels = site.rows.labels
    try:
        probe = fit(
            Labelled(train[rows["train"]], labels["train"][rows["train"]]),
            Labelled(val[rows["val"]], labels["val"][rows["val"]]),
        )
    except DataError as error:
        trial.notice(f"no probe of {encoding.features} on a part of {site.name}: {error}")
        return None
    return probe, test


def _only(site: Site, features: Features, rows: Mask) -> Labelled:
    return Labelled(features[rows], site.rows.labels["test"][rows])


def _tested(trial: Trial, probe: Probe, test: Labelled, place: str) -> Row | None:
    try:
        return asdict(probe.test(test))
    except DataError as error:
        trial.notice(f"{place} is not tested: {error}")
        return None


def site_probe(
    trial: Trial, name: str, parts: Sequence[Site], places: Places, stain: Stain
) -> Iterator[Row]:
    """How well a probe reads the site off the features: the lower, the better; chance is stated.

    The patches of several data sets are taken together, in the colours of the first.
    """
    views = {
        split: [trial.views.view(part.name, split, stain, parts[0].name) for part in parts]
        for split in SPLITS
    }
    for encoding in trial.encodings:
        start = time.monotonic()
        every = [view for split in SPLITS for view in views[split]]
        found = iter(trial.features(encoding, views["train"], every))
        train, val, test = (
            Labelled(np.concatenate([next(found) for _ in views[split]]), places.labels[split])
            for split in SPLITS
        )
        try:
            probe = fit(train, val)
            row = asdict(probe.test(test))
        except DataError as error:
            trial.notice(f"no site probe of {encoding.features} in {name}: {error}")
            continue
        condition, scores = f"train={name},stain={stain}", probe.scores(test.features)
        trial.keep(
            encoding, f"{name}+sites", _book(parts, places), condition, scores, probe.classes
        )
        _tell(trial, encoding, stain, f"site read off in {name} {row['auroc']:.3f}", start)
        chance = {"chance_auroc": 0.5, "chance_balanced_accuracy": 1 / row["n_classes"]}
        yield _about(encoding, stain) | {"data": name, "sites": places.names} | row | chance


def _book(parts: Sequence[Site], places: Places) -> ScoreBook:
    """An empty one whose labels are sites."""
    tables = pa.concat_tables([part.rows.tables["test"] for part in parts])
    return ScoreBook(relabelled(tables, places.labels["test"]), len(places.names))


def _about(encoding: Encoding, stain: Stain) -> Row:
    return {"features": encoding.features, "runs": list(encoding.runs), "stain": stain}


def _tell(trial: Trial, encoding: Encoding, stain: Stain, what: str, start: float) -> None:
    runs = f" of {encoding.runs[0]}" if len(encoding.runs) == 1 else ""
    seconds = time.monotonic() - start
    trial.say(f"stain {stain}, {encoding.features}{runs} {what}: {seconds:.1f} s")
