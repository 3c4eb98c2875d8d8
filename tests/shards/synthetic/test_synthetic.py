"""The synthetic set: same seed same bytes, a sound split, and difficulty where it belongs."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.errors import DataError
from shards.schema import PATCH
from shards.synthetic import __main__ as command
from shards.synthetic import generate as synthetic
from shards.synthetic.generate import SITES, SPLITS, SyntheticConfig, generate, patient
from shards.synthetic.tissue import TISSUES

SMALL = SyntheticConfig(train=6 * 4 * 6, val=6 * 4 * 2, test=6 * 4 * 2, patients=4)
NAME = re.compile(r"(?P<site>\w+)-(?P<patient>P\d{4})-(?P<image>\d{4})__y(\d{4})_x(\d{4})\.png")

Images = NDArray[np.uint8]  # (n, 32, 32, 3)
Labels = NDArray[np.int64]  # (n,)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "raw"
    generate(out, SMALL)
    return out


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.png")}


def test_the_same_seed_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", SMALL)
    assert contents(tmp_path / "again") == contents(small)


def test_another_seed_gives_other_pixels_everywhere(small: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", SyntheticConfig(1, SMALL.train, SMALL.val, SMALL.test, 4))
    first, other = contents(small), contents(tmp_path / "other")
    assert first.keys() == other.keys()
    assert not any(first[name] == other[name] for name in first)
    assert len(set(first.values())) == len(first), "two patches are equal"


def test_a_larger_set_holds_the_smaller_one(small: Path, tmp_path: Path) -> None:
    generate(tmp_path / "larger", SyntheticConfig(0, SMALL.train + 50, SMALL.val, 90, 4))
    larger = contents(tmp_path / "larger")
    assert contents(small).items() < larger.items()
    assert len(larger) == SMALL.train + 50 + SMALL.val + 90


def test_layout_and_split(small: Path) -> None:
    tissues: dict[tuple[str, str], set[str]] = defaultdict(set)
    images: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    sites, owners = defaultdict(set), defaultdict(set)
    for path in contents(small):
        split, tissue, name = Path(path).parts
        match = NAME.fullmatch(name)
        assert match is not None, name
        tissues[split, match["patient"]].add(tissue)
        images[split, match["patient"], tissue].add(match["image"])
        counts[split, tissue] += 1
        sites[split].add(match["site"])
        owners[match["patient"]].add((split, match["site"]))
    assert counts == {(s, t): getattr(SMALL, s) // len(TISSUES) for s in SPLITS for t in TISSUES}
    assert len(owners) == SMALL.patients * len(SPLITS)
    assert all(len(where) == 1 for where in owners.values()), "a patient in two splits or sites"
    assert all(names == set(TISSUES) for names in tissues.values())
    assert all(names == {site.name for site in SITES} for names in sites.values())
    assert all(len(images["train", p, t]) >= 2 for s, p in tissues for t in TISSUES if s == "train")
    by_patient = [set().union(*(images[s, p, t] for t in TISSUES)) for s, p in tissues]
    assert sum(map(len, by_patient)) == sum(map(len, images.values())), "an image has two classes"


def test_patches_are_rgb_and_lie_where_their_names_say(small: Path) -> None:
    for path in sorted(contents(small))[::7]:
        split, tissue, name = Path(path).parts
        match = NAME.fullmatch(name)
        assert match is not None, name
        image, y, x = int(match["image"]) // len(TISSUES), int(match[4]), int(match[5])
        tile = synthetic.render_tile(SMALL.seed, split, int(match["patient"][2:]), tissue, image)
        with Image.open(small / path, formats=["PNG"]) as png:
            assert (png.mode, png.size) == ("RGB", (PATCH, PATCH))
            assert np.array_equal(np.asarray(png), tile[y : y + PATCH, x : x + PATCH])


def test_an_occupied_folder_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    tiny = SyntheticConfig(train=6, val=0, test=0, patients=1)
    (tmp_path / "precious").write_text("data")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        generate(tmp_path, tiny)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", tiny)
    assert len(contents(tmp_path / "empty")) == 6


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = Path.write_bytes

    def fail_later(path: Path, data: bytes) -> int:
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail_later)
    with pytest.raises(OSError, match="No space left"):
        generate(tmp_path / "out", SMALL)
    assert written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"train": -1}, {"train": 0, "val": 0, "test": 0}, {"patients": 0}]
)
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        SyntheticConfig(**wrong)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["synthetic", str(tmp_path / "out"), *arguments])
        return command.main()

    sizes = ["--train", "12", "--val", "6", "--test", "6", "--patients", "1", "--seed", "3"]
    assert run("--seed", "-1") == 2
    assert run(*sizes) == 0
    assert len(contents(tmp_path / "out")) == 24
    assert run(*sizes) == 1


def test_torch_is_not_imported() -> None:
    check = "import sys, shards.synthetic.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("index", [0, 1])
def test_mean_optical_density_ignores_the_class(index: int) -> None:
    """Equal random numbers, different tissue: the light differs, its mean density does not."""
    owner = patient(0, "train", index)
    density = []
    for tissue in TISSUES.values():
        structure = tissue(np.random.default_rng(1), 64)
        assert all(stain.min() >= 0 for stain in structure)
        density.append(-np.log(synthetic._stain(np.random.default_rng(2), structure, owner)))
    means = np.array([d.mean(axis=(0, 1)) for d in density])
    np.testing.assert_allclose(means, means[:1].repeat(len(means), axis=0), rtol=1e-9)
    assert min(d.std() for d in density) > 0.05, "a structure is flat"


@cache
def modest_set() -> list[synthetic.Source]:
    return list(synthetic.sources(SyntheticConfig(seed=11, train=1800, val=0, test=600)))


def _labelled(
    sources: list[synthetic.Source], split: str, by: str = "class"
) -> tuple[Images, Labels]:
    """The patches of a split with the index of their class, or of their site."""
    images, labels = [], []
    for source in sources:
        where, tissue, name = source.stem.parts
        if where == split:
            label = list(TISSUES).index(tissue) if by == "class" else int("siteB" in name)
            images.append(source.patches)
            labels += [label] * len(source.patches)
    return np.concatenate(images), np.array(labels)


def colour_grid(x: Images) -> NDArray[np.float64]:
    """Mean RGB of each 8x8 cell: (n, 48)."""
    return x.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(x), -1)


def texture(x: Images) -> NDArray[np.float64]:
    """Eight numbers that no recolouring moves: energy, direction and spread of the grey level."""
    grey = x.mean(axis=-1)
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    features = [(grey**3).mean((1, 2)), (grey**4).mean((1, 2))]
    for sigma in (1.0, 2.0):
        soft = gaussian_filter(grey, (0, sigma, sigma))
        dy, dx = np.gradient(soft, axis=(1, 2))
        xx, yy, xy = (dx * dx).mean((1, 2)), (dy * dy).mean((1, 2)), (dx * dy).mean((1, 2))
        coherence = np.hypot(xx - yy, 2 * xy) / (xx + yy)
        features += [np.log(xx + yy), coherence, np.log(soft.var((1, 2)))]
    return np.stack(features, axis=1)


def probe(train: NDArray[np.float64], y: Labels, test: NDArray[np.float64], truth: Labels) -> float:
    """Macro one-vs-rest AUROC of a standardised logistic regression, the best of its C on test:
    an upper bound of what any choice on val would reach."""
    scores = []
    for c in (1e-3, 1e-2, 1e-1, 1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500)).fit(train, y)
        p = model.predict_proba(test)
        scores.append(roc_auc_score(truth, p if p.shape[1] > 2 else p[:, 1], multi_class="ovr"))
    return max(scores)


def test_colour_says_little_about_the_class_and_texture_much() -> None:
    (x, y), (x_test, y_test) = (_labelled(modest_set(), split) for split in ("train", "test"))
    assert probe(colour_grid(x), y, colour_grid(x_test), y_test) <= 0.70
    assert probe(x.mean((1, 2)), y, x_test.mean((1, 2)), y_test) <= 0.70
    assert probe(texture(x), y, texture(x_test), y_test) >= 0.90


def test_colour_says_which_site() -> None:
    (x, y), (x_test, y_test) = (_labelled(modest_set(), s, by="site") for s in ("train", "test"))
    assert probe(x.mean((1, 2)), y, x_test.mean((1, 2)), y_test) >= 0.90


@pytest.mark.parametrize(
    ("steps", "least"),
    [
        pytest.param(250, 0.85, marks=pytest.mark.long),  # 0.88 to 0.90 by three seeds
        pytest.param(625, 0.95, marks=pytest.mark.long),
    ],
)
def test_a_supervised_encoder_reads_the_class(steps: int, least: float) -> None:
    """The ceiling: the project's encoder, its 384 numbers, a linear head, 40,000 images seen; what
    colour alone says is 0.57."""
    import torch
    from torch.nn import functional as F

    from models.config import ModelConfig
    from models.vae import build
    from pipeline import d4

    torch.set_num_threads(os.cpu_count() or 1)  # minutes of work, unlike the other tests
    batch = 64
    sources = list(synthetic.sources(SyntheticConfig(val=0)))
    x, y = (torch.from_numpy(a) for a in _labelled(sources, "train"))
    x_test, y_test = (torch.from_numpy(a) for a in _labelled(sources, "test"))
    torch.manual_seed(0)
    encoder = build(ModelConfig(architecture="refined"), seed=0).encoder
    head, pixels = torch.nn.Linear(384, len(TISSUES)), d4.pixel_index(PATCH)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.03)

    def logits(x_BHWC: torch.Tensor, g_B: torch.Tensor) -> torch.Tensor:
        moved = d4.act(x_BHWC.permute(0, 3, 1, 2), g_B, pixels) / 255
        return head(encoder(moved).mean.flatten(1))

    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        loss = F.cross_entropy(logits(x[rows], torch.randint(8, (batch,))), y[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        identity = torch.zeros(len(x_test), dtype=torch.int64)
        p = logits(x_test, identity).double().softmax(1).numpy()
    assert roc_auc_score(y_test, p, multi_class="ovr") >= least
