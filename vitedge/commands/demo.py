"""`vitedge demo`: the whole pipeline on what ships in the package: a digit classifier and its labelled images."""

from importlib.resources import files
from pathlib import Path

from vitedge.commands.build import BuildRequest, BuildResult, build
from vitedge.console import Console

_DATA = Path(str(files("vitedge.calibration") / "demo"))


def demo_images(part: str) -> Path:
    """Folder of the bundled images: `calibration` or `evaluation`, a sub-folder per digit."""
    return _DATA / "images" / part


def demo(out: Path, console: Console) -> BuildResult:
    """Builds, judges and benchmarks the bundled classifier for all three runtimes; errors as in `build`."""
    request = BuildRequest(
        source=str(_DATA / "model"),
        images=demo_images("calibration"),
        evaluation=demo_images("evaluation"),
        out=out,
        keep_fp32=True,
        bench_seconds=4.0,
    )
    return build(request, console)
