"""Options of the commands of evaluation. Without torch: command lines are parsed from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.features import Format
from shards.pack.plan import PackOptions

# keys of the registries in `eval.measure`; the primary readout and probe are first
READOUTS = (
    "mean",
    "orbit_aligned",
    "orbit_invariant",
    "channel_stats",
    "stage_stats",
    "stage_stats_invariant",
)
PROBES = ("logistic", "mlp", "knn")
BASELINES = (
    "mean_rgb",
    "rgb_histogram",
    "colour_grid",
    "pca384",
    "raw_pixels",
    "random_init",
    "random_init_stages",
)
# without random_init, an untrained encoder of our architecture: theirs is another
EXTERNAL_BASELINES = tuple(name for name in BASELINES if name != "random_init")

COLOURS = 8  # that clusters are told apart by: `eval.drawing.figures.LIGHT`

_THREADS = "CPU threads; default: the usable cores"
Threads = Annotated[int | None, tyro.conf.arg(metavar="N", help=_THREADS)]
Stain = Literal["none", "site", "source"]  # whose statistics normalise the patches of a transfer


@dataclass(frozen=True)
class EvalConfig:
    """Choose the measurements, and limit the images of each."""

    baselines: tuple[str, ...] = BASELINES
    """Baselines, features without training, to probe as well."""
    probes: tuple[str, ...] = PROBES
    """Classifiers to fit: logistic on all features, the others on the mean and the baselines."""
    budgets: bool = True
    """Also probe with few labels: of 1, 2, 5 groups (patients, slides or source images) per class,
    and of 1, 5, 10 % of the groups; 20 random draws each."""
    robustness: bool = True
    """Also test the probes on corrupted patches: five kinds of corruption, five severities."""
    figures: bool = True
    """Draw figures to RUN/figures, and write RUN/pictures.safetensors."""
    readouts: tuple[str, ...] = READOUTS
    """Features of the model to probe; an orbit costs eight encodings per image (C4: four)."""
    orbit_probe: bool = True
    """Also fit a probe of the mean on all rotations and reflections of the train images."""
    embed_images: int = 1_000_000
    """Maximum images per split in RUN/embeddings (1.6 KB each); of more, a seeded random subset."""
    probe_images: int = 50_000
    """Maximum images per split used by probes; a subset of the embedded ones."""
    test_images: int = 20_000
    """Maximum images for reconstruction and latent metrics; of more, a seeded random subset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto takes a GPU where torch can use one."""

    def __post_init__(self) -> None:
        for name, names in (
            ("readouts", READOUTS),
            ("baselines", BASELINES),
            ("probes", PROBES),
        ):
            if unknown := set(getattr(self, name)) - set(names):
                raise ValueError(f"unknown {name} {sorted(unknown)}; there are {list(names)}")
        for name in ("embed_images", "probe_images", "test_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 2")


@dataclass(frozen=True)
class EmbedOptions:
    """Choose the readout and the files to write."""

    out: Path | None = None
    """Folder of the embeddings; default: RUN/embedded/ and the name of SOURCE."""
    readout: str = "mean"
    """mean (384 numbers, the primary one), orbit_aligned, orbit_invariant, channel_stats,
    stage_stats or stage_stats_invariant."""
    formats: tuple[Format, ...] = ()
    """Formats beside Parquet: npy, all rows in OUT.npy; h5, a file per slide in OUT-h5."""
    part_rows: int | None = None
    """Rows per Parquet file; default: a 64th of the source, from 1024 to 65,536."""
    pack: Annotated[PackOptions, tyro.conf.arg(name="")] = field(default_factory=PackOptions)

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ValueError(f"unknown readout {self.readout!r}; there are {list(READOUTS)}")
        if self.part_rows is not None and self.part_rows < 1:
            raise ValueError(f"part_rows is {self.part_rows}; expected at least 1")


@dataclass(frozen=True)
class ExternalConfig:
    """Choose the probes and baselines, and limit the images."""

    baselines: tuple[str, ...] = EXTERNAL_BASELINES
    """Baselines, features without training, to probe as well."""
    probes: tuple[str, ...] = EvalConfig.probes
    """Classifiers to fit."""
    budgets: bool = EvalConfig.budgets
    """Also probe with few labels: of 1, 2, 5 groups (patients, slides or source images) per class,
    and of 1, 5, 10 % of the groups; 20 random draws each."""
    probe_images: int = EvalConfig.probe_images
    """Maximum images per split used by probes; of more, a seeded random subset."""
    seed: int = 0
    """Seed that the encoder was trained with; reports average results of one name over seeds."""

    def __post_init__(self) -> None:
        if unknown := set(self.baselines) - set(EXTERNAL_BASELINES):
            raise ValueError(
                f"unknown baselines {sorted(unknown)}; there are {list(EXTERNAL_BASELINES)}"
            )
        self.protocol()

    def protocol(self) -> EvalConfig:
        """Make the configuration of an evaluation without a model."""
        return EvalConfig(
            baselines=self.baselines,
            probes=self.probes,
            budgets=self.budgets,
            robustness=False,
            figures=False,
            readouts=READOUTS[:1],
            probe_images=self.probe_images,
        )


@dataclass(frozen=True)
class TransferConfig:
    """Choose the stain normalisations and baselines, and limit the images of probes."""

    stain: tuple[Stain, ...] = ("none", "site")
    """Stain normalisations (Reinhard in CIELAB) to the train site: none, per site or per source
    image."""
    baselines: tuple[str, ...] = ("mean_rgb", "colour_grid", "pca384", "random_init")
    """Baselines, features without training, to transfer as well."""
    probe_images: int = EvalConfig.probe_images
    """Maximum images per split used by probes; of more, a seeded random subset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models; auto takes a GPU where torch can use one."""

    def __post_init__(self) -> None:
        EvalConfig(baselines=self.baselines, probe_images=self.probe_images)  # for its checks
        if not self.stain:
            raise ValueError("no stain is named; expected one or more of none, site, source")


@dataclass(frozen=True)
class ExportOptions:
    """Choose the files to write."""

    out: Path
    """Folder of the files."""
    to: tuple[Literal["h5ad", "trident", "slides"], ...] = ()
    """Formats: h5ad, for scanpy; trident, an HDF5 file per slide; slides, a table of mean and
    spread per slide."""
    clusters: int | None = None
    """Draw this number of clusters of all embeddings over every slide, as PNG and GeoJSON."""
    probe: Path | None = None
    """Run whose linear probe is drawn over every slide, as PNG and GeoJSON."""

    def __post_init__(self) -> None:
        if self.clusters is not None and not 2 <= self.clusters <= COLOURS:
            raise ValueError(f"clusters is {self.clusters}; expected 2 to {COLOURS}")
        if not self.to and self.clusters is None and self.probe is None:
            raise ValueError("nothing to write: choose --to, --clusters or --probe")


EVAL_DEFAULTS, EMBED_DEFAULTS = EvalConfig(), EmbedOptions()
EXTERNAL_DEFAULTS, TRANSFER_DEFAULTS = ExternalConfig(), TransferConfig()
