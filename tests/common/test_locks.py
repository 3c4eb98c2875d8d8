"""Locks exclude other holders, and end with them.

The kind, for `held`: a holder in this process, in another one, on another machine, on a file
system without flock or whose flock is of one machine; holders that were killed here and there,
whose id another process has now; a lock file that is empty, cut or of another program; a holder
that ends while it is watched; several that take a stale lock at once; one that was suspended.
"""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from common import locks
from common.errors import DataError
from common.locks import LOCK, Holder, held, locked


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


ELSEWHERE = Holder("node7", 4242, "another boot", "0123456789abcdef", 5)
HOLD = """
import sys, time
from pathlib import Path
from common.locks import held
with held(Path(sys.argv[1]), "trains"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_S", 0.1), ("STALE_S", 0.5), ("SETTLE_S", 0.2)):
        monkeypatch.setattr(locks, name, seconds)


def without_flock(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    def refuse(handle: int, kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def write(folder: Path, holder: Holder) -> None:
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_bytes(msgspec.json.encode(holder))


def beat(folder: Path, stop: threading.Event) -> None:
    number = ELSEWHERE.beat
    while not stop.wait(0.05):
        write(folder, msgspec.structs.replace(ELSEWHERE, beat=(number := number + 1)))


def test_the_holder_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    name = rf"process {os.getpid()} on {socket.gethostname()} trains"
    with held(folder, "trains"):
        with pytest.raises(DataError, match=name), held(folder, "trains"):
            pass
        assert (folder / LOCK).exists()
    with held(folder, "trains"):
        pass
    assert not list(folder.iterdir())


def test_a_process_that_was_killed_blocks_nobody(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(DataError, match=f"process {process.pid} on"), held(tmp_path, "trains"):
        pass
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    began = time.monotonic()
    with held(tmp_path, "trains"):
        assert time.monotonic() - began < 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("flock", [True, False])
def test_a_holder_on_another_machine_is_named_while_it_lives(
    flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flock:
        without_flock(monkeypatch)
    write(tmp_path, ELSEWHERE)
    stop = threading.Event()
    other = threading.Thread(target=beat, args=(tmp_path, stop))
    other.start()
    try:
        with pytest.raises(DataError, match="process 4242 on node7"), held(tmp_path, "trains"):
            pass
    finally:
        stop.set()
        other.join()
    with (
        held(tmp_path, "trains"),  # the other one has ended without removing the file
        pytest.raises(DataError, match=f"process {os.getpid()}"),
        held(tmp_path, "trains"),
    ):
        pass
    assert not (tmp_path / LOCK).exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("lives", [True, False])
def test_a_file_server_may_keep_the_lock_of_a_machine_that_is_gone(
    lives: bool, tmp_path: Path
) -> None:
    write(tmp_path, ELSEWHERE)
    stop = threading.Event()
    other = threading.Thread(target=beat, args=(tmp_path, stop))
    with (tmp_path / LOCK).open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)  # as the server does for it
        if lives:
            other.start()
            with pytest.raises(DataError, match="process 4242 on node7"), held(tmp_path, "trains"):
                pass
            stop.set()
            other.join()
        else:
            with (
                held(tmp_path, "trains"),
                pytest.raises(DataError, match=str(os.getpid())),
                held(tmp_path, "trains"),
            ):
                pass
            assert not (tmp_path / LOCK).exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("number", sorted(locks.NO_FLOCK))
def test_a_file_system_without_flock_has_one_holder(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch, number)
    outcomes: list[str] = []

    def take() -> None:
        try:
            with held(tmp_path, "trains"):
                outcomes.append("held")
                time.sleep(1)
        except DataError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome == "held" for outcome in outcomes) == [False, False, False, True]
    with held(tmp_path, "trains"):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"host": 1}', b"x" * 10_000])
def test_a_file_that_names_nobody_blocks_nobody(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(content)
    with held(tmp_path, "trains"):
        assert msgspec.json.decode((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()


def test_the_id_of_a_dead_holder_may_be_that_of_a_living_process(tmp_path: Path) -> None:
    own = Holder(socket.gethostname(), os.getpid(), locks._boot(), "of a process before")
    write(tmp_path, own)
    with held(tmp_path, "trains"):
        pass


@pytest.mark.usefixtures("quick")
def test_a_holder_that_ends_while_it_is_watched_leaves_the_lock(tmp_path: Path) -> None:
    write(tmp_path, ELSEWHERE)
    remover = threading.Timer(0.2, (tmp_path / LOCK).unlink)
    remover.start()
    with held(tmp_path, "trains"), pytest.raises(DataError), held(tmp_path, "trains"):
        pass
    assert not (tmp_path / LOCK).exists()


def test_who_was_suspended_while_another_took_over_ends(tmp_path: Path) -> None:
    code = "from common import locks; locks.BEAT_S = 0.1\n" + HOLD
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGSTOP)
    write(tmp_path, ELSEWHERE)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == locks.LOST and "taken over by process 4242 on node7" in errors
    assert msgspec.json.decode((tmp_path / LOCK).read_bytes(), type=Holder) == ELSEWHERE


def test_errors_of_the_file_system_are_no_missing_flock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(DataError, match="cannot be locked"), held(tmp_path, "trains"):
        pass
