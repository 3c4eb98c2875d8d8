"""Weight tying: exact equivariance of every layer and of the network, completeness, folding."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eval.measure.metrics import Symmetry, equivariance_errors
from models.blocks import (
    UPSAMPLE,
    BiasSiLU,
    Depthwise,
    Downsample,
    ResidualBlock,
    ScaledConv2d,
)
from models.config import ModelConfig, ObjectiveConfig
from models.objective import Inputs, Objective
from models.tied import Tied, kernel, rgb_kernel, tie, transposed_kernel
from models.vae import VAE, build
from pipeline import d4
from pipeline.config import ORDER
from train.config import PRESETS, Config

GROUPS = ["D4", "C4"]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6}
Group = Any  # a Literal in the configuration, a string here


def moved(x: Tensor, element: int, group: str, regular: bool) -> Tensor:
    """rho(g) of a map (B, C, N, N): its cells move; of regular fibres the channels as well."""
    x = d4.act_one(x, element)
    return x[:, reads_from(element, x.shape[1], group)] if regular else x


def reads_from(element: int, channels: int, group: str) -> list[int]:
    """The definition: after g, channel fibre * |G| + h holds what was at g^-1 h."""
    order = ORDER[group]
    old = [d4.product(d4.inverse(element), h) for h in range(order)]
    return [c // order * order + old[c % order] for c in range(channels)]


def randomise(module: nn.Module) -> None:
    """Biases and gains away from their start, and every branch switched on."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.randn(parameter.shape, generator=generator).to(parameter) / 2
        elif parameter.ndim == 0:
            parameter.data.fill_(0.7)


def assert_equivariant(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    group: str,
    *,
    reads: bool = True,
    writes: bool = True,
) -> None:
    """f(rho(g) x) = rho(g) f(x) for all g, to the rounding of x's type (relative, Frobenius).

    `reads`, `writes`: whether f's input and output are regular fibres, or an image.
    """
    elements = range(ORDER[group])
    with torch.no_grad():
        seen = f(torch.cat([moved(x, g, group, reads) for g in elements])).chunk(len(elements))
    assert seen[0].dtype == x.dtype and seen[0].std() > 1e-3
    for g in elements[1:]:
        expected = moved(seen[0], g, group, writes)
        error = float((seen[g] - expected).norm() / expected.norm())
        assert error <= TOLERANCE[x.dtype], f"element {g}: {error}"


def lift() -> ScaledConv2d:
    return ScaledConv2d(3, 16, 5, padding=2, centred=False, bias=True)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lift": lift,
    "mix": lambda: ScaledConv2d(16, 24, bias=True),
    "mix-3x3": lambda: ScaledConv2d(16, 24, 3, padding=1, gain=1.3),
    "plain": lambda: nn.Conv2d(16, 8, 1),
    "depthwise": lambda: Depthwise(16, 5, 0.2, bias=True),
    "activation": lambda: BiasSiLU(16),
    "block": lambda: ResidualBlock(16, 3, 0.5),
    "down": lambda: Downsample(16, 4),
    **{f"up-{name}": partial(up, 16, 8, True) for name, up in UPSAMPLE.items()},
    "to-rgb": lambda: nn.Conv2d(16, 3, 1),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_equivariant(name: str, group: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    image, to_rgb = name == "lift", name == "to-rgb"
    tie(layer, group, lift=layer if image else None, to_rgb=layer if to_rgb else None)
    randomise(layer)
    x = torch.randn(2, 3 if image else 16, 8, 8, dtype=dtype)
    assert_equivariant(layer.to(dtype), x, group, reads=not image, writes=not to_rgb)


def test_an_untied_layer_is_not_equivariant() -> None:
    with pytest.raises(AssertionError, match="element 1"):
        assert_equivariant(ScaledConv2d(16, 24), torch.randn(2, 16, 8, 8), "C4")


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda s, g: kernel(s, g, True), (16, 24, 3, 3)),
        (lambda s, g: kernel(s, g, False), (16, 3, 4, 4)),
        (transposed_kernel, (24, 16, 4, 4)),
        (rgb_kernel, (3, 16, 1, 1)),
    ],
)
def test_tying_reaches_every_equivariant_weight(
    make: Callable[[torch.Size, str], Tied], shape: tuple[int, ...], group: str
) -> None:
    """The average over the group of any weight is one that psi gives: nothing else is lost."""
    weight = torch.randn(shape, dtype=torch.float64)
    average = torch.zeros_like(weight)
    for g in range(ORDER[group]):
        image = d4.act_one(weight, g)
        for dim in (dim for dim in (0, 1) if shape[dim] != 3):
            image = image.index_select(dim, torch.tensor(reads_from(g, shape[dim], group)))
        average += image / ORDER[group]
    tied = make(torch.Size(shape), group)
    psi = tied.right_inverse(average)
    assert psi.numel() * ORDER[group] == weight.numel()
    assert torch.allclose(tied(psi), average, atol=1e-14)
    assert torch.equal(tied.right_inverse(tied(psi)), psi)


def tied_model(group: Group, **options: Any) -> VAE:
    model = build(ModelConfig("tied", group, **options), 0, [0.8, 0.6, 0.7])
    randomise(model)
    return model


OTHERS = {"stage1_kernel": 5, "upsample": "bilinear", "latent_stage": True}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {}), (torch.float64, {}), (torch.float64, OTHERS)],
)
def test_the_network_is_equivariant(
    dtype: torch.dtype, options: dict[str, Any], group: str
) -> None:
    model = tied_model(group, **options).to(dtype)
    x, z = torch.rand(1, 3, 32, 32, dtype=dtype), torch.randn(1, 24, 4, 4, dtype=dtype)
    assert_equivariant(lambda x: model.encoder(x).mean, x, group, reads=False)
    assert_equivariant(lambda x: model.encoder(x).log_var, x, group, reads=False)
    assert_equivariant(model.decoder, z, group, writes=False)
    assert_equivariant(model, x, group, reads=False, writes=False)


def fold(model: VAE) -> VAE:
    """The `refined` model that computes the same function, its weights expanded."""
    folded = build(replace(model.config, architecture="refined"), 0)
    with torch.no_grad():
        for name, parameter in folded.named_parameters():
            layer, _, leaf = name.rpartition(".")
            parameter.copy_(getattr(model.get_submodule(layer), leaf))
    return folded.train(model.training)


@pytest.mark.parametrize("group", GROUPS)
def test_folding_gives_the_same_function_in_refined(group: str) -> None:
    model = tied_model(group).eval()
    folded = fold(model)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), atol=1e-6)
        assert torch.allclose(folded.encoder(x).mean, model.encoder(x).mean, atol=1e-6)
    assert folded.config == replace(model.config, architecture="refined")
    assert sum(p.numel() for p in folded.parameters()) == 219_279 and not folded.training


@pytest.mark.parametrize("group", GROUPS)
def test_a_relaxed_model_begins_as_the_tied_one_and_is_free_to_leave(group: Group) -> None:
    """The same function to rounding, with the parameters of `refined` and nothing tied."""
    tied, relaxed = (build(ModelConfig(a, group), 3, [0.8, 0.6, 0.7]) for a in ("tied", "relaxed"))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(relaxed(x), tied(x), atol=1e-6)
        assert torch.allclose(relaxed.encoder(x).mean, tied.encoder(x).mean, atol=1e-6)
    assert sum(p.numel() for p in relaxed.parameters()) == 219_279
    refined = build(ModelConfig("refined"), 0)
    assert relaxed.state_dict().keys() == refined.state_dict().keys()
    loss = (relaxed(x) - x).square().sum()
    loss.backward()
    stem = relaxed.encoder.get_parameter("stem.weight")
    assert stem.is_leaf and stem.grad is not None and stem.grad.norm() > 0


def assert_one_graph(f: Callable[[Tensor], Tensor], x: Tensor, backend: str) -> None:
    compiled = torch.compile(f, fullgraph=True, backend=backend)
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(y, f(x))


def test_a_tied_block_is_one_graph() -> None:
    block = ResidualBlock(16, 3, 0.5)
    tie(block, "D4")
    randomise(block)
    assert_one_graph(block, torch.randn(2, 16, 8, 8), "eager")
    assert all(p.grad is not None and p.grad.norm() > 0 for p in block.parameters())


@pytest.mark.slow
def test_encoder_and_decoder_are_one_graph() -> None:
    model = tied_model("D4")
    assert_one_graph(lambda x: model.encoder(x).mean, torch.rand(2, 3, 32, 32), "aot_eager")
    assert_one_graph(model.decoder, torch.randn(2, 24, 4, 4), "aot_eager")


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", ["mean", "implicit"])
def test_the_equivariance_term_has_nothing_to_teach(form: Any, group: Group) -> None:
    """The term vanishes; its implicit form is the error of the reconstruction alone."""
    config = ObjectiveConfig(equivariance=1.0, group=group, fibres="regular", form=form)
    x, order = torch.rand(8, 3, 32, 32), ORDER[group]
    g_B = torch.arange(8) % (order - 1) + 1
    model, noise = tied_model(group), torch.randn(8, 24, 4, 4)
    with torch.no_grad():
        terms = Objective(config, 24)(model, Inputs(x, x, noise, g_B))
    expected = 0.0 if form == "mean" else float(terms["mse"]) * 3072 * (order - 1) / order
    assert float(terms["equivariance"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("preset", ["d4-dvae", "c4-dvae"])
def test_the_measured_error_of_a_preset_is_rounding(preset: str) -> None:
    config = PRESETS[preset]()
    model = build(config.model, 0)
    randomise(model)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    group, fibres = config.objective.group, config.objective.fibres
    with torch.no_grad():
        errors = equivariance_errors(
            lambda x: model.encoder(x).mean, images, Symmetry(group, fibres)
        )
        wrong = equivariance_errors(lambda x: model.encoder(x).mean, images, Symmetry(group))
    assert len(errors) == ORDER[group] - 1 and max(errors.values()) < 1e-5
    assert config.objective.equivariance == 0 and max(wrong.values()) > 0.1


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        ModelConfig("tied", widths=(4, 8, 16))
    with pytest.raises(ValueError, match="multiples of 8"):
        ModelConfig("tied", latent_channels=12)
    with pytest.raises(ValueError, match="regular fibres of D4"):
        Config(model=ModelConfig("tied"))
    with pytest.raises(ValueError, match=r"--objective\.group C4"):
        Config(model=ModelConfig("tied", "C4"), objective=ObjectiveConfig(fibres="regular"))
