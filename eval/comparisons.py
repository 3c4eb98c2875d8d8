"""Pictures that compare runs, drawn from their results: probes, denoising, equivariance.

`runs` maps the label of each run to its results.json; numbers that are missing are left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eval.figures import COLOURS, KIND_TITLES, MARKERS, grid, plain, save, style
from eval.metrics import ELEMENTS
from pipeline.corrupt import KINDS

Runs = Mapping[str, dict[str, Any]]

SPREAD = 0.6  # of the unit between two positions that the runs share


def probes(runs: Runs, baselines: Mapping[str, float], path: Path) -> Path:
    """AUROC on test of every readout of every run, and below them the baselines."""
    readouts = list(dict.fromkeys(
        name
        for results in runs.values()
        for name, entry in results["probe"].items()
        if entry["features"] == "readout"
    ))  # fmt: skip
    names = [*map(plain, runs), *map(plain, baselines)]
    figure = Figure((8.0, 1.7 + 0.3 * len(names)), layout="constrained")
    ax = figure.subplots()
    for row, results in enumerate(runs.values()):
        for i, name in reversed(list(enumerate(readouts))):
            value = results["probe"].get(name, {}).get("auroc", np.nan)
            size = 8 if i == 0 else 5
            ax.plot(value, row, ls="", ms=size, color=COLOURS[i], marker=MARKERS[i], alpha=0.9)
    rows = range(len(runs), len(names))
    ax.plot([*baselines.values()], rows, ls="", ms=7, color="#555555", marker="|", mew=2)
    if baselines:
        ax.axvline(max(baselines.values()), color="#555555", lw=0.8, ls=":")
        ax.axhline(len(runs) - 0.5, color="#BBBBBB", lw=0.8)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("macro AUROC on test")
    ax.set_title("Linear probes; dotted: the best baseline", fontsize=11)
    grid(ax)
    keys = [
        Line2D([], [], ls="", color=COLOURS[i], marker=MARKERS[i], label=name)
        for i, name in enumerate(readouts)
    ]
    keys.append(Line2D([], [], ls="", color="#555555", marker="|", mew=2, label="baseline"))
    figure.legend(handles=keys, loc="outside lower center", ncols=5, fontsize=8)
    return save(figure, path)


def denoising(runs: Runs, path: Path) -> Path:
    """PSNR to the clean patch by corruption kind: of the input, and of each run's output."""
    figure = Figure((8.0, 4.2 + 0.2 * len(runs) / 3), layout="constrained")
    ax = figure.subplots()
    inputs = [_of(next(iter(runs.values())), kind, "input_psnr") for kind in KINDS]
    for position, value in enumerate(inputs):
        ax.hlines(value, position - 0.4, position + 0.4, color="#555555", lw=1.5, label="input")
    for i, (name, results) in enumerate(runs.items()):
        values = [_of(results, kind, "psnr") for kind in KINDS]
        x = np.arange(len(KINDS)) + _offset(i, len(runs))
        ax.plot(x, values, ls="", ms=7, label=plain(name), **style(i))
    ax.set_xticks(range(len(KINDS)), [KIND_TITLES[kind] for kind in KINDS])
    ax.set_ylabel("PSNR to the clean patch (dB)")
    ax.set_title("Reconstruction of corrupted patches", fontsize=11)
    grid(ax)
    figure.legend(*_once(ax.get_legend_handles_labels()), loc="outside lower center", ncols=3,
                  fontsize=8)  # fmt: skip
    return save(figure, path)


def equivariance(runs: Runs, path: Path) -> Path:
    """The relative error of every element of D4 by run: 0 exact, about 1 unrelated."""
    figure = Figure((9.0, 4.4 + 0.2 * len(runs) / 3), layout="constrained")
    ax = figure.subplots()
    elements = ELEMENTS[1:]
    for i, (name, results) in enumerate(runs.items()):
        errors = results["equivariance"]["by_element"]
        values = [_number(errors.get(element)) for element in elements]
        x = np.arange(len(elements)) + _offset(i, len(runs))
        ax.plot(x, values, ls="", ms=7, label=plain(name), **style(i))
    ax.axhline(1.0, color="#555555", lw=0.8, ls=":")
    ax.set_xticks(range(len(elements)), [e.replace(" ", "\n", 1) for e in elements], fontsize=9)
    ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    ax.set_ylabel("relative equivariance error")
    ax.set_title("Does the code move with the patch? 0 exact, about 1 unrelated", fontsize=11)
    grid(ax)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return save(figure, path)


def _of(results: dict[str, Any], kind: str, name: str) -> float:
    return _number(results["reconstruction"]["by_kind"][kind][name])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _offset(i: int, count: int) -> float:
    return SPREAD * ((i + 0.5) / count - 0.5)


def _once(found: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[str]]:
    """Handles and labels, each label once."""
    unique = dict(zip(found[1], found[0], strict=True))
    return list(unique.values()), list(unique)
