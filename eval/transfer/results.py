"""The records of transfer.json: what a transfer writes and reports read."""

from dataclasses import dataclass, field
from pathlib import Path

from common.files import read_json
from common.machine import Environment
from eval.results import ProbeScores, RunFacts, parse

VERSION = 1
TRANSFER = "transfer.json"


@dataclass(frozen=True, kw_only=True)
class _RunFolder:
    folder: str | None = None
    snapshot: str | None = None


@dataclass(frozen=True, kw_only=True)
class TransferRun(RunFacts, _RunFolder):  # fields of the last base come first
    """A run whose probes were transferred."""


@dataclass(frozen=True, kw_only=True)
class TransferSplit:
    """Patches and groups of a split, and patches by class."""

    patches: int
    groups: int
    classes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TransferData:
    """A data set of a transfer, and the sites that its column `site` names in train."""

    root: str | None = None
    hash: str | None = None
    sites: list[str] = field(default_factory=list)
    splits: dict[str, TransferSplit] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TransferProtocol:
    """What was transferred, and on how much."""

    stain: list[str]
    baselines: list[str] = field(default_factory=list)
    probe_images: int | None = None
    device: str | None = None
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """Features, the runs that they are of, and the stain normalisation."""

    features: str
    runs: list[str]
    stain: str


@dataclass(frozen=True, kw_only=True)
class _TrainAndTest(Transferred):
    train: str
    test: str


@dataclass(frozen=True, kw_only=True)
class MatrixRow(ProbeScores, _TrainAndTest):
    """A probe fitted on one data set and tested on another."""


@dataclass(frozen=True, kw_only=True)
class _LeftOutSite(Transferred):
    data: str
    site: str
    auroc_all_sites: float | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOutRow(ProbeScores, _LeftOutSite):
    """A probe fitted without one site of a data set and tested on it."""


@dataclass(frozen=True, kw_only=True)
class _Sites(Transferred):
    data: str
    sites: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SiteProbeRow(ProbeScores, _Sites):
    """How well a probe predicts the site, and what chance gives."""

    chance_auroc: float | None = None
    chance_balanced_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """OUT/transfer.json."""

    version: int | None = None
    runs: dict[str, TransferRun]
    data: dict[str, TransferData]
    protocol: TransferProtocol
    matrix: list[MatrixRow]
    left_out: list[LeftOutRow]
    site_probe: list[SiteProbeRow]
    notices: list[str] = field(default_factory=list)
    environment: Environment = field(default_factory=Environment)
    seconds: float | None = None


def load_transfer(folder: Path) -> Transfer:
    """Read FOLDER/transfer.json.

    Raises:
        DataError: there is none, or a value is not of its type.
    """
    raw = read_json(folder / TRANSFER, "make it with: python -m eval.transfer")
    return parse(raw, Transfer, folder / TRANSFER, "run eval.transfer again")
