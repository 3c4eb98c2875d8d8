"""Each target with its valid inputs, with what fuzzing has found, and with random damage."""

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

FOUND = sorted((Path(__file__).parent / "found").iterdir())
MUTATIONS = 20


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Flip a bit, cut, repeat a piece, or put other bytes in its place."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(max(1, len(changed)))
        match draw.randrange(4):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = changed[at : at + draw.randrange(64)]
            case _:
                changed[at : at + 4] = draw.randbytes(4)
    return bytes(changed)


# The HDF5 library may take very long over damaged files: atheris limits the time, a test cannot.
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "embeddings_h5"])
def test_valid_and_damaged_inputs(name: str, tmp_path: Path) -> None:
    target, draw = TARGETS[name], random.Random(0)
    (tmp_path / "seeds").mkdir()
    for seed in target.seeds(tmp_path / "seeds"):
        target.check(seed, tmp_path)
        for _ in range(MUTATIONS):
            target.check(damaged(seed, draw), tmp_path)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_fuzzing_found_stays_mended(path: Path, tmp_path: Path) -> None:
    TARGETS[path.name.rpartition("-")[0]].check(path.read_bytes(), tmp_path)
