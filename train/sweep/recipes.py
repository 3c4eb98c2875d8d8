"""Ablations as recipes: lists of named arms, each a whole configuration.

Every arm differs from a preset in the one thing that its recipe is about. An arm has one name in
all recipes, so that recipes with a common --out share its runs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from models.config import ModelConfig, ObjectiveConfig
from pipeline.config import TRAINABLE, CorruptionConfig, JitterConfig
from train.config import PRESETS, Config

ENCODER, DECODER = 10_352_640, 21_577_728  # multiply-adds per image, convolutions of `seed`
EQUAL_COMPUTE = (2 * ENCODER + DECODER) / (ENCODER + DECODER)  # of eq-dvae over dvae: 1.324


class Arm(NamedTuple):
    name: str
    config: Config  # seed and budget are set by the sweep
    budget: float = 1.0  # factor on the images per run of the sweep


def preset(name: str) -> Arm:
    return Arm(name, PRESETS[name]())


DVAE_REFINED = Arm("dvae-refined", Config(model=ModelConfig("refined")))
JITTER = JitterConfig(stain_scale=0.25, stain_shift=0.05, brightness=0.1, contrast=0.1)
REGULAR = ObjectiveConfig(fibres="regular")  # without a term: how evaluation moves the codes


def headline() -> list[Arm]:
    """The three models of the primary contrasts."""
    return [preset(name) for name in ("vae", "dvae", "eq-dvae")]


def models() -> list[Arm]:
    """From the autoencoder to EQ-DVAE, one step at a time."""
    return [preset(name) for name in ("ae", "vae", "dvae", "eq-dvae")]


def ceiling() -> list[Arm]:
    """The encoder trained on labels."""
    return [preset("supervised")]


def groups() -> list[Arm]:
    """D4 against C4, by a term of the objective and by weight tying, at equal width.

    `eq-dvae-refined` is the term on the architecture that the tied models share.
    """
    names = ("eq-dvae", "eq-dvae-c4", "eq-dvae-refined", "d4-dvae", "c4-dvae")
    return [preset(name) for name in names]


def relaxed() -> list[Arm]:
    """An EQ-DVAE that is equivariant, between no symmetry and exact symmetry, at equal width.

    `dvae-relaxed` begins at the same tied weights without the term that holds the model there.
    """
    return [
        Arm("vae-refined", replace(PRESETS["vae"](), model=ModelConfig("refined"))),
        DVAE_REFINED,
        preset("eq-dvae-relaxed"),
        Arm("dvae-relaxed", replace(Config(), model=ModelConfig("relaxed"), objective=REGULAR)),
        preset("d4-dvae"),
    ]


def colour() -> list[Arm]:
    """Colour jitter on and off, without labels and with them, and normalisation, on `refined`."""
    supervised = replace(PRESETS["supervised"](), model=ModelConfig("refined"))
    return [
        DVAE_REFINED,
        Arm("dvae-refined-jitter", replace(DVAE_REFINED.config, jitter=JITTER)),
        Arm("dvae-refined-normalised", replace(DVAE_REFINED.config, normalise="source")),
        Arm("supervised-refined", supervised),
        Arm("supervised-refined-jitter", replace(supervised, jitter=JITTER)),
    ]


def parameters() -> list[Arm]:
    """Weight tying at about the parameters of `refined` (219,279): D4 227,379, C4 206,403."""
    d4, c4 = PRESETS["d4-dvae"](), PRESETS["c4-dvae"]()
    return [
        DVAE_REFINED,
        Arm("d4-dvae-wide", replace(d4, model=replace(d4.model, widths=(48, 96, 192)))),
        Arm("c4-dvae-wide", replace(c4, model=replace(c4.model, widths=(32, 64, 128)))),
    ]


def lambdas() -> list[Arm]:
    """The weight of the equivariance term, 0.3 in `eq-dvae` and 0 in `dvae`."""
    weak, strong = (
        Arm(f"eq-dvae-lambda{weight:g}", _objective("eq-dvae", equivariance=weight))
        for weight in (0.1, 1.0)
    )
    return [preset("dvae"), weak, preset("eq-dvae"), strong]


def beta() -> list[Arm]:
    """The weight of the KL, with the noise variance learned and fixed at 0.5."""
    arms = [preset("dvae")]
    arms += [Arm(f"dvae-beta{value:g}", _objective("dvae", beta=value)) for value in (2.0, 4.0)]
    for value in (1.0, 2.0, 4.0):
        fixed = _objective("dvae", beta=value, noise_var=0.5)
        arms.append(Arm(f"dvae-beta{value:g}-fixed", fixed))
    return arms


def noise() -> list[Arm]:
    """The kinds of corruption one at a time, all, none, and all without clean inputs."""
    every = CorruptionConfig()
    alone = {f"dvae-{kind}": every.only("identity", kind) for kind in TRAINABLE[1:]}
    arms = [Arm(name, Config(corruption=corruption)) for name, corruption in alone.items()]
    strict = Arm("dvae-strict", Config(corruption=replace(every, identity=0.0)))
    return [preset("vae"), *arms, preset("dvae"), strict]


def augmentation() -> list[Arm]:
    """D4 augmentation on and off."""
    arms = []
    for name in ("dvae", "eq-dvae"):
        arms += [preset(name), Arm(f"{name}-unaugmented", replace(PRESETS[name](), augment=False))]
    return arms


def architecture() -> list[Arm]:
    """`seed`, its options one at a time, and `refined`."""
    changes = {
        "bilinear": ModelConfig(upsample="bilinear"),
        "transposed": ModelConfig(upsample="transposed"),
        "kernel5": ModelConfig(stage1_kernel=5),
        "stage4x4": ModelConfig(latent_stage=True),
    }
    base = PRESETS["eq-dvae"]()
    changed = [
        Arm(f"eq-dvae-{name}", replace(base, model=model)) for name, model in changes.items()
    ]
    return [preset("eq-dvae"), *changed, preset("eq-dvae-refined")]


def compute() -> list[Arm]:
    """`dvae` given what `eq-dvae` has: its multiply-adds, and its number of encodings."""
    dvae = PRESETS["dvae"]()
    return [
        preset("dvae"),
        Arm("dvae-equal-compute", dvae, EQUAL_COMPUTE),
        Arm("dvae-2x", dvae, 2.0),
        preset("eq-dvae"),
    ]


def _objective(name: str, **changes: Any) -> Config:
    base = PRESETS[name]()
    changed: ObjectiveConfig = replace(base.objective, **changes)
    return replace(base, objective=changed)


RECIPES: dict[str, Callable[[], list[Arm]]] = {
    "headline": headline,
    "models": models,
    "ceiling": ceiling,
    "groups": groups,
    "relaxed": relaxed,
    "colour": colour,
    "parameters": parameters,
    "lambda": lambdas,
    "beta": beta,
    "noise": noise,
    "augmentation": augmentation,
    "architecture": architecture,
    "compute": compute,
}
