"""`vitedge build`: a checkpoint and a folder of images in, proven INT8 artifacts out.

The order is the argument: load, calibrate, plan, export in FP32 and check that against PyTorch, only then lower the
plan; measure accuracy against PyTorch on images that calibration did not see, refuse what lost too much; measure speed
and memory in fresh processes; put everything in place at once.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitedge.benchmarks.measure import measure_all
from vitedge.benchmarks.memory import memory_bytes
from vitedge.benchmarks.results import BenchReport
from vitedge.calibration.images import ImageSet, batches, hold_out, refuse_overlap, scan, too_few_warning
from vitedge.commands.clock import Clock
from vitedge.commands.cpu import choose, plan_for_cpu
from vitedge.commands.npu import plan_for_npu, read_plan
from vitedge.commands.request import NPU, BuildRequest
from vitedge.commands.verify import judge, tell_skipped
from vitedge.console import QUIET, Console
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from vitedge.converters.folders import REPORT_FILE, REPORT_FORMAT, check_replaceable, replacing_folder
from vitedge.converters.golden import write_reference
from vitedge.converters.license import LICENSE_FOLDER, copy_license
from vitedge.converters.lower import export_error, lower
from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.gates import check, doubts
from vitedge.quantization.integer_search import IntegerSearchResult
from vitedge.quantization.saved_plan import SavedPlan
from vitedge.quantization.search import SearchResult
from vitedge.report.images import IMAGES_FOLDER, write_images
from vitedge.runtimes.errors import GateFailedError, OutputError, PlanError
from vitedge.runtimes.golden import GOLDEN_FOLDER
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest, load_manifest

__all__ = ["BuildRefusedError", "BuildRequest", "BuildResult", "build"]

_EXPORT_CHECK_IMAGES = 4
_HELD_OUT_IMAGES = 256
# A plan that a gate refuses is followed by one that predicts so much more, so often.
_TIGHTER_DB, _TIGHTENINGS = 2.0, 6


class Planned(Protocol):
    """A plan, how it was found, and what a build does with it: `CpuPlanned` or `NpuPlanned`."""

    @property
    def plan(self) -> SavedPlan: ...

    @property
    def searches(self) -> Mapping[str, SearchResult] | Mapping[str, IntegerSearchResult]:
        """By runtime; empty if nothing was searched."""

    def lower(self, runtime: str, folder: Path, calibration: Mapping[str, object], /) -> Manifest:
        """Writes a runtime's INT8 artifact into a folder to make; its manifest names the calibration."""

    def tightened(self, runtime: str, by_db: float, console: Console, /) -> "Planned":
        """A plan whose predicted SQNR for a runtime is higher by at least so much, or the best one if that is less.

        Raises:
            PlanError: It is the best one already.
        """

    def plot(self, path: Path) -> None:
        """Draws how it was found, as SVG."""


@dataclass(frozen=True)
class BuildResult:
    """What was built: manifests with their measurements, by runtime, and the report as written to `report.json`."""

    manifests: Mapping[str, Manifest]
    accuracy: Mapping[str, AccuracyReport]
    bench: BenchReport | None
    report: Mapping[str, Any]


def build(request: BuildRequest, console: Console = QUIET) -> BuildResult:
    """Builds, proves, measures, and puts in place.

    Raises:
        GateFailedError: An artifact lost more than the gates allow; nothing was put in place.
        VitedgeError: The input was wrong (see the subclasses in `runtimes/errors.py`).
    """
    clock = Clock()
    _refuse_inputs_inside(request)
    check_replaceable(request.out)
    with clock("load"), console.step("Loading the checkpoint"):
        checkpoint = _load(request)
    plan = _planner(request, checkpoint, clock, console)
    calibration, evaluation = _image_sets(request, console)
    _refuse_blind_gates(request, evaluation)
    with replacing_folder(request.out) as new:
        with console.step("Writing golden vectors"):
            write_reference(new / GOLDEN_FOLDER, checkpoint, evaluation or calibration)
            copy_license(checkpoint.license_files, new / LICENSE_FOLDER)
        site = _Site(request, checkpoint, calibration, evaluation, new, clock, console)
        built = site.tightened(site.judged(site.converted(plan(calibration))))
        built.planned.plan.save(new)
        if built.planned.searches:
            built.planned.plot(new / "search.svg")
        if evaluation is not None:
            write_images(new / IMAGES_FOLDER, evaluation, {name: own.per_image for name, own in built.accuracy.items()})
        failures = tuple(f"{name}: {failure}" for name in request.runtimes for failure in built.failures(name, request))
        for name, accuracy in built.accuracy.items():
            for doubt in doubts(accuracy, request.gates):
                console.warn(f"{name}: {doubt}")
        bench = None
        if request.bench_seconds and request.target != NPU and (not failures or request.keep_failing):
            with clock("bench"):
                bench = _bench(request, new, built.accuracy, console)
        manifests = _finish(built, bench, new)
        report = _report(site, built, bench, failures)
        (new / REPORT_FILE).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        result = BuildResult(manifests, built.accuracy, bench, report)
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


def _refuse_inputs_inside(request: BuildRequest) -> None:
    """What lies in an earlier build goes with it. A plan may: it is read, and the new build has one."""
    inputs = {"the checkpoint": Path(request.source), "--images": request.images, "--eval": request.evaluation}
    for what, path in inputs.items():
        if path is not None and path.exists() and path.resolve().is_relative_to(request.out.resolve()):
            raise OutputError(f"{request.out}: holds {what} ({path}), which would be deleted; pass another --out")


def _load(request: BuildRequest) -> Checkpoint:
    if request.random_weights:
        checkpoint = random_checkpoint(request.source, seed=request.seed, image_size=request.image_size)
    else:
        checkpoint = load_checkpoint(request.source, revision=request.revision, image_size=request.image_size)
    return checkpoint.with_uint8_input() if request.input == "uint8" else checkpoint


def _image_sets(request: BuildRequest, console: Console) -> tuple[ImageSet, ImageSet | None]:
    """Calibration images, and those to judge on: none where random weights have no accuracy."""
    with console.bar("Reading calibration images") as advance:
        calibration = scan(request.images, request.calibration_images, advance)
    tell_skipped("calibration", calibration, console)
    if warning := too_few_warning(calibration):
        console.warn(warning)
    if request.random_weights:
        return calibration, None
    evaluation: ImageSet | None
    with console.bar("Reading evaluation images") as advance:
        if request.evaluation is not None:
            evaluation = scan(request.evaluation, None, advance)
        else:
            evaluation = hold_out(calibration, _HELD_OUT_IMAGES, advance)
    if evaluation is None:
        console.warn("no images left to judge on: pass --eval DIR to measure accuracy")
    else:
        tell_skipped("evaluation", evaluation, console)
        refuse_overlap(calibration, evaluation)
    return calibration, evaluation


def _refuse_blind_gates(request: BuildRequest, evaluation: ImageSet | None) -> None:
    """A gate that nothing could trip is refused before any work is done."""
    if not request.gates.any:
        return
    if evaluation is None:
        raise PlanError("--max-drop, --min-cosine and --min-sqnr need images to judge on: pass --eval DIR")
    if request.gates.max_drop is not None and not evaluation.labels:
        raise PlanError(f"--max-drop needs labelled images: expected a sub-folder per class in {evaluation.folder}")


def _planner(
    request: BuildRequest, checkpoint: Checkpoint, clock: Clock, console: Console
) -> Callable[[ImageSet], Planned]:
    """What plans from calibration images; a plan file that does not fit is told before any work."""
    if request.target == NPU:
        decisions = None if request.plan is None else read_plan(request.plan, checkpoint)
        return lambda images: plan_for_npu(request, decisions, checkpoint, images, clock, console)
    choices = choose(request, checkpoint)
    return lambda images: plan_for_cpu(request, choices, checkpoint, images, clock, console)


@dataclass(frozen=True)
class _Built:
    """What there is of a build: the plan, and by runtime manifests, export errors, accuracy as far as judged, and how
    often the plan was tightened.
    """

    planned: Planned
    manifests: Mapping[str, Manifest]
    export_errors: Mapping[str, float]
    accuracy: Mapping[str, AccuracyReport]
    tightenings: Mapping[str, int]

    def failures(self, runtime: str, request: BuildRequest) -> tuple[str, ...]:
        return check(self.accuracy[runtime], request.gates) if runtime in self.accuracy else ()


@dataclass(frozen=True)
class _Site:
    """Where a build happens: what it works on, its new folder, and who watches."""

    request: BuildRequest
    checkpoint: Checkpoint
    calibration: ImageSet
    evaluation: ImageSet | None
    folder: Path
    clock: Clock
    console: Console

    def converted(self, planned: Planned) -> _Built:
        """FP32 and INT8 artifacts of every runtime; the former checked against PyTorch."""
        pixels = next(batches(self.calibration, self.checkpoint.preprocessing, _EXPORT_CHECK_IMAGES))
        expected = self.checkpoint.reference()(pixels)
        manifests, errors = {}, {}
        with self.clock("convert"):
            for runtime in self.request.runtimes:
                with self.console.step(f"Exporting {runtime} in FP32 and checking it against PyTorch"):
                    twin = self.folder / "fp32" / runtime
                    lower(
                        runtime,
                        twin,
                        encoder=self.checkpoint.encoder,
                        linears={},
                        checkpoint=self.checkpoint,
                        plan=planned.plan,
                        batch=self.request.batch_for(runtime),
                        calibration=self.calibration.record,
                    )
                    errors[runtime] = export_error(twin, pixels, expected)
                manifests[runtime] = self._lower(planned, runtime)
        return _Built(planned, manifests, errors, {}, {})

    def judged(self, built: _Built, runtimes: Iterable[str] | None = None) -> _Built:
        """With the accuracy of all runtimes, or of some judged anew."""
        if self.evaluation is None:
            return built
        folders = {runtime: self.folder / runtime for runtime in runtimes or self.request.runtimes}
        with self.clock("judge"):
            found = judge(self.checkpoint, folders, self.evaluation, self.console)
        return replace(built, accuracy={**built.accuracy, **found})

    def tightened(self, built: _Built) -> _Built:
        """Artifacts that the gates refuse replaced by more accurate ones, until they pass, up to six times."""
        exhausted: set[str] = set()
        for _ in range(_TIGHTENINGS if self.request.may_search else 0):
            refused = [name for name in self.request.runtimes if built.failures(name, self.request)]
            changed = []
            for runtime in (name for name in refused if name not in exhausted):
                self.console.note(f"{runtime}: {'; '.join(built.failures(runtime, self.request))}")
                try:
                    with self.clock("search"):
                        planned = built.planned.tightened(runtime, _TIGHTER_DB, self.console)
                except PlanError as error:  # the gate has the last word; why nothing better came is told
                    self.console.warn(str(error))
                    exhausted.add(runtime)
                    continue
                with self.clock("convert"):
                    shutil.rmtree(self.folder / runtime)
                    manifest = self._lower(planned, runtime)
                times = built.tightenings.get(runtime, 0) + 1
                built = replace(
                    built,
                    planned=planned,
                    manifests={**built.manifests, runtime: manifest},
                    tightenings={**built.tightenings, runtime: times},
                )
                changed.append(runtime)
            if not changed:
                break
            built = self.judged(built, changed)
        for runtime, times in built.tightenings.items():
            if times == _TIGHTENINGS and built.failures(runtime, self.request):
                self.console.warn(f"{runtime}: stopped after {times} more accurate plans; start higher with --min-sqnr")
            self.console.warn(
                f"{runtime}: the plan was chosen by its accuracy on the evaluation images, {times} times; they flatter"
                " it a little now. Confirm with vitedge verify on others"
            )
        return built

    def _lower(self, planned: Planned, runtime: str) -> Manifest:
        with self.console.step(f"Lowering the plan to {runtime}"):
            manifest = planned.lower(runtime, self.folder / runtime, self.calibration.record)
            load_encoder(self.folder / runtime)  # the runtime accepts it
        return manifest


def _bench(request: BuildRequest, new: Path, accuracy: Mapping[str, AccuracyReport], console: Console) -> BenchReport:
    pairs = {runtime: (new / runtime, new / "fp32" / runtime) for runtime in request.runtimes}
    with console.bar("Benchmarking INT8 against FP32, interleaved", len(pairs)) as advance:
        report = measure_all(
            pairs,
            threads=request.threads,
            batch=request.batch if isinstance(request.batch, int) else 1,
            seconds=request.bench_seconds,
            sqnr_db={runtime: found.outputs["last_hidden_state"].sqnr_db for runtime, found in accuracy.items()},
            progress=advance,
        )
    for runtime, pair in report.pairs.items():
        if pair.speedup is not None and not pair.speedup.is_faster:
            console.warn(f"{runtime}: INT8 is not clearly faster than FP32 on this machine: {pair.speedup}")
    return report


def _finish(built: _Built, bench: BenchReport | None, folder: Path) -> dict[str, Manifest]:
    """Manifests with what was measured, saved; their plan is the final one."""
    finished, plan_digest = {}, built.planned.plan.digest()
    for runtime, manifest in built.manifests.items():
        latency = None
        if bench is not None:
            latency = {"machine": bench.machine.to_json(), **bench.pairs[runtime].to_json()}
        measured = built.accuracy[runtime].to_json() if runtime in built.accuracy else None
        finished[runtime] = replace(manifest, plan_digest=plan_digest, accuracy=measured, latency=latency)
        finished[runtime].save(folder / runtime)
        twin = folder / "fp32" / runtime
        replace(load_manifest(twin), plan_digest=plan_digest).save(twin)
    return finished


def _report(site: _Site, built: _Built, bench: BenchReport | None, failures: tuple[str, ...]) -> dict[str, Any]:
    plan, evaluation = built.planned.plan, site.evaluation
    return {
        "format": REPORT_FORMAT,
        "source": asdict(site.checkpoint.origin),
        "target": plan.target,
        "plan_digest": plan.digest(),
        "calibration": _images_report(site.calibration),
        "evaluation": None if evaluation is None else _images_report(evaluation),
        "export_max_abs_error": dict(built.export_errors),
        "search": {
            runtime: {
                "found": asdict(found.found),
                "curve": [asdict(point) for point in found.curve],
                "sensitivity_db": dict(found.sensitivity_db),
                "tightenings": built.tightenings.get(runtime, 0),
            }
            for runtime, found in built.planned.searches.items()
        },
        "accuracy": {runtime: report.to_json() for runtime, report in built.accuracy.items()},
        "gate_failures": list(failures),
        "bench": bench.to_json() if bench else None,
        "seconds": site.clock.seconds,
        "peak_bytes": memory_bytes("VmHWM"),
        "numpy_version": np.__version__,
    }


def _images_report(images: ImageSet) -> dict[str, object]:
    return {"digest": images.digest, "images": len(images.paths), "skipped": len(images.skipped)}
