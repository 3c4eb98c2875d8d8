"""`read_matrix` gives what SciPy gives, and refuses other contents and damaged files."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from common.errors import DataError
from shards.known.mat import read_matrix

KINDS = ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(3, 2), (1, 1), (0, 2), (0, 0), (1, 3), (200, 2), (2, 3, 4)])
def test_a_matrix_is_that_of_scipy(
    shape: tuple[int, ...], compressed: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a.mat"
    values = np.random.default_rng(0).uniform(0, 120, shape)
    contents = {kind: values.astype(kind) for kind in KINDS} | {"text": "abc"}
    scipy.io.savemat(file, contents, do_compression=compressed)
    expected = scipy.io.loadmat(file)
    for kind in KINDS:
        matrix = read_matrix(file, kind)
        assert matrix.dtype == np.float64 and matrix.shape == expected[kind].shape
        assert (matrix == expected[kind]).all()


@pytest.mark.parametrize(
    "value", ["text", np.array([[{}, 1]], object), {"a": 1.0}, np.array([[1 + 2j, 3]])]
)
def test_other_than_real_numbers_are_refused(value: Any, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"detection": value})
    with pytest.raises(DataError, match="detection is not a matrix of real numbers"):
        read_matrix(tmp_path / "a.mat", "detection")


def test_other_versions_are_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"detection": np.zeros((3, 2))}, format="4")
    with pytest.raises(DataError, match=r"is not a .mat file of MATLAB 5 to 7.2"):
        read_matrix(tmp_path / "a.mat", "detection")


def test_a_type_of_numbers_that_there_is_not_is_refused(tmp_path: Path) -> None:
    """On this file `scipy.io.loadmat` (1.17.1) ends with a segmentation fault."""
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"detection": np.ones((3, 2))})
    data = file.read_bytes()
    tag = b"\x09\0\0\0\x30\0\0\0"  # 48 bytes of doubles
    assert data.count(tag) == 1
    file.write_bytes(data.replace(tag, b"\0\0\0\0\x30\0\0\0"))
    with pytest.raises(DataError, match="numbers of the type 0, which there is not"):
        read_matrix(file, "detection")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"detection": np.zeros((4_000_000, 2))}, do_compression=True)
    assert file.stat().st_size < 100_000
    with pytest.raises(DataError, match="a compressed element is cut, or larger than"):
        read_matrix(file, "detection")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_an_error_or_another_number(compressed: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    scipy.io.savemat(file, {"detection": np.ones((30, 2))}, do_compression=compressed)
    good, draw, errors = file.read_bytes(), random.Random(0), 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(120, len(data))] = draw.choice((0, 255, draw.randrange(256)))
        file.write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        try:
            read_matrix(file, "detection")
        except DataError:
            errors += 1
    assert errors > 150
