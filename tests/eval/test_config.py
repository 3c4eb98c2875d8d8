"""Options of the commands: they name what the registries hold."""

from eval import config
from eval.drawing.figures import DARK, LIGHT
from eval.measure.probe import PRIMARY_PROBE, PROBES
from eval.measure.readouts import BASELINES, PRIMARY, READOUTS


def test_the_options_name_all_readouts_probes_and_baselines() -> None:
    assert tuple(READOUTS) == config.READOUTS and config.READOUTS[0] == PRIMARY
    assert tuple(PROBES) == config.PROBES and config.PROBES[0] == PRIMARY_PROBE
    assert tuple(BASELINES) == config.BASELINES


def test_every_cluster_has_a_colour() -> None:
    assert len(LIGHT) == len(DARK) == config.COLOURS
