"""The architectures: exact counts, initial behaviour, symmetry, snapshots."""

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from common.errors import DataError
from models import snapshot
from models.blocks import BiasSiLU, ScaledConv2d, decayed_parameters
from models.config import ModelConfig
from models.vae import ARCHITECTURES, VAE, build
from pipeline import d4


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "encoder", "decoder"),
    [
        (ModelConfig(), 68_790, 148_521),
        (ModelConfig("refined"), 70_502, 148_777),
        (ModelConfig(latent_stage=True), 68_790, 354_529 - 68_790),
        (ModelConfig("tied"), 8_818, 18_605),
        (ModelConfig("tied", "C4"), 17_630, 54_831 - 17_630),
        (ModelConfig("tied", "D4", (48, 96, 192)), 66_750, 227_379 - 66_750),
        (ModelConfig("tied", "C4", (32, 64, 128)), 62_122, 206_403 - 62_122),
    ],
)
def test_parameter_counts(config: ModelConfig, encoder: int, decoder: int) -> None:
    model = build(config, 0)
    assert (count(model.encoder), count(model.decoder)) == (encoder, decoder)


@pytest.mark.parametrize(
    ("config", "macs"),
    [
        (ModelConfig(), 31_930_368),
        (ModelConfig("refined"), 32_030_720),
        (ModelConfig("tied"), 32_030_720),
    ],
)
def test_multiply_adds_in_convolutions(config: ModelConfig, macs: int) -> None:
    flops = FlopCountAnalysis(build(config, 0), torch.rand(1, 3, 32, 32))
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert flops.by_operator()["conv"] == macs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("upsample", ["nearest", "transposed"])
def test_the_kernels_of_convolutions_decay_and_nothing_else(
    architecture: Any, upsample: Any
) -> None:
    model = build(ModelConfig(architecture, upsample=upsample), 0)
    decayed = set(decayed_parameters(model))
    assert decayed == {parameter for parameter in model.parameters() if parameter.ndim == 4}


def test_a_layer_must_declare_what_decays() -> None:
    with pytest.raises(TypeError, match=r"Linear holds \['weight'\]"):
        decayed_parameters(torch.nn.Sequential(BiasSiLU(3), torch.nn.Linear(3, 2)))


def test_architectures_are_those_of_the_registry() -> None:
    options = get_type_hints(ModelConfig)["architecture"]
    assert get_args(options) == tuple(ARCHITECTURES)
    with pytest.raises(ValueError, match="architecture is 'new'; expected one of"):
        ModelConfig("new")  # type: ignore[arg-type]


def test_standardised_weights_have_unit_power() -> None:
    conv = ScaledConv2d(6, 4, 3, gain=1.5)
    impulse = torch.zeros(6, 6, 5, 5)
    impulse[torch.arange(6), torch.arange(6), 2, 2] = 1
    weight = conv(impulse)  # (in, out, 3, 3): the weights that the layer applies
    assert torch.allclose(weight.mean((0, 2, 3)), torch.zeros(4), atol=1e-6)
    assert torch.allclose(weight.square().sum((0, 2, 3)), torch.full((4,), 1.5**2), rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "transposed"])
@pytest.mark.parametrize(("kernel", "latent_stage"), [(3, True), (5, False)])
def test_every_option_runs_and_starts_alive(
    architecture: Any, upsample: Any, kernel: Any, latent_stage: bool
) -> None:
    config = ModelConfig(
        architecture, stage1_kernel=kernel, upsample=upsample, latent_stage=latent_stage
    )
    model = build(config, 0, [0.8, 0.6, 0.7])
    x = torch.rand(4, 3, 32, 32)
    q = model.encoder(x)
    x_hat = model.decoder(torch.randn_like(q.mean))
    assert q.mean.shape == q.log_var.shape == (4, 24, 4, 4)
    assert x_hat.shape == x.shape and x_hat.min() >= 0 and x_hat.max() <= 1
    assert q.mean.std() > 0.05 and x_hat.std() > 0.01
    low, high = model.encoder.log_var_range
    assert low <= q.log_var.min() and q.log_var.max() <= high


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first, second = build(ModelConfig(), 3).state_dict(), build(ModelConfig(), 3).state_dict()
    other = build(ModelConfig(), 4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_refined_starts_at_the_mean_colour() -> None:
    mean = [0.8, 0.6, 0.7]
    with torch.no_grad():
        x_hat = build(ModelConfig("refined"), 0, mean).decoder(torch.zeros(1, 24, 4, 4))
    assert torch.allclose(x_hat.mean((0, 2, 3)), torch.tensor(mean), atol=1e-5)


def symmetrise(model: VAE) -> None:
    """Average every square kernel over D4: the network is then equivariant if its lattice is."""
    for parameter in model.encoder.parameters():
        if parameter.ndim == 4:
            moved = [d4.act_one(parameter.data, g) for g in range(8)]
            parameter.data = torch.stack(moved).mean(0)
        elif parameter.ndim == 0:
            parameter.data.fill_(0.7)


@pytest.mark.parametrize(("architecture", "low", "high"), [("seed", 0.1, 2), ("refined", 0, 1e-12)])
def test_an_even_kernel_keeps_the_lattice_symmetric(
    architecture: str, low: float, high: float
) -> None:
    model = build(ModelConfig(architecture), 0).double()  # type: ignore[arg-type]
    symmetrise(model)
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    features = model.encoder.body(model.encoder.stem(x))
    errors = []  # the transposition is exact for both: the odd lattice still has its diagonal
    for g in range(1, 8):
        moved = model.encoder.body(model.encoder.stem(d4.act_one(x, g)))
        errors.append(float((moved - d4.act_one(features, g)).norm() / features.norm()))
    assert low <= max(errors) <= high


@pytest.mark.parametrize(
    "config",
    [ModelConfig("refined", upsample="bilinear", stage1_kernel=5), ModelConfig("tied", "C4")],
)
def test_snapshot_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    model = build(config, 1)
    snapshot.save(model, tmp_path, {"preset": "x"})
    loaded = snapshot.load(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    assert loaded.config == config and torch.equal(loaded(x), model.eval()(x))


def test_a_snapshot_that_was_half_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never new weights under the description of old ones."""
    snapshot.save(build(ModelConfig(), 0), tmp_path, {"images_seen": 1})
    write = snapshot.write_atomically

    def until_config(path: Path, data: bytes) -> None:
        if path.name == snapshot.CONFIG:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(snapshot, "write_atomically", until_config)
    with pytest.raises(KeyboardInterrupt):
        snapshot.save(build(ModelConfig(), 1), tmp_path, {"images_seen": 2})
    with pytest.raises(DataError, match=r"config\.json does not exist"):
        snapshot.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model": {"architecture": "seed", "evil": 1, "widths": [16, 32, 64]}}'),
        ("config.json", b'{"model": {"widths": [1000000, 2000000, 4000000]}}'),
        ("config.json", b'{"model": {"architecture": "refined", "widths": [16, 32, 64]}}'),
        ("config.json", b'{"model": {"architecture": "tied", "widths": [4, 8, 16]}}'),
        ("config.json", b'{"model": {"group": "O3", "widths": [16, 32, 64]}}'),
        ("model.safetensors", b"\x00" * 100),
        ("model.safetensors", b"\x80\x04\x95 a pickle"),
    ],
)
def test_hostile_snapshots_are_refused(tmp_path: Path, file: str, content: bytes) -> None:
    snapshot.save(build(ModelConfig(), 0), tmp_path, {})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=file):
        snapshot.load(tmp_path)
