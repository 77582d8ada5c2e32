"""Runs models on whatever CPU this process finds; `quantization/test_emulated_cpu.py` starts it on an emulated one.

    python tests/emulated_cpu.py FOLDER

For every `NAME.npy` in the folder, runs `NAME.onnx` or `NAME.xml` on it and writes `NAME.out.npy`. It imports nothing
of vitedge: torch alone takes half a minute under emulation.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import openvino


def run(folder: Path) -> None:
    for path in sorted(folder.glob("*.npy")):
        x = np.load(path)
        if (model := path.with_suffix(".onnx")).is_file():
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            output = session.run(None, {"x": x})[0]
        else:
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
            compiled = openvino.Core().compile_model(path.with_suffix(".xml"), "CPU", settings)
            output = compiled(x)[0]
        np.save(path.with_suffix(".out.npy"), output)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
