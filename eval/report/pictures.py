"""Pictures of runs: strips of patches and codes side by side, and the figures of evaluations.

Strips are drawn for the page and as PNG.
"""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from common.errors import DataError
from eval.drawing.pictures import KINDS, PICTURES, SAMPLE, Pictures, load
from eval.measure.metrics import PSNR_CAP
from eval.report.arms import Arm, ComparedArms
from eval.report.charts import EVALUATE
from eval.report.document import (
    Bullets,
    Missing,
    Part,
    Picture,
    Strip,
    Strips,
    Text,
    shown,
)
from eval.report.runs import EvaluatedRun
from eval.report.verdicts import EXPLORATORY, REFERENCE, pairs, planned_contrasts
from pipeline.corruptions import KINDS as CORRUPTIONS
from shards.codec.png import Pixels
from shards.schema import PATCH

GAP = 2  # between images of a strip, half of it on either side
SCALE = 3  # of the PNG beside the report
SIGNS = ("0°", "90°", "180°", "270°", "↔", "╲", "↕", "╱")  # of the elements of D4
MOST = 6  # arms whose reconstructions are shown
MAX_PNG_BYTES = 32 << 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FIGURES = {  # title, and caption with the split that was measured
    "reconstructions": (
        "Reconstructions",
        "Clean patches, what the encoder sees, and what it reconstructs, three patches per "
        "corruption kind; PSNR to the clean patch below.",
    ),
    "orbit": (
        "Orbit of a patch",
        "A patch moved by every element of the group. Second row: the moved patch encoded and "
        "decoded. Third row: the code of the unmoved patch moved, then decoded. Fourth row: their "
        "difference, 0 for an equivariant model.",
    ),
    "traversals": (
        "Traversals of the code",
        "The latent dimensions with the largest KL, each moved by -3 to 3 standard deviations from "
        "the code of one patch and decoded.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Patches of {split} and their eight nearest in {split} by the cosine of the code. Patches "
        "of the same source image are marked: their nearness says little.",
    ),
    "embedding": (
        "Embeddings",
        "The first two principal components of the embeddings of the {split} split.",
    ),
}


def side_by_side(compared: ComparedArms, slug: str) -> list[Part]:
    """Reconstructions of the arms, and the orbit of two of them, one below the other.

    Where no arm has pictures, the figures of the evaluation.
    """
    pictures, problems = of_arms(compared.arms.values())
    shown_first = pictured(compared)
    pair = [arm.name for arm in shown_first if arm.name in pictures]
    names = [*pair, *(name for name in pictures if name not in pair)]
    split = compared.runs[0].metrics_split
    parts: list[Part] = []
    if decoding := [n for n in names if pictures[n].reconstructed is not None][:MOST]:
        parts.append(_reconstructions({name: pictures[name] for name in decoding}, split, slug))
    if pair:
        parts.append(_orbits({name: pictures[name] for name in pair}, split, slug))
    if not pictures:
        parts.append(Missing("pictures of patches and codes", EVALUATE))
    if not pair and not decoding:
        for arm in shown_first:
            parts += figures(arm.first, ("reconstructions", "orbit"))
    if problems:
        parts += [Text("Left out of the pictures:"), Bullets(problems)]
    return parts


def pictured(compared: ComparedArms) -> list[Arm]:
    """The arms of H1 where both are here; else the best one and its partner in a contrast.

    The partner is a predefined one, else the reference; there is none where an arm stands alone.
    """
    h1 = planned_contrasts(compared.arms)[0]
    if {h1.first, h1.second} <= compared.arms.keys():
        return [compared.arms[h1.second], compared.arms[h1.first]]
    best, presets = compared.best, {arm.name: arm.preset for arm in compared.arms.values()}
    own = [pair for pair in pairs(presets) if best.name in pair]
    predefined = [pair for pair in own if pair in EXPLORATORY]
    if not predefined and REFERENCE in presets and best.name != REFERENCE:
        return [best, compared.arms[REFERENCE]]
    others = [name for pair in [*predefined, *own] for name in pair if name != best.name]
    return [best, *(compared.arms[name] for name in others[:1])]


def of_arms(arms: Iterable[Arm]) -> tuple[dict[str, Pictures], list[str]]:
    """The pictures of the first seed of every arm that has some, and why others are left out."""
    pictures, problems = {}, []
    for arm in arms:
        run = arm.first
        if not (run.folder / PICTURES).exists():
            continue
        try:
            loaded, hashes = load(run.folder)
        except DataError as error:
            problems.append(f"{run.label}: {shown(error)}")
            continue
        if hashes == run.results.hashes:
            pictures[arm.name] = loaded
        else:
            problems.append(
                f"{run.label}: {PICTURES} is of another snapshot or data set than results.json; "
                "evaluate the run again"
            )
    return pictures, problems


def _reconstructions(pictures: dict[str, Pictures], split: str, slug: str) -> Strips:
    first = next(iter(pictures.values()))
    strips = [Strip("clean", first.clean), _noted("corrupted", first.corrupted, first.psnr[0])]
    alike = {
        name: p for name, p in pictures.items() if np.array_equal(p.corrupted, first.corrupted)
    }
    strips += [
        _noted(name, p.reconstructed, p.psnr[1])
        for name, p in alike.items()
        if p.reconstructed is not None
    ]
    caption = (
        f"{split.capitalize()} patches, drawn at random by class, under the corruptions of the "
        "default training, the same for every model; each is reconstructed from the posterior "
        "mean of the corrupted patch. Below: PSNR to the clean patch in dB. Of several seeds, the "
        "lowest is shown."
    )
    headings = [CORRUPTIONS[kind].title for kind in KINDS]
    title = "What the models see, and what they reconstruct"
    return Strips(f"{slug}-reconstructions.png", title, headings, strips, caption)


def _noted(label: str, images: Pixels, psnr: np.ndarray) -> Strip:
    return Strip(label, images, ["" if value >= PSNR_CAP else f"{value:.1f}" for value in psnr])


def _orbits(pictures: dict[str, Pictures], split: str, slug: str) -> Strips:
    count = min(len(p.orbit) for p in pictures.values())
    first = next(iter(pictures.values()))
    strips = [Strip("patch", first.orbit[:count])]
    for name, p in pictures.items():
        side = PATCH // p.codes.shape[1]
        codes, moved = (
            images[:count].repeat(side, 1).repeat(side, 2) for images in (p.codes, p.moved)
        )
        errors = [f"{error:.2f}" for error in p.errors[:count]]
        strips.append(Strip(f"{name}: code of the moved patch", codes, errors))
        strips.append(Strip(f"{name}: code of the patch, moved", moved))
    shares = "; ".join(
        f"{name} {', '.join(f'{share:.0%}' for share in p.shares)}" for name, p in pictures.items()
    )
    caption = (
        f"A {split} patch under the elements of the symmetry group: rotations counter-clockwise, "
        "then mirrored and rotated. Below it the 4x4 cells of its code: red, green and blue are "
        f"the first three principal components of the cells of {SAMPLE} patches (share of the "
        f"variance: {shares}). An equivariant encoder gives the code of the unmoved patch, moved: "
        "the two rows of a model are then equal. The numbers are the relative error of this "
        "patch: 0 exact, about 1 unrelated. Where channels are permuted with the patch, they are "
        "permuted back for the drawing."
    )
    title = "A patch, turned and mirrored, and its code"
    return Strips(f"{slug}-orbit.png", title, SIGNS[:count], strips, caption)


def row(images: Pixels) -> Image.Image:
    """Images (n, side, side, 3) side by side with transparent gaps."""
    count, side = images.shape[:2]
    cells = np.zeros((side, count, side + GAP, 4), np.uint8)
    cells[:, :, GAP // 2 : GAP // 2 + side, :3] = images.transpose(1, 0, 2, 3)
    cells[:, :, GAP // 2 : GAP // 2 + side, 3] = 255
    return Image.fromarray(cells.reshape(side, count * (side + GAP), 4))


def png(image: Image.Image) -> bytes:
    """The image as PNG, the same for equal pixels."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def sheet(strips: Strips) -> bytes:
    """All strips under one another, enlarged, as PNG."""
    rows = [row(strip.images) for strip in strips.strips]
    width, height = max(image.width for image in rows), PATCH + GAP
    whole = Image.new("RGBA", (width, height * len(rows)))
    for i, image in enumerate(rows):
        whole.paste(image, (0, height * i))
    return png(whole.resize((SCALE * whole.width, SCALE * whole.height), Image.Resampling.NEAREST))


def figures(run: EvaluatedRun, names: Iterable[str] = tuple(FIGURES)) -> list[Part]:
    """The PNG that the evaluation of a run drew."""
    pictures: list[Part] = []
    for name in names:
        title, caption = FIGURES[name]
        path = run.folder / "figures" / f"{name}.png"
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_PNG_BYTES:
            continue
        with path.open("rb") as file:
            is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        if is_png:
            caption = caption.format(split=run.metrics_split)
            pictures.append(
                Picture(f"{run.slug}-{name}.png", path, f"{title}: {run.label}", caption)
            )
    return pictures
