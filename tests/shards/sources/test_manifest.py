"""Manifests: what a table says arrives exactly, and what is wrong with it is named to the cell."""

import csv
import random
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DataError
from shards.pack.__main__ import main
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import load_metadata
from shards.sources.collect import collect
from shards.sources.files import look_up_here
from shards.sources.manifest import Columns, ManifestSource, read_manifest, unused_columns
from shards.sources.source import Collection, Patch
from shards.sources.splits import split_warnings
from tests.helpers.packing import file_hashes, sidecar_rows
from tests.helpers.patches import write_patches

Table = dict[str, list[Any]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 files in a/ and b/, among them odd names."""
    root = tmp_path_factory.mktemp("manifest") / "raw"
    write_patches(root, {"train": 6}, ("a", "b"), seed=5)
    for path in list(root.rglob("*.png")):
        (root / path.parent.name).mkdir(exist_ok=True)
        path.rename(root / path.parent.name / path.name)
    (root / "a" / "train-a-0__y0000_x0000.png").rename(root / "a" / 'comma, "quote" é.png')
    return root


def files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))


def write_csv(path: Path, table: Table, bom: bool = False, end: str = "\n") -> Path:
    with open(path, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return path


def collect_listed(root: Path, manifest: Path) -> Collection:
    return ManifestSource(root=root, manifest=manifest).collect(look_up_here)


def values(manifest: Path, /, **columns: str) -> Table:
    return read_manifest(manifest, Columns(**columns)).values


def full_table(root: Path) -> Table:
    """Values that a careless reader would change, one row per file."""
    paths, n = files(root), len(files(root))
    odd = ["007", " x ", "NA", "null", "1.0", "1e5", "=cmd()", "a\nb", "c\r\nd", 'é,"', "-", "0"]
    return {
        "path": paths,
        "label": [["01", "1"][i % 2] for i in range(n)],
        "split": ["train", "TRAIN", "train", "valid", "Test", "train"] * (n // 6),
        "patient": odd[:n],
        "slide": [f"slide {i // 2}" for i in range(n)],
        "site": ["Leeds", ""] * (n // 2),
        "x": [str(i * 1000) for i in range(n)],
        "y": ["", "7"] * (n // 2),
        "mpp": ["0.25", "0.5"] * (n // 2),
    }


@pytest.mark.parametrize("kind", ["csv", "bom", "crlf", "parquet", "dictionary"])
def test_values_arrive_in_the_sidecar_exactly(kind: str, source: Path, tmp_path: Path) -> None:
    table = full_table(source)
    if kind in ("parquet", "dictionary"):
        manifest = tmp_path / "m.parquet"
        columns = {name: pa.array([v or None for v in column]) for name, column in table.items()}
        for name, dtype in (("x", pa.int16()), ("y", pa.float64()), ("mpp", pa.float32())):
            columns[name] = columns[name].cast(dtype)
        if kind == "dictionary":
            columns = {name: column.dictionary_encode() for name, column in columns.items()}
        pq.write_table(pa.table(columns), manifest)
    else:
        end = "\r\n" if kind == "crlf" else "\n"
        manifest = write_csv(tmp_path / "m.csv", table, kind == "bom", end)
    metadata = pack(source, tmp_path / "out", PackOptions(workers=1, manifest=manifest))
    assert metadata.classes == ["01", "1"]
    rows = {str(row["path"]): row for row in sidecar_rows(tmp_path / "out")}
    assert sorted(rows) == table["path"]
    for i, path in enumerate(table["path"]):
        row = rows[path]
        assert metadata.classes[row["label"]] == table["label"][i]
        for name in ("patient", "slide", "site"):
            assert row[name] == (table[name][i] or None)
        assert row["source"] == row["slide"]
        for name in ("x", "y", "mpp"):
            assert row[name] == (float(table[name][i]) if table[name][i] else None)
    counts = {name: split.count for name, split in metadata.splits.items()}
    assert counts == {"train": 8, "val": 2, "test": 2}


def test_the_metadata_names_the_manifest_and_nothing_of_the_machine(
    source: Path, tmp_path: Path
) -> None:
    table: Table = {
        "file": files(source),
        "diagnosis": ["x"] * 12,
        "Site": ["s"] * 12,
        "extra": [1] * 12,
    }
    manifest = write_csv(tmp_path / "meta.csv", table)
    columns = Columns(path="file", label="diagnosis")
    metadata = pack(source, tmp_path / "out", PackOptions(manifest=manifest, columns=columns))
    origin = metadata.provenance["manifest"]
    assert (origin["name"], origin["rows"]) == ("meta.csv", 12)
    assert origin["columns"] == {"path": "file", "label": "diagnosis"}
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()
    rows = read_manifest(manifest, columns)
    assert unused_columns(rows) == ["Site (use it? --columns.site Site)", "extra"]


def test_bytes_do_not_depend_on_rows_order_or_processes(source: Path, tmp_path: Path) -> None:
    table = full_table(source)
    order = list(range(12))
    contents = []
    for i in range(2):
        random.Random(i).shuffle(order)
        shuffled = {name: [column[k] for k in order] for name, column in table.items()}
        manifest = write_csv(tmp_path / f"{i}.csv", shuffled)
        options = PackOptions(manifest=manifest, workers=1 + i, shard_size=3)
        pack(source, tmp_path / f"out{i}", options)
        contents.append(file_hashes(tmp_path / f"out{i}"))
        del contents[-1]["dataset.json"]  # it has the hash of the manifest
    assert contents[0] == contents[1] and len(contents[0]) == 2 * (3 + 1 + 1) + 1


def test_only_the_path_is_needed_and_names_fill_in(source: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "m.csv", {"path": files(source)})
    collection = collect_listed(source, tmp_path / "m.csv")
    assert {patch.label for patch in collection.patches} == {None} and not collection.splits_from
    by_path = {patch.path: patch for patch in collection.patches}
    patch = by_path["b/train-b-1__y0032_x0000.png"]
    assert (patch.source, patch.y, patch.x, patch.split) == ("train-b-1", 32, 0, "train")
    assert patch.group == ("source", "train-b-1")


def test_barcodes_fill_in_and_never_override(source: Path, tmp_path: Path) -> None:
    table = {"path": files(source)[:2], "slide": ["TCGA-A6-2671-01Z-00-DX1"] * 2}
    cases: list[tuple[Table, tuple[str | None, str | None]]] = [
        ({}, ("TCGA-A6-2671", "A6")),
        ({"patient": ["p", ""]}, (None, "A6")),
        ({"patient": ["p", ""], "site": ["s", ""]}, (None, None)),
    ]
    for extra, expected in cases:
        write_csv(tmp_path / "m.csv", table | extra)
        collection = collect_listed(source, tmp_path / "m.csv")
        patch = max(collection.patches, key=lambda patch: patch.path)
        assert (patch.patient, patch.site) == expected
        assert any("TCGA barcodes" in note for note in collection.notes) == (
            expected != (None, None)
        )


def test_a_path_may_be_spelled_in_other_ways(tmp_path: Path) -> None:
    write_csv(tmp_path / "m.csv", {"path": ["./a.png", "b//c.png", "d/./e.png", "..x/f..png"]})
    assert values(tmp_path / "m.csv")["path"] == ["a.png", "b/c.png", "d/e.png", "..x/f..png"]


WRONG: dict[str, tuple[bytes, str]] = {
    "no path": (
        b"file,label\na,b\n",
        r"no column 'path', only \['file', 'label'\].*--columns.path",
    ),
    "case": (b"Path\na\n", "did you mean 'Path'"),
    "bars": (b"path|label\na|b\n", "the heading has '|' in it: save the table with commas"),
    "comma": (b'path,mpp\na,"0,25"\n', "'0,25' is not a number: .* with a point and not a comma"),
    "semicolons": (b"path;label\na;b\n", "the heading has ';' in it: save the table with commas"),
    "twice a column": (b"path,path\na,b\n", "2 columns named 'path'"),
    "empty file": (b"", "no column 'path', only"),
    "no rows": (b"path\n", "has no rows"),
    "latin-1": (b"path,label\na,\xe9\n", "cannot be read.*UTF-8"),
    "UTF-16": ("path\na\n".encode("utf-16"), "cannot be read.*UTF-8"),
    "a cell too many": (b"path,label\na,b\na,b,c\n", "Row #3: Expected 2 columns, got 3"),
    "blank line": (b"path,label\na,b\n\nc,d\n", "row 3, column 'path': is empty"),
    "empty path": (b'path,label\na,b\n"",d\n', "row 3, column 'path': is empty"),
    "quoted newlines": (b'label,path\n"x\ny\n",a\nz,\n', "row 3, column 'path': is empty"),
    "absolute": (b"path\na\n/etc/x.png\n", "row 3, column 'path': '/etc/x.png' is not inside"),
    "above": (b"path\na/../../x.png\n", "row 2, column 'path': 'a/../../x.png' is not inside"),
    "duplicate": (b"path\na\nb\na\n./a\n", r"row 4, .*'a' is also in row 2.*\(1 more rows"),
    "x": (b"path,x\na,1\nb,\nc,1o\n", "row 4, column 'x': '1o' is not a number"),
    "x not whole": (b"path,x\na,1.5\n", "row 2, column 'x': '1.5' is not whole"),
    "y negative": (b"path,y\na,-1\n", "row 2, column 'y': '-1' is negative"),
    "x too large": (b"path,x\na,1e12\n", "row 2, column 'x': '1e12' is above"),
    "mpp": (b"path,mpp\na,0.25\nb,0\n", "row 3, column 'mpp': '0' is not above 0"),
    "mpp nan": (b"path,mpp\na,nan\n", "row 2, column 'mpp': 'nan' is not a number"),
    "split": (b"path,split\na,train\nb,dev\n", "row 3, column 'split': 'dev' is not a split"),
    "split empty": (b"path,split\na,train\nb,\n", "row 3, column 'split': is empty"),
    "label in part": (b"path,label\na,x\nb,\nc,\n", r"row 3, column 'label': is empty; 1 of 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_to_the_cell(name: str, tmp_path: Path) -> None:
    content, reason = WRONG[name]
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"m.csv.*{reason}"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([3, 12]), ["3", "12"]),
        (pa.array([3.0, 0.5]), ["3", "0.5"]),
        (pa.array([123456789012.0, 7.0]), ["123456789012", "7"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
        (pa.array([b"x", b"y"]), ["x", "y"]),
        (pa.array([7, 7]).dictionary_encode(), ["7", "7"]),
        (pa.nulls(2), [None, None]),
        (pa.array([float("nan")] * 2), [None, None]),
        (pa.array([3.0, float("nan")]), "row 2, column 'label': is empty; 1 of 2"),
        (pa.array([3, None]), "row 2, column 'label': is empty"),
        (pa.array([[1], [2]]), "column 'label' is not text but list"),
        (pa.array([b"x", b"\xff"]), "column 'label' is not text but binary"),
    ],
)
def test_labels_of_any_parquet_type(column: pa.Array, expected: object, tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a", "b"], "label": column}), tmp_path / "m.parquet")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read_manifest(tmp_path / "m.parquet")
        return
    assert values(tmp_path / "m.parquet")["label"] == expected


@pytest.mark.parametrize("name", ["m.txt", "m.parquet", "none.csv"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    if name != "none.csv":
        (tmp_path / name).write_bytes(b"path\na\n")
    with pytest.raises(DataError, match=name):
        read_manifest(tmp_path / name)


def test_columns_are_mapped_and_a_missing_one_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "m.csv", {"file": ["a"], "diagnosis": ["x"], "label": ["y"]})
    assert values(tmp_path / "m.csv", path="file", label="diagnosis") == {
        "path": ["a"],
        "label": ["x"],
    }
    with pytest.raises(DataError, match=r"no column 'diagnosi'.*did you mean 'diagnosis'\?"):
        values(tmp_path / "m.csv", path="file", label="diagnosi")
    with pytest.raises(DataError, match="'file' is used for"):
        values(tmp_path / "m.csv", path="file", slide="file")


def test_files_that_are_not_there_are_counted_with_their_rows(source: Path, tmp_path: Path) -> None:
    paths = [*files(source)[:2], "a/none.png", "a\\none.png", "a/train-a-1__y0032_x0000.png/x.png"]
    write_csv(tmp_path / "m.csv", {"path": [*paths, *(f"n{i}.png" for i in range(20))]})
    with pytest.raises(DataError, match="23 of 25 files that") as error:
        collect_listed(source, tmp_path / "m.csv")
    assert "row 4, column 'path': 'a/none.png': No such file" in str(error.value)
    assert "and 13 more" in str(error.value)


@pytest.mark.parametrize("link", ["a/link.png", "out"])
def test_links_may_not_leave_the_root(link: str, tmp_path: Path) -> None:
    for name in ("root/a/s.png", "outside/s.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "root" / link
    path.symlink_to(tmp_path / "outside" / ("s.png" if link.endswith("png") else ""))
    listed = link if link.endswith("png") else f"{link}/s.png"
    write_csv(tmp_path / "m.csv", {"path": ["a/s.png", listed]})
    with pytest.raises(DataError, match=r"m.csv row 3, column 'path': .* is a link to"):
        collect_listed(tmp_path / "root", tmp_path / "m.csv")


def test_files_that_are_no_patches_count_as_bad(source: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    png = (source / files(source)[0]).read_bytes()
    for name, content in (("a.png", png), ("b.jpg", png), ("c.png", b"")):
        (tmp_path / "raw" / name).write_bytes(content)
    manifest = write_csv(tmp_path / "m.csv", {"path": ["a.png", "b.jpg", "c.png"]})
    metadata = pack(tmp_path / "raw", tmp_path / "out", PackOptions(manifest=manifest, skip_bad=2))
    assert metadata.splits["train"].count == 1
    bad = dict(metadata.provenance["skipped"]["first"])
    assert "--convert takes it" in bad["b.jpg"] and bad["c.png"] == "empty file"


def test_another_manifest_does_not_continue_an_unfinished_pack(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table: Table = {"path": files(source), "label": ["x"] * 12}
    manifest = write_csv(tmp_path / "m.csv", table)
    options = PackOptions(manifest=manifest, workers=1, shard_size=4)

    def stop(*_: object) -> None:
        raise DataError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("shards.pack.packing.write_metadata", stop)
        with pytest.raises(DataError, match="stopped"):
            pack(source, tmp_path / "out", options)
    write_csv(manifest, table | {"label": ["y"] * 12})
    with pytest.raises(DataError, match="unfinished pack of another source"):
        pack(source, tmp_path / "out", options)
    write_csv(manifest, table)
    pack(source, tmp_path / "out", options)
    assert load_metadata(tmp_path / "out").classes == ["x"]


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["--manifest", "M"], 0, "not used: diagnosis"),
        (["--manifest", "M", "--columns.label", "diagnosis"], 0, "label from diagnosis"),
        (["--manifest", "M", "--columns.label", "other"], 1, "no column 'other'"),
        (["--columns.label", "diagnosis"], 2, "there is none"),
        (["--manifest", "M", "--layout", "slides"], 2, "lists files"),
        (["--manifest", "M", "--columns.colour", "x"], 2, "olour"),
        (["--manifest", "M", "--val", "0.5", "--test", "0.5"], 2, "below 1"),
    ],
)
def test_the_command_line(
    arguments: list[str],
    status: int,
    printed: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = write_csv(tmp_path / "m.csv", {"path": files(source), "diagnosis": ["x"] * 12})
    filled = [str(manifest) if a == "M" else a for a in arguments]
    monkeypatch.setattr("sys.argv", ["pack", str(source), str(tmp_path / "out"), *filled])
    try:
        code = main()
    except SystemExit as stop:
        code = int(str(stop.code))
    output = "".join(capsys.readouterr())
    assert code == status and printed in output and "Traceback" not in output


def test_a_hundred_thousand_rows_take_a_moment(tmp_path: Path) -> None:
    n = 100_000
    table: Table = {
        "path": [f"s{i % 97}/{i}.png" for i in range(n)],
        "label": [i % 7 for i in range(n)],
        "x": list(range(n)),
        "note": ["text, with\na line"] * n,
    }
    write_csv(tmp_path / "m.csv", table)
    start = time.process_time()
    rows = read_manifest(tmp_path / "m.csv")
    assert time.process_time() - start < 2
    assert rows.values["x"] == list(range(n)) and rows.values["path"][-1] == table["path"][-1]


def test_a_class_that_train_lacks_is_an_error_here_too(tmp_path: Path) -> None:
    patches = [
        Patch(f"{i}", label, split, "s", None, None, 0, 0)
        for i, (label, split) in enumerate([("a", "train"), ("b", "val")])
    ]
    with pytest.raises(DataError, match=r"val has the classes \['b'\]"):
        split_warnings(tmp_path, [(patch.split, patch.label) for patch in patches])
    with pytest.raises(DataError, match="'Tumor ' and 'tumor' differ in the way of writing alone"):
        split_warnings(tmp_path, [("train", "tumor"), ("train", "b"), ("test", "Tumor ")])


def test_paths_are_found_in_another_spelling(tmp_path: Path) -> None:
    """Kinds: no suffix, absolute inside SOURCE, the other Unicode form; tabs instead of commas."""
    root = tmp_path / "raw"
    write_patches(root, {"train": 4}, ("a",), seed=3)
    first, second, third, fourth = sorted(root.rglob("*.png"))
    accented = third.rename(third.with_name(unicodedata.normalize("NFD", "é__1.png")))
    rows = [
        first.relative_to(root).with_suffix(""),
        second.resolve(),
        unicodedata.normalize("NFC", str(accented.relative_to(root))),
        fourth.relative_to(root),
    ]
    manifest = tmp_path / "m.tsv"
    manifest.write_text("\n".join(["path\tlabel", *(f"{row}\ttumor" for row in rows)]))
    source = ManifestSource(root=root, manifest=manifest)
    collection = source.collect(look_up_here)
    expected = sorted(str(path.relative_to(root)) for path in (first, second, accented, fourth))
    assert [patch.path for patch in collection.patches] == expected and not collection.refused
    assert "2 paths were found in another spelling" in collection.notes[1]
    twice = [*rows, accented.relative_to(root)]
    manifest.write_text("\n".join(["path\tlabel", *(f"{row}\ttumor" for row in twice)]))
    with pytest.raises(DataError, match="list each file once"):
        source.collect(look_up_here)


@pytest.mark.parametrize(
    ("spelling", "cause"),
    [
        ("raw/train/a/{}", "leave out raw/"),
        ("data/raw/train/a/{}", "leave out data/raw/, there is 'train/a/"),
        ("/elsewhere/raw/train/a/{}", "not inside SOURCE.*leave out /elsewhere/raw/"),
        ("{}", "there is 'train/a/"),
        ("TRAIN/A/{}", "upper and lower case differ"),
        ("train/a/{stem}.jpg", "no such file; there is 'train/a/"),
        ("train/b/{}", "there is 'train/a/"),
        ("file:///raw/train/a/{}", "leave out file:/raw/"),
        ("train\\a\\{}", "write / between folders"),
        ("train/a/{} ", "a blank"),
        ("train/a/{upper}.png", "upper and lower case differ"),
    ],
)
def test_what_is_not_found_has_its_cause(spelling: str, cause: str, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_patches(root, {"train": 1}, ("a",), seed=3)
    (file,) = root.rglob("*.png")
    path = spelling.format(file.name, upper=file.stem.upper(), stem=file.stem)
    write_csv(tmp_path / "m.csv", {"path": [path]})
    source = ManifestSource(root=root, manifest=tmp_path / "m.csv")
    if path.endswith((" ", ".jpg")):
        ((_, reason),) = source.collect(look_up_here).refused
        assert "PNG file" in reason and cause in reason
        assert not any("nothing can be trained" in text for text in collect(source).warnings)
        return
    with pytest.raises(DataError, match=cause):
        source.collect(look_up_here)


def test_values_that_may_be_meant_otherwise_are_warned_of(source: Path, tmp_path: Path) -> None:
    """Kinds: labels that differ in blanks, case or Unicode form; NA; mixed mpp."""
    table: Table = {
        "path": files(source),
        "label": ["tumor", "tumor ", "Tumor", "normal"] * 3,
        "patient": ["NA", "P1", "unknown", "P2"] * 3,
        "mpp": ["0.25", "1.0", "", "0.25"] * 3,
    }
    write_csv(tmp_path / "m.csv", table)
    manifest = ManifestSource(root=source, manifest=tmp_path / "m.csv")
    warnings = "\n".join(collect(manifest).warnings)
    assert "'Tumor' (3), 'tumor' (3), 'tumor ' (3)" in warnings and "--tidy-labels" in warnings
    assert "'NA' (3 patches), 'unknown' (3 patches)" in warnings and "--missing" in warnings
    assert (
        "3 of 12 patches have no mpp" in warnings and "0.25 (6 patches), 1 (3 patches)" in warnings
    )
    options = PackOptions(
        manifest=tmp_path / "m.csv", missing=("NA", "unknown"), tidy_labels=True, workers=1
    )
    metadata = pack(source, tmp_path / "out", options)
    assert metadata.classes == ["Tumor", "normal"]
    rows = sidecar_rows(tmp_path / "out")
    assert {row["patient"] for row in rows} == {None, "P1", "P2"}


def test_columns_named_nearly_like_a_field_are_warned_of(source: Path, tmp_path: Path) -> None:
    table: Table = {"path": files(source), "Patient": ["P1"] * 12, "slide_id": ["S1"] * 12}
    write_csv(tmp_path / "m.csv", table | {"label ": ["a"] * 12, "note": [""] * 12})
    warnings = "\n".join(collect_listed(source, tmp_path / "m.csv").warnings)
    for option in ("--columns.patient 'Patient'", "slide 'slide_id'", "label 'label '"):
        assert option in warnings
    assert "note" not in warnings
    write_csv(tmp_path / "m.csv", table | {"patient": ["P1"] * 12, "slide": ["S1"] * 12})
    assert collect_listed(source, tmp_path / "m.csv").warnings == []
