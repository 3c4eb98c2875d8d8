"""The README.md of a snapshot: a model card, which makes the folder a Hugging Face repository."""

from pathlib import Path

from common.console import log
from common.files import write_atomically
from eval.measure.readouts import PRIMARY
from eval.measure.scores import Condition, ScoreBook
from eval.report.arms import TestSet
from eval.report.document import Bullets, Code, Document, Section, Table, Text, number
from eval.report.writers import to_markdown
from eval.results import Equivariance, Latent, Reconstruction, Results, Robustness
from models.hub import SNAPSHOT

CARD = "README.md"
MARK = "<!-- Written by eval.main. Remove this line to keep your changes. -->"
# `license` has to be an identifier of the hub: the data decide, and this code does not know them
FRONT_MATTER = """---
license: unknown
library_name: eqdvae
pipeline_tag: image-feature-extraction
tags:
- histopathology
- variational-autoencoder
---
"""
USE = """from eval.encoder import load

encoder = load("OWNER/MODEL")  # or the folder of this file
features = encoder.encode(images)  # (n, 32, 32, 3) uint8 to (n, 384)"""
LIMITS = (
    "For research; not for diagnosis.",
    "The input is 32x32 RGB patches of H&E-stained tissue at the magnification of the data above; "
    "other stains, scanners and magnifications were not measured unless a table says so.",
    "The code is that of one run: scores of other seeds differ.",
    "The licence of the weights depends on that of the data: state it in the first lines of this "
    "file before publishing it.",
)


def write_card(run: Path, results: Results, book: ScoreBook | None) -> None:
    """Write RUN/snapshot/README.md from an evaluation.

    A card that was edited, which is one without MARK, stays.

    Args:
        book: scores of every test patch, for the intervals; None where there are no probes.
    """
    path = run / SNAPSHOT / CARD
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        log.info(f"notice: {path} was edited, so it stays as it is")
        return
    text = f"{FRONT_MATTER}\n{MARK}\n\n{to_markdown(_document(results, book))}"
    write_atomically(path, text.encode())


def _document(results: Results, book: ScoreBook | None) -> Document:
    run, model = results.run, results.model
    lead = (
        f"Encoder of 32x32 H&E patches: preset {run.preset}, seed {run.seed}, architecture "
        f"{model.architecture}, trained on {run.images_seen or 0:,} images."
    )
    return Document(
        f"{run.preset} of {model.architecture}",
        lead,
        [
            Section(2, "Use", [Code(USE)]),
            Section(2, "Data", _data(results)),
            Section(2, "Protocol", [Text(results.protocol.probe or "not probed")]),
            Section(2, "Scores", [_probes(results, book), _other_scores(results)]),
            Section(2, "Limits", [Bullets([*LIMITS, *results.notices])]),
        ],
    )


def _data(results: Results) -> list[Text | Table]:
    splits = results.protocol.splits
    rows = [
        [name, f"{split.patches or 0:,}", f"{split.groups or 0:,}", f"{split.unlabelled or 0:,}"]
        for name, split in splits.items()
    ]
    classes = ", ".join(results.protocol.classes or ()) or "none"
    trained = results.run.dataset_hash
    return [
        Text(
            f"Trained on data set {trained}, evaluated on {results.data.hash}. Classes: {classes}."
        ),
        Table("Patches", ["split", "patches", "groups", "unlabelled"], rows),
    ]


def _probes(results: Results, book: ScoreBook | None) -> Table | Text:
    """The table of AUROC on test, with intervals where the groups allow them."""
    if book is None:
        return Text("No probe was fitted: there were no labels.")
    test = TestSet.of(book, results.protocol.classes or ())
    rows, resampled = [], ""
    for name, scores in results.probe.items():
        auroc = test.interval(book.scores[Condition(name)][None])
        ends = "–" if auroc.low is None else f"{number(auroc.low)} to {number(auroc.high)}"
        if name == PRIMARY:
            resampled = auroc.resampled
        rows.append([name, str(scores.features), number(auroc.estimate), ends])
    header = ["features", "kind", "AUROC", "95 % interval"]
    return Table("Linear probe on test, macro AUROC", header, rows, f"Intervals: {resampled}.")


def _other_scores(results: Results) -> Table:
    reconstruction = results.reconstruction or Reconstruction()
    latent = results.latent or Latent()
    equivariance = results.equivariance or Equivariance()
    robustness = results.robustness or Robustness()
    rows = [
        ["PSNR of clean patches (dB)", number(reconstruction.psnr, 2)],
        ["KL (nats per patch)", number(latent.kl, 1)],
        ["active units", number(latent.active_units, 0)],
        ["relative equivariance error", number(equivariance.error, 4)],
        ["AUROC over corruptions and severities", number(robustness.area, 3)],
    ]
    title = f"Other scores, on {results.protocol.metrics_split or 'test'}"
    return Table(title, ["score", "value"], rows, "A dash: not measured.")
