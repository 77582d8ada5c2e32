"""What results look like in a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from vitedge.console import PlainConsole
from vitedge.names import RUNTIME_NAMES, pattern
from vitedge.runtimes.manifest import Manifest
from vitedge.runtimes.saturation import Saturation

_WIDTH = 112
_UNSAFE_NAMED = 5
RUN_ROWS = 10  # images of a run that its table shows
_INTERVALS = "± and [ ]: 95 % bootstrap interval over images; p: McNemar's exact test"


def show(*renderables: RenderableType) -> None:
    """Prints to stdout."""
    console = PlainConsole(highlight=False, markup=False)  # an image may be called [/b].png
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = max(console.width, _WIDTH)
    console.print(Group(*renderables))


def build_table(result: Any) -> RenderableType:
    """The table of a build: accuracy, size, speed and memory of each artifact, and verdicts in words below it."""
    table = Table(title=_title(result.report), title_justify="left", header_style="bold")
    table.add_column("")
    manifests: Mapping[str, Manifest] = result.manifests
    for runtime in manifests:
        table.add_column(RUNTIME_NAMES[runtime], justify="right", overflow="fold")
    columns = {runtime: _rows(result, runtime) for runtime in manifests}
    for label in next(iter(columns.values())):
        table.add_row(label, *(columns[runtime].get(label, "") for runtime in manifests))
    lines = _verdicts(result.accuracy)
    if result.bench:
        lines += _bench_words(result.bench)
    return Group(table, *lines)


def comparison_table(before: Any, after: Any, changes: Any) -> RenderableType:
    """What changed between two results, a row for each quantity of each artifact."""
    table = Table(title=f"{before.path} → {after.path}", title_justify="left", header_style="bold")
    for name in ("", "", "before", "after", "change", ""):
        table.add_column(name, justify="right" if name else "left")
    for change in changes:
        verdict = "no more than noise" if change.verdict == "noise" else change.verdict
        shown = (
            f"{change.change:.3f}×" if change.is_factor else f"{change.change:+.4g}{' dB' * ('dB' in change.quantity)}"
        )
        table.add_row(
            change.artifact,
            change.quantity,
            f"{change.before.value:.5g}",
            f"{change.after.value:.5g}",
            shown,
            f"{verdict}, doubtful" if change.doubts else verdict,
        )
    lines = dict.fromkeys(f"doubt: {change.artifact}, {doubt}" for change in changes for doubt in change.doubts)
    machines = [machine for machine in (before.machine, after.machine) if machine is not None]
    if len(set(machines)) > 1:
        return Group(table, f"of different machines: {machines[0]}, then {machines[1]}", *lines)
    return Group(table, *lines)


def accuracy_table(accuracy: Mapping[str, Any]) -> RenderableType:
    """Accuracy of artifacts against FP32, and verdicts in words below it."""
    table = Table(title="INT8 against PyTorch FP32", title_justify="left", header_style="bold")
    table.add_column("")
    for name in accuracy:
        table.add_column(RUNTIME_NAMES.get(name, name), justify="right")
    columns = {name: accuracy_rows(report) for name, report in accuracy.items()}
    for label in next(iter(columns.values())):
        table.add_row(label, *(columns[name].get(label, "") for name in accuracy))
    return Group(table, *_verdicts(accuracy))


def bench_table(report: Any) -> RenderableType:
    """Latency, load time, memory and size, INT8 above FP32 and rivals; below, verdicts and what to doubt, in words."""
    machine = report.machine
    pinned = f", CPU{'s' * (len(report.cpus) > 1)} {', '.join(map(str, report.cpus))}" if report.cpus else ""
    title = f"{machine.cpu_model or machine.architecture}, threads {report.threads}, batch {report.batch}{pinned}"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("", "", "median ms", "p90 ms", "IQR ms", "load ms", "peak MB", "file MB", "runs"):
        table.add_column(heading, justify="left" if not heading else "right")
    for runtime, pair in report.pairs.items():
        ours = [(result.precision.upper(), result) for result in (pair.artifact, pair.fp32) if result is not None]
        for label, result in [*ours, *((rival.name, rival.result) for rival in pair.rivals)]:
            table.add_row(
                RUNTIME_NAMES[runtime],
                label,
                f"{result.latency_median_ms:.2f}",
                f"{result.latency_p90_ms:.2f}",
                f"{result.latency_iqr_ms:.2f}",
                f"{result.load_ms:.0f}",
                _megabytes(result.peak_bytes),
                _megabytes(result.size_bytes),
                str(result.samples),
            )
    flags = ", ".join(machine.isa_flags) or "unknown"
    facts = f"instruction sets: {flags}; governor: {machine.governor or 'not reported'}"
    return Group(table, *_bench_words(report), facts)


def _bench_words(report: Any) -> list[str]:
    """Verdicts on artifacts, the best of them, and what makes the numbers doubtful."""
    lines = [f"{RUNTIME_NAMES[runtime]}: {report.verdict(runtime)}" for runtime in report.pairs]
    for runtime, pair in report.pairs.items():
        lines += [f"{RUNTIME_NAMES[runtime]}: {rival.verdict}" for rival in pair.rivals]
    lines.append(report.best.verdict)
    doubts = [*report.flags]
    for runtime, pair in report.pairs.items():
        doubts += [f"{RUNTIME_NAMES[runtime]}: {flag}" for flag in pair.flags]
    return [*lines, *(f"doubt: {doubt}" for doubt in doubts)]


def run_table(result: Any) -> RenderableType:
    """Classes of the first images, or the beginnings of their features, and how many there are."""
    table = Table(header_style="bold")
    table.add_column("image")
    table.add_column("classes" if "logits" in result.shapes else "class token (first values)")
    for row in result.rows:
        if row.cls is None:
            table.add_row(row.image, ", ".join(f"{label} {probability:.1%}" for label, probability in row.classes))
        else:
            table.add_row(row.image, " ".join(f"{value:+.3f}" for value in row.cls[:6]) + " …")
    lines = []
    if len(result.rows) < result.images:
        lines.append(f"the first {len(result.rows)} of {result.images} images; --json tells of all, --save saves all")
    if result.skipped:
        lines.append(f"{len(result.skipped)} files that cannot be read were skipped")
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in result.shapes.items())
    return Group(table, *lines, f"outputs: {shapes}")


def inspect_table(item: Any) -> RenderableType:
    """What an artifact is made of."""
    manifest: Manifest = item.manifest
    operations = manifest.operations
    table = Table(title=str(item.folder), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    source = manifest.source
    revision = f" at {source.revision}" if source.revision else ""
    table.add_row("source", f"{source.source}{revision} (digest {source.digest[:12]}…)")
    table.add_row("runtime", f"{RUNTIME_NAMES[manifest.runtime]}, {manifest.minimum_runtime} or later")
    if manifest.opsets:
        table.add_row("operators", ", ".join(f"{domain} {version}" for domain, version in manifest.opsets.items()))
    table.add_row("precision", f"{manifest.precision.upper()}, target {manifest.target}")
    table.add_row("size", f"{manifest.size_bytes / 1e6:.1f} MB in {', '.join(file.name for file in manifest.files)}")
    for kind, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            grid = "" if tensor.scale is None else f", scale {tensor.scale:.4g}, zero point {tensor.zero_point}"
            table.add_row(kind, f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {tensor.layout}{grid}")
    contract = manifest.preprocessing
    table.add_row(
        "preprocessing",
        f"{contract.resample} to {contract.height}×{contract.width}"
        + (
            ", then as it is"
            if contract.dtype == "uint8"
            else f", mean {list(contract.mean)}, std {list(contract.std)}"
        ),
    )
    what = f"{len(operations.integer)} linears{'' if operations.floating else ' and all between them'}"
    table.add_row("integer", f"{operations.integer_share:.1%} of {operations.total_macs / 1e9:.2f} GMAC, {what}")
    table.add_row("", ", ".join(_folded(operations.integer)))
    if operations.sixteen_bit:
        names = ", ".join(_folded(operations.sixteen_bit))
        table.add_row("16-bit", f"{len(operations.sixteen_bit)} activations: {names}")
    for name, reason in operations.floating.items():
        table.add_row("float", f"{name}: {reason}")
    table.add_row("saturation", _saturation(manifest.saturation))
    for verdict in item.fits:
        table.add_row("here", verdict)
    table.add_row("files", "match the manifest")
    return table


def _saturation(saturation: Saturation) -> str:
    if saturation.not_applicable is not None:
        return f"not applicable: {saturation.not_applicable}"
    if saturation.proven_safe:
        return f"proven safe on every CPU ({saturation.linears} linears, {saturation.pairs:,} pairs)"
    worst_first = sorted(saturation.unsafe.items(), key=lambda item: -item[1].max_excess)
    named = [f"{name} ({found.pairs:,} pairs, by up to {found.max_excess:,})" for name, found in worst_first]
    more = [f"and {len(named) - _UNSAFE_NAMED} more"] if len(named) > _UNSAFE_NAMED else []
    return f"can saturate on x86 CPUs without VNNI: {', '.join(named[:_UNSAFE_NAMED] + more)}"


def _title(report: Mapping[str, Any]) -> str:
    evaluation = report["evaluation"]
    judged = f", judged on {evaluation['images']}" if evaluation else ""
    calibrated = f"calibrated on {report['calibration']['images']} images"
    source = Path(report["source"]["source"])
    return f"{source.name if source.is_absolute() else source}: target {report['target']}, {calibrated}{judged}"


def _rows(result: Any, runtime: str) -> dict[str, str]:
    manifest = result.manifests[runtime]
    rows: dict[str, str] = {}
    if manifest.source.random_weights:
        rows["accuracy"] = "random weights"
    elif runtime in result.accuracy:
        rows |= accuracy_rows(result.accuracy[runtime])
    else:
        rows["accuracy"] = "no evaluation images"
    rows["integer share of MACs"] = f"{manifest.operations.integer_share:.1%}"
    rows["INT8 file"] = f"{manifest.size_bytes / 1e6:.2f} MB"
    if result.bench:
        pair = result.bench.pairs[runtime]
        rows["INT8 / FP32 file"] = f"{pair.artifact.size_bytes / pair.fp32.size_bytes:.3f}"
        rows["latency INT8"] = f"{pair.artifact.latency_median_ms:.2f} ms"
        rows["latency FP32"] = f"{pair.fp32.latency_median_ms:.2f} ms"
        rows["speed-up [95 %]"] = str(pair.speedup)
        rows["peak memory INT8 / FP32"] = (
            f"{_megabytes(pair.artifact.peak_bytes)} / {_megabytes(pair.fp32.peak_bytes)} MB"
        )
        rows["load INT8 / FP32"] = f"{pair.artifact.load_ms:.0f} / {pair.fp32.load_ms:.0f} ms"
    return rows


def _verdicts(accuracy: Mapping[str, Any]) -> list[str]:
    """What accuracy means, in words; what holds for several artifacts is said once."""
    said: dict[str, list[str]] = {}
    for name, report in accuracy.items():
        for verdict in report.verdicts:
            said.setdefault(verdict, []).append(RUNTIME_NAMES.get(name, name))
    return [_INTERVALS, *(f"{', '.join(names)}: {verdict}" for verdict, names in said.items())] if said else []


def accuracy_rows(report: Any) -> dict[str, str]:
    """Every number of an `AccuracyReport`, by what it is called."""
    hidden_state = report.outputs["last_hidden_state"]
    rows = _direction_rows("CLS", hidden_state) | _noise_rows("last_hidden_state", hidden_state)
    if report.patch_tokens:
        rows |= _direction_rows("patch", report.patch_tokens)
    for name, output in report.outputs.items():
        if output is not hidden_state:
            rows |= _direction_rows(name, output) | _noise_rows(name, output)
    if report.retrieval:
        rows |= _retrieval_rows(report.retrieval)
    if report.same_top_class:
        rows["top class agreement"] = _share(report.same_top_class)
    for drop in report.drops:
        rows[f"{drop.metric} FP32 → INT8"] = f"{drop.fp32:.1%} → {drop.int8:.1%}"
        rows[f"{drop.metric} drop [95 %]"] = f"{drop.drop:+.2%} [{drop.drop_low:+.2%}, {drop.drop_high:+.2%}]"
        rows[f"{drop.metric} lost, gained, p"] = f"{drop.lost}, {drop.gained}, {drop.p_value:.2g}"
    return rows


def _direction_rows(label: str, found: Any) -> dict[str, str]:
    return {
        f"{label} cosine mean": _spread(found.cosine_mean, found.cosine_mean_interval, ".5f"),
        f"{label} cosine 1st percentile": f"{found.cosine_p01:.5f}",
        f"{label} cosine worst": f"{found.cosine_worst:.5f}",
        f"{label} worst image": found.worst_image.rpartition("/")[2],
        f"{label} norm drift mean": _spread(found.norm_drift_mean, found.norm_drift_mean_interval, ".2%"),
        f"{label} norm drift worst": f"{found.norm_drift_worst:+.2%}",
    }


def _noise_rows(output: str, found: Any) -> dict[str, str]:
    return {
        f"SQNR {output}": f"{_spread(found.sqnr_db, found.sqnr_db_interval, '.2f')} dB",
        f"max error {output}": f"{found.max_abs_error:.4f}",
    }


def _retrieval_rows(found: Any) -> dict[str, str]:
    return {
        "1-NN agreement": _share(found.agreement_at_1),
        "10-NN overlap": _share(found.overlap_at_10),
        "INT8→FP32 index recall@1": _share(found.int8_query_recall_at_1),
        "INT8→FP32 index recall@10": _share(found.int8_query_recall_at_10),
        "FP32→INT8 index recall@1": _share(found.fp32_query_recall_at_1),
        "FP32→INT8 index recall@10": _share(found.fp32_query_recall_at_10),
        "finds itself in FP32 index": _share(found.self_retrieval),
    }


def _share(found: Any) -> str:
    return _spread(found.mean, found.interval, ".1%")


def _spread(value: float, interval: tuple[float, float] | None, style: str) -> str:
    """A value and the longer half of its interval; a single image has none."""
    half = "" if interval is None else f" ± {max(interval[1] - value, value - interval[0]):{style}}"
    return f"{value:{style}}{half}"


def _folded(names: tuple[str, ...]) -> list[str]:
    """Names with the layers' numbers counted: `layers.*.mlp.fc1 (12)`."""
    counts: dict[str, int] = {}
    for name in names:
        counts[pattern(name)] = counts.get(pattern(name), 0) + 1
    return [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:.1f}"
