"""`vitedge build`: a checkpoint and a folder of images in, proven INT8 artifacts out.

The order is the argument: load, calibrate, export in FP32 and check that against PyTorch, only then quantize; measure
accuracy against PyTorch on images that calibration did not see, refuse what lost too much; measure speed and memory in
fresh processes; put everything in place at once.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from vitedge.benchmarks.measure import BenchReport, measure_all
from vitedge.calibration.images import ImageSet, batches, hold_out, refuse_overlap, scan, too_few_warning
from vitedge.commands.npu import DEFAULT_BUDGET, IntegerActivations, plan_for_npu
from vitedge.commands.planning import Activations, calibrate, choose_recipes, search_runtimes
from vitedge.commands.verify import judge
from vitedge.console import Console
from vitedge.converters.artifact import REPORT_FILE, REPORT_FORMAT, check_replaceable, replacing_folder
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from vitedge.converters.lower import RUNTIMES, export_error, lower, lower_for_npu
from vitedge.plots import plot_integer_search, plot_search
from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.gates import NO_GATES, Gates, check, doubts
from vitedge.quantization.integer_plan import load_integer_decisions
from vitedge.quantization.integer_search import IntegerSearchResult
from vitedge.quantization.plan import TARGETS, Plan, Recipe
from vitedge.quantization.quantize import STRENGTHS, Calibration, make_plan
from vitedge.quantization.ranges import RangeMethod
from vitedge.quantization.saved_plan import SavedPlan
from vitedge.quantization.search import Budget, SearchResult
from vitedge.runtimes.errors import GateFailedError, PlanError
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest

NPU = "npu"
_EXPORT_CHECK_IMAGES = 4
_HELD_OUT_IMAGES = 256


@dataclass(frozen=True)
class BuildRequest:
    """What to build. `source` is a checkpoint folder or hub id, or a preset if `random_weights`.

    `plan` is a `plan.json` whose decisions replace the target's own; `activations` dynamic gives every linear a range
    per row, static none; int8 and int16 are for target npu, which makes TFLite files only, with `integer_io` ones
    whose input and outputs are integers. `portable` ONNX files have standard operators only. Without `evaluation`,
    images of `images` that calibration did not take are held out to judge on. `batch` None means any.
    `bench_seconds` 0 skips the benchmark, as target npu does.
    """

    source: str
    images: Path
    out: Path
    evaluation: Path | None = None
    runtimes: tuple[str, ...] = RUNTIMES
    target: str = "avx2"
    plan: Path | None = None
    activations: Activations | IntegerActivations = "auto"
    integer_io: bool = False
    portable: bool = False
    ranges: RangeMethod = "min-max"
    calibration_images: int = 128
    image_size: int | None = None
    revision: str | None = None
    random_weights: bool = False
    seed: int = 0
    batch: int | None = None
    keep_fp32: bool = False
    keep_failing: bool = False
    gates: Gates = NO_GATES
    bench_seconds: float = 8.0
    threads: int = 1

    def __post_init__(self) -> None:
        unknown = [runtime for runtime in self.runtimes if runtime not in RUNTIMES]
        if unknown or not self.runtimes:
            raise PlanError(f"--runtime: expected some of {', '.join(RUNTIMES)}, found {', '.join(unknown) or 'none'}")
        if self.target not in (*TARGETS, NPU):
            raise PlanError(f"--target: expected one of {', '.join((*TARGETS, NPU))}, found {self.target}")
        if self.target == NPU and self.runtimes != ("tflite",):
            raise PlanError(f"--target {NPU} makes TFLite files only: pass --runtime tflite, or no --runtime")
        if self.integer_io and self.target != NPU:
            raise PlanError(f"--integer-io is for --target {NPU}; the input and outputs of CPU artifacts are float")
        if self.portable and "onnx" not in self.runtimes:
            raise PlanError("--portable is for ONNX artifacts; leave it out, or add --runtime onnx")
        known = ("auto", "int8", "int16") if self.target == NPU else ("auto", "static", "dynamic")
        if self.activations not in known:
            expected = f"expected {', '.join(known)} for target {self.target}"
            raise PlanError(f"--activations: {expected}, found {self.activations}")
        if self.plan is not None and self.activations != "auto":
            raise PlanError("--plan decides how inputs are quantized; leave --activations out, or edit the plan")
        if self.target == NPU and self.ranges != "min-max":
            raise PlanError(f"--ranges: target {NPU} has min-max ranges only; clipping is ruinous there")
        for name, value in (("--calibration-images", self.calibration_images), ("--batch", self.batch or 1)):
            if value < 1:
                raise PlanError(f"{name}: expected at least 1, found {value}")


@dataclass(frozen=True)
class BuildResult:
    """What was built: manifests with their measurements, by runtime, and the report as written to `report.json`."""

    out: Path
    manifests: Mapping[str, Manifest]
    accuracy: Mapping[str, AccuracyReport]
    bench: BenchReport | None
    report: Mapping[str, Any]


def build(request: BuildRequest, console: Console) -> BuildResult:
    """Builds, proves, measures, and puts in place.

    Raises:
        GateFailedError: An artifact lost more than the gates allow; nothing was put in place.
        VitedgeError: The input was wrong (see the subclasses in `runtimes/errors.py`).
    """
    clock = _Clock()
    check_replaceable(request.out)
    with clock("load"), console.step("Loading the checkpoint"):
        checkpoint = _load(request)
    recipes = _check_plan(request, checkpoint)
    calibration, evaluation = _image_sets(request, console)
    _refuse_blind_gates(request, evaluation)
    with replacing_folder(request.out) as new:
        if request.target == NPU:
            planned = _plan_npu(request, checkpoint, calibration, clock, console)
        else:
            planned = _plan_cpu(request, recipes, checkpoint, calibration, clock, console)
        if planned.searches:
            planned.plot(new / "search.svg")
        planned.plan.save(new)
        with clock("convert"):
            manifests, errors = _convert(request, checkpoint, planned, calibration, new, console)
        folders = {runtime: new / runtime for runtime in request.runtimes}
        accuracy: Mapping[str, AccuracyReport] = {}
        if evaluation is not None:
            with clock("judge"):
                accuracy = judge(checkpoint, folders, evaluation, console)
        failures = _failures(accuracy, request)
        for doubt in _doubts(accuracy, request):
            console.warn(doubt)
        bench = None
        if request.bench_seconds and request.target != NPU and (not failures or request.keep_failing):
            with clock("bench"):
                bench = _bench(request, new, console)
        manifests = _finish(manifests, accuracy, bench, folders)
        report = _report(
            request, checkpoint, planned, calibration, evaluation, errors, accuracy, bench, clock, failures
        )
        (new / REPORT_FILE).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        result = BuildResult(request.out, manifests, accuracy, bench, report)
        if failures and not request.keep_failing:
            raise BuildRefusedError(failures, request.out, result)
        if not request.keep_fp32:
            shutil.rmtree(new / "fp32")
    return result


class BuildRefusedError(GateFailedError):
    """The gates refused an artifact; carries what was measured, so that it can be shown."""

    def __init__(self, failures: tuple[str, ...], out: Path, result: BuildResult) -> None:
        lines = "\n".join(f"  {failure}" for failure in failures)
        super().__init__(
            f"refused, too much was lost:\n{lines}\n"
            f"{out} is as it was before; --keep-failing puts the artifacts in place"
        )
        self.result = result


class _Clock:
    """Seconds by named step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def _load(request: BuildRequest) -> Checkpoint:
    if request.random_weights:
        return random_checkpoint(request.source, seed=request.seed, image_size=request.image_size)
    return load_checkpoint(request.source, revision=request.revision, image_size=request.image_size)


def _image_sets(request: BuildRequest, console: Console) -> tuple[ImageSet, ImageSet | None]:
    """Calibration images, and those to judge on."""
    with console.bar("Reading calibration images") as advance:
        calibration = scan(request.images, request.calibration_images, advance)
    evaluation: ImageSet | None
    with console.bar("Reading evaluation images") as advance:
        if request.evaluation is not None:
            evaluation = scan(request.evaluation, None, advance)
        else:
            evaluation = hold_out(calibration, _HELD_OUT_IMAGES, advance)
    for name, images in (("calibration", calibration), ("evaluation", evaluation)):
        for path, reason in images.skipped if images else ():
            console.warn(f"{name} image skipped: {path}: {reason}")
    if evaluation is None:
        console.warn("no images left to judge on: pass --eval DIR to measure accuracy")
    else:
        refuse_overlap(calibration, evaluation)
    if warning := too_few_warning(calibration):
        console.warn(warning)
    return calibration, evaluation


def _refuse_blind_gates(request: BuildRequest, evaluation: ImageSet | None) -> None:
    """A gate that nothing could trip is refused before any work is done."""
    if not request.gates.any:
        return
    if request.random_weights:
        raise PlanError("--random-weights: there is no accuracy that a gate could judge; leave the gates out")
    if evaluation is None:
        raise PlanError("--max-drop, --min-cosine and --min-sqnr need images to judge on: pass --eval DIR")
    if request.gates.max_drop is not None and not evaluation.labels:
        raise PlanError(f"--max-drop needs labelled images: expected a sub-folder per class in {evaluation.folder}")


@dataclass(frozen=True)
class _Planned:
    """A finished plan, how it was found, and what a conversion does with it.

    `lower` takes a runtime, a folder to make, and what manifests say of the calibration.
    """

    plan: SavedPlan
    lower: Callable[[str, Path, Mapping[str, object]], Manifest]
    searches: Mapping[str, SearchResult | IntegerSearchResult]
    plot: Callable[[Path], None]


def _check_plan(request: BuildRequest, checkpoint: Checkpoint) -> Mapping[str, Recipe]:
    """Recipes of CPU targets; a plan that does not fit is told before any work."""
    if request.target != NPU:
        activations = cast("Activations", request.activations)
        return choose_recipes(request.runtimes, request.target, activations, request.plan, checkpoint)
    if request.plan is not None:
        load_integer_decisions(request.plan).check(checkpoint.origin.digest)
    return {}


def _plan_cpu(
    request: BuildRequest,
    recipes: Mapping[str, Recipe],
    checkpoint: Checkpoint,
    images: ImageSet,
    clock: "_Clock",
    console: Console,
) -> _Planned:
    with clock("calibrate"):
        observed = calibrate(checkpoint, images, console)
    with clock("plan"):
        plan, smoothed = _round(request, recipes, checkpoint, observed, console)
    searches: Mapping[str, SearchResult] = {}
    if (budget := _budget(request)) is not None:
        with clock("search"):
            allow_dynamic = request.activations != "static"
            plan, searches = search_runtimes(
                plan, smoothed, budget, checkpoint, images, console, allow_dynamic=allow_dynamic
            )

    def lower_plan(runtime: str, folder: Path, calibration: Mapping[str, object]) -> Manifest:
        return lower(
            runtime,
            folder,
            encoder=smoothed,
            linears=plan.linears(runtime),
            checkpoint=checkpoint,
            plan=plan,
            batch=request.batch,
            calibration=calibration,
            portable=request.portable,
        )

    return _Planned(plan, lower_plan, searches, lambda path: plot_search(searches, path))


def _plan_npu(
    request: BuildRequest, checkpoint: Checkpoint, images: ImageSet, clock: "_Clock", console: Console
) -> _Planned:
    if request.bench_seconds:
        console.note("No benchmark: integers throughout are for accelerators, a CPU runs them in plain loops")
    with clock("plan"):
        plan, found = plan_for_npu(
            checkpoint,
            images,
            activations=cast("IntegerActivations", request.activations),
            plan=request.plan,
            budget=_budget(request) or DEFAULT_BUDGET,
            console=console,
        )

    def lower_plan(_runtime: str, folder: Path, calibration: Mapping[str, object]) -> Manifest:
        return lower_for_npu(
            folder,
            checkpoint=checkpoint,
            plan=plan,
            batch=request.batch,
            calibration=calibration,
            integer_io=request.integer_io,
        )

    searches = {} if found is None else {"tflite": found}
    return _Planned(plan, lower_plan, searches, lambda path: plot_integer_search(searches["tflite"], path))


def _round(
    request: BuildRequest,
    recipes: Mapping[str, Recipe],
    checkpoint: Checkpoint,
    calibration: Calibration,
    console: Console,
) -> tuple[Plan, Encoder]:
    # Random weights have no accuracy that a strength could be chosen by.
    strengths = STRENGTHS[:1] if request.random_weights else STRENGTHS
    with console.bar("Rounding weights", len(strengths) * len(checkpoint.encoder.shape.linears)) as advance:
        return make_plan(
            checkpoint.encoder,
            calibration,
            recipes=recipes,
            target=request.target,
            checkpoint_digest=checkpoint.origin.digest,
            strengths=strengths,
            range_method=request.ranges,
            progress=lambda _: advance(1),
        )


def _budget(request: BuildRequest) -> Budget | None:
    """What to search for. A plan that was asked for is taken as it is; a drop of accuracy is for the gate to judge."""
    gates = request.gates
    asked = gates.min_sqnr_db is not None or gates.min_cosine is not None
    return Budget(gates.min_sqnr_db, gates.min_cosine) if asked and request.plan is None else None


def _convert(
    request: BuildRequest,
    checkpoint: Checkpoint,
    planned: _Planned,
    calibration: ImageSet,
    new: Path,
    console: Console,
) -> tuple[dict[str, Manifest], dict[str, float]]:
    """FP32 and INT8 artifacts of every runtime, and the export error of the former."""
    record = {"digest": calibration.digest, "images": len(calibration.paths)}
    pixels = next(batches(calibration, checkpoint.preprocessing, _EXPORT_CHECK_IMAGES))
    expected = checkpoint.reference()(pixels)
    manifests, errors = {}, {}
    for runtime in request.runtimes:
        with console.step(f"Exporting {runtime} in FP32 and checking it against PyTorch"):
            twin = new / "fp32" / runtime
            lower(
                runtime,
                twin,
                encoder=checkpoint.encoder,
                linears={},
                checkpoint=checkpoint,
                plan=planned.plan,
                batch=request.batch,
                calibration=record,
            )
            errors[runtime] = export_error(twin, pixels, expected)
        with console.step(f"Lowering the plan to {runtime}"):
            manifests[runtime] = planned.lower(runtime, new / runtime, record)
            load_encoder(new / runtime)  # the runtime accepts it
    return manifests, errors


def _failures(accuracy: Mapping[str, AccuracyReport], request: BuildRequest) -> tuple[str, ...]:
    if request.random_weights:
        return ()
    return tuple(f"{name}: {failure}" for name, report in accuracy.items() for failure in check(report, request.gates))


def _doubts(accuracy: Mapping[str, AccuracyReport], request: BuildRequest) -> tuple[str, ...]:
    if request.random_weights:
        return ()
    return tuple(f"{name}: {doubt}" for name, report in accuracy.items() for doubt in doubts(report, request.gates))


def _bench(request: BuildRequest, new: Path, console: Console) -> BenchReport:
    pairs = {runtime: (new / runtime, new / "fp32" / runtime) for runtime in request.runtimes}
    with console.bar("Benchmarking INT8 against FP32, interleaved", len(pairs)) as advance:
        return measure_all(
            pairs,
            threads=request.threads,
            batch=request.batch or 1,
            seconds=request.bench_seconds,
            progress=advance,
        )


def _finish(
    manifests: Mapping[str, Manifest],
    accuracy: Mapping[str, AccuracyReport],
    bench: BenchReport | None,
    folders: Mapping[str, Path],
) -> dict[str, Manifest]:
    """Manifests with what was measured, saved."""
    finished = {}
    for runtime, manifest in manifests.items():
        latency = None
        if bench is not None:
            latency = {"machine": bench.machine.to_json(), **bench.pairs[runtime].to_json()}
        measured = accuracy[runtime].to_json() if runtime in accuracy else None
        if manifest.source["random_weights"]:
            measured = None
        finished[runtime] = manifest.with_measurements(accuracy=measured, latency=latency)
        finished[runtime].save(folders[runtime])
    return finished


def _report(
    request: BuildRequest,
    checkpoint: Checkpoint,
    planned: _Planned,
    calibration: ImageSet,
    evaluation: ImageSet | None,
    export_errors: Mapping[str, float],
    accuracy: Mapping[str, AccuracyReport],
    bench: BenchReport | None,
    clock: _Clock,
    failures: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        "source": asdict(checkpoint.origin),
        "target": planned.plan.target,
        "plan_digest": planned.plan.digest(),
        "calibration": {
            "digest": calibration.digest,
            "images": len(calibration.paths),
            "skipped": len(calibration.skipped),
        },
        "evaluation": None
        if evaluation is None
        else {"digest": evaluation.digest, "images": len(evaluation.paths), "skipped": len(evaluation.skipped)},
        "export_max_abs_error": dict(export_errors),
        "search": {
            runtime: {
                "found": asdict(found.found),
                "curve": [asdict(point) for point in found.curve],
                "sensitivity_db": dict(found.sensitivity_db),
            }
            for runtime, found in planned.searches.items()
        },
        "accuracy": None
        if checkpoint.origin.random_weights
        else {runtime: report.to_json() for runtime, report in accuracy.items()},
        "gate_failures": list(failures),
        "bench": bench.to_json() if bench else None,
        "seconds": clock.seconds,
        "numpy_version": np.__version__,
    }
