"""Group axioms and exactness of the actions."""

import itertools

import pytest
import torch

from pipeline import d4
from pipeline.config import ORDER

ELEMENTS = range(8)


def images(dtype: torch.dtype = torch.float32, n: int = 6, c: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 200, (5, c, n, n), generator=generator).to(dtype)


def test_tables_form_a_group() -> None:
    for a, b, c in itertools.product(ELEMENTS, repeat=3):
        assert d4.product(d4.product(a, b), c) == d4.product(a, d4.product(b, c))
    for a in ELEMENTS:
        assert d4.product(a, d4.inverse(a)) == d4.product(d4.inverse(a), a) == 0
        assert sorted(d4.product(a, b) for b in ELEMENTS) == list(ELEMENTS)


@pytest.mark.parametrize("a", ELEMENTS)
def test_action_follows_the_product(a: int) -> None:
    x = images()
    for b in ELEMENTS:
        twice = d4.act_one(d4.act_one(x, b), a)
        assert torch.equal(twice, d4.act_one(x, d4.product(a, b)))
    assert len({d4.act_one(x, g).numpy().tobytes() for g in ELEMENTS}) == 8


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batched_action_is_exact(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = images(dtype).to(memory_format=layout)
    table = d4.pixel_index(6)
    for g in ELEMENTS:
        moved = d4.act(x, torch.full((5,), g), table)
        assert torch.equal(moved, d4.act_one(x, g))
    mixed = d4.act(x, torch.tensor([0, 3, 4, 7, 1]), table)
    each = [d4.act_one(x[i], g) for i, g in enumerate([0, 3, 4, 7, 1])]
    assert torch.equal(mixed, torch.stack(each))


@pytest.mark.parametrize("group", ["D4", "C4"])
def test_channel_action_is_a_homomorphism(group: str) -> None:
    order = ORDER[group]
    table, x = d4.channel_index(24, group), images(c=24)
    for a, b in itertools.product(range(order), repeat=2):
        once = d4.act_channels(x, torch.full((5,), b), table)
        two = d4.act_channels(once, torch.full((5,), a), table)
        assert torch.equal(two, d4.act_channels(x, torch.full((5,), d4.product(a, b)), table))
    # [rho(g) phi](h) = phi(g^-1 h), spelled out for one fibre
    moved = d4.act_channels(x, torch.full((5,), 1), table)
    for h in range(order):
        assert torch.equal(moved[:, h], x[:, d4.product(d4.inverse(1), h)])


def test_channels_must_split_into_fibres() -> None:
    with pytest.raises(ValueError, match="20 channels"):
        d4.channel_index(20, "D4")
