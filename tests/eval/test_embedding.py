"""The embedding command: any source, in the order of its paths, resumable, in every format.

The kind of folders that other tools read whole: pq.read_table and Hugging Face's datasets on OUT,
on RUN/embeddings, with every format, while the command runs (hidden files) and after it. Of slides'
names: dots, spaces, suffixes of slide files, other scripts; slashes, control characters, leading
dots and great length, which cannot name a file, alone and in collision.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.errors import DataError
from common.files import atomic_path
from common.locks import held
from eval import embedding
from eval.config import EmbedOptions
from eval.embedding import EmbeddingFile, embed
from eval.encoder import load
from eval.external_features import read_external
from eval.features import Features, read_embeddings, slide_files
from models.config import ModelConfig
from pipeline.reader import READ_SIZE
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.messages import collected_messages
from tests.helpers.patches import write_patches
from tests.helpers.trained_runs import read_parts, save_snapshot


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_snapshot(tmp_path_factory.mktemp("run"), ModelConfig(), group="C4")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "patches"
    write_patches(folder, {"train": 8, "val": 3}, ("a", "b"), seed=1)
    return folder


def encoded(run: Path, root: Path, paths: list[str]) -> Features:
    pixels = np.stack([np.asarray(Image.open(root / path)) for path in paths])
    return load(run, "cpu").encode(pixels)


def test_a_folder_and_its_shards_give_the_same(run: Path, raw: Path, tmp_path: Path) -> None:
    out = embed(run, raw, EmbedOptions(tmp_path / "folder", part_rows=9))
    features, paths = read_parts(out)
    assert paths == sorted(str(p.relative_to(raw)) for p in raw.rglob("*.png"))
    np.testing.assert_allclose(features, encoded(run, raw, paths), atol=1e-5)
    assert sorted(p.name for p in out.iterdir()) == [f"part-0000{i}.parquet" for i in range(3)]
    table = read_embeddings(out / "part-00000.parquet")[1].to_pylist()
    assert all(row["path"].split("/")[:2] == [row["split"], row["class"]] for row in table)
    pack(raw, tmp_path / "shards", PackOptions(workers=1))
    again = embed(run, tmp_path / "shards", EmbedOptions(tmp_path / "packed"))
    np.testing.assert_array_equal(read_parts(again)[0], features)


def test_one_image_and_unlabelled_patches(run: Path, raw: Path, tmp_path: Path) -> None:
    image = sorted(raw.rglob("*.png"))[3]
    features, paths = read_parts(embed(run, image, EmbedOptions(tmp_path / "one")))
    assert paths == [image.name]
    np.testing.assert_allclose(features, encoded(run, image.parent, paths), atol=1e-5)
    flat = read_parts(embed(run, image.parent, EmbedOptions(tmp_path / "flat")))
    assert len(flat[1]) == 8


def test_an_interrupted_command_continues(
    run: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EmbedOptions(tmp_path / "cut", part_rows=5)
    write, written, limit = embedding.write_file, [], 2

    def stop_at_the_limit(file: EmbeddingFile, *arguments: Any) -> None:
        if len(written) == limit:
            raise KeyboardInterrupt
        written.append(file.path.name)
        write(file, *arguments)

    monkeypatch.setattr(embedding, "write_file", stop_at_the_limit)
    with pytest.raises(KeyboardInterrupt):
        embed(run, raw, options)
    limit = 5
    out = embed(run, raw, options)
    assert written == [f"part-0000{i}.parquet" for i in range(5)]
    features, paths = read_parts(out)
    np.testing.assert_allclose(features, encoded(run, raw, paths), atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 1024, 1025, 60_000, 1_000_000, 10_000_000])
def test_parts_hold_each_row_once_and_are_enough_to_share(rows: int) -> None:
    files = embedding.plan_files(Path(), rows, None)
    sizes = [len(file.rows) for file in files]
    firsts = [int(file.rows[0]) for file in files]
    assert sum(sizes) == rows and firsts == [sum(sizes[:i]) for i in range(len(sizes))]
    assert all(size % READ_SIZE == 0 and size <= embedding.MOST_ROWS for size in sizes[:-1])
    reads = -(-rows // READ_SIZE)
    assert len(sizes) >= min(reads, 33)  # more than half of 64 parts, or one a read


def test_other_formats_hold_the_same(run: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for slide, count in (("s1", 3), ("s2", 2)):
        (tmp_path / "dump" / slide).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((32, 32, 3), 40 * i + len(slide), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "dump" / slide / f"00000{i}_x{i * 32}_y64.png")
    out = embed(run, tmp_path / "dump", EmbedOptions(tmp_path / "out", formats=("npy", "h5")))
    features, paths = read_parts(out)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), features)
    for slide in ("s1", "s2"):
        with h5py.File(tmp_path / "out-h5" / f"{slide}.h5") as file:
            on_slide = [path.startswith(slide) for path in paths]
            np.testing.assert_array_equal(file["features"][:], features[on_slide])
            assert file["coords"][:].tolist() == [[32 * i, 64] for i in range(sum(on_slide))]
    assert pq.read_table(out).num_rows == len(features)  # nothing else lies in the folder
    assert {path.suffix for path in out.iterdir()} == {".parquet"}


def test_the_default_folder_is_apart_from_the_table_of_the_evaluation(
    run: Path, raw: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "embeddings").mkdir()
    out = embed(copy, raw, EmbedOptions(formats=("npy",)))
    assert out == copy / "embedded" / "patches" and not list((copy / "embeddings").iterdir())
    with pytest.raises(DataError, match=r"name the folder .*patches instead"):
        read_external(copy / "embedded" / "patches.npy")


@pytest.mark.parametrize(
    ("slide", "name"),
    [
        ("TCGA-A1-01Z-00-DX1.F3B5.svs", None),
        ("slide 7 (b), HE", None),
        ("Präparat.5", None),
        ("a/b", "a_b.h5"),
        (".hidden", "_hidden.h5"),
        ("..", "_..h5"),
        ("", "_.h5"),
        ("tab\there", "tab_here.h5"),
        ("ü" * 200, "ü" * 107 + ".h5"),
    ],
)
def test_the_file_of_a_slide_bears_its_name(slide: str, name: str | None, tmp_path: Path) -> None:
    (file,) = slide_files([slide]).values()
    assert file == (name or f"{slide}.h5")
    with atomic_path(tmp_path / file) as temp:
        temp.touch()
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(("a", "b"), [("a/b", "a_b"), (".x", "_x"), ("ü" * 200, "ü" * 201)])
def test_slides_of_one_file_are_both_named_before_any_work(
    a: str, b: str, run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("h5py")
    with pytest.raises(DataError, match="would both be written to") as refused:
        slide_files([a, b])
    assert repr(a) in str(refused.value) and repr(b) in str(refused.value)
    pixels = np.zeros((32, 32, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.fromarray(pixels + i).save(tmp_path / "in" / f"{i}.png")
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"path,slide\n0.png,{a}\n1.png,{b}\n", encoding="utf-8")
    options = EmbedOptions(tmp_path / "out", formats=("h5",), pack=PackOptions(manifest=manifest))
    with pytest.raises(DataError, match="would both be written to"):
        embed(run, tmp_path / "in", options)
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_slides_whose_files_have_other_names_are_listed(run: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    pixels = np.zeros((32, 32, 3), np.uint8)
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.fromarray(pixels + i).save(tmp_path / "in" / f"{i}.png")
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,slide\n0.png,lab/7\n1.png,8.svs\n")
    options = EmbedOptions(tmp_path / "out", formats=("h5",), pack=PackOptions(manifest=manifest))
    embed(run, tmp_path / "in", options)
    folder = tmp_path / "out-h5"
    assert sorted(p.name for p in folder.iterdir()) == ["8.svs.h5", "lab_7.h5", "slides.tsv"]
    assert (folder / "slides.tsv").read_text() == 'slide\tfile\n"lab/7"\tlab_7.h5\n'
    with h5py.File(folder / "lab_7.h5") as file:
        assert file.attrs["slide"] == "lab/7"


def test_nothing_is_said_of_splits_that_embedding_does_not_need(
    run: Path, raw: Path, tmp_path: Path
) -> None:
    with collected_messages() as messages:
        embed(run, raw / "train" / "a", EmbedOptions(tmp_path / "out"))
    assert messages and not any("val split" in message for message in messages)


def test_two_commands_on_one_folder_do_not_mix(run: Path, raw: Path, tmp_path: Path) -> None:
    with held(tmp_path, "writes"), pytest.raises(DataError, match=f"process {os.getpid()}"):
        embed(run, raw, EmbedOptions(tmp_path))


def test_what_a_killed_command_was_writing_is_removed(run: Path, raw: Path, tmp_path: Path) -> None:
    left = [tmp_path / name for name in ("out/.part-00000.12.tmp.parquet", ".out.12.tmp.npy")]
    left.append(tmp_path / "out-h5" / ".train-a-0.12.tmp.h5")
    of_another = tmp_path / ".other.12.tmp.npy"
    for path in (*left, of_another):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    embed(run, raw, EmbedOptions(tmp_path / "out"))
    assert not any(path.exists() for path in left) and of_another.exists()


def test_a_damaged_file_is_named(run: Path, raw: Path, tmp_path: Path) -> None:
    """Cut, and altered in its data, which only a reader of the embeddings sees."""
    out = embed(run, raw, EmbedOptions(tmp_path / "out"))
    part = out / "part-00000.parquet"
    whole = part.read_bytes()
    named = r"part-00000\.parquet cannot be read as Parquet .*: remove it"
    part.write_bytes(whole[:500])
    with pytest.raises(DataError, match=named):
        embed(run, raw, EmbedOptions(out))
    part.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    with pytest.raises(DataError, match=named):
        embed(run, raw, EmbedOptions(out, formats=("npy",)))
    part.unlink()
    embed(run, raw, EmbedOptions(out))
    assert part.read_bytes() == whole


def test_nothing_foreign_is_overwritten(run: Path, raw: Path, tmp_path: Path) -> None:
    out = embed(run, raw, EmbedOptions(tmp_path / "out"))
    before = (out / "part-00000.parquet").read_bytes()
    with pytest.raises(DataError, match="another run, source, readout"):
        embed(run, raw, EmbedOptions(out, readout="channel_stats"))
    assert (out / "part-00000.parquet").read_bytes() == before
    with pytest.raises(DataError, match="does not exist"):
        embed(run, tmp_path / "nowhere", EmbedOptions(tmp_path / "x"))
