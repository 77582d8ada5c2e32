"""What each decision of the plan is worth, predicted by fake quantization: nothing is converted, so it takes minutes.

    python -m vitedge.benchmarks.ablation CHECKPOINT --calibration DIR --eval DIR [--only calibration]

Rows: linears in 16-bit floats, the formats of weights alone (inputs in float), the centering of input channels, the
strengths of smoothing, the methods for fixed ranges, the division behind GELU, attention scores in integers (target
vnni), and three disjoint subsets of the calibration images.
Prints a table and ends in one JSON document. Numbers are of `last_hidden_state` and the class token, against the float
encoder; "1-NN" is the share of images whose nearest other image, by class token, stays the same.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch.nn import functional

from vitedge.benchmarks.arguments import positive
from vitedge.calibration.images import ImageSet, batches, scan
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint
from vitedge.quantization.encoder import Encoder, FloatArray, Linear, float_linear
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import Plan, QuantizedLinear
from vitedge.quantization.prediction import fidelity, hidden_states
from vitedge.quantization.quantize import EXPLICIT_STRENGTH, Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS, WEIGHT_FORMATS, Recipe
from vitedge.quantization.retrieval import Retrieval, compare_retrieval
from vitedge.runtimes.errors import ImageSetError, VitedgeError

STRENGTH = 0.7  # where something else is varied
STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
EXPLICIT_STRENGTHS = (None, 0.3, EXPLICIT_STRENGTH, 0.5, 0.65, 0.8)
SUBSETS, SUBSET_IMAGES = 3, 32
_BATCH = 8


@dataclass(frozen=True)
class Row:
    """One variant, and what is predicted of it."""

    what: str
    variant: str
    runtime: str
    sqnr_db: float
    cosine_mean: float
    cosine_worst: float
    agreement_at_1: float | None


class Bench:
    """The encoder, its calibration, and the images that variants are judged on.

    Args:
        checkpoint: What to quantize.
        images: Calibration images.
        evaluation: Images to judge on.
        target: Whose recipes are varied.
    """

    def __init__(self, checkpoint: Checkpoint, images: ImageSet, evaluation: ImageSet, target: str) -> None:
        self.encoder, self.target = checkpoint.encoder, target
        self.static = {"openvino": Recipe(TARGETS[target]["openvino"].weights, {"*": "static"})}
        self._contract = checkpoint.preprocessing
        self._calibration_pixels = np.concatenate(list(batches(images, self._contract, _BATCH)))
        self._pixels = np.concatenate(list(batches(evaluation, self._contract, _BATCH)))
        self._expected = hidden_states(self.encoder, float_linear(self.encoder), self._pixels)
        self.calibration = self.calibrated(slice(None))

    def calibrated(self, part: slice) -> Calibration:
        """Calibration on a part of the images."""
        pixels = self._calibration_pixels[part]

        def parts() -> Iterable[FloatArray]:
            return np.array_split(pixels, max(1, len(pixels) // _BATCH))

        return Calibration(observe(self.encoder, parts()), parts, parts, self._contract.value_range, "")

    def plan(self, calibration: Calibration, recipes: Mapping[str, Recipe], **options: object) -> tuple[Plan, Encoder]:
        return make_plan(self.encoder, calibration, recipes=recipes, target="", checkpoint_digest="", **options)  # type: ignore[arg-type]

    def rows(self, what: str, variant: str, planned: tuple[Plan, Encoder]) -> Iterator[Row]:
        """What is predicted of a plan, for each of its runtimes."""
        plan, smoothed = planned
        for runtime in plan.recipes:
            linear = fake_quantized_linear(smoothed, plan.linears(runtime))
            yield self.judged(what, variant, runtime, smoothed, linear)

    def judged(self, what: str, variant: str, runtime: str, smoothed: Encoder, linear: Linear) -> Row:
        found = hidden_states(smoothed, linear, self._pixels)
        neighbors = compare_retrieval(self._expected[:, 0], found[:, 0])
        agreement = neighbors.agreement_at_1.mean if isinstance(neighbors, Retrieval) else None
        return Row(what, variant, runtime, *fidelity(self._expected, found), agreement)


def float_formats(bench: Bench) -> Iterator[Row]:
    for dtype in (torch.float16, torch.bfloat16):
        linear = _linear_in(dtype, bench.encoder)
        yield bench.judged("linears in", str(dtype).removeprefix("torch."), "any", bench.encoder, linear)


def weights_alone(bench: Bench) -> Iterator[Row]:
    for weight_format in WEIGHT_FORMATS:
        alone = {"onnx": Recipe(weight_format, {"*": "dynamic"})}
        plan, smoothed = bench.plan(bench.calibration, alone, strengths=(STRENGTH,))
        yield bench.judged("weights alone", weight_format, "any", smoothed, _weights_only(plan.linears("onnx")))


def centering(bench: Bench) -> Iterator[Row]:
    for variant, centered in (("as they are", False), ("centered", True)):
        planned = bench.plan(bench.calibration, TARGETS[bench.target], strengths=(STRENGTH,), centered=centered)
        yield from bench.rows("input channels", variant, planned)


def smoothing(bench: Bench) -> Iterator[Row]:
    for strength in STRENGTHS:
        planned = bench.plan(bench.calibration, TARGETS[bench.target], strengths=(strength,))
        yield from bench.rows("smoothing", f"strength {strength}", planned)


def fixed_ranges(bench: Bench) -> Iterator[Row]:
    for method in ("min-max", "mse"):
        planned = bench.plan(bench.calibration, bench.static, strengths=(STRENGTH,), range_method=method)
        yield from bench.rows("fixed ranges", method, planned)


def behind_gelu(bench: Bench) -> Iterator[Row]:
    for explicit in EXPLICIT_STRENGTHS:
        planned = bench.plan(bench.calibration, bench.static, strengths=(STRENGTH,), explicit_strength=explicit)
        yield from bench.rows("behind GELU", "as it is" if explicit is None else f"strength {explicit}", planned)


def attention_scores(bench: Bench) -> Iterator[Row]:
    integer = TARGETS["vnni"]["openvino"]
    for variant, recipe, balanced in (
        ("float", replace(integer, scores="float"), True),
        ("int8, as they are", integer, False),
        ("int8", integer, True),
    ):
        recipes = {"openvino": recipe}
        planned = bench.plan(bench.calibration, recipes, strengths=(STRENGTH,), balanced_scores=balanced)
        yield from bench.rows("scores, vnni", variant, planned)


def calibration(bench: Bench) -> Iterator[Row]:
    for subset in range(SUBSETS):
        part = slice(subset * SUBSET_IMAGES, (subset + 1) * SUBSET_IMAGES)
        planned = bench.plan(bench.calibrated(part), TARGETS[bench.target])
        yield from bench.rows("calibration", f"{SUBSET_IMAGES} images, subset {subset + 1}", planned)


# One decision varied at a time, the others as they are by default.
DECISIONS: Mapping[str, Callable[[Bench], Iterator[Row]]] = MappingProxyType(
    {
        "floats": float_formats,
        "weights": weights_alone,
        "centering": centering,
        "smoothing": smoothing,
        "ranges": fixed_ranges,
        "gelu": behind_gelu,
        "scores": attention_scores,
        "calibration": calibration,
    }
)


def _linear_in(dtype: torch.dtype, encoder: Encoder) -> Linear:
    """Inputs, weights, biases and outputs rounded to a float format, as CPUs and GPUs that compute in it do."""
    tensors = {name: torch.from_numpy(values).to(dtype) for name, values in encoder.tensors.items()}
    return lambda name, x: functional.linear(x.to(dtype), tensors[f"{name}.weight"], tensors[f"{name}.bias"]).float()


def _weights_only(linears: Mapping[str, QuantizedLinear]) -> Linear:
    weights = {name: torch.from_numpy(linear.weight.dequantized()) for name, linear in linears.items()}
    biases = {name: torch.from_numpy(linear.weight.bias) for name, linear in linears.items()}
    return lambda name, x: functional.linear(x, weights[name], biases[name])


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 if the input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m vitedge.benchmarks.ablation", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--eval-images", type=positive, default=64, help="taken evenly over the folder")
    parser.add_argument("--target", choices=sorted(TARGETS), default="avx2")
    parser.add_argument("--only", action="append", choices=list(DECISIONS), help="one decision; may be repeated")
    arguments = parser.parse_args(argv)
    try:
        checkpoint = load_checkpoint(arguments.checkpoint)
        evaluation = scan(arguments.eval, arguments.eval_images)
        images, decisions = scan(arguments.calibration, None), arguments.only or DECISIONS
        if "calibration" in decisions and len(images.paths) < SUBSETS * SUBSET_IMAGES:
            raise ImageSetError(
                f"{arguments.calibration}: expected {SUBSETS * SUBSET_IMAGES} images for {SUBSETS} subsets of"
                f" {SUBSET_IMAGES}, found {len(images.paths)}; add some, or name other decisions with --only"
            )
        bench = Bench(checkpoint, images, evaluation, arguments.target)
        rows = []
        for row in chain.from_iterable(DECISIONS[name](bench) for name in decisions):
            rows.append(row)
            sys.stdout.write(
                f"{row.what:14} {row.variant:22} {row.runtime:9} {row.sqnr_db:6.2f} dB"
                f"  cosine {row.cosine_mean:.5f} / {row.cosine_worst:.5f}"
                f"  1-NN {'not measured' if row.agreement_at_1 is None else f'{row.agreement_at_1:.1%}'}\n"
            )
            sys.stdout.flush()
    except VitedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    document = {"format": "vitedge-ablation/1", "target": arguments.target, "rows": [asdict(row) for row in rows]}
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
