"""The pages are true: links lead somewhere, modules and options exist, commands and code run."""

import csv
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.encoder import PatchEncoder
from eval.measure.metrics import Symmetry
from models.config import ModelConfig
from models.vae import build
from shards.known.sets import SETS
from shards.schema import load_metadata
from tests.helpers import known
from tests.helpers.patches import write_patches
from tests.helpers.tars import members, samples, write_tar
from tests.helpers.trained_runs import save_snapshot
from train.arguments import parse

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "shards", "pipeline", "models", "eval", "train", "bench")
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
EXTENDING = "docs/extending.md"  # its commands are those of changed trees
LOGS = ["docs/results/README.md", "train/LOG.md", "bench/LOG.md"]  # older names stay in them
PACKAGE = "|".join(PACKAGES)
SHORT = ["--images", "64", "--batch-size", "16", "--loop.validations", "1", "--track"]
TRAINING = re.compile(r"(?:train/main\.py|train/slurm/\w+\.sbatch)(?= |$)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def code_blocks(text: str, language: str = "") -> list[str]:
    blocks: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    return [block for name, block in blocks if name == language]


def command_lines(text: str) -> list[list[str]]:
    """Commands of the code blocks: lines after `$ `, or that begin with a program of ours."""
    lines = "\n".join(code_blocks(text)).replace("\\\n", " ").splitlines()
    starts = re.compile(r"(?:\$ |(?=(?:uv run )?(?:python|accelerate|torchrun) ))(.*)")
    return [shlex.split(match[1], comments=True) for line in lines if (match := starts.match(line))]


def section(page: str, heading: str) -> str:
    return text_of(page).split(f"## {heading}\n")[1].split("\n## ")[0]


def commands(page: str, heading: str) -> list[list[str]]:
    """The lines after `$` of a section, continued lines joined."""
    lines = re.findall(r"^\$ ((?:.*\\\n)*.*)$", section(page, heading), re.MULTILINE)
    assert lines, f"no command in {heading}"
    return [shlex.split(line.replace("\\\n", " ")) for line in lines]


@pytest.mark.parametrize("page", [*PAGES, *LOGS])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(str(target.relative_to(ROOT))), f"no #{anchor}"


def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    files = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@pytest.mark.parametrize("page", PAGES)
def test_named_modules_and_files_exist(page: str) -> None:
    text = text_of(page)
    for module in re.findall(rf"-m ((?:{PACKAGE}|tests)\.[\w.]+)", text):
        assert file_of(module), f"no module {module}"
    for path in re.findall(rf"[`(]((?:{PACKAGE}|tests|docs)/[\w./-]+)", text):
        assert (ROOT / path).exists(), f"no file {path}"
    for dotted in re.findall(rf"`((?:{PACKAGE})(?:\.\w+)+)`", text):
        module, _, name = dotted.rpartition(".")
        if not file_of(dotted):
            owner = file_of(module)
            assert owner and re.search(rf"\b{name}\b", owner.read_text()), f"no {dotted}"


def test_the_map_names_every_folder() -> None:
    tree = section("README.md", "Where things are")
    for package in PACKAGES:
        for folder in (path.parent for path in (ROOT / package).rglob("__init__.py")):
            assert re.search(rf"^ *{folder.name}/ ", tree, re.MULTILINE), folder


def test_the_two_commands_stand_in_the_first_screen() -> None:
    first_screen = "\n".join(text_of("README.md").splitlines()[:40])
    assert "pip install uv && uv run accelerate launch train/main.py\n" in first_screen
    assert "pip install uv && uv run pytest\n" in first_screen


@pytest.mark.parametrize("page", [page for page in PAGES if page != EXTENDING])
def test_training_commands_parse(page: str) -> None:
    for command in command_lines(text_of(page)):
        starts = [i for i, word in enumerate(command) if TRAINING.fullmatch(word)]
        if starts and not any(word.endswith(".json") for word in command):
            parse(command[starts[0] + 1 :])


@cache
def help_of(program: str) -> str:
    """The help of a module or of a script, with its wrapped lines."""
    start = ["-m", program] if file_of(program) else [str(ROOT / program)]
    done = subprocess.run(
        [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != EXTENDING])
def test_options_of_our_commands_exist(page: str) -> None:
    for command in command_lines(text_of(page)):
        programs = [word for word in command if re.fullmatch(rf"(?:{PACKAGE})[./][\w./]+", word)]
        if programs and not TRAINING.fullmatch(programs[0]):
            options = command[command.index(programs[0]) + 1 :]
            for option in (word for word in options if word.startswith("--")):
                listed = re.search(rf"{option}(?![\w-])", help_of(programs[0]))
                assert listed, f"{programs[0]} has no {option}"


def run(command: list[str], folder: Path, root: Path = ROOT) -> str:
    """Run a command of a page with the code under `root`; training is cut short."""
    if command[:2] == ["accelerate", "launch"]:
        command = ["python", str(root / command[2]), *command[3:], *SHORT]
    assert command[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_patch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def write_class_folders(folder: Path) -> None:
    for name in ("TUM", "NORM"):
        for source in range(8):
            for x in (0, 32):
                write_patch(folder / "patches" / name / f"{name}-{source}__y0000_x{x:04d}.png")


def write_table(folder: Path) -> None:
    rows = []
    for site in ("oral", "colon", "bone"):
        for label in ("normal", "tumor"):
            for i in range(12):
                file = f"{site}/{label}/{site}-{label}-{i}__y0000_x0000.png"
                write_patch(folder / "patches" / file)
                case = f"{site}-case-{label}-{i // 2}" if site == "bone" else ""
                rows.append([file, label, case, f"{site}-{label}-{i}", site])
    with open(folder / "patients.csv", "w", newline="") as file_out:
        csv.writer(file_out).writerows([["file", "diagnosis", "case", "slide", "site"], *rows])


def write_slide_folders(folder: Path) -> None:
    for slide in range(6):
        for i in range(3):
            barcode = f"TCGA-A{slide}-000{slide}-01Z-00-DX1"
            write_patch(folder / "dumps" / barcode / f"{i:06d}_x{i * 32}_y64.png")


def write_flat_folder(folder: Path) -> None:
    for i in range(40):
        write_patch(folder / "patches" / f"{i:04d}.png")


def write_tars(folder: Path) -> None:
    for split in ("train", "val"):
        write_tar(folder / "tars" / f"{split}-000000.tar", members(samples(9, f"{split}/")))


@pytest.mark.parametrize(
    ("heading", "write"),
    [
        ("Class folders", write_class_folders),
        ("A table with patients and sites", write_table),
        ("Slides cut by TRIDENT or a similar tool", write_slide_folders),
        ("Shards of another tool", write_tars),
    ],
)
def test_packing_commands_run(heading: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    for command in commands("docs/your-data.md", heading):
        run(command, tmp_path)


def test_slide_commands_run(tmp_path: Path) -> None:
    from tests.helpers import slides  # skips the test without the extra

    names = ("TCGA-A6-2681-01Z-00-DX1", "case-7")
    for name in names:
        slides.write_slide(tmp_path / f"slides/{name}.svs", slides.tissue_slide())
        slides.write_boxes(tmp_path / f"trident/{name}_patches.h5", [(192, 128)], side=256)
        slides.write_annotation(tmp_path / f"qupath/{name}.geojson", "Tumor")
    for heading in ("A folder of slides", "Coordinates and annotations of other tools"):
        for command in commands("docs/slides.md", heading):
            run(command, tmp_path)
    assert {path.stem for path in (tmp_path / "data/shards/slides").glob("*.png")} == {*names}
    metadata = [load_metadata(tmp_path / "data" / out) for out in ("boxes", "annotated")]
    assert metadata[0].splits["train"].count == 128 and metadata[1].classes == ["Tumor"]


def test_commands_for_public_sets_run(tmp_path: Path) -> None:
    """On a few files of each layout: hence --partial."""
    pytest.importorskip("h5py", reason="needs the extra h5")
    downloads = tmp_path / "downloads"
    known.write_pcam(downloads / "pcam")
    known.write_wilds(downloads / "camelyon17_v1.0")
    known.write_nct_crc(downloads / "nct-crc")
    known.write_pathmnist(downloads / "pathmnist.npz")
    known.write_crchisto(downloads / "CRCHistoPhenotypes_2016_04_28")
    page = "docs/known-data.md"
    names = set()
    for heading in re.findall(r"^## (.*)$", text_of(page), re.MULTILINE):
        (command,) = commands(page, heading)
        run([*command, "--partial"], tmp_path)
        names.add(command[3])
    assert names == {*SETS} and len([*tmp_path.glob("data/*/dataset.json")]) == len(SETS)


@pytest.mark.slow
def test_unlabelled_patches_pack_train_and_embed(tmp_path: Path) -> None:
    write_flat_folder(tmp_path)
    for heading in ("A folder of patches without labels", "Embeddings of any patches"):
        for command in commands("docs/your-data.md", heading):
            run(command, tmp_path)
    assert list((tmp_path / "embeddings").glob("part-*.parquet"))
    (snippet,) = code_blocks(text_of("docs/your-data.md"), "python")
    images = "import numpy as np\nimages = np.zeros((3, 32, 32, 3), np.uint8)\n"
    run(["python", "-c", images + snippet + "assert features.shape == (3, 384)"], tmp_path)
    shutil.copytree(tmp_path / "patches", tmp_path / "data/synthetic/raw/test/class")
    (snippet,) = code_blocks(text_of("README.md"), "python")
    run(["python", "-c", snippet + "assert features.shape == (40, 384)"], tmp_path)


@pytest.mark.slow
def test_the_model_is_taken_away_as_described(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra export")
    pytest.importorskip("onnxruntime", reason="needs the extra export")
    run_folder = save_snapshot(tmp_path / "data/processed/eq-dvae-s0", ModelConfig())
    page = "docs/taking-away.md"
    for command in commands(page, "The encoder as ONNX or torch.export"):
        assert "largest difference from PyTorch" in run(command, tmp_path)
    assert {file.name for file in (run_folder / "export").iterdir()} == {
        "encoder.onnx",
        "encoder.pt2",
    }
    (snippet, *_) = code_blocks(text_of(page), "python")
    images = "import numpy as np\nimages = np.zeros((3, 32, 32, 3), np.uint8)\n"
    run(["python", "-c", images + snippet + "assert features.shape == (3, 384)"], tmp_path)


@pytest.mark.slow
def test_the_embeddings_are_taken_away_as_described(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs the extra h5")
    save_snapshot(tmp_path / "data/processed/eq-dvae-s0", ModelConfig())
    write_slide_folders(tmp_path)
    for command in commands("docs/taking-away.md", "Embeddings for other programs"):
        run(command, tmp_path)
    assert len(list((tmp_path / "exported").glob("*-clusters.png"))) == 6


@pytest.mark.slow
def test_the_tour_leads_to_a_map(tmp_path: Path) -> None:
    from tests.helpers import slides  # skips the test without the extra

    pytest.importorskip("anndata", reason="needs the extra anndata")
    slides.write_slide(tmp_path / "slides/CMU-1-Small-Region.svs", slides.tissue_slide())
    page = "docs/tour.md"
    for command in command_lines(text_of(page)):
        output = run(command, tmp_path)
    listed = section(page, "Cluster and export").split("```")[1].strip().splitlines()[1:]
    assert sorted(output.split()) == sorted(listed)
    assert all((tmp_path / path).exists() for path in listed)
    pytest.importorskip("scanpy", reason="scanpy is not installed")
    (snippet,) = code_blocks(text_of(page), "python")
    run(["python", "-c", snippet], tmp_path)


@pytest.mark.long
def test_evaluation_commands_run(tmp_path: Path) -> None:
    page = "docs/evaluation.md"
    for seed, site in enumerate(("oral", "colon", "bone")):
        counts = {"train": 24, "val": 8, "test": 8}
        write_patches(tmp_path / site, counts, ("normal", "tumor"), seed)
        run(["python", "-m", "shards.pack", site, f"data/{site}"], tmp_path)
    (tmp_path / "data/shards").symlink_to(tmp_path / "data/oral")
    run(["accelerate", "launch", "train/main.py", "eq-dvae", "--data", "data/oral"], tmp_path)
    (transfer,) = commands(page, "Transfer between sites")
    run(transfer, tmp_path)
    scores = tmp_path / "transfer/scores"
    for copy in ("eq-dvae-s1", "eq-dvae-s2", "dvae-s0", "dvae-s1", "dvae-s2"):
        shutil.copytree(scores / "eq-dvae-s0", scores / copy)
    embed = "-m eval.embed data/processed/eq-dvae-s0 data/oral --out features.parquet"
    run(["python", *embed.split()], tmp_path)
    (external,) = commands(page, "Embeddings of any encoder")
    run(external, tmp_path)
    for snippet in code_blocks(text_of(page), "python"):
        assert run(["python", "-c", snippet], tmp_path)


EXPERIMENT = """
import numpy as np
groups = np.repeat(np.arange(24), 4)
labels = groups % 2
tumor = np.random.default_rng(0).random((2, 3, 96))  # arms, seeds, patches
scores_a, scores_b = np.stack([1 - tumor, tumor], -1)
"""


def test_the_comparison_of_the_statistics_page_runs(tmp_path: Path) -> None:
    (snippet,) = code_blocks(text_of("docs/statistics.md"), "python")
    assert "undecided" in run(["python", "-c", EXPERIMENT + snippet], tmp_path)


@pytest.mark.slow
def test_sweeps_plan_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "DIR").mkdir()
    for command in command_lines(text_of("docs/ablations.md")):
        if command[:3] == ["python", "-m", "train.sweep"]:
            planned = run(
                [word for word in command if word != "--dry-run"] + ["--dry-run"], tmp_path
            )
            assert "runs" in planned


def test_the_drawing_shows_codes_that_turn_with_the_patch(tmp_path: Path) -> None:
    from docs.equivariance import codes_of, draw, rotation_error

    patch = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    ordinary = PatchEncoder(build(ModelConfig(), 0).eval(), Symmetry("D4", "trivial"))
    tied = PatchEncoder(build(ModelConfig("tied"), 0).eval(), Symmetry("D4", "regular"))
    pair = np.stack([patch, np.rot90(patch)])
    assert (
        rotation_error(codes_of(tied, pair)) < 1e-5 < 0.1 < rotation_error(codes_of(ordinary, pair))
    )
    draw(patch, [ordinary, tied], tmp_path / "drawing.png")
    assert Image.open(tmp_path / "drawing.png").mode == "RGBA"


def change_tree(root: Path, text: str) -> list[str]:
    """Apply the files and differences of a section to the tree; returns the code to run then."""
    scripts = []
    for block in code_blocks(text, "python"):
        path = re.match(r"# (\S+\.py)\n", block)
        if path:
            assert not (root / path[1]).exists(), f"{path[1]} is there already"
            (root / path[1]).write_text(block)
        else:
            scripts.append(block)
    for block in code_blocks(text, "diff"):
        for file in re.split(r"^--- ", block, flags=re.MULTILINE)[1:]:
            name, _, hunks = file.partition("\n")
            source = (root / name).read_text()
            for hunk in hunks.split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                before = "".join(line[1:] for line in lines if line[0] in " -")
                after = "".join(line[1:] for line in lines if line[0] in " +")
                assert source.count(before) == 1, (
                    f"{name} does not hold these lines once:\n{before}"
                )
                source = source.replace(before, after)
            (root / name).write_text(source)
    return scripts


CHANGES = re.findall(r"^## (.*)$", text_of(EXTENDING), re.MULTILINE)


@pytest.mark.parametrize(
    "heading",
    [
        pytest.param(heading, marks=pytest.mark.long if "size" in heading else pytest.mark.slow)
        for heading in CHANGES
    ],
)
def test_changes_work_as_described(heading: str, small_dataset: Path, tmp_path: Path) -> None:
    root, folder = tmp_path / "tree", tmp_path / "work"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (folder / "data").mkdir(parents=True)
    shutil.copytree(small_dataset, folder / "data/shards")
    text = section(EXTENDING, heading)
    scripts = change_tree(root, text)
    for command in command_lines(text):
        run(command, folder, root)
    for script in scripts:
        run(["python", "-c", script], folder, root)


def test_the_pipeline_of_scikit_learn_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_snapshot(tmp_path / "data/processed/eq-dvae-s0", ModelConfig())
    (code,) = code_blocks(
        section("docs/taking-away.md", "The encoder in scikit-learn pipelines"), "python"
    )
    labels = np.arange(24) % 2
    images = np.random.default_rng(0).integers(0, 100, (24, 32, 32, 3), np.uint8)
    images[labels == 1] += 100
    names = {"images": images, "labels": labels, "patients": np.arange(24) // 4}
    (tmp_path / "example.py").write_text(code)
    ran = runpy.run_path(str(tmp_path / "example.py"), init_globals=names)
    assert np.mean(ran["scores"]) > 0.9
