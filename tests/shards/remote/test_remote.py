"""Remote data sets: verified, continued after a cut, never outside the cache."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from common.files import read_json
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.fetch import main
from shards.foreign.index import index_tars
from shards.remote import cache as remote
from shards.remote import download
from shards.remote.cache import cache_folder, fetch, local
from shards.remote.download import Store
from shards.schema import dataset_hash, load_metadata
from shards.verify.check import verify
from tests.helpers.messages import collected_messages
from tests.helpers.serving import serving
from tests.helpers.tars import members, samples, write_tar
from train.data import find_data

pytest.importorskip("aiohttp", reason="aiohttp, of the extra `remote`, is not installed")

TAR = "train-000000.tar"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short pauses, and a cache of our own."""
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("EQDVAE_CACHE", str(tmp_path / "cache"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".fetch.lock"}


def arrived(name: str) -> int:
    """Bytes of a file that are in the cache, finished or not; all there will be of dataset.json."""
    if name == "dataset.json":
        return 1 << 30
    files = [*cache_folder().glob(f"*/.{name}.part"), *cache_folder().glob(f"*/{name}")]
    return sum(path.stat().st_size for path in files)


def same(folder: Path, source: Path) -> bool:
    # hidden files are of packing there, and are not part of the data set
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.name[0] != "."}
    return files == {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.mark.parametrize("ranges", [True, False])
def test_what_arrives_is_what_lies_there(ranges: bool, small_dataset: Path) -> None:
    with serving(small_dataset, ranges=ranges) as site:
        folder = fetch(f"{site.url}/")
        assert folder == cache_folder() / dataset_hash(load_metadata(small_dataset))
        assert same(folder, small_dataset) and verify(folder).problem_count == 0
        site.asked.clear()
        assert fetch(site.url) == folder
        assert site.asked == [("dataset.json", 0)]
        assert fetch(f"{site.url}/moved") == folder


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_continued(ranges: bool, small_dataset: Path) -> None:
    cuts = {TAR: [1000, 3000, 0], "dataset.json": [10], "val-000000.parquet": [0]}
    with serving(small_dataset, ranges=ranges, cuts=cuts, arrived=arrived) as site:
        assert same(fetch(site.url), small_dataset)
    assert site.starts(TAR) == ([0, 1000, 4000, 4000] if ranges else [0, 0, 0, 0])
    assert len(site.starts("dataset.json")) == 2 and len(site.starts("val-000000.parquet")) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_does_not_last_keeps_what_arrived(
    ranges: bool, small_dataset: Path, tmp_path: Path
) -> None:
    cut = {TAR: 700}
    with serving(small_dataset, ranges=ranges, always_cut=cut, arrived=arrived) as site:
        with pytest.raises(DataError, match=rf"{TAR} cannot be read, in 5 attempts: .*continues"):
            fetch(site.url)
        assert len(site.starts(TAR)) == download.ATTEMPTS
        (folder,) = (tmp_path / "cache").iterdir()
        assert f".{TAR}.part" in names(folder) and not {TAR, "dataset.json"} & names(folder)
        size = (folder / f".{TAR}.part").stat().st_size
        assert size == 5 * 700 if ranges else size <= 700
        site.always_cut.clear()
        done = {name for name in names(folder) if not name.startswith(".")}
        site.asked.clear()
        assert fetch(site.url) == folder and same(folder, small_dataset)
        assert site.starts(TAR) == [size if ranges else 0]
        assert not done & {name for name, _ in site.asked}


def test_a_server_that_is_busy_is_asked_again(small_dataset: Path) -> None:
    with serving(small_dataset, status={TAR: [503, 429, 500], "dataset.json": [502]}) as site:
        assert same(fetch(site.url), small_dataset)


@pytest.mark.parametrize(("status", "message"), [(404, "does not exist"), (403, "Forbidden")])
@pytest.mark.parametrize("name", [TAR, "dataset.json"])
def test_a_file_that_is_not_given_is_named_at_once(
    name: str, status: int, message: str, small_dataset: Path
) -> None:
    with serving(small_dataset, status={name: [status] * 9}) as site:
        with pytest.raises(DataError, match=rf"{site.url}/{name} .*{message}"):
            fetch(site.url)
        assert len(site.starts(name)) == 1


@pytest.mark.parametrize("name", [TAR, "train-000000.parquet"])
def test_wrong_content_gets_no_name(name: str, small_dataset: Path, tmp_path: Path) -> None:
    wrong = bytearray((small_dataset / name).read_bytes())
    wrong[len(wrong) // 2] ^= 1
    with serving(small_dataset, instead={name: bytes(wrong)}) as site:
        with pytest.raises(DataError, match=rf"{name} is not the file that dataset.json lists"):
            fetch(site.url)
        (folder,) = (tmp_path / "cache").iterdir()
        assert not {name, f".{name}.part"} & names(folder)
        site.instead.clear()
        assert same(fetch(site.url), small_dataset)


@pytest.mark.parametrize("size", [100, 10**6])
def test_the_part_of_another_file_is_thrown_away(size: int, small_dataset: Path) -> None:
    folder = cache_folder() / dataset_hash(load_metadata(small_dataset))
    folder.mkdir(parents=True)
    (folder / f".{TAR}.part").write_bytes(b"x" * size)
    with serving(small_dataset) as site:
        assert same(fetch(site.url), small_dataset)


def test_only_some_splits(small_dataset: Path) -> None:
    with serving(small_dataset) as site:
        folder = fetch(site.url, splits=["val", "test"])
        with pytest.raises(DataError, match=r"has no split \['all'\]"):
            fetch(site.url, splits=["all"])
    assert set(open_dataset(folder).splits) == {"val", "test"}
    assert verify(folder).problem_count == 0
    assert not any(name.startswith("train") for name in names(folder))


@contextmanager
def altered(source: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """The URL of a data set whose metadata an attacker wrote."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    metadata = read_json(source / "dataset.json")
    change(metadata)
    (folder / "dataset.json").write_text(json.dumps(metadata))
    with serving(folder) as site:
        yield site.url


def first(field: str, value: object, png: str = "stored") -> Callable[[dict[str, Any]], None]:
    def change(metadata: dict[str, Any]) -> None:
        metadata["png"] = png
        metadata["splits"]["train"]["shards"][0][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first("name", "../../train-000000"), "is named '../../train-000000'"),
        (first("name", "/etc/passwd"), "is named '/etc/passwd'"),
        (first("path", "../secret.tar", "foreign"), "outside the data set"),
        (first("path", "/etc/secret.tar", "foreign"), "outside the data set"),
        (first("path", "a/../../secret.tar", "foreign"), "outside the data set"),
        (first("size", 1 << 60), "has room for"),
        (first("sidecar_size", 1 << 60), "has room for"),
        (first("sidecar_size", -1), "has sidecar_size -1"),
        (first("xxh3", "x"), "a malformed hash"),
        (
            lambda metadata: metadata.update(splits={"../x": metadata["splits"]["train"]}),
            "split name '../x'",
        ),
    ],
)
def test_a_hostile_metadata_brings_nothing(
    change: Callable[[dict[str, Any]], None], message: str, small_dataset: Path, tmp_path: Path
) -> None:
    before = {*tmp_path.rglob("*.tar"), *tmp_path.rglob("*.parquet")}
    with (
        altered(small_dataset, tmp_path / "site", change) as url,
        pytest.raises(DataError, match=message),
    ):
        fetch(url)
    after = {*tmp_path.rglob("*.tar"), *tmp_path.rglob("*.parquet")}
    assert {path.parent for path in after - before} <= {tmp_path / "site"}


def test_metadata_without_end_is_not_read_to_it(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_METADATA_BYTES", 1000)
    message = r"dataset\.json is larger than 1000 bytes"
    with serving(small_dataset, instead={"dataset.json": b" " * 5000}) as site:  # noqa: SIM117
        with pytest.raises(DataError, match=message):
            fetch(site.url)


@pytest.mark.parametrize(
    "name",
    [
        "file:///etc",
        "ssh://host/x",
        "ftp://host/x",
        "pipe:cat x://y",
        "memory://x",
        "simplecache::s3://bucket/x",
        "https://host/a::s3://b",
        "s3://",
        "zip://x::http://y/z",
    ],
)
def test_only_the_schemes_that_are_named(name: str) -> None:
    with pytest.raises(DataError, match=r"is refused: .* s3://, gs://, hf://, https://, http://"):
        local(name)


def test_no_name_reaches_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WDS_REWRITE", "a=pipe:touch hit")
    for name in ("pipe:touch hit", "a::b", "$(touch hit)"):
        assert local(name) == Path(name)
        with pytest.raises(DataError, match="does not exist"):
            find_data(name)
    assert not (tmp_path / "hit").exists()


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("shards.remote.download.url_to_fs", missing)
    with pytest.raises(DataError, match=r"gs:// needs gcsfs .* pip install 'eqdvae\[remote\]'"):
        Store("gs://bucket/x")


def test_foreign_tars_come_beside_their_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "site/tars/train-7.tar", members(samples(6)))
    index_tars(str(tmp_path / "site/tars"), tmp_path / "site")
    with serving(tmp_path / "site") as site:
        folder = fetch(site.url)
    here, there = (open_dataset(root) for root in (folder, tmp_path / "site"))
    assert here.hash == there.hash and names(folder) >= {TAR}
    pixels = [read_split(opened.split("train")) for opened in (here, there)]
    assert np.array_equal(*pixels)


def test_training_and_the_command_take_a_url(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(small_dataset) as site:
        with collected_messages() as messages:
            root = find_data(site.url)
        assert site.url in messages[-1] and open_dataset(root).metadata == load_metadata(
            small_dataset
        )
        monkeypatch.setattr("sys.argv", ["fetch", site.url])
        assert main() == 0 and capsys.readouterr().out.strip() == str(root)
        monkeypatch.setattr("sys.argv", ["fetch", f"{site.url}/nothing"])
        assert main() == 1 and "nothing/dataset.json does not exist" in capsys.readouterr().err


def test_where_the_cache_is(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EQDVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "eqdvae"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "eqdvae"
    monkeypatch.setenv("EQDVAE_CACHE", os.devnull)
    with serving(small_dataset) as site, pytest.raises(DataError, match="cannot be used"):
        fetch(site.url)


@pytest.mark.slow
def test_a_bucket_of_s3(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs, of the extra `remote`, is not installed")
    servers = pytest.importorskip("moto.server", reason="moto, of the group dev, is not installed")
    import boto3

    server = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="patches")
        for path in small_dataset.iterdir():
            client.put_object(Bucket="patches", Key=f"sets/one/{path.name}", Body=path.read_bytes())
        folder = cache_folder() / dataset_hash(load_metadata(small_dataset))
        folder.mkdir(parents=True)
        begun = (small_dataset / TAR).read_bytes()[:5000]
        (folder / f".{TAR}.part").write_bytes(begun)
        assert fetch("s3://patches/sets/one") == folder and same(folder, small_dataset)
        with pytest.raises(DataError, match=r"s3://patches/nothing/dataset\.json does not exist"):
            fetch("s3://patches/nothing")
    finally:
        server.stop()
