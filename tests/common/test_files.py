"""Files appear completely or not at all, also when writing fails."""

import errno
import json
from pathlib import Path

import pytest
import xxhash

from common import files
from common.errors import DataError
from common.files import (
    atomic_file,
    atomic_path,
    make_folder,
    read_json,
    remove_unfinished,
    with_checksum,
    write_atomically,
)


def test_a_file_appears_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_file(path) as file:
        file.write(b"ab")
        file.write(memoryview(b"c"))
        assert not path.exists()
    assert path.read_bytes() == b"abc" and list(tmp_path.iterdir()) == [path]
    assert (file.size, file.xxh3) == (3, xxhash.xxh3_64_hexdigest(b"abc"))


def test_a_hidden_path_has_the_suffix_and_folder_of_its_target(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.parquet"
    with atomic_path(path) as hidden:
        assert hidden.suffix == ".parquet" and hidden.parent == path.parent
        hidden.write_bytes(b"x")
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]


def test_names_of_files_and_of_new_folders_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_folder", synced.append)
    write_atomically(tmp_path / "a" / "b" / "x.json", b"{}")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 3
    with atomic_file(tmp_path / "x.bin") as file:
        file.write(b"x")
    assert synced[3:] == [tmp_path]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    stay = ["a.json", ".lock", ".a.tmp", "a.12.tmp.json", ".a.12.tmp.json.bak", ".b.12x.tmp.json"]
    for name in [*stay, ".a.12.tmp.json", ".a.tar.9.tmp", ".c d.1.tmp.parquet"]:
        (tmp_path / name).touch()
    (tmp_path / ".folder.1.tmp").mkdir()
    remove_unfinished(tmp_path / "none")
    remove_unfinished(tmp_path, "a")
    assert not (tmp_path / ".a.12.tmp.json").exists() and (tmp_path / ".c d.1.tmp.parquet").exists()
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*stay, ".folder.1.tmp"])


@pytest.mark.parametrize("failure", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_content_and_nothing_else(
    failure: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    with pytest.raises(type(failure)), atomic_file(path) as file:
        file.write(b"new")
        raise failure
    with pytest.raises(type(failure)), atomic_path(path) as hidden:
        hidden.write_bytes(b"new")
        raise failure
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError, match=r"a\.bin cannot be written: No space left.*Make room"):
        write_atomically(tmp_path / "a.bin", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[1]", "holds a list, expected an object"),
    ],
)
def test_json_that_is_no_object_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.json {reason}"):
        read_json(path)


def test_json_that_is_missing_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"a\.json does not exist: make it by x$"):
        read_json(tmp_path / "a.json", missing="make it by x")
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text(" " * 11)
    with pytest.raises(DataError, match="larger than 10 bytes"):
        read_json(tmp_path / "a.json")


def test_a_checksum_tells_altered_content_whatever_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content: dict[str, object] = {"b": 0.1, "a": {2: (1, "ü"), 10: None}}
    path.write_text(json.dumps(with_checksum(content), indent=1))
    read = read_json(path)
    assert read == {"b": 0.1, "a": {"2": [1, "ü"], "10": None}}
    path.write_text(json.dumps(with_checksum(read), ensure_ascii=False))
    assert read_json(path) == read
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(DataError, match=r"a\.json was altered"):
        read_json(path)
    path.write_text(json.dumps(read))  # as an earlier version wrote it
    assert read_json(path) == read
