"""`vitedge embed --platform mediapipe` and `ort`: other forms of the same model, run by what takes them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

from tests.commands.conftest import CLASSES, Site
from tests.tiny import save_checkpoint
from tests.unpacked import unpacked
from vitedge.converters import ort_format
from vitedge.runtimes.errors import ConversionError
from vitedge.runtimes.golden import load_golden
from vitedge.runtimes.load import load_encoder

Operator = tuple[str, int, str]  # domain, version that it is since, name
MEDIAPIPE = "mediapipe==1.2.3"
# Says what an Image Embedder or Classifier makes of images that have the encoder's size already.
PROGRAM = """
import json, sys
import mediapipe, numpy
from mediapipe.tasks.python import vision
from mediapipe.tasks.python.core.base_options import BaseOptions
kind, model, pixels, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
images = numpy.fromfile(pixels, numpy.uint8).reshape(-1, size, size, 3)
options = BaseOptions(model_asset_path=model)
found = []
if kind == "embedder":
    with vision.ImageEmbedder.create_from_options(vision.ImageEmbedderOptions(base_options=options)) as task:
        for image in images:
            result = task.embed(mediapipe.Image(mediapipe.ImageFormat.SRGB, image.copy()))
            found.append([float(value) for value in result.embeddings[0].embedding])
else:
    with vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(base_options=options)) as task:
        for image in images:
            result = task.classify(mediapipe.Image(mediapipe.ImageFormat.SRGB, image.copy()))
            found.append({c.category_name: float(c.score) for c in result.classifications[0].categories})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def mediapipe_python() -> Path:
    """MediaPipe in an environment of its own: it brings another OpenCV, and whatever else it wants."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", MEDIAPIPE]
        result = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    return unpacked("mediapipe", make) / "bin" / "python"


def mediapipe_says(python: Path, kind: str, app: Path) -> Any:
    golden = load_golden(app / "golden")
    arguments = [kind, app / "mediapipe" / "model.tflite", app / "golden" / "resized.bin"]
    result = subprocess.run(
        [python, "-c", PROGRAM, *arguments, str(golden.preprocessing.height)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def embedded(site: Site, artifact: Path, platform: str, out: Path) -> Path:
    result = site.vitedge("embed", artifact, "--platform", platform, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("build", ["built", "pixels_in"])
def test_image_classifier_gives_the_probabilities_of_each_label(
    build: str, site: Site, request: pytest.FixtureRequest, tmp_path: Path, mediapipe_python: Path
) -> None:
    artifact = request.getfixturevalue(build) / "tflite"
    app = embedded(site, artifact, "mediapipe", tmp_path / "app")
    golden, encoder = load_golden(app / "golden"), load_encoder(artifact)
    logits = encoder(golden.encoder_input())["logits"].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = mediapipe_says(mediapipe_python, "classifier", app)
    assert {len(scores) for scores in found} == {CLASSES}
    for scores, shares in zip(found, expected, strict=True):
        by_label = [scores[label] for label in encoder.manifest.labels]
        np.testing.assert_allclose(by_label, shares, atol=0.01)


@pytest.mark.parametrize("pooler", [True, False])
@pytest.mark.parametrize(
    "normalization", [{}, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}]
)
def test_image_embedder_gives_the_features(
    pooler: bool, normalization: dict[str, Any], site: Site, tmp_path: Path, mediapipe_python: Path
) -> None:
    model = save_checkpoint(tmp_path / "model", pooler=pooler)
    config = model / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | normalization))
    result = site.vitedge(
        "build", model, "--images", site.calibration, "--runtime", "tflite", "--bench-seconds", "0",
        "--eval", site.evaluation, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    app = embedded(site, tmp_path / "out" / "tflite", "mediapipe", tmp_path / "app")
    golden = load_golden(app / "golden")
    outputs = golden.expected("tflite")
    assert ("pooler_output" in outputs) is pooler
    expected = outputs["pooler_output"] if pooler else outputs["last_hidden_state"][:, 0]
    found = np.array(mediapipe_says(mediapipe_python, "embedder", app))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / norms).min() > 0.999


@pytest.mark.parametrize("build", ["built", "pixels_in"])
def test_ort_format_computes_the_same(build: str, site: Site, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    artifact = request.getfixturevalue(build) / "onnx"
    app = embedded(site, artifact, "ort", tmp_path / "app")
    golden = load_golden(app / "golden")
    session = onnxruntime.InferenceSession(str(app / "model.ort"), providers=["CPUExecutionProvider"])
    found = session.run(["last_hidden_state"], {"pixel_values": golden.encoder_input()})[0]
    expected = load_encoder(artifact)(golden.encoder_input())["last_hidden_state"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    operators = operators_of(app / "model.ort")
    assert required_operators(app / "required_operators_and_types.config") == operators
    assert ("com.microsoft", 1, "MatMulIntegerToFloat") in operators
    assert f"ONNX Runtime {onnxruntime.__version__} wrote it" in (app / "README.md").read_text()


def operators_of(model: Path) -> set[Operator]:
    """The operators of a model in ONNX Runtime's format: what a build must have to load it."""
    graph = InferenceSession.GetRootAs(model.read_bytes(), 0).Model().Graph()
    nodes = [graph.Nodes(index) for index in range(graph.NodesLength())]
    assert nodes
    return {(node.Domain().decode() or "ai.onnx", node.SinceVersion(), node.OpType().decode()) for node in nodes}


def required_operators(config: Path) -> set[Operator]:
    """Lines of domain;version;operators, each operator followed by the types that it needs, as JSON."""
    found = set[Operator]()
    for line in config.read_text().splitlines():
        if line and not line.startswith(("#", "!")):
            domain, version, named = line.split(";", 2)
            names = re.findall(r"[A-Z]\w*(?=[,{]|$)", named)  # those of types are in quotation marks
            found |= {(domain, int(version), name) for name in names}
    return found


def test_what_onnx_runtime_cannot_convert(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ConversionError, match=r"model\.onnx: no model\.ort came of it"):
        ort_format.write(tmp_path / "model.onnx", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
