"""The embedding command: any source, in the order of its paths, resumable, in every format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from eval import embedding
from eval.embedding import EmbeddingFile, EmbedOptions, embed
from eval.encoder import load
from eval.features import Features, read_embeddings
from models.vae import ModelConfig
from pipeline.reader import READ_SIZE
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.embedded import read_parts
from tests.helpers.patches import write_patches
from tests.helpers.trained_runs import save_snapshot


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
    np.testing.assert_array_equal(np.load(out / "embeddings.npy"), features)
    for slide in ("s1", "s2"):
        with h5py.File(out / "h5" / f"{slide}.h5") as file:
            on_slide = [path.startswith(slide) for path in paths]
            np.testing.assert_array_equal(file["features"][:], features[on_slide])
            assert file["coords"][:].tolist() == [[32 * i, 64] for i in range(sum(on_slide))]


def test_nothing_foreign_is_overwritten(run: Path, raw: Path, tmp_path: Path) -> None:
    out = embed(run, raw, EmbedOptions(tmp_path / "out"))
    before = (out / "part-00000.parquet").read_bytes()
    with pytest.raises(DataError, match="another run, source, readout"):
        embed(run, raw, EmbedOptions(out, readout="channel_stats"))
    assert (out / "part-00000.parquet").read_bytes() == before
    with pytest.raises(DataError, match="does not exist"):
        embed(run, tmp_path / "nowhere", EmbedOptions(tmp_path / "x"))
