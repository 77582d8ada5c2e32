"""INT8 artifacts of one tiny classifier for the three runtimes, and what PyTorch and the plan say of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tiny import planned, random_pixels, save_checkpoint
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint
from vitedge.converters.lower import RUNTIMES, lower
from vitedge.quantization.encoder import Encoder, FloatArray, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import Plan

CLASSES = 5


@dataclass(frozen=True)
class Artifacts:
    """`folders` accept any batch (TFLite: 1 at a time); `fixed` were lowered for batches of `fixed_batch`."""

    folders: Mapping[str, Path]
    fixed: Mapping[str, Path]
    fixed_batch: int
    checkpoint: Checkpoint
    plan: Plan
    smoothed: Encoder

    def predicted(self, runtime: str, pixel_values: FloatArray) -> dict[str, FloatArray]:
        """What the plan says that this runtime's artifact computes."""
        linears = self.plan.linears(runtime)
        return forward(self.smoothed, pixel_values, fake_quantized_linear(self.smoothed, linears))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    root = tmp_path_factory.mktemp("artifacts")
    checkpoint = load_checkpoint(str(save_checkpoint(root / "model", classes=CLASSES)))
    plan, smoothed = planned(checkpoint, pixels=random_pixels(count=16))

    def lowered(runtime: str, batch: int | None) -> Path:
        folder = root / str(batch) / runtime
        lower(
            runtime,
            folder,
            encoder=smoothed,
            linears=plan.linears(runtime),
            checkpoint=checkpoint,
            plan=plan,
            batch=batch,
            calibration={"images": 16},
        )
        return folder

    return Artifacts(
        folders={runtime: lowered(runtime, None) for runtime in RUNTIMES},
        fixed={runtime: lowered(runtime, 2) for runtime in RUNTIMES},
        fixed_batch=2,
        checkpoint=checkpoint,
        plan=plan,
        smoothed=smoothed,
    )
