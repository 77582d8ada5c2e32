"""A scripted `benchmark_model`, and `vitedge bench` with it."""

from pathlib import Path

from click.testing import Result

from tests.adb_device import AdbDevice
from tests.commands.conftest import Site

# Prints as LiteRT's own does; INT8 takes 12 ms and FP32 24 ms. $ROOT is the device's.
TOOL = """#!/bin/sh
echo "$@" >> "$ROOT/calls"
case "$1" in *int8.tflite) median=12000 ;; *) median=24000 ;; esac
finish() { :; }
applied="Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate."
@CHANGE@
: "${percentiles= p5=11000 median=$median p95=26000}"
echo "INFO: STARTING!
INFO: $applied
INFO: count=2 first=31000 curr=30500 min=30500 max=31000 avg=30750 std=250 p5=30500 median=31000 p95=31000

INFO: count=40 first=13000 curr=12500 min=10000 max=1.3e+06 avg=1.25e+04 std=268$percentiles

INFO: Inference timings in us: Init: 5500, First inference: 31000, Warmup (avg): 30750, Inference (avg): 12500
INFO: Memory footprint delta from the start of the tool (MB): init=20.5 overall=64"
finish
"""


def tool(folder: Path, change: str = "") -> Path:
    path = folder / "benchmark_model"
    path.write_text(TOOL.replace("@CHANGE@", change))
    return path


def bench(site: Site, artifact: Path, device: AdbDevice, program: Path | str, *options: str) -> Result:
    where = ("--device", f"adb:{device.serial}", "--benchmark-model", program)
    return site.vitedge("bench", artifact, *where, "--seconds", "0.6", *options)
