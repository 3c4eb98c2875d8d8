"""The records of results.json: what evaluations write and reports read.

A record is a frozen dataclass. A field of value None is written as null, except those marked
ABSENT, which are left out. Reading tolerates missing and unknown fields, so that a report can show
older results, and refuses values of the wrong type.

In field names and values of results.json, `group` is a symmetry group in the sections run, model
and equivariance, and a group of patches (patient, slide or source image) in protocol and budgets.
"""

import json
import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.errors import DataError
from common.files import atomic_path, read_json, with_checksum
from common.machine import Environment
from eval.run import snapshot_hash
from models.hub import SNAPSHOT
from models.snapshot import WEIGHTS
from pipeline.normalisation import Normalisation

VERSION = 2
RESULTS = "results.json"
ABSENT = {"absent": True}  # metadata of a field that is not written where it is None

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Training of a run, from its snapshot: `eval.run.RunInfo`; older results lack fields."""

    preset: str | None = None
    seed: int | None = None
    images_seen: int | None = field(default=None, metadata=ABSENT)
    noise_var: float | None = None  # also None for a model trained on labels
    beta: float | None = field(default=None, metadata=ABSENT)
    equivariance: float | None = field(default=None, metadata=ABSENT)  # lambda
    group: str | None = field(default=None, metadata=ABSENT)  # symmetry group
    fibres: str | None = field(default=None, metadata=ABSENT)
    stochastic: bool | None = field(default=None, metadata=ABSENT)
    dataset_hash: str | None = field(default=None, metadata=ABSENT)
    decodes: bool | None = field(default=None, metadata=ABSENT)
    normalisation: Normalisation | None = field(default=None, metadata=ABSENT)  # of staining


@dataclass(frozen=True, kw_only=True)
class ExternalRunFacts(RunFacts):
    """Name and seed of an encoder that was trained elsewhere."""

    noise_var: float | None = field(default=None, metadata=ABSENT)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data set that was evaluated on."""

    hash: str
    root: str | None = None


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters."""

    encoder: int | None = None
    decoder: int | None = None
    total: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Configuration and size of the model, and the xxh3-64 of its weights (or embeddings)."""

    architecture: str | None = field(default=None, metadata=ABSENT)
    group: str | None = field(default=None, metadata=ABSENT)  # symmetry group
    widths: tuple[int, ...] | None = field(default=None, metadata=ABSENT)
    latent_channels: int | None = field(default=None, metadata=ABSENT)
    stage1_kernel: int | None = field(default=None, metadata=ABSENT)
    upsample: str | None = field(default=None, metadata=ABSENT)
    latent_stage: bool | None = field(default=None, metadata=ABSENT)
    parameters: Parameters | None = field(default=None, metadata=ABSENT)
    snapshot: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExternalFacts:
    """Where embeddings of another encoder came from."""

    features: str
    matched_by: str | None = None
    dimensions: int | None = None
    config: dict[str, object] | None = None  # fields of `ExternalConfig`


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Patches and groups of a class in a split."""

    patches: int | None = None
    groups: int | None = None


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """Patches and groups (patients, else slides, else source images) of a split."""

    patches: int | None = None
    groups: int | None = None
    unlabelled: int | None = None
    classes: dict[str, ClassCounts] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the numbers were measured; the first fields are set by evaluations of runs only."""

    metrics_split: str | None = field(default=None, metadata=ABSENT)
    metrics_images: int | None = field(default=None, metadata=ABSENT)
    equivariance_images: int | None = field(default=None, metadata=ABSENT)
    corruption: dict[str, object] | None = field(default=None, metadata=ABSENT)
    corruption_seed: int | None = field(default=None, metadata=ABSENT)
    active_units_above_nats: float | None = field(default=None, metadata=ABSENT)
    embed_images: int | None = field(default=None, metadata=ABSENT)
    probe: str | None = None
    probe_C_grid: tuple[float, ...] | None = None
    probe_images: int | None = None
    classes: list[str] | None = None
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    groups_in_several_splits: dict[str, int] = field(default_factory=dict)
    # classes of the data set of which val or test has no patch: scores leave them out
    absent_classes: dict[str, list[str]] | None = field(default=None, metadata=ABSENT)
    # classes whose patches in a split are of one group
    single_group_classes: dict[str, list[str]] | None = field(default=None, metadata=ABSENT)
    # patches of the data set; None where none is, or where the data set does not say
    unknown_sources: int | None = field(default=None, metadata=ABSENT)

    @property
    def image_limits(self) -> str:
        """What tells apart scores of one model on one data set: they are of these images."""
        return f"{self.embed_images} embedded, {self.probe_images} probed"


@dataclass(frozen=True, kw_only=True)
class ReconstructionScores:
    """Means over patches of scores against the clean patch; `input_*` score the corrupted patch."""

    psnr: float | None = None
    ssim: float | None = None
    input_psnr: float | None = None
    input_ssim: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reconstruction(ReconstructionScores):
    """Scores on clean patches, and by kind of corruption."""

    by_kind: dict[str, ReconstructionScores] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Rate (KL in nats per patch) and standard deviations of the code."""

    kl: float | None = None
    active_units: int | None = None
    dimensions: int | None = None
    mean_std: float | None = None
    posterior_std: float | None = None
    kl_per_dimension: list[float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class EquivarianceErrors:
    """Relative errors over the model's symmetry group, over each group, and by group element."""

    error: float | None = None
    by_group: dict[str, float | None] = field(default_factory=dict)
    by_element: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Equivariance(EquivarianceErrors):
    """Equivariance errors of the code, and of every readout."""

    by_readout: dict[str, EquivarianceErrors] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """Scores of a probe on test; see `eval.measure.probe`."""

    accuracy: float | None = None
    balanced_accuracy: float | None = None
    auroc: float | None = None
    setting: float | None = None
    val_auroc: float | None = None
    converged: bool | None = None
    n_classes: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None


@dataclass(frozen=True, kw_only=True)
class _FeatureSet:
    features: str | None = None  # readout or baseline
    dimensions: int | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureScores(ProbeScores, _FeatureSet):  # fields of the last base come first
    """The primary probe of a readout or a baseline."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The fewest and most labelled patches over the draws of a budget."""

    min: int | None = None
    max: int | None = None


@dataclass(frozen=True, kw_only=True)
class BudgetScores:
    """Scores of the primary probe with few labels, over draws of the labelled groups."""

    groups_per_class: list[int] = field(default_factory=list)
    patches: Range | None = None
    draws: int | None = None
    auroc: float | None = None
    auroc_std_over_draws: float | None = None


@dataclass(frozen=True, kw_only=True)
class SeverityScores:
    """Scores at one severity; PSNR in dB of the reconstruction and of the corrupted patch."""

    severity: int
    level: float | None = None
    auroc: float | None = None
    psnr: float | None = None
    input_psnr: float | None = None


@dataclass(frozen=True, kw_only=True)
class RobustnessCurve:
    """Scores on one kind of corruption; `area` is the mean AUROC over severities."""

    unit: str | None = None
    trained: bool | None = None
    area: float | None = None
    levels: list[SeverityScores] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BaselineCurves:
    """AUROC of a baseline by kind of corruption and severity."""

    area: float | None = None
    kinds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Scores on corrupted patches of the probe that was fitted on clean ones."""

    clean: float | None = None
    area: float | None = None
    kinds: dict[str, RobustnessCurve] = field(default_factory=dict)
    baselines: dict[str, BaselineCurves] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The contents of RUN/results.json; a section that was not measured is None."""

    version: int | None = None
    run: RunFacts = field(default_factory=RunFacts)
    data: DataFacts
    model: ModelFacts = field(default_factory=ModelFacts)
    external: ExternalFacts | None = field(default=None, metadata=ABSENT)
    protocol: Protocol = field(default_factory=Protocol)
    reconstruction: Reconstruction | None = field(default=None, metadata=ABSENT)
    latent: Latent | None = field(default=None, metadata=ABSENT)
    equivariance: Equivariance | None = field(default=None, metadata=ABSENT)
    probe: dict[str, FeatureScores] = field(default_factory=dict)
    other_probes: dict[str, dict[str, ProbeScores]] | None = field(default=None, metadata=ABSENT)
    budgets: dict[str, dict[str, BudgetScores]] | None = field(default=None, metadata=ABSENT)
    robustness: Robustness | None = field(default=None, metadata=ABSENT)
    notices: list[str] = field(default_factory=list)
    environment: Environment = field(default_factory=Environment)
    seconds: float | None = None

    @property
    def hashes(self) -> dict[str, str | None]:
        """What the files of scores and pictures beside it say that they are of."""
        return {"snapshot_xxh3": self.model.snapshot, "dataset_hash": self.data.hash}


def load_results(run: Path) -> Results:
    """Read RUN/results.json.

    Raises:
        DataError: the run was not evaluated, or a value is not of its type.
    """
    command = f"python -m eval.main {run}"
    raw = read_json(run / RESULTS, f"evaluate with: {command}")
    return parse(raw, Results, run / RESULTS, f"evaluate again with: {command}")


def load_own_results(run: Path) -> Results:
    """Read RUN/results.json, which must be of RUN/snapshot where the folder holds one.

    Raises:
        DataError: as `load_results`, or the results are of another model.
    """
    results, folder = load_results(run), run / SNAPSHOT
    is_known = results.model.snapshot is not None and (folder / WEIGHTS).is_file()
    if is_known and snapshot_hash(run) != results.model.snapshot:
        raise DataError(
            f"{run / RESULTS} is of another model than {folder}: it was copied from another run, "
            f"or the run was trained since. Evaluate again with: python -m eval.main {run}"
        )
    return results


def parse(raw: object, kind: type[T], path: Path, remedy: str) -> T:
    """Convert JSON to a record.

    Raises:
        DataError: a required field is missing or a value is not of its type; names both.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{path} was not written by this version ({error}): {remedy}") from None


def save(path: Path, record: object) -> None:
    """Write a record to a JSON file with its checksum, whole or not at all."""
    content = with_checksum(as_json(record))
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temp:
        temp.write_text(text + "\n", encoding="utf-8")


def as_json(value: Any) -> Any:
    """Convert records to plain JSON, with null for every number that is not finite."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((f, getattr(value, f.name)) for f in fields(value))
        return {f.name: as_json(v) for f, v in pairs if v is not None or f.metadata != ABSENT}
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
