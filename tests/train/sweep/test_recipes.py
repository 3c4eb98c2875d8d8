"""Recipes: every arm is what its name says, and differs in what its recipe is about."""

import json
from pathlib import Path

import pytest
import torch

from bench import counts
from common.records import differences
from models.vae import VAE, build
from train.config import as_json, from_json
from train.sweep.recipes import DECODER, ENCODER, RECIPES, Arm
from train.sweep.runs import plan_runs


def test_an_arm_has_one_meaning() -> None:
    named: dict[str, Arm] = {}
    for recipe in RECIPES.values():
        arms = recipe()
        assert len({arm.name for arm in arms}) == len(arms)
        assert len({(json.dumps(as_json(arm.config)), arm.budget) for arm in arms}) == len(arms)
        for arm in arms:
            assert named.setdefault(arm.name, arm) == arm
            assert from_json(json.loads(json.dumps(as_json(arm.config)))) == arm.config


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("lambda", {"objective.equivariance"}),
        ("beta", {"objective.beta", "objective.noise_var"}),
        ("noise", {f"corruption.{kind}" for kind in ("identity", "noise", "blur", "jpeg")}),
        ("augmentation", {"augment", "objective.equivariance"}),
        ("compute", {"objective.equivariance"}),
    ],
)
def test_arms_differ_in_what_the_recipe_is_about(recipe: str, settings: set[str]) -> None:
    first, *others = (as_json(arm.config) for arm in RECIPES[recipe]())
    changed = {line.split(":")[0] for other in others for line in differences(first, other)}
    assert changed == settings


def test_wide_tied_models_have_about_the_parameters_of_refined() -> None:
    with torch.device("meta"):
        models = [VAE(arm.config.model) for arm in RECIPES["parameters"]()]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes == [219_279, 227_379, 206_403]


def test_seeds_are_crossed_with_arms_and_budgets_kept(tmp_path: Path) -> None:
    runs = plan_runs(RECIPES["compute"](), 2, 1000, tmp_path, batch_size=8)
    assert [run.config.seed for run in runs] == [0] * 4 + [1] * 4
    assert [run.images for run in runs[:4]] == [1000, 1324, 2000, 1000]
    assert {run.config.batch_size for run in runs} == {8}


def test_equal_compute_counts_what_the_models_count() -> None:
    counted = counts.multiply_adds(build(RECIPES["compute"]()[0].config.model, 0))
    assert (counted["encoder"], counted["decoder"]) == (ENCODER, DECODER)
