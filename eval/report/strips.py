"""Patches and codes of runs side by side: strips of images, drawn for the page and as PNG."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from common.errors import DataError
from eval.drawing.pictures import KINDS, PICTURES, SAMPLE, Pictures, load
from eval.measure.metrics import PSNR_CAP
from eval.report.charts import EVALUATE
from eval.report.document import Missing, Part, Strip, Strips, shown
from eval.report.runs import Arm, EvaluatedRun
from pipeline.corruptions import KINDS as CORRUPTIONS
from shards.codec.png import Pixels
from shards.schema import PATCH

GAP = 2  # between images, half of it on either side
SCALE = 3  # of the PNG beside the report
SIGNS = ("0°", "90°", "180°", "270°", "↔", "╲", "↕", "╱")  # of the elements of D4
MOST = 6  # arms whose reconstructions are shown


def of_arms(arms: Iterable[Arm]) -> tuple[dict[str, Pictures], list[str]]:
    """The pictures of the first seed of every arm that has some, and why others are left out."""
    pictures, problems = {}, []
    for arm in arms:
        run = arm.first
        if not (run.folder / PICTURES).exists():
            continue
        try:
            pictures[arm.name] = _load(run)
        except DataError as error:
            problems.append(f"{run.label}: {shown(error)}")
    return pictures, problems


def _load(run: EvaluatedRun) -> Pictures:
    pictures, hashes = load(run.folder)
    if hashes != run.results.hashes:
        raise DataError(
            f"{PICTURES} is of another snapshot or data set than results.json; evaluate the run "
            "again"
        )
    return pictures


def parts(
    arms: Sequence[Arm], first: Arm, second: Arm | None, slug: str
) -> tuple[list[Part], list[str]]:
    """Reconstructions of the arms, and the orbit of two of them, one below the other.

    Also returns why pictures of some runs are left out.
    """
    pictures, problems = of_arms(arms)
    shown_parts: list[Part] = []
    pair = [arm.name for arm in (first, second) if arm is not None and arm.name in pictures]
    names = [*pair, *(name for name in pictures if name not in pair)]
    if decoding := [n for n in names if pictures[n].reconstructed is not None][:MOST]:
        shown_parts.append(_reconstructions({name: pictures[name] for name in decoding}, slug))
    if pair:
        shown_parts.append(_orbits({name: pictures[name] for name in pair}, slug))
    if not pictures:
        shown_parts.append(Missing("pictures of patches and codes", EVALUATE))
    return shown_parts, problems


def _reconstructions(pictures: dict[str, Pictures], slug: str) -> Strips:
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
        "Test patches, drawn at random by class, under the corruptions of the default training, "
        "the same for every model; each is reconstructed from the posterior mean of the corrupted "
        "patch. Below: PSNR to the clean patch in dB. Of several seeds, the lowest is shown."
    )
    headings = [CORRUPTIONS[kind].title for kind in KINDS]
    title = "What the models see, and what they reconstruct"
    return Strips(f"{slug}-reconstructions.png", title, headings, strips, caption)


def _noted(label: str, images: Pixels, psnr: np.ndarray) -> Strip:
    return Strip(label, images, ["" if value >= PSNR_CAP else f"{value:.1f}" for value in psnr])


def _orbits(pictures: dict[str, Pictures], slug: str) -> Strips:
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
        "A test patch under the elements of the symmetry group: rotations counter-clockwise, then "
        "mirrored and rotated. Below it the 4x4 cells of its code: red, green and blue are the "
        f"first three principal components of the cells of {SAMPLE} patches (share of the "
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
