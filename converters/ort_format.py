"""An ONNX artifact in ONNX Runtime's own format, for its minimal builds on phones, by ONNX Runtime's own tool."""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vitedge.runtimes.errors import ConversionError

MODEL_FILE, OPERATORS_FILE = "model.ort", "required_operators_and_types.config"


def write(source: Path, folder: Path) -> str:
    """Writes `model.ort`, and the operators and types that a minimal build must have for it.

    Args:
        source: The ONNX model.
        folder: An existing folder.

    Returns:
        The version of ONNX Runtime that wrote it; older ones may not read it.

    Raises:
        ConversionError: ONNX Runtime cannot convert it.
    """
    with tempfile.TemporaryDirectory(prefix="vitedge-") as temporary:
        work = Path(temporary)
        shutil.copyfile(source, work / "model.onnx")
        # Fixed: optimized now, as a minimal build cannot; for ARM, so that no layout of x86 kernels is baked in.
        options = ["--optimization_style", "Fixed", "--enable_type_reduction", "--target_platform", "arm"]
        command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", *options, str(work)]
        # In the folder of the model: Python would import modules that lie in the current one.
        result = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        missing = [name for name in (MODEL_FILE, OPERATORS_FILE) if not (work / name).is_file()]
        if result.returncode or missing:
            said = (result.stderr.strip() or result.stdout.strip()).splitlines()
            raise ConversionError(f"{source}: no {MODEL_FILE} came of it: {said[-1] if said else 'no reason given'}")
        for name in (MODEL_FILE, OPERATORS_FILE):
            shutil.copyfile(work / name, folder / name)
    return importlib.metadata.version("onnxruntime")
