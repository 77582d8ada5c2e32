"""The plan of a tiny encoder, as it is made and as it is edited by hand."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.tiny import random_encoder, random_pixels
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import Plan
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS

FC1, FC2 = "layers.0.mlp.fc1", "layers.1.mlp.fc2"


@cache
def tiny_plan() -> tuple[Plan, Encoder, Encoder]:
    encoder, pixels = random_encoder(), random_pixels(count=16)
    calibration = Calibration(observe(encoder, [pixels]), lambda: [pixels], lambda: [pixels], (-1, 1), "i")
    plan, smoothed = make_plan(
        encoder, calibration, recipes=TARGETS["avx2"], target="avx2", checkpoint_digest="c" * 64, strengths=(0.8,)
    )
    return plan, smoothed, encoder


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A saved plan whose plan.json was changed by hand."""
    tiny_plan()[0].save(folder)
    path = folder / "plan.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return path
