"""The command line that measures: here, over ssh, over adb."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vitedge.app import Json, Quiet, counts, errors, print_json
from vitedge.console import Console
from vitedge.runtimes.errors import VitedgeError

# Merged into the one application by `cli.py`.
measure = typer.Typer()


@measure.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="An artifact such as OUT/onnx, or OUT for all of them.")],
    threads: Annotated[str, typer.Option(help="One number or several, such as 1,2.")] = "1",
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per inference. Default: what the files are made for, or 1.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Time for each pair of INT8 and FP32; half of it more for each rival."),
    ] = 8.0,
    cpus: Annotated[
        str | None, typer.Option(help="Pin the measured processes to CPUs, such as 0 or 0,1.", show_default=False)
    ] = None,
    torch: Annotated[bool, typer.Option("--torch", help="Measure PyTorch eager FP32 in the same rounds.")] = False,
    vendors: Annotated[
        bool, typer.Option("--vendors", help="Measure the vendors' default INT8 recipes too. Needs --images.")
    ] = False,
    images: Annotated[Path | None, typer.Option(help="What the vendors' static recipes calibrate on.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint for --torch and --vendors, if it moved since the build.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="local; ssh://user@host:port or adb:SERIAL: tested and measured there, in Python; over adb also with"
            " --benchmark-model."
        ),
    ] = "local",
    device_python: Annotated[
        str | None,
        typer.Option(help="Python 3.11 or newer there. Default: python3; over adb, Termux's.", show_default=False),
    ] = None,
    device_folder: Annotated[
        str | None,
        typer.Option(help="Folder there to work in. Default: that of temporary files.", show_default=False),
    ] = None,
    no_install: Annotated[
        bool, typer.Option("--no-install", help="ssh: use the packages that the device's Python has.")
    ] = False,
    ssh_config: Annotated[
        Path | None, typer.Option(help="ssh: a configuration file in place of your own.", show_default=False)
    ] = None,
    benchmark_model: Annotated[
        str | None,
        typer.Option(
            help="adb: LiteRT's benchmark_model for the device, which measures the TFLite model without a Python there;"
            " device:PATH if it is there already.",
            show_default=False,
        ),
    ] = None,
    delegate: Annotated[
        Literal["none", "gpu", "nnapi"] | None,
        typer.Option(
            help="benchmark_model: delegate to try before XNNPACK. Default: none, XNNPACK alone.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Latency, load time, memory and size against the FP32 twin, interleaved, each in a process of its own.

    Says which artifact to use on this machine, and what makes the numbers doubtful. The twin is there if the build had
    --keep-fp32.

    Examples:
    `vitedge bench out --threads 1,2`

    `vitedge bench out --cpus 0 --torch --vendors --images calib`

    `vitedge bench out --device ssh://pi@board.local`

    `vitedge bench out/onnx --device adb:R5CT10XYZ`

    `vitedge bench out --device adb:R5CT10XYZ --benchmark-model android_aarch64_benchmark_model`
    """
    with errors():
        if not math.isfinite(seconds):
            raise VitedgeError(f"--seconds: expected a finite number, found {seconds}")
        if device != "local":
            if torch or vendors or images is not None or model is not None or cpus is not None or batch is not None:
                raise VitedgeError(
                    "--device: leave --torch, --vendors, --images, --model, --cpus and --batch out;"
                    " they are for this host"
                )
            several = counts(threads, "--threads")
            if len(several) != 1:
                raise VitedgeError(f"--device: expected one number of threads, found {threads}")
            from vitedge.commands.device_bench import parse_device

            where = parse_device(
                device,
                python=device_python,
                folder=device_folder,
                install=not no_install,
                config=ssh_config,
                benchmark_model=benchmark_model,
                delegate=delegate,
            )
            _bench_on_device(artifact, where, several[0], seconds, as_json, quiet)
            return
        if device_python or device_folder or no_install or ssh_config or benchmark_model or delegate:
            raise VitedgeError(
                "--device-python, --device-folder, --no-install, --ssh-config, --benchmark-model and --delegate are"
                " for a --device"
            )
        if (images is not None and not vendors) or (model is not None and not (torch or vendors)):
            raise VitedgeError("--images is for --vendors, and --model for --torch or --vendors")
        from vitedge import tables
        from vitedge.commands.bench import RivalRequest
        from vitedge.commands.bench import bench as run_bench

        reports = run_bench(
            artifact,
            threads=counts(threads, "--threads"),
            batch=batch,
            seconds=seconds,
            console=Console(quiet=quiet),
            cpus=() if cpus is None else _cpus(cpus),
            rivals=RivalRequest(torch=torch, vendors=vendors, images=images, model=model),
        )
        if as_json:
            from vitedge.runtimes.load import identities
            from vitedge.runtimes.manifest import artifact_folders, load_manifest, source_digest

            manifests = {name: load_manifest(folder) for name, folder in artifact_folders(artifact).items()}
            head = {
                "format": "vitedge-benches/2",
                "source_digest": source_digest(artifact),
                "artifacts": identities(manifests),
            }
            print_json({**head, "runs": [report.to_json() for report in reports]})
        else:
            tables.show(*(tables.bench_table(report) for report in reports))


def _bench_on_device(artifact: Path, device: Any, threads: int, seconds: float, as_json: bool, quiet: bool) -> None:
    from vitedge.commands.device_bench import bench_on_device
    from vitedge.runtimes.errors import GateFailedError
    from vitedge.runtimes.fields import printable

    console = Console(quiet=quiet)
    result = bench_on_device(artifact, device, threads=threads, seconds=seconds, console=console)
    if as_json:
        print_json(result.to_json())
    else:
        sys.stdout.writelines(f"{printable(line)}\n" for line in result.lines())
    if result.left is not None:
        console.warn(f"left behind: {result.left}")
    if not result.passed:
        raise GateFailedError(f"{device.name}: the self-test failed there")


def _cpus(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise VitedgeError(f"--cpus: expected numbers of CPUs such as 0 or 0,1, found {text}")
    return tuple(sorted({int(part) for part in text.split(",")}))
