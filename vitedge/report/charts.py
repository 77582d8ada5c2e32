"""Geometry of the page's charts.

Horizontal positions are percentages of the drawing's width and vertical ones pixels, so that a chart fills any width,
a phone's or a sheet of paper's, with text of one size. The template draws them as inline SVG.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from vitedge.names import RUNTIME_NAMES, pattern
from vitedge.quantization.per_image import PerImage

_BINS = 60
_MOST_NINES = 8.0  # as many decimals as cosines are kept with
_RADIUS = 13.0  # of the largest file
_LINE = 15  # pixels between the baselines of two labels


@dataclass(frozen=True)
class Tick:
    """A line across the chart, and what is written at its end."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Positions of values from `low` to `high`, which lie at `begin` and `end`."""

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[Tick, ...]

    def __call__(self, value: float) -> float:
        return _position(value, self.low, self.high, self.begin, self.end)


@dataclass(frozen=True)
class Model:
    """A file in the trade-off: a circle whose area is its size, with intervals of latency and of SQNR."""

    runtime: str
    precision: str
    x: float
    y: float
    radius: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    label_y: float
    text: str


@dataclass(frozen=True)
class TradeOff:
    """Latency against SQNR. FP32 has no noise; its models lie in a band of their own above `band`."""

    x: Axis
    y: Axis
    band: float
    int8: tuple[Model, ...]
    fp32: tuple[Model, ...]


@dataclass(frozen=True)
class Bar:
    """Of a histogram."""

    x: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point with a tooltip; `style` is a class of the style sheet."""

    x: float
    y: float
    text: str
    style: str = ""


@dataclass(frozen=True)
class Distribution:
    """A histogram of one artifact's cosines, with its mean, and its worst images below."""

    runtime: str
    bars: tuple[Bar, ...]
    mean: float
    worst: tuple[Mark, ...]
    text: str


@dataclass(frozen=True)
class Distributions:
    """Histograms of all artifacts over one axis."""

    x: Axis
    artifacts: tuple[Distribution, ...]


@dataclass(frozen=True)
class Row:
    """Modules of one kind, each where its SQNR is."""

    kind: str
    y: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Sensitivity:
    """SQNR of the output with one module alone in INT8, a row for each kind of module."""

    x: Axis
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Curve:
    """Predicted SQNR over the steps of a search; the chosen point last."""

    x: Axis
    y: Axis
    points: tuple[Mark, ...]
    chosen: Mark


def trade_off(pairs: Mapping[str, Any], outputs: Mapping[str, Any]) -> TradeOff:
    """Places every file that was both benchmarked and judged.

    Args:
        pairs: By runtime, as in a benchmark's document.
        outputs: Of `last_hidden_state` (`OutputAccuracy`), by runtime.
    """
    band, bottom = 2 * _RADIUS * len(pairs) + 8, 350.0
    found = {runtime: [pair[side] for side in ("artifact", "fp32") if pair[side]] for runtime, pair in pairs.items()}
    results = [result for both in found.values() for result in both]
    largest = max(float(result["size_bytes"]) for result in results)
    x = _axis([0.0, *(float(result["latency_interval_ms"][1]) for result in results)], 0, 100)
    intervals = {name: output.sqnr_db_interval or (output.sqnr_db,) * 2 for name, output in outputs.items()}
    y = _axis([value for interval in intervals.values() for value in interval], bottom, band + 22)
    int8: list[Model] = []
    fp32: list[Model] = []
    for row, (runtime, both) in enumerate(found.items()):
        for result in both:
            exact = result["precision"] == "fp32"
            at = _RADIUS * (2 * row + 1) + 2 if exact else y(outputs[runtime].sqnr_db)
            latency, size = float(result["latency_median_ms"]), float(result["size_bytes"])
            low, high = result["latency_interval_ms"]
            accuracy = "exact" if exact else f"{outputs[runtime].sqnr_db:.1f} dB"
            model = Model(
                runtime=runtime,
                precision=result["precision"].upper(),
                x=x(latency),
                y=at,
                radius=round(max(3.0, _RADIUS * math.sqrt(size / largest)), 1),
                x_interval=(x(low), x(high)),
                y_interval=(at, at) if exact else (y(intervals[runtime][0]), y(intervals[runtime][1])),
                label_y=at,
                text=f"{RUNTIME_NAMES[runtime]} {result['precision'].upper()}: {latency:.2f} ms, {accuracy},"
                f" {size / 1e6:.1f} MB",
            )
            (fp32 if exact else int8).append(model)
    return TradeOff(x, y, band, tuple(_with_room(int8)), tuple(fp32))


def distributions(artifacts: Mapping[str, PerImage], names: Sequence[str]) -> Distributions:
    """Histograms of cosines on a logarithmic axis of their distance to 1, nearer to the right."""
    nines = {name: np.array([_nines(value) for value in found.cosines]) for name, found in artifacts.items()}
    every = np.concatenate(list(nines.values()))
    low, high = math.floor(every.min()), math.ceil(every.max())
    high = max(high, low + 1)
    ticks = tuple(
        Tick(_position(n, low, high, 0, 100), f"{1 - 10.0**-n:.{max(n, 0)}f}") for n in range(max(low, 0), high + 1)
    )
    x = Axis(low, high, 0, 100, ticks)
    edges = np.linspace(low, high, _BINS + 1)
    counts = {name: np.histogram(values, edges)[0] for name, values in nines.items()}
    tallest = max(int(found.max()) for found in counts.values())
    rows = []
    for name, found in artifacts.items():
        bars = [
            Bar(
                x(left),
                round(100 / _BINS, 3),
                round(54 * count / tallest, 1),
                f"{count} images from {max(-1, 1 - 10**-left):.6f} to {1 - 10**-right:.6f}",
            )
            for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts[name].tolist(), strict=True)
            if count
        ]
        mean = float(np.mean(found.cosines))
        worst = [Mark(x(_nines(item.cosine)), 0, f"{names[item.image]}: {item.cosine:.5f}") for item in found.worst]
        text = f"mean {mean:.5f}, worst {min(found.cosines):.5f}"
        rows.append(Distribution(name, tuple(bars), x(_nines(mean)), tuple(worst), text))
    return Distributions(x, tuple(rows))


def sensitivity(levels: Mapping[str, Mapping[str, float]]) -> Sensitivity:
    """Places modules by SQNR, in dB by module and precision."""
    x = _axis([value for found in levels.values() for value in found.values()], 0, 100)
    kinds: dict[str, list[tuple[str, str, float]]] = {}
    for name, found in levels.items():
        kinds.setdefault(pattern(name), []).extend((name, precision, value) for precision, value in found.items())
    rows = []
    for index, (kind, members) in enumerate(kinds.items()):
        y = 30.0 + 34 * index
        marks = [Mark(x(value), y, f"{name}, {how}: {value:.1f} dB", how) for name, how, value in members]
        rows.append(Row(kind, y, tuple(marks)))
    return Sensitivity(x, tuple(rows))


def curve(points: Iterable[tuple[float, float, str]], chosen: tuple[float, float, str]) -> Curve:
    """A line through points of (count, SQNR in dB, text), in order."""
    drawn = list(points)
    x = _axis([count for count, _, _ in drawn], 0, 100)
    y = _axis([value for _, value, _ in drawn], 190, 16)
    marks = [Mark(x(count), y(value), text) for count, value, text in (*drawn, chosen)]
    return Curve(x, y, tuple(marks[:-1]), marks[-1])


def _nines(cosine: float) -> float:
    """Decimal digits of agreement: 3 for 0.999; -0.3 at the least, for a cosine of -1."""
    return -math.log10(max(1 - cosine, 10**-_MOST_NINES))


def _axis(values: Iterable[float], begin: float, end: float) -> Axis:
    """An axis between round numbers that holds all values, with a tick at each."""
    found = [_finite(value) for value in values]
    marks = [float(mark) for mark in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(min(found), max(found))]
    low, high = marks[0], marks[-1]
    ticks = tuple(Tick(_position(mark, low, high, begin, end), f"{mark:.6g}") for mark in marks)
    return Axis(low, high, begin, end, ticks)


def _position(value: float, low: float, high: float, begin: float, end: float) -> float:
    return round(begin + (_finite(value) - low) / (high - low) * (end - begin), 2)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected a number to draw, found {value}")
    return float(value)


def _with_room(models: Sequence[Model]) -> Iterator[Model]:
    """Labels moved down where they would lie on the one above."""
    last = -math.inf
    for model in sorted(models, key=lambda model: model.y):
        last = max(model.y, last + _LINE)
        yield replace(model, label_y=last)
