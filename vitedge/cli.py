"""The command line on the host: build, judge, run. `cli_bench.py` measures, `cli_deploy.py` carries artifacts on.

Each command is a thin face of a plain function; results go to stdout, progress to stderr.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vitedge.app import Json, Quiet, app, counts, errors, print_json
from vitedge.cli_bench import measure
from vitedge.cli_deploy import deploy
from vitedge.console import Console
from vitedge.runtimes.errors import VitedgeError

MaxDrop = Annotated[
    str | None,
    typer.Option(
        help="Gate: largest drop of top-1 (classifiers) or k-NN accuracy, such as 0.5% or 0.005. Needs labelled images."
    ),
]
MinCosine = Annotated[
    float | None, typer.Option(help="Gate: smallest mean cosine to FP32 of any output, such as 0.997.")
]
MinSqnr = Annotated[float | None, typer.Option(help="Gate: smallest SQNR of last_hidden_state in dB, such as 22.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the runtime.")]
Target = Literal["avx2", "vnni", "arm64", "npu"]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the artifacts go.")] = Path("vitedge-demo"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole pipeline on a bundled digit classifier and its labelled images; no network, no files of yours.

    Example: `vitedge demo`
    """
    with errors():
        from vitedge.commands.demo import demo as run_demo

        result = run_demo(out, Console(quiet=quiet))
        _show_build(result, as_json)


@app.command()
def build(
    model: Annotated[str | None, typer.Argument(help="Checkpoint folder, or hub id.", show_default=False)] = None,
    images: Annotated[
        Path | None, typer.Option(help="Calibration images, any folder depth.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the artifacts go; replaced whole or not at all.")] = Path("out"),
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval", help="Images to judge on, a sub-folder per class if labelled. Default: those not calibrated on."
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Any of onnx,openvino,tflite; may be repeated. Default: all; tflite for npu.", show_default=False
        ),
    ] = None,
    target: Annotated[
        Target,
        typer.Option(
            help="avx2 is exact on every CPU; vnni and arm64 use all 8 weight bits; npu is integer throughout."
        ),
    ] = "avx2",
    plan: Annotated[
        Path | None, typer.Option(help="A plan.json, edited or not: its decisions instead of the target's.")
    ] = None,
    activations: Annotated[
        Literal["auto", "static", "dynamic", "int8", "int16"],
        typer.Option(
            help="dynamic: a range per row, most accurate; static: one range per input; auto: what runs fast. For"
            " npu: int8 or int16 throughout; auto: 16 bits where the budget needs them."
        ),
    ] = "auto",
    integer_io: Annotated[
        bool, typer.Option("--integer-io", help="For npu: integers as input and outputs, not floats.")
    ] = False,
    input_type: Annotated[
        Literal["float32", "uint8"],
        typer.Option("--input", help="uint8: pixels as they are, NHWC; normalization is part of the encoder."),
    ] = "float32",
    ranges: Annotated[Literal["min-max", "mse"], typer.Option(help="How fixed input ranges are chosen.")] = "min-max",
    portable: Annotated[
        bool, typer.Option("--portable", help="ONNX with standard operators only, for engines other than ONNX Runtime.")
    ] = False,
    calibration_images: Annotated[int, typer.Option(min=1, help="Taken evenly over the folder.")] = 128,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Convert for another size; positions are interpolated.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    random_weights: Annotated[
        str | None, typer.Option(help="No checkpoint: seeded random weights of a shape, such as vit-base-patch16-224.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --random-weights.")] = 0,
    batch: Annotated[
        str,
        typer.Option(help="A number; dynamic: any (TFLite: 1); auto: any for ONNX, 1 for the others, which is faster."),
    ] = "auto",
    max_drop: MaxDrop = None,
    min_cosine: MinCosine = None,
    min_sqnr: MinSqnr = None,
    keep_failing: Annotated[bool, typer.Option(help="Put artifacts in place even if a gate refused them.")] = False,
    keep_fp32: Annotated[
        bool, typer.Option(help="Keep the FP32 artifacts in OUT/fp32, for later `vitedge bench`.")
    ] = False,
    bench_seconds: Annotated[float, typer.Option(min=0, help="Time to benchmark each runtime; 0 skips.")] = 8.0,
    threads: Threads = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint into proven INT8 artifacts.

    Examples:
    `vitedge build google/vit-base-patch16-224-in21k --images photos --out out`

    `vitedge build ./my-vit --images calib --eval val --max-drop 0.5% --out out`

    `vitedge build ./my-vit --images calib --eval val --target npu --min-sqnr 26 --out out`

    `vitedge build --random-weights vit-base-patch16-224 --out out --keep-fp32`
    """
    with errors():
        from vitedge.commands.build import BuildRefusedError, BuildRequest
        from vitedge.commands.build import build as run_build
        from vitedge.commands.demo import demo_images

        if (model is None) == (random_weights is None):
            raise VitedgeError(
                "expected a checkpoint folder or hub id, or else --random-weights; see vitedge build --help"
            )
        if images is None and random_weights is None:
            raise VitedgeError("expected --images DIR: photographs like those the encoder will see, at least 32")
        request = BuildRequest(
            source=model or random_weights or "",
            images=images or demo_images("calibration"),
            out=out,
            evaluation=evaluation,
            runtimes=_runtimes(runtime, target),
            target=target,
            plan=plan,
            activations=activations,
            integer_io=integer_io,
            portable=portable,
            input=input_type,
            ranges=ranges,
            calibration_images=calibration_images,
            image_size=image_size,
            revision=revision,
            random_weights=random_weights is not None,
            seed=seed,
            batch=_batch(batch),
            keep_fp32=keep_fp32,
            keep_failing=keep_failing,
            gates=_gates(max_drop, min_cosine, min_sqnr),
            bench_seconds=bench_seconds,
            threads=threads,
        )
        try:
            result = run_build(request, Console(quiet=quiet))
        except BuildRefusedError as refused:
            _show_build(refused.result, as_json)
            raise
        _show_build(result, as_json)


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact such as OUT/onnx, or OUT for all of them.")],
    evaluation: Annotated[Path, typer.Option("--eval", help="Images, a sub-folder per class if labelled.")],
    model: Annotated[str | None, typer.Option(help="The checkpoint, if it moved since the build.")] = None,
    max_drop: MaxDrop = None,
    min_cosine: MinCosine = None,
    min_sqnr: MinSqnr = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure what an artifact lost against PyTorch FP32; exit code 1 if a gate fails.

    Example: `vitedge verify out --eval val --min-cosine 0.997`
    """
    with errors():
        from vitedge import tables
        from vitedge.commands.verify import verify as run_verify
        from vitedge.runtimes.errors import GateFailedError

        gates = _gates(max_drop, min_cosine, min_sqnr)
        result = run_verify(artifact, evaluation, model=model, gates=gates, console=Console(quiet=quiet))
        if as_json:
            accuracy = {name: report.to_json() for name, report in result.accuracy.items()}
            from vitedge.runtimes.manifest import source_digest

            head = {"format": "vitedge-verify/1", "source_digest": source_digest(artifact)}
            print_json({**head, "accuracy": accuracy, "gate_failures": list(result.failures)})
        else:
            tables.show(tables.accuracy_table(result.accuracy))
        if result.failures:
            raise GateFailedError("\n".join(result.failures))


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="An artifact such as OUT/onnx.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them at any depth.")],
    threads: Threads = 1,
    save: Annotated[Path | None, typer.Option(help="Save all outputs to this .npz file.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Classes, or features, of images; any number of them in the same memory.

    Examples:
    `vitedge run out/onnx cat.jpg dog.jpg`

    `vitedge run out/onnx photos --save features.npz`
    """
    with errors():
        from vitedge import tables
        from vitedge.commands.run import run as run_images

        rows = None if as_json else tables.RUN_ROWS
        result = run_images(artifact, images, threads=threads, save=save, rows=rows, console=Console(quiet=quiet))
        if as_json:
            sys.stdout.writelines(result.to_json())
        else:
            tables.show(tables.run_table(result))


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="An artifact such as OUT/onnx, or OUT for all of them.")],
    profile: Annotated[bool, typer.Option("--profile", help="Also where the time of an inference goes.")] = False,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """What is integer, what is float, and what it needs to run; checks the files against the manifest.

    A profile runs the artifact: time by operator and kernel, conversions, and linears that fell back to float.

    Example: `vitedge inspect out/onnx --profile`
    """
    with errors():
        from vitedge import tables
        from vitedge.commands.inspect import inspect as run_inspect
        from vitedge.profile_table import profile_table

        found = run_inspect(artifact, profile=profile, threads=threads)
        if as_json:
            print_json({"format": "vitedge-inspect/1", "artifacts": [item.to_json() for item in found]})
        else:
            tables.show(*(tables.inspect_table(item) for item in found))
            tables.show(*(profile_table(item.profile) for item in found if item.profile))


app.add_typer(measure)
app.add_typer(deploy)


def main() -> None:
    """Entry point of the `vitedge` command."""
    # Ended from outside, it cleans up as after Ctrl-C: here and on devices. What nohup ignores stays ignored.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # names of files need not be UTF-8
    app()


def _gates(max_drop: str | None, min_cosine: float | None, min_sqnr_db: float | None) -> Any:
    from vitedge.quantization.gates import Gates, parse_fraction

    return Gates(None if max_drop is None else parse_fraction(max_drop, "--max-drop"), min_cosine, min_sqnr_db)


def _runtimes(given: list[str] | None, target: str) -> tuple[str, ...]:
    if not given:
        from vitedge.runtimes.manifest import RUNTIMES

        return ("tflite",) if target == "npu" else RUNTIMES
    return tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",")))


def _batch(text: str) -> int | str:
    from vitedge.commands.request import BATCHES

    if text in BATCHES:
        return text
    size, *more = counts(text, "--batch", f"a number of at least 1, or one of {', '.join(BATCHES)}")
    if more:
        raise VitedgeError(f"--batch: expected one size, found {text}; dynamic takes any")
    return size


def _show_build(result: Any, as_json: bool) -> None:
    from vitedge import tables

    if as_json:
        print_json(result.report)
    else:
        tables.show(tables.build_table(result))
