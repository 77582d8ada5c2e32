"""`vitedge embed`: source code, model and golden vectors for an app."""

from dataclasses import dataclass
from pathlib import Path

from vitedge.benchmarks.machine import describe_machine
from vitedge.console import Console
from vitedge.converters.embed import take, write


@dataclass(frozen=True)
class EmbedResult:
    """What runs there, and the folder's files."""

    runtime: str
    files: tuple[str, ...]


def embed(artifact: Path, platform: str, out: Path, *, console: Console) -> EmbedResult:
    """Writes the folder; errors as in `converters/embed.py`.

    Args:
        artifact: An artifact folder, such as OUT/onnx.
        platform: web, cpp, android, ios, mediapipe or ort.
        out: Folder to make.
        console: Shows progress.
    """
    subject = take(artifact, platform)
    with console.step(f"Running {subject.manifest.runtime} for the golden vectors, and writing {platform}"):
        files = write(subject, platform, out, kind=describe_machine().kind)
    return EmbedResult(subject.manifest.runtime, files)
