"""`vitedge bench`: each artifact of a build against its FP32 twin."""

from collections.abc import Sequence
from pathlib import Path

from vitedge.benchmarks.measure import BenchReport, measure_all
from vitedge.console import Console
from vitedge.runtimes.manifest import MANIFEST_FILE, artifact_folders


def bench(
    artifact: Path, *, threads: Sequence[int], batch: int, seconds: float, console: Console
) -> tuple[BenchReport, ...]:
    """Measures every artifact at a path, once per number of threads.

    Args:
        artifact: An artifact folder, or a build's folder.
        threads: Numbers of threads to measure with.
        batch: Images per inference.
        seconds: Time for each pair.
        console: Shows progress.

    Raises:
        ArtifactError: No artifact there.
        BenchmarkError: A measuring process died or hung.
    """
    pairs = {}
    for runtime, folder in artifact_folders(artifact).items():
        twin = folder.parent / "fp32" / runtime
        if not (twin / MANIFEST_FILE).is_file():
            console.warn(f"{twin} is not there, so {runtime} has no FP32 to compare with; build with --keep-fp32")
        pairs[runtime] = (folder, twin if (twin / MANIFEST_FILE).is_file() else None)
    reports = []
    for count in threads:
        with console.bar(f"Benchmarking with {count} thread{'s' * (count > 1)}", len(pairs)) as advance:
            reports.append(measure_all(pairs, threads=count, batch=batch, seconds=seconds, progress=advance))
    return tuple(reports)
