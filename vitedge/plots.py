"""Pictures of results, as SVG files: they scale, and a browser shows them."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

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
