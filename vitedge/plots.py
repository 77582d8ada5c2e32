"""Pictures of results, as SVG files: they scale, and a browser shows them."""

import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from vitedge.names import pattern
from vitedge.quantization.integer_search import IntegerSearchResult
from vitedge.quantization.recipe import Precision
from vitedge.quantization.search import SearchResult

_MARKERS: Mapping[Precision, str] = {"static": "o", "dynamic": "|"}


def plot_search(results: Mapping[str, SearchResult], path: Path) -> None:
    """What every step of the search changes: predicted SQNR, how many linears are dynamic and float, the integer share
    of multiply-accumulates; and the sensitivity of each linear. For every runtime; what was chosen is black.

    Args:
        results: By runtime.
        path: An .svg file to write.
    """
    figure = Figure(figsize=(8, 8 + 0.16 * max(len(found.sensitivity_db) for found in results.values())))
    gained, counts, share, dots = figure.subplots(4, 1, height_ratios=(2, 1.5, 1.5, 5))
    for index, (runtime, found) in enumerate(results.items()):
        color = f"C{index}"
        steps = [point.steps for point in found.curve]
        gained.plot(steps, [point.sqnr_db for point in found.curve], color=color, marker="o", label=runtime)
        gained.plot(found.found.steps, found.found.sqnr_db, color="black", marker="o", zorder=3)
        dynamic, floating = zip(*((point.dynamic_linears, point.float_linears) for point in found.curve), strict=True)
        counts.plot(steps, dynamic, color=color, linestyle="--", label=f"{runtime}: dynamic")
        counts.plot(steps, floating, color=color, label=f"{runtime}: float")
        share.plot(steps, [100 * point.integer_macs_share for point in found.curve], color=color)
        names = list(found.sensitivity_db)
        for precision, marker in _MARKERS.items():
            alone = [levels.get(precision, math.nan) for levels in found.sensitivity_db.values()]
            dots.plot(
                alone, range(len(names)), color=color, marker=marker, linestyle="", label=f"{runtime}: {precision}"
            )
        dots.set_yticks(range(len(names)), names, fontsize=6)
    gained.set(ylabel="predicted SQNR in dB", title="What the budget costs, step by step")
    counts.set(ylabel="linears")
    share.set(xlabel="steps: static to dynamic, then to float", ylabel="MACs in integers, %")
    dots.set(xlabel="SQNR in dB with this linear alone in INT8 (left: harmful)", title="Sensitivity")
    dots.invert_yaxis()
    dots.grid(axis="x", alpha=0.3)
    for axes in (gained, counts, dots):
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


def plot_integer_search(found: IntegerSearchResult, path: Path) -> None:
    """Predicted SQNR over the number of 16-bit activations, and the sensitivity of each kind of activation.

    Args:
        found: Of target npu.
        path: An .svg file to write.
    """
    kinds: dict[str, list[float]] = {}
    for name, sqnr_db in found.sensitivity_db.items():
        kinds.setdefault(pattern(name), []).append(sqnr_db)
    figure = Figure(figsize=(8, 4 + 0.2 * len(kinds)))
    curve, dots = figure.subplots(2, 1, height_ratios=(1, 2))
    counts = [point.sixteen_bit_tensors for point in found.curve]
    curve.plot(counts, [point.sqnr_db for point in found.curve], marker="o")
    curve.plot(found.found.sixteen_bit_tensors, found.found.sqnr_db, marker="o", color="black", label="chosen")
    curve.set(xlabel="activations with 16 bits", ylabel="predicted SQNR in dB", title="What the budget costs")
    curve.legend()
    for row, values in enumerate(kinds.values()):
        dots.plot(values, [row] * len(values), marker="o", linestyle="", color="tab:blue", alpha=0.5)
    dots.set_yticks(range(len(kinds)), list(kinds), fontsize=7)
    dots.set(xlabel="SQNR in dB with this activation alone in 8 bits (left: harmful)", title="Sensitivity, every layer")
    dots.invert_yaxis()
    dots.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
