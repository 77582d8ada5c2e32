"""LiteRT for a process in another language: `python litert_process.py MODEL THREADS`.

Says how large the input is, then name, size and shape of each output, a line each, and an empty one. Then it reads
inputs and answers with the outputs of each, as they are in memory, until there are no more. Or it says why it cannot.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(model: str, threads: str) -> None:
    out = sys.stdout.buffer
    try:
        interpreter = Interpreter(model, num_threads=int(threads))
    except ValueError as error:
        out.write(f"{error}\n".encode())
        return
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner("serving_default")
    ((name, given),) = runner.get_input_details().items()
    outputs = runner.get_output_details()
    size = int(np.prod(given["shape"])) * np.dtype(given["dtype"]).itemsize
    out.write(f"input {size}\n".encode())
    for output, detail in outputs.items():
        size_bytes = int(np.prod(detail["shape"])) * np.dtype(detail["dtype"]).itemsize
        out.write(f"{output} {size_bytes} {','.join(map(str, detail['shape']))}\n".encode())
    out.write(b"\n")
    out.flush()
    while data := sys.stdin.buffer.read(size):
        found = runner(**{name: np.frombuffer(data, given["dtype"]).reshape(given["shape"])})
        for output in outputs:
            out.write(np.ascontiguousarray(found[output]).tobytes())
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
