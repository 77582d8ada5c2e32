"""Pictures of results, as SVG files: they scale, and a browser shows them."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from vitedge.quantization.integer_search import IntegerSearchResult
from vitedge.quantization.search import SearchResult


def plot_search(results: Mapping[str, SearchResult], path: Path) -> None:
    """Predicted SQNR over the number of float linears, and the sensitivity of each linear, for every runtime.

    Args:
        results: By runtime.
        path: An .svg file to write.
    """
    figure = Figure(figsize=(8, 3.5 + 0.16 * max(len(found.sensitivity_db) for found in results.values())))
    curve, bars = figure.subplots(2, 1, height_ratios=(1, 2))
    for runtime, found in results.items():
        counts = [point.float_linears for point in found.curve]
        curve.plot(counts, [point.sqnr_db for point in found.curve], marker="o", label=runtime)
        names = list(found.sensitivity_db)
        bars.plot(list(found.sensitivity_db.values()), range(len(names)), marker="o", linestyle="", label=runtime)
        bars.set_yticks(range(len(names)), names, fontsize=6)
    curve.set(xlabel="linears kept in float", ylabel="predicted SQNR in dB", title="What the budget costs")
    curve.legend()
    bars.set(xlabel="SQNR in dB with this linear alone in INT8 (left: harmful)", title="Sensitivity")
    bars.invert_yaxis()
    bars.grid(axis="x", alpha=0.3)
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
        kinds.setdefault(".".join("*" if part.isdigit() else part for part in name.split(".")), []).append(sqnr_db)
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
