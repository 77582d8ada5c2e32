"""Versions of TFLite operators: they tell a runtime whether it knows everything that a node uses.

`VERSIONS` holds those that the TFLite converter would assign to operators used as here, by the type of what they
compute with, and the first TensorFlow release that has them. Sources: tensorflow/compiler/mlir/lite/tools/versioning/
{op_version,runtime_version}.cc. An operator that is not listed cannot be written, so every new use is looked up once.

Two entries ask for more than the converter would: FULLY_CONNECTED on integers with a scale per channel (older kernels
know one scale), and GELU on int16 (a kernel newer than its version; the release is that of the oldest kernels that it
may have).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

INT8_WEIGHTS = " int8"
# Operator (on float32; INT8_WEIGHTS: with int8 weights, one scale per channel) to its version and the first TensorFlow
# release that knows it.
VERSIONS: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "ADD": (1, "1.5.0"),
        "BATCH_MATMUL": (1, "2.3.0"),
        "FULLY_CONNECTED": (5, "2.0.0"),  # 5: keep_num_dims
        "FULLY_CONNECTED" + INT8_WEIGHTS: (12, "2.17.0"),  # 12: float input, a scale per channel
        "GELU": (1, "2.9.0"),
        "LOGISTIC": (1, "1.14.0"),
        "MEAN": (1, "1.6.0"),
        "MUL": (1, "1.5.0"),
        "PAD": (1, "1.5.0"),
        "RELU": (1, "1.5.0"),
        "RESHAPE": (1, "1.5.0"),
        "RSQRT": (1, "1.10.0"),
        "SLICE": (1, "1.14.0"),
        "SOFTMAX": (1, "1.5.0"),
        "SPLIT": (1, "1.5.0"),
        "SUB": (1, "1.6.0"),
        "TANH": (1, "1.14.0"),
        "TRANSPOSE": (1, "1.6.0"),
        "QUANTIZE on int8": (1, "1.14.0"),  # by the type of its result
        # From int8, which 2.21 refuses and ai-edge-litert takes from 2.1.6 on (2.0.2: no).
        "QUANTIZE on int16": (2, "2.22.0"),
        "ADD on int8": (2, "1.14.0"),
        "ADD on int16": (3, "2.4.0"),  # 3: scales that are no powers of two
        "BATCH_MATMUL on int8": (2, "2.3.0"),
        "BATCH_MATMUL on int16": (3, "2.4.0"),
        "DEQUANTIZE on uint8": (1, "1.5.0"),
        "DEQUANTIZE on int8": (2, "1.14.0"),
        "DEQUANTIZE on int16": (3, "1.15.0"),
        "FULLY_CONNECTED on int8": (12, "2.17.0"),
        "FULLY_CONNECTED on int16": (12, "2.17.0"),
        "GELU on int8": (2, "2.9.0"),
        "GELU on int16": (2, "2.21.0"),
        "LOGISTIC on int8": (2, "1.14.0"),
        "LOGISTIC on int16": (3, "2.3.0"),
        "MUL on int8": (3, "1.15.0"),  # 3: a rescaling factor of 1 or more
        "MUL on int16": (4, "2.3.0"),
        "PAD on int8": (2, "1.14.0"),
        "PAD on int16": (3, "2.4.0"),
        "RELU on int8": (2, "2.1.0"),
        "RELU on int16": (3, "2.5.0"),
        "RESHAPE on int8": (1, "1.5.0"),
        "RESHAPE on int16": (1, "1.5.0"),
        "RSQRT on int8": (2, "2.5.0"),
        "RSQRT on int16": (3, "2.15.0"),
        "SLICE on int8": (2, "1.14.0"),
        "SLICE on int16": (4, "2.4.0"),
        "SOFTMAX on int8": (2, "1.14.0"),
        "SOFTMAX on int16": (3, "2.3.0"),
        "TANH on int8": (2, "1.14.0"),
        "TANH on int16": (3, "2.3.0"),
        "TRANSPOSE on int8": (2, "1.14.0"),
        "TRANSPOSE on int16": (5, "2.4.0"),
    }
)


def on_integers(dtype: np.dtype[Any]) -> str:
    """What follows an operator's name in `VERSIONS` if it computes with that type."""
    return f" on {dtype}" if dtype in (np.uint8, np.int8, np.int16) else ""
