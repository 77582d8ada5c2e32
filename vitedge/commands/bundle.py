"""`vitedge bundle`: a folder or zip that tests and measures artifacts on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitedge.benchmarks.bundle import gather, write_bundle
from vitedge.console import Console


@dataclass(frozen=True)
class BundleResult:
    """Where the bundle is, which artifacts are in it, and how large it is."""

    out: Path
    artifacts: tuple[str, ...]
    size_bytes: int


def bundle(artifacts: Sequence[Path], out: Path, *, with_fp32: bool, console: Console) -> BundleResult:
    """Makes a bundle; errors as in `benchmarks/bundle.py`.

    Args:
        artifacts: Artifact folders of one build, or the build's folder.
        out: Folder to make, or a file that ends in .zip.
        with_fp32: Whether FP32 twins go along, so that the device can say how much faster INT8 is.
        console: Shows progress.
    """
    ingredients = gather(artifacts, fp32="all" if with_fp32 else "none")
    with console.step(f"Running {', '.join(ingredients.folders)} for the golden vectors, and packing"):
        size_bytes = write_bundle(ingredients, out)
    return BundleResult(out, tuple(ingredients.folders), size_bytes)
