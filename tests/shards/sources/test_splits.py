"""Splits drawn by group, and leave-one-site-out lists: no group is ever cut."""

import csv
import random
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from common.console import show_messages
from common.errors import DataError
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import load_metadata
from shards.sites import SiteOptions, leave_one_out, main
from shards.sources.manifest import Columns, read_manifest
from shards.sources.splits import Group, draw_splits
from tests.helpers.packing import file_hashes, sidecar_rows
from tests.helpers.patches import write_patches

Members = list[tuple[Group, str | None]]
NAMES = {"train", "val", "test"}


def drawn_members(seed: int, groups: int, classes: int, mixed: bool) -> Members:
    """Groups of very different sizes, of one class each or of several."""
    rng = random.Random(seed)
    members: Members = []
    for g in range(groups):
        own = rng.sample(range(classes), rng.randint(1, classes)) if mixed else [g % classes]
        for label in own:
            members += [(("patient", f"p{g}"), f"c{label}")] * int(rng.lognormvariate(3, 1) + 1)
    return members


def by_class(members: Members, split: dict[Group, str]) -> dict[str, Counter[str]]:
    """Patches by class, then split."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in members:
        counts[str(label)][split[group]] += 1
    return counts


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_fractions_are_met_as_far_as_groups_allow(seed: int, mixed: bool) -> None:
    members = drawn_members(seed, 120, 3, mixed)
    split, warnings = draw_splits(members, 0.1, 0.2, seed)
    assert set(split) == {group for group, _ in members} and not warnings
    sizes = Counter(members)
    for label, counts in by_class(members, split).items():
        total = counts.total()
        largest = max(n for (_, name), n in sizes.items() if name == label) / total
        for name, asked in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            assert abs(counts[name] / total - asked) <= max(largest, 0.05), (label, counts)


@pytest.mark.parametrize("seed", range(30))
def test_every_class_is_in_every_split_where_it_has_three_groups(seed: int) -> None:
    members = drawn_members(seed, 9, 3, mixed=False)
    split, warnings = draw_splits(members, 0.1, 0.1, seed)
    assert not warnings
    assert all(set(counts) == NAMES for counts in by_class(members, split).values())


@pytest.mark.parametrize("seed", range(30))
def test_what_mixed_groups_lack_is_warned_of_and_train_lacks_nothing(seed: int) -> None:
    members = drawn_members(seed, 6, 4, mixed=True)
    split, warnings = draw_splits(members, 0.2, 0.2, seed)
    lacking = set()
    for label, counts in by_class(members, split).items():
        assert counts["train"]
        lacking |= {(label, name) for name in NAMES - set(counts)}
    assert len(warnings) == len(lacking)
    for label, name in lacking:
        assert any(f"'{label}'" in text and text.endswith(f"for {name}") for text in warnings)


def test_a_class_of_few_groups_goes_to_train_first() -> None:
    members: Members = [(("slide", f"s{i}"), "common") for i in range(30)]
    members += [(("slide", "r1"), "rare")] * 50
    split, warnings = draw_splits(members, 0.1, 0.1, 0)
    assert split["slide", "r1"] == "train"
    assert warnings == [
        "class 'rare' has 1 group: none is left for val",
        "class 'rare' has 1 group: none is left for test",
    ]


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    members = drawn_members(1, 60, 3, mixed=True)
    first, _ = draw_splits(members, 0.2, 0.2, seed=5)
    shuffled = random.Random(0).sample(members, len(members))
    assert draw_splits(shuffled, 0.2, 0.2, seed=5)[0] == first
    others = [draw_splits(members, 0.2, 0.2, seed)[0] for seed in range(6, 10)]
    assert all(other != first for other in others)


def test_fewer_groups_than_splits_is_an_error() -> None:
    members: Members = [(("patient", name), None) for name in "aabb"]
    with pytest.raises(DataError, match=r"2 groups \(patient\) cannot fill train, val, test"):
        draw_splits(members, 0.1, 0.1, 0)
    split, _ = draw_splits(members, 0.0, 0.5, 0)
    assert set(split.values()) == {"train", "test"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders without splits: 30 patches each of a and b, from 10 sources each."""
    root = tmp_path_factory.mktemp("split") / "raw"
    write_patches(root, {"x": 30}, ("a", "b"), seed=6)
    for i, path in enumerate(sorted(root.rglob("*.png"))):
        (root / path.parent.name).mkdir(exist_ok=True)
        path.rename(root / path.parent.name / f"{path.parent.name}{i % 10}__{path.name}")
    shutil.rmtree(root / "x")
    return root


def test_packing_records_what_was_achieved(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = PackOptions(val=0.2, test=0.3, workers=1)
    show_messages()
    metadata = pack(source, tmp_path / "out", options)
    assert "splits drawn by source: 20 groups, asked for val 0.2, test 0.3" in (
        capsys.readouterr().out
    )
    draw = metadata.provenance["splits"]
    assert (draw["by"], draw["val"], draw["test"]) == (["source"], 0.2, 0.3)
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, split in metadata.splits.items():
        for row in sidecar_rows(tmp_path / "out"):
            first, end = metadata.provenance["key_ranges"][name]
            if first <= int(str(row["key"])[1:]) < end:
                members[name, metadata.classes[row["label"]]].add(str(row["source"]))
        for label, count in zip(metadata.classes, split.class_counts, strict=True):
            cell = {"patches": count, "groups": len(members[name, label])}
            assert draw["achieved"][name][label] == cell
    groups = [group for names in members.values() for group in names]
    assert len(groups) == len(set(groups)) == 20
    pack(source, tmp_path / "again", options)
    assert file_hashes(tmp_path / "out") == file_hashes(tmp_path / "again")


def write_manifest(source: Path, path: Path, header: str, rows: list[list[str]]) -> Path:
    files = sorted(str(p.relative_to(source)) for p in source.rglob("*.png"))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *header.split(",")])
        writer.writerows([name, *rows[i % len(rows)]] for i, name in enumerate(files))
    return path


def test_a_patient_is_never_cut(source: Path, tmp_path: Path) -> None:
    rows = [[f"p{i % 5}" if i % 3 else "", f"s{i}"] for i in range(15)]
    manifest = write_manifest(source, tmp_path / "m.csv", "patient,slide", rows)
    metadata = pack(source, tmp_path / "out", PackOptions(manifest=manifest, val=0.3, test=0.3))
    assert metadata.provenance["splits"]["by"] == ["patient", "slide"]
    home: dict[object, set[str]] = defaultdict(set)
    for path in (tmp_path / "out").glob("*.parquet"):
        split = path.name.split("-")[0]
        for row in sidecar_rows(tmp_path / "out"):
            first, end = metadata.provenance["key_ranges"][split]
            if first <= int(str(row["key"])[1:]) < end:
                home[row["patient"] or row["slide"]].add(split)
    assert len(home) == 10 and all(len(splits) == 1 for splits in home.values())


def test_splits_that_are_there_are_not_drawn_again(source: Path, tmp_path: Path) -> None:
    manifest = write_manifest(source, tmp_path / "m.csv", "split", [["train"], ["test"]])
    with pytest.raises(DataError, match=r"has splits already.*split column"):
        pack(source, tmp_path / "out", PackOptions(manifest=manifest, val=0.1))
    write_patches(tmp_path / "raw", {"train": 2, "val": 2}, ("a",), seed=0)
    with pytest.raises(DataError, match=r"has splits already.*split folders"):
        pack(tmp_path / "raw", tmp_path / "out", PackOptions(test=0.1))


SITES = [
    [f"p{i}", ["Leeds", "Graz", "a/b c"][i % 3], "train" if i % 2 else "test"] for i in range(12)
]


@pytest.mark.parametrize("packed", [False, True])
def test_each_site_is_left_out_once(packed: bool, source: Path, tmp_path: Path) -> None:
    origin = write_manifest(source, tmp_path / "m.csv", "case,site,split", SITES)
    if packed:
        columns = Columns(patient="case")
        pack(source, tmp_path / "set", PackOptions(manifest=origin, columns=columns, workers=1))
        written = leave_one_out(tmp_path / "set", tmp_path / "lists", SiteOptions(val=0.25))
    else:
        options = SiteOptions(val=0.25, columns=Columns(patient="case"))
        written = leave_one_out(origin, tmp_path / "lists", options)
    assert [path.name for path in written] == ["Graz.csv", "Leeds.csv", "a_b_c.csv"]
    sites = dict(read_site_rows(origin))
    for path, left_out in zip(written, ["Graz", "Leeds", "a/b c"], strict=True):
        rows = read_manifest(path).values
        assert sorted(rows["path"]) == sorted(sites)
        home: dict[str, set[str]] = defaultdict(set)
        for name, patient, split in zip(rows["path"], rows["patient"], rows["split"], strict=True):
            assert (split == "test") == (sites[name] == left_out)
            home[patient].add(split)
        assert all(len(splits) == 1 for splits in home.values())
        assert Counter(rows["split"]) == {"test": 20, "train": 30, "val": 10}
    metadata = pack(source, tmp_path / "out", PackOptions(manifest=written[0], workers=1))
    assert metadata.splits["test"].count == 20


def read_site_rows(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="") as file:
        return [(row["path"], row["site"]) for row in csv.DictReader(file)]


def test_lists_are_the_same_from_the_manifest_and_from_the_packed_set(
    source: Path, tmp_path: Path
) -> None:
    origin = write_manifest(source, tmp_path / "m.csv", "patient,site,split", SITES)
    pack(source, tmp_path / "set", PackOptions(manifest=origin, workers=1, shard_size=7))
    for name in ("m.csv", "set"):
        leave_one_out(tmp_path / name, tmp_path / f"lists of {name}")
    for name in ("Graz.csv", "Leeds.csv", "a_b_c.csv"):
        listed, packed = (
            read_manifest(tmp_path / f"lists of {origin}" / name).values
            for origin in ("m.csv", "set")
        )
        assert listed == {field: packed[field] for field in listed}


@pytest.mark.parametrize(
    ("header", "rows", "reason"),
    [
        ("patient", [["p"]], "gives no site for 'a/.*60 of 60"),
        ("site", [["x"], [""]], "gives no site for 'a/.*30 of 60"),
        ("site", [["x"]], r"one site only \('x'\)"),
        ("site,slide", [["A", "s"], ["a", "t"]], "share one file name"),
        ("site,patient", [["x", "p"], ["y", "p"]], "patient 'p' is at the sites 'x' and 'y'"),
    ],
)
def test_sites_that_cannot_be_left_out(
    header: str, rows: list[list[str]], reason: str, source: Path, tmp_path: Path
) -> None:
    origin = write_manifest(source, tmp_path / "m.csv", header, rows)
    with pytest.raises(DataError, match=reason):
        leave_one_out(origin, tmp_path / "lists")
    assert not list(tmp_path.glob("lists/*.csv"))


def test_the_command_says_what_is_where(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    origin = write_manifest(
        source, tmp_path / "m.csv", "patient,hospital", [row[:2] for row in SITES]
    )
    command = ["sites", str(origin), str(tmp_path / "lists"), "--columns.site", "hospital"]
    for arguments, status in (([], 0), (["--seed", "7"], 1), (["--val", "1"], 2)):
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        assert main() == status
    printed = capsys.readouterr()
    assert "Graz              35            5            20" in printed.out
    assert "Graz.csv exists with another list: remove it" in printed.err
    assert "below 1" in printed.err


def test_an_interrupted_command_continues(source: Path, tmp_path: Path) -> None:
    origin = write_manifest(source, tmp_path / "m.csv", "patient,site,split", SITES)
    lists = leave_one_out(origin, tmp_path / "lists")
    before = file_hashes(tmp_path / "lists")
    lists[1].unlink()
    assert leave_one_out(origin, tmp_path / "lists") == lists
    assert file_hashes(tmp_path / "lists") == before
    lists[0].unlink()
    with pytest.raises(DataError, match=r"Leeds\.csv exists with another list"):
        leave_one_out(origin, tmp_path / "lists", SiteOptions(seed=7))
    assert not lists[0].exists(), "nothing is written beside lists of another command"


def test_a_converted_set_has_other_places_than_its_files(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "set", PackOptions(convert="crop", workers=1))
    assert load_metadata(tmp_path / "set").provenance["convert"] == {"rule": "crop"}
    with pytest.raises(DataError, match="packed with --convert"):
        leave_one_out(tmp_path / "set", tmp_path / "lists")
