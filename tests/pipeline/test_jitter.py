"""Colour jitter stays in range, is off by default, commutes with D4 and has its stated strength."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import ModelConfig, ObjectiveConfig
from models.objective import Inputs, Objective
from models.vae import VAE, build
from pipeline import d4, jitter
from pipeline.config import NONE, CorruptionConfig, JitterConfig
from pipeline.pixels import to_float
from tests.helpers.patches import real_patches
from train.config import PRESETS, from_json
from train.step import TrainStep, generator_for

EVERY = JitterConfig(stain_scale=0.2, stain_shift=0.05, brightness=0.1, contrast=0.1)
SINGLE = [
    JitterConfig(**{name: 0.2}) for name in ("stain_scale", "stain_shift", "brightness", "contrast")
]


def images(count: int = 16) -> Tensor:
    values = torch.randint(40, 250, (count, 32, 32, 3), generator=seeded(), dtype=torch.uint8)
    return to_float(values.permute(0, 3, 1, 2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jittered(x: Tensor, config: JitterConfig) -> Tensor:
    return jitter.apply(x, config, jitter.draw(config, len(x), seeded(1)))


def test_it_is_off_in_every_preset() -> None:
    assert not any(preset().jitter.on for preset in PRESETS.values())
    assert not JitterConfig().on and all(config.on for config in (EVERY, *SINGLE))


@pytest.mark.parametrize("config", [EVERY, *SINGLE])
def test_patches_change_and_stay_in_range(config: JitterConfig) -> None:
    x = images()
    out = jittered(x, config)
    assert (out != x).flatten(1).any(1).all()
    assert out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize("config", [EVERY, *SINGLE])
def test_a_symmetry_before_or_after_gives_the_same_patch(config: JitterConfig) -> None:
    x, g_B, table = images(), torch.arange(16) % 8, d4.pixel_index(32)
    changes = jitter.draw(config, len(x), seeded())
    before = jitter.apply(d4.act(x, g_B, table), config, changes)
    after = d4.act(jitter.apply(x, config, changes), g_B, table)
    # the mean that contrast keeps is summed in another order
    torch.testing.assert_close(before, after, rtol=0, atol=0 if config.contrast == 0 else 1e-6)


def test_stain_shifts_scale_the_light_and_scales_its_density() -> None:
    x, generator = images(), seeded(1)
    u = torch.rand(16, 8, generator=generator).double().numpy() * 2 - 1
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)  # Ruifrok and Johnston (2001)
    density = -np.log10(x.double().numpy().transpose(0, 2, 3, 1))
    amounts = density @ np.linalg.inv(stains)
    amounts = amounts * (1 + 0.2 * u[:, None, None, :3]) + 0.05 * u[:, None, None, 3:6]
    expected = np.clip(10 ** -(amounts @ stains), 0, 1).transpose(0, 3, 1, 2)
    out = jittered(x, JitterConfig(stain_scale=0.2, stain_shift=0.05))
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


def test_contrast_keeps_the_mean_intensity_and_brightness_scales_it() -> None:
    x = images() * 0.5 + 0.25  # nothing is clamped
    mean = x.mean((1, 2, 3))
    contrast = jittered(x, JitterConfig(contrast=0.2))
    torch.testing.assert_close(contrast.mean((1, 2, 3)), mean)
    ratio = contrast.std((1, 2, 3)) / x.std((1, 2, 3))
    assert 0.8 <= ratio.min() < 0.9 and 1.1 < ratio.max() <= 1.2
    ratio = jittered(x, JitterConfig(brightness=0.2)).mean((1, 2, 3)) / mean
    assert 0.8 <= ratio.min() < 0.9 and 1.1 < ratio.max() <= 1.2


@pytest.mark.parametrize("name", ["stain_scale", "stain_shift", "brightness", "contrast"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_unusable_strengths_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"jitter.{name} is {value}; expected in"):
        JitterConfig(**{name: value})


def test_a_config_file_without_jitter_is_a_run_without_it() -> None:
    assert from_json({"seed": 3}).jitter == JitterConfig()


class Spy(Objective):
    """Keeps the inputs of the losses."""

    inputs: Inputs

    def forward(self, model: VAE, inputs: Inputs) -> dict[str, Tensor]:
        self.inputs = inputs
        return super().forward(model, inputs)


def make_step(corruption: CorruptionConfig, config: JitterConfig) -> TrainStep:
    objective = Spy(ObjectiveConfig(), 24)
    return TrainStep(build(ModelConfig(), 0), objective, corruption, jitter=config)


def test_the_step_jitters_target_and_input_alike_and_nothing_else_is_drawn_anew() -> None:
    x = (images() * 255).round().byte()
    steps = [make_step(CorruptionConfig(), config) for config in (JitterConfig(), EVERY)]
    plain, changed = (step.draw(16, generator_for(0, 64, 0, x.device)) for step in steps)
    assert plain.jitter is None and changed.jitter is not None
    assert torch.equal(plain.augment_B, changed.augment_B)
    assert torch.equal(plain.latent_noise, changed.latent_noise)
    assert torch.equal(plain.corruption["noise"][0], changed.corruption["noise"][0])
    clean = make_step(NONE, EVERY)
    clean(x, changed)
    spy = clean.objective
    assert isinstance(spy, Spy) and torch.equal(spy.inputs.x, spy.inputs.x_tilde)
    moved = to_float(d4.act(x, changed.augment_B, clean.pixels))
    assert torch.equal(spy.inputs.x, jitter.apply(moved, EVERY, changed.jitter))


@pytest.mark.realdata
def test_real_patches_change_mildly() -> None:
    x = to_float(torch.from_numpy(real_patches(64)).permute(0, 3, 1, 2))
    mild = JitterConfig(stain_scale=0.1, stain_shift=0.02, brightness=0.05, contrast=0.05)
    change = (jittered(x, mild) - x).abs().mean()
    assert 0.005 < change < 0.06
