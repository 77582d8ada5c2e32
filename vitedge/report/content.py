"""What the page says, as values: read from the documents of a build, nothing measured here.

What a build did not measure is None, and the template says how to get it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.names import RUNTIME_NAMES
from vitedge.quantization import integer_search, search
from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.per_image import PerImage
from vitedge.quantization.recipe import Recipe
from vitedge.report import charts
from vitedge.report.devices import Device
from vitedge.report.images import JudgedImages
from vitedge.runtimes.manifest import Manifest
from vitedge.tables import accuracy_rows

_MOST_SENSITIVE = 10


@dataclass(frozen=True)
class Documents:
    """Of a build: its report, manifests by runtime, recipes by runtime (none for target npu), and its images."""

    report: Mapping[str, Any]
    manifests: Mapping[str, Manifest]
    recipes: Mapping[str, Recipe]
    images: JudgedImages | None


@dataclass(frozen=True)
class Card:
    """The verdict on an artifact: a badge if there is something to say at once, some large numbers, and words."""

    runtime: str
    badge: str
    is_good: bool
    numbers: tuple[tuple[str, str], ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An image shown: its number, the last part of its name and all of it, and a line below."""

    number: int
    name: str
    path: str
    text: str


@dataclass(frozen=True)
class WorstRow:
    """One of an artifact's worst images, and its nearest neighbors under FP32 and INT8."""

    image: Picture
    fp32: Picture
    int8: Picture

    @property
    def same(self) -> bool:
        return self.fp32.number == self.int8.number


@dataclass(frozen=True)
class Searched:
    """What a search of one runtime measured."""

    runtime: str
    steps: str
    curve: charts.Curve
    sensitivity: charts.Sensitivity
    columns: tuple[str, ...]
    most_sensitive: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Page:
    """Everything that the template shows."""

    title: str
    subtitle: str
    cards: tuple[Card, ...]
    best: str | None
    doubts: tuple[str, ...]
    random_weights: bool
    trade_off: charts.TradeOff | None
    machine: str | None
    runtimes: tuple[str, ...]
    numbers: Mapping[str, Mapping[str, Mapping[str, str]]]
    images: int
    distributions: charts.Distributions | None
    worst: Mapping[str, tuple[WorstRow, ...]]
    thumbnails: Mapping[int, bytes]
    searched: tuple[Searched, ...]
    devices: tuple[Device, ...]
    facts: Mapping[str, str]


def page(documents: Documents, devices: Sequence[Device]) -> Page:
    """Puts the page together; whatever is missing in a document is a KeyError, a TypeError or a ValueError."""
    report, manifests, images = documents.report, documents.manifests, documents.images
    per_image = images.artifacts if images else {}
    if unknown := {*per_image, *report["search"]} - RUNTIME_NAMES.keys():
        raise ValueError(f"expected artifacts {', '.join(RUNTIME_NAMES)}, found {', '.join(sorted(unknown))}")
    accuracy = {
        name: AccuracyReport.from_json(found, per_image.get(name, PerImage((), ())))
        for name, found in ({} if report["accuracy"] is None else report["accuracy"]).items()  # None in older builds
        if name in manifests
    }
    bench = report["bench"]
    pairs = {name: pair for name, pair in bench["pairs"].items() if name in manifests} if bench else {}
    drawable = {name: pair for name, pair in pairs.items() if name in accuracy}
    outputs = {name: found.outputs["last_hidden_state"] for name, found in accuracy.items()}
    return Page(
        title=Path(str(report["source"]["source"])).name,
        subtitle=_subtitle(report),
        cards=tuple(_card(name, manifests[name], accuracy.get(name), pairs.get(name), report) for name in manifests),
        best=str(bench["best"]["verdict"]) if bench else None,
        doubts=tuple(_doubts(bench, pairs)) if bench else (),
        random_weights=bool(report["source"]["random_weights"]),
        trade_off=charts.trade_off(drawable, outputs) if drawable else None,
        machine=_machine(bench) if bench else None,
        runtimes=tuple(manifests),
        numbers=_numbers(documents, accuracy, pairs),
        images=int(report["evaluation"]["images"]) if report["evaluation"] else 0,
        distributions=charts.distributions(images.artifacts, images.names) if images else None,
        worst={name: tuple(_worst(found, images.names)) for name, found in per_image.items()} if images else {},
        thumbnails=images.thumbnails if images else {},
        searched=tuple(_searched(name, found, documents.recipes) for name, found in report["search"].items()),
        devices=tuple(devices),
        facts=_facts(report, manifests),
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    judged = f", judged on {report['evaluation']['images']}" if report["evaluation"] else ""
    return f"INT8 for target {report['target']}, calibrated on {report['calibration']['images']} images{judged}"


def _machine(bench: Mapping[str, Any]) -> str:
    machine = bench["machine"]
    threads = f"{bench['threads']} thread{'s' * (bench['threads'] != 1)}"
    return f"{machine['cpu_model'] or machine['architecture']}, {machine['system']}; {threads}, batch {bench['batch']}"


def _doubts(bench: Mapping[str, Any], pairs: Mapping[str, Any]) -> Iterable[str]:
    yield from map(str, bench["flags"])
    for runtime, pair in pairs.items():
        yield from (f"{RUNTIME_NAMES[runtime]}: {flag}" for flag in pair["flags"])


def _card(
    runtime: str,
    manifest: Manifest,
    accuracy: AccuracyReport | None,
    pair: Mapping[str, Any] | None,
    report: Mapping[str, Any],
) -> Card:
    numbers, words = [], []
    refusals = [str(text) for text in report["gate_failures"] if str(text).startswith(f"{runtime}: ")]
    words += [f"refused by a gate: {text.removeprefix(f'{runtime}: ')}" for text in refusals]
    if pair is not None:
        if pair["speedup"] is not None:
            numbers.append((f"{pair['speedup']['median']:.2f}×", "as fast as FP32"))
        numbers.append((f"{pair['artifact']['latency_median_ms']:.2f} ms", "latency"))
        words.append(str(pair["verdict"]))
    if accuracy is not None:
        found = accuracy.outputs["last_hidden_state"]
        numbers += [(f"{found.cosine_mean:.5f}", "mean cosine to FP32"), (f"{found.sqnr_db:.1f} dB", "SQNR")]
        words += accuracy.verdicts
    numbers.append((f"{manifest.size_bytes / 1e6:.1f} MB", "on disk"))
    numbers.append((f"{manifest.operations.integer_share:.1%}", "of the work in integers"))
    best = report["bench"]["best"] if report["bench"] else None
    is_best = best is not None and (best["name"], best["precision"]) == (runtime, "int8")
    badge = "refused" if refusals else "best here" if is_best else ""
    return Card(runtime, badge, not refusals, tuple(numbers), tuple(words))


def _numbers(
    documents: Documents, accuracy: Mapping[str, AccuracyReport], pairs: Mapping[str, Any]
) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Every number by group, by what it is called, and by runtime; one that an artifact does not have is absent."""
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for runtime, manifest in documents.manifests.items():
        groups = {
            "Speed and size": {"file": f"{manifest.size_bytes / 1e6:.2f} MB"}
            | (_speed_rows(pairs[runtime]) if runtime in pairs else {}),
            "Accuracy": accuracy_rows(accuracy[runtime]) if runtime in accuracy else {},
            "Integers": _integer_rows(manifest, documents.recipes.get(runtime)),
        }
        for group, column in groups.items():
            for label, text in column.items():
                rows.setdefault(group, {}).setdefault(label, {})[runtime] = text
    return rows


def _speed_rows(pair: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    for side in ("artifact", "fp32"):
        if (found := pair[side]) is not None:
            precision = found["precision"].upper()
            rows[f"latency {precision}, median"] = f"{found['latency_median_ms']:.2f} ms"
            rows[f"latency {precision}, 90th percentile"] = f"{found['latency_p90_ms']:.2f} ms"
            rows[f"load {precision}"] = f"{found['load_ms']:.0f} ms"
            if found["peak_bytes"] is not None:
                rows[f"peak memory {precision}"] = f"{found['peak_bytes'] / 1e6:.1f} MB"
    if (ratio := pair["speedup"]) is not None:
        rows["speed-up over FP32 [95 %]"] = f"{ratio['median']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        rows["file INT8 / FP32"] = f"{pair['artifact']['size_bytes'] / pair['fp32']['size_bytes']:.3f}"
    return rows


def _integer_rows(manifest: Manifest, recipe: Recipe | None) -> dict[str, str]:
    operations, saturation = manifest.operations, manifest.saturation
    rows = {"integer share of MACs": f"{operations.integer_share:.1%}"}
    if recipe is not None:
        precisions = [recipe.precision(name) for name in operations.integer]
        rows["weights"] = recipe.weights
        rows["integer linears"] = ", ".join(f"{precisions.count(kind)} {kind}" for kind in dict.fromkeys(precisions))
    if operations.sixteen_bit:
        rows["16-bit activations"] = str(len(operations.sixteen_bit))
    rows["saturation"] = saturation.not_applicable or (
        "proven safe on every CPU" if saturation.proven_safe else "possible on x86 CPUs without VNNI"
    )
    rows["runtime needed"] = f"{manifest.minimum_runtime} or later"
    return rows


def _worst(found: PerImage, names: Sequence[str]) -> Iterable[WorstRow]:
    def picture(number: int, text: str) -> Picture:
        return Picture(number, names[number].rpartition("/")[2], names[number], text)

    for item in found.worst:
        yield WorstRow(
            picture(item.image, f"{item.cosine:.5f} to its FP32"),
            *(picture(near.image, f"cosine {near.cosine:.3f}") for near in (item.fp32, item.int8)),
        )


def _searched(runtime: str, found: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> Searched:
    recipe = recipes.get(runtime)
    if recipe is None:
        levels = {
            str(name): {"8 bits": float(value)}
            for name, value in found["sensitivity_db"].items()
            if not name.startswith(integer_search.HEADS)
        }
        key, steps = "sixteen_bit_tensors", "activations with 16 bits"
    else:
        levels = {
            str(name): {str(how): float(value) for how, value in by_precision.items()}
            for name, by_precision in found["sensitivity_db"].items()
            if name not in search.HEADS
        }
        key, steps = "steps", "steps from static to dynamic, then to float"
    kinds = tuple(dict.fromkeys(how for by_precision in levels.values() for how in by_precision))
    ranked = sorted(levels, key=lambda name: min(levels[name].values()))[:_MOST_SENSITIVE]
    rows = [
        (name, *(f"{levels[name][how]:.1f}" if how in levels[name] else "" for how in kinds))
        + ((recipe.precision(name),) if recipe else ())
        for name in ranked
    ]
    points = [
        (float(point[key]), float(point["sqnr_db"]), f"{point[key]} {steps}: {point['sqnr_db']:.2f} dB")
        for point in (*found["curve"], found["found"])
    ]
    return Searched(
        runtime=runtime,
        steps=steps,
        curve=charts.curve(points[:-1], points[-1]),
        sensitivity=charts.sensitivity(levels),
        columns=("module", *(f"{how}, dB" for how in kinds), *(("chosen",) if recipe else ())),
        most_sensitive=tuple(rows),
    )


def _facts(report: Mapping[str, Any], manifests: Mapping[str, Manifest]) -> Mapping[str, str]:
    source, seconds = report["source"], report["seconds"]
    facts = {
        "checkpoint": f"{source['digest'][:12]}…" + (f", revision {source['revision']}" if source["revision"] else ""),
        "plan": f"{report['plan_digest'][:12]}…",
        "calibration images": f"{report['calibration']['images']}, {report['calibration']['digest'][:12]}…",
    }
    if report["evaluation"]:
        facts["evaluation images"] = f"{report['evaluation']['images']}, {report['evaluation']['digest'][:12]}…"
    tools = next(iter(manifests.values())).tools
    facts["made with"] = ", ".join(f"{name} {version}" for name, version in tools.items())
    facts["build"] = ", ".join(f"{step} {value:.0f} s" for step, value in seconds.items())
    if report["peak_bytes"] is not None:
        facts["build"] += f"; {report['peak_bytes'] / 1e9:.1f} GB at its peak"
    return facts
