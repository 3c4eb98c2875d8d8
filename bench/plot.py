"""The picture of the ladder: images/s against the batch size, a line a rung."""

from pathlib import Path

from bench.table import Record


def against_batch_size(records: list[Record], target: Path) -> None:
    """Medians, with the range of all repeats as bars; a panel a preset. PNG, PDF or SVG.

    Args:
        records: those of `bench.ladder.measure`; rungs that were not measured are left out.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    measured = [r for r in records if "median" in r["images_per_s"]]
    presets = list(dict.fromkeys(r["preset"] for r in measured))
    figure, axes = plt.subplots(
        1, len(presets), figsize=(5 * len(presets), 4), sharey=True, squeeze=False
    )
    for axis, preset in zip(axes[0], presets, strict=True):
        mine = [r for r in measured if r["preset"] == preset]
        for rung in dict.fromkeys(r["rung"] for r in mine):
            points = [r for r in mine if r["rung"] == rung]
            rates = [r["images_per_s"] for r in points]
            middle = [r["median"] for r in rates]
            bars = [
                [m - r["low"] for m, r in zip(middle, rates, strict=True)],
                [r["high"] - m for m, r in zip(middle, rates, strict=True)],
            ]
            sizes = [r["batch_size"] for r in points]
            axis.errorbar(sizes, middle, bars, marker="o", capsize=3, label=rung)
        axis.set_xscale("log", base=2)
        axis.set(title=preset, xlabel="batch size")
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("images/s, whole steps")
    axes[0][-1].legend()
    figure.savefig(target, dpi=150, bbox_inches="tight")
    plt.close(figure)
