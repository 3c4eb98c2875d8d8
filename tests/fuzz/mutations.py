"""Damage to the files of data sets, runs and embeddings, and files that were exchanged.

The world that is mutated holds data sets and runs that differ in a seed, in the data or in one
setting, so that a file of one fits in the place of another's. A mutation damages one or two files
or takes them from elsewhere; what a reader then gets is the same as before, or an error.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import xxhash

from common.console import log
from common.errors import DataError
from common.locks import held
from eval.config import EmbedOptions
from eval.embedding import embed
from eval.evaluation import evaluate
from eval.export.table import read_table
from eval.export.values import probe_splits
from eval.report.arms import compare_runs
from eval.report.runs import load_runs
from eval.results import as_json
from eval.session import open_run
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.patches import write_patches
from tests.helpers.trained_runs import SMALLEST
from tests.helpers.training import make_trainer
from train import launch, program
from train import main as command
from train.arguments import Arguments
from train.checkpoint import load_newest
from train.config import Config, from_json
from train.loop import Trainer
from train.prepare import Run, claim

EVALUATION = replace(SMALLEST, figures=False)
DATA = {"a": (1, "stored"), "b": (2, "stored"), "c": (1, "keep"), "d": (2, "keep")}
RUNS: dict[str, tuple[str, int, list[str]]] = {  # data set, seed, settings
    "run": ("a", 0, []),
    "seed": ("a", 1, []),
    "data": ("b", 0, []),
    "setting": ("a", 0, ["--corruption.jpeg", "0.3"]),
}
BUDGET = (
    *("--images", "24", "--batch-size", "12", "--loop.checkpoints", "2", "--track"),
    *("--loop.validations", "1", "--model.widths", "4", "8", "16"),
)
BLOCK = 512

Value = object  # compared with what the undamaged files gave


def make_world(root: Path) -> None:
    """Pack the data sets, and train, evaluate and embed with the runs."""
    for name, (seed, png) in DATA.items():
        write_patches(
            root / f"{name}-raw", {"train": 6, "val": 3, "test": 3}, ("a", "b"), seed=seed
        )
        pack(root / f"{name}-raw", root / name, PackOptions(shard_size=6, workers=1, png=png))
    for name, (data, seed, settings) in RUNS.items():
        argv = ["vae", "--data", str(root / data), "--out", str(root / name), "--seed", str(seed)]
        with (
            mock.patch.object(launch, "threads_for", lambda *args: 1),
            mock.patch.object(program, "conclude", lambda *args: None),
        ):
            assert command.main([*argv, *BUDGET, *settings]) == program.DONE
        with held(root / name, "evaluates"):
            evaluate(root / name, None, EVALUATION)
        embed(root / name, root / data, EmbedOptions(root / f"{name}-embedded", part_rows=9))


def digest(table: pa.Table) -> str:
    return xxhash.xxh3_64_hexdigest(repr(table.to_pydict()).encode())


def observe_data(root: Path) -> Value:
    """Everything that training, evaluation and embedding read of a data set."""
    data = open_dataset(root)
    return (
        data.metadata.classes,
        data.metadata.channel_mean,
        data.metadata.provenance,
        [
            (name, digest(split.table), split.labels.tolist(), read_split(split).tobytes())
            for name, split in data.splits.items()
        ],
    )


def observe_run(root: Path) -> Value:
    """What evaluation opens of a run."""
    session = open_run(root, None, EVALUATION)
    weights = {
        name: tensor.numpy().tobytes() for name, tensor in session.model.state_dict().items()
    }
    return session.info, session.corruption, session.data.hash, session.notices, weights


def observe_report(*runs: Path) -> Value:
    """What a report shows of runs."""
    loaded = load_runs(runs)
    compared = compare_runs(loaded)
    books = [
        (arm.name, seed, digest(book.rows), {c: s.tobytes() for c, s in book.scores.items()})
        for arm in compared.arms.values()
        for seed, book in arm.books.items()
    ]
    if compared.dropped:
        raise DataError("; ".join(compared.dropped))
    return [json.dumps(as_json(run.results)) for run in loaded], books


def observe_embedded(root: Path) -> Value:
    """What exports read of embeddings."""
    table = read_table(root)
    return table.features.tobytes(), digest(table.rows), table.facts


def observe_probed(root: Path) -> Value:
    """What the probe of an export is fitted on."""
    splits = probe_splits(root)
    return [(name, x.features.tobytes(), x.labels.tolist()) for name, x in splits.items()]


class Resuming:
    """A run as `--resume` continues it: its settings, and the state in its newest checkpoint."""

    def __init__(self, root: Path) -> None:
        record = json.loads((root / "config.json").read_text())
        self.config: Config = from_json(record["config"])
        self.data = open_dataset(Path(record["data"]["root"]))
        self.preset: str = record["preset"]
        self.trainers: dict[Path, Trainer] = {}

    def __call__(self, root: Path) -> Value:
        trainer = self.trainers.get(root)
        if trainer is None:
            trainer = self.trainers[root] = make_trainer(self.data, root, self.config)
        arguments = Arguments(out=root, resume=True, config=self.config)
        with ExitStack() as held_locks:
            claim(Run(root, self.preset, self.config, self.data, arguments), held_locks)
        checkpoint = load_newest(root)
        if checkpoint is None:
            raise DataError("no checkpoint")
        trainer.restore(checkpoint)
        tensors = {n: t.cpu().numpy().tobytes() for n, t in checkpoint.tensors.items()}
        return checkpoint.images_seen, sorted(checkpoint.meta.items()), tensors


@dataclass(frozen=True)
class Subject:
    """Files that are read together, and the files that fit in their places.

    Args:
        name: of the kind of file.
        files: paths below the world's root, each with those that may take its place.
        observe: reads them.
    """

    name: str
    files: dict[str, list[str]]
    observe: Callable[[], Value]


def subjects(root: Path) -> list[Subject]:
    def below(folder: str, pattern: str) -> list[str]:
        return sorted(path.relative_to(root).as_posix() for path in (root / folder).glob(pattern))

    def elsewhere(path: str, folders: tuple[str, ...], beside: list[str]) -> list[str]:
        _, _, rest = path.partition("/")
        others = [f"{folder}/{rest}" for folder in folders if (root / folder / rest).is_file()]
        return [*others, *(other for other in beside if other != path)]

    listed: list[Subject] = []

    def add(name: str, folder: str, pattern: str, others: tuple[str, ...], observe: Any) -> None:
        files = below(folder, pattern)
        same = {suffix: [f for f in files if f.endswith(suffix)] for suffix in _suffixes(files)}
        places = {f: elsewhere(f, others, same[Path(f).suffix]) for f in files}
        listed.append(Subject(name, places, observe))

    others = ("seed", "data", "setting")
    for folder, other in (("a", ("b", "c")), ("c", ("d", "a"))):
        observe = partial(observe_data, root / folder)
        for name, pattern in (
            ("shard", "*.tar"),
            ("sidecar", "*.parquet"),
            ("dataset.json", "dataset.json"),
        ):
            add(name, folder, pattern, other, observe)
    resuming = partial(Resuming(root / "run"), root / "run")
    run = partial(observe_run, root / "run")
    add("config.json", "run", "config.json", others, lambda: (run(), resuming()))
    add("checkpoint", "run", "checkpoints/*/*", others, resuming)
    add("snapshot", "run", "snapshot/*", others, run)
    report = partial(observe_report, root / "run", root / "seed")
    add("results.json", "run", "results.json", others, report)
    add("scores.parquet", "run", "scores.parquet", others, report)
    embedded = partial(observe_embedded, root / "run-embedded")
    moved = tuple(f"{name}-embedded" for name in others)
    add("embeddings", "run-embedded", "*.parquet", moved, embedded)
    add("embeddings", "run", "embeddings/*.parquet", others, partial(observe_probed, root / "run"))
    return listed


def _suffixes(files: list[str]) -> set[str]:
    return {Path(file).suffix for file in files}


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Damage some bytes; return how, and the result."""
    at, changed = draw.randrange(max(1, len(data))), bytearray(data)
    block = at // BLOCK * BLOCK
    other = draw.randrange(max(1, len(data))) // BLOCK * BLOCK
    match draw.randrange(11):
        case 0 | 1:
            changed[at] ^= 1 << draw.randrange(8)
            return f"bit of byte {at} flipped", bytes(changed)
        case 2:
            changed[at : at + 4] = draw.randbytes(len(changed[at : at + 4]))
            return f"bytes from {at} replaced", bytes(changed)
        case 3:
            return f"cut at {at}", data[:at]
        case 4:
            return "bytes appended", data + draw.randbytes(draw.randrange(1, 600))
        case 5:
            return f"a byte inserted at {at}", data[:at] + draw.randbytes(1) + data[at:]
        case 6:
            return f"a byte removed at {at}", data[:at] + data[at + 1 :]
        case 7:
            changed[block : block + BLOCK] = bytes(len(changed[block : block + BLOCK]))
            return f"zeros from {block}", bytes(changed)
        case 8:
            first, second = data[block : block + BLOCK], data[other : other + BLOCK]
            if len(first) == len(second):
                changed[block : block + BLOCK], changed[other : other + BLOCK] = second, first
            return f"blocks {block} and {other} exchanged", bytes(changed)
        case 9:
            places = [m.start() for m in re.finditer(rb"[0-9]", data)]
            digits = b"0123456789"
        case _:
            places = [m.start() for m in re.finditer(rb"[A-Za-z]", data)]
            digits = b"abcdefghijklmnopqrstuvwxyzABC"
    if not places:
        return "nothing", data
    at = draw.choice(places)
    changed[at] = draw.choice([c for c in digits if c != changed[at]])
    return f"{chr(data[at])} at {at} is {chr(changed[at])}", bytes(changed)


@dataclass
class Mutation:
    """New content of files below the root; None: removed."""

    text: list[str] = field(default_factory=list)
    files: dict[str, bytes | None] = field(default_factory=dict)

    def add(self, root: Path, subject: Subject, draw: random.Random) -> None:
        path = draw.choice(sorted(subject.files))
        others = subject.files[path]
        kind = draw.random()
        if kind < 0.15 and others:
            other = draw.choice(others)
            self._take(root, path, other)
        elif kind < 0.17:
            self.files[path] = None
            self.text.append(f"{path} removed")
        elif kind < 0.19:
            self.files[path] = b""
            self.text.append(f"{path} emptied")
        else:
            before = self.files.get(path) or (root / path).read_bytes()
            how, self.files[path] = damaged(before, draw)
            self.text.append(f"{path}: {how}")

    def add_folder(self, root: Path, listed: list[Subject], draw: random.Random) -> None:
        """Take two files of one other data set or run at once."""
        whole = {p: o for subject in listed for p, o in subject.files.items() if o}
        path = draw.choice(sorted(whole))
        folder = draw.choice(whole[path]).partition("/")[0]
        first = path.partition("/")[0]
        more = [
            p
            for p in whole
            if p != path and p.startswith(f"{first}/") and _of(folder, p) in whole[p]
        ]
        for each in (path, *draw.sample(more, min(1, len(more)))):
            if _of(folder, each) in whole[each]:
                self._take(root, each, _of(folder, each))

    def _take(self, root: Path, path: str, other: str) -> None:
        self.files[path] = (root / other).read_bytes()
        self.text.append(f"{path} is {other}")


def _of(folder: str, path: str) -> str:
    return f"{folder}/{path.partition('/')[2]}"


@dataclass
class Tally:
    """Outcomes of mutations by kind of file."""

    tried: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    same: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{name}: {count} tried, {self.refused[name]} refused, {self.same[name]} the same"
            for name, count in self.tried.items()
        ]
        return "\n".join([*lines, f"{len(self.silent)} silent, {len(self.crashed)} crashed"])


def mutate(root: Path, count: int, seed: int = 0) -> Tally:
    """Try mutations of a world, spread evenly over the kinds of files."""
    listed, draw, tally = subjects(root), random.Random(seed), Tally()
    names = sorted({subject.name for subject in listed})
    wholes = {id(subject): _observed(subject)[0] for subject in listed}
    assert not [whole for whole in wholes.values() if isinstance(whole, DataError)]
    for number in range(count):
        name = names[number % len(names)]
        subject = draw.choice([each for each in listed if each.name == name])
        mutation = Mutation()
        kind = draw.random()
        if kind < 0.1:
            mutation.add_folder(root, _beside(subject, listed), draw)
        else:
            mutation.add(root, subject, draw)
            if kind < 0.4:
                mutation.add(root, draw.choice(_beside(subject, listed)), draw)
        with _applied(root, mutation):
            for each in _touched(mutation, listed):
                _count(tally, each, mutation, wholes[id(each)])
    return tally


def _beside(subject: Subject, listed: list[Subject]) -> list[Subject]:
    folder = next(iter(subject.files)).partition("/")[0]
    return [s for s in listed if next(iter(s.files)).partition("/")[0] == folder]


def _touched(mutation: Mutation, listed: list[Subject]) -> Iterator[Subject]:
    """Yield a subject per reader of the files."""
    seen: list[object] = []
    for subject in listed:
        if subject.files.keys() & mutation.files.keys() and subject.observe not in seen:
            seen.append(subject.observe)
            yield subject


def _observed(subject: Subject) -> tuple[Value, list[str]]:
    warnings: list[str] = []
    with mock.patch.object(log, "warning", warnings.append), mock.patch.object(log, "info"):
        try:
            return subject.observe(), warnings
        except DataError as error:
            return error, warnings


def _count(tally: Tally, subject: Subject, mutation: Mutation, whole: Value) -> None:
    text = " and ".join(mutation.text)
    tally.tried[subject.name] += 1
    try:
        value, warnings = _observed(subject)
    except Exception as error:
        tally.crashed.append(f"{subject.name}: {text}: {type(error).__name__}: {error}"[:400])
        return
    if isinstance(value, DataError):
        tally.refused[subject.name] += 1
        if not str(value).strip():
            tally.crashed.append(f"{subject.name}: {text}: an error without words")
    elif value == whole:
        tally.same[subject.name] += 1
    elif warnings:  # a checkpoint was skipped: training continues from the one before
        tally.refused[subject.name] += 1
    else:
        tally.silent.append(f"{subject.name}: {text}")


@contextmanager
def _applied(root: Path, mutation: Mutation) -> Iterator[None]:
    before: dict[str, bytes | None] = {p: (root / p).read_bytes() for p in mutation.files}
    _write(root, mutation.files)
    try:
        yield
    finally:
        _write(root, before)


def _write(root: Path, files: dict[str, bytes | None]) -> None:
    for path, content in files.items():
        (root / path).unlink(missing_ok=True)
        if content is not None:
            (root / path).write_bytes(content)
