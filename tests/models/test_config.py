"""Settings of the models: they hold for what the registry builds."""

from typing import get_args

from models.config import Architecture
from models.vae import ARCHITECTURES


def test_every_architecture_of_the_settings_can_be_built_and_no_other() -> None:
    assert set(get_args(Architecture)) == set(ARCHITECTURES)
