"""Locks exclude other holders, and end with them."""

import threading
import time
from pathlib import Path

import pytest

from common.errors import DataError
from common.locks import locked


def test_a_second_holder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with locked(path, "busy"):
        with pytest.raises(DataError, match=r"^busy$"), locked(path, "busy"):
            pass
        with pytest.raises(DataError, match=r"^busy$"), locked(path, "busy", shared=True):
            pass
    with locked(path, "busy"):
        pass
    assert path.exists()


def test_shared_holders_exclude_an_exclusive_one_only(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with (
        locked(path, "busy", shared=True),
        locked(path, "busy", shared=True),
        pytest.raises(DataError, match="busy"),
        locked(path, "busy"),
    ):
        pass


def test_a_lock_that_is_removed_is_removed_after_failures_too(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with pytest.raises(RuntimeError), locked(path, "busy", remove=True):
        raise RuntimeError
    assert not path.exists()


def test_waiting_for_a_holder_logs_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, order = tmp_path / ".lock", list[str]()
    held = threading.Event()

    def hold() -> None:
        with locked(path, "busy"):
            held.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with caplog.at_level("INFO", "eqdvae"), locked(path, "waiting for another", wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"] and caplog.messages == ["waiting for another"]


def test_a_lock_file_that_its_holder_removed_is_made_again(tmp_path: Path) -> None:
    path, held = tmp_path / ".lock", threading.Event()

    def hold() -> None:
        with locked(path, "busy", remove=True):
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with locked(path, "waiting for another", wait=True):
        assert path.exists()
        with pytest.raises(DataError, match=r"^busy$"), locked(path, "busy"):
            pass
    thread.join()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match=r"file cannot be used"),
        locked(tmp_path / "file/x", "busy"),
    ):
        pass
