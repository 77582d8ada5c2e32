"""`vitedge embed` of any platform: what it writes, and what it refuses."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Site, contents, names
from vitedge.converters.embed import platforms
from vitedge.runtimes.golden import load_golden
from vitedge.runtimes.manifest import load_manifest

MODELS = ("mediapipe", "ort")  # give a model and no source
PAIRS = [(platform, runtime) for platform, runtimes in platforms().items() for runtime in runtimes]


@pytest.mark.parametrize(("platform", "runtime"), PAIRS)
def test_folder_is_whole(platform: str, runtime: str, site: Site, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "app"
    result = site.vitedge("embed", built / runtime, "--platform", platform, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    found = contents(out)
    assert (document["format"], document["runtime"]) == ("vitedge-embedded/1", runtime)
    assert document["files"] == sorted(found)
    assert load_manifest(out / "model") == load_manifest(built / runtime).published
    assert not [name for name, data in found.items() if str(site.model).encode() in data], "a path of this machine"
    assert runtime in load_golden(out / "golden").outputs
    assert not [name for name in found if name.endswith(".in")]
    (model, *_) = load_manifest(built / runtime).files
    sources = [data for name, data in found.items() if not name.startswith(("golden/", "model/"))]
    knows = sum(model.sha256.encode() in data for data in sources)
    assert knows == (platform not in MODELS), "the artifact is known to the contract alone"
    assert hashlib.sha256(found[f"model/{model.name}"]).hexdigest() == model.sha256
    assert b"$" not in found["README.md"]


def test_again_replaces_what_embed_made_and_nothing_else(site: Site, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "app"
    for _ in range(2):
        assert site.vitedge("embed", built / "onnx", "--platform", "cpp", "--out", out).exit_code == 0
    assert names(tmp_path) == {"app"}
    other = tmp_path / "mine"
    other.mkdir()
    (other / "main.cpp").write_text("int main() {}")
    result = site.vitedge("embed", built / "onnx", "--platform", "cpp", "--out", other)
    assert result.exit_code == 2
    assert "exists and is not a folder that vitedge embed made" in result.stderr
    assert names(other) == {"main.cpp"}


def test_refusals(site: Site, built: Path, tmp_path: Path) -> None:
    def refused(artifact: Path, platform: str) -> str:
        result = site.vitedge("embed", artifact, "--platform", platform, "--out", tmp_path / "app")
        assert result.exit_code == 2
        assert not (tmp_path / "app").exists()
        return result.stderr

    assert "--platform: expected one of" in refused(built / "onnx", "palm")
    assert "cpp takes artifacts of onnx or openvino, found tflite" in refused(built / "tflite", "cpp")
    assert "expected an artifact folder" in refused(built, "cpp")
    alone = tmp_path / "alone" / "onnx"
    shutil.copytree(built / "onnx", alone)
    assert "expected golden vectors there" in refused(alone, "cpp")
    (alone / "model.onnx").write_bytes(b"something else")
    assert "expected" in refused(alone, "cpp")


def test_batches_and_unknown_types_are_refused(site: Site, built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(built / "onnx", folder)
    manifest = load_manifest(folder)
    first = manifest.inputs[0]
    for changed, message in (
        (replace(first, shape=(4, *first.shape[1:])), "expected an input for one image, found [4, 3, 32, 32]"),
        (replace(first, dtype="int8"), "expected float32 or uint8 for cpp, found int8; build without --integer-io"),
    ):
        replace(manifest, inputs=(changed,)).save(folder)
        result = site.vitedge("embed", folder, "--platform", "cpp", "--out", tmp_path / "app")
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.parametrize("platform", ["android", "ios"])
def test_contract_says_what_integers_mean(platform: str, site: Site, integers: Path, tmp_path: Path) -> None:
    out = tmp_path / "app"
    assert site.vitedge("embed", integers / "tflite", "--platform", platform, "--out", out).exit_code == 0
    manifest = load_manifest(integers / "tflite")
    (contract,) = (path.read_text() for path in out.rglob("Contract.*"))
    (given,) = manifest.inputs
    assert f"= {given.scale!r}" in contract
    assert f"= {given.zero_point}\n" in contract
    assert "(" + ", ".join(f'"{record.dtype}"' for record in manifest.outputs) in contract.replace("[", "(")
    assert "(" + ", ".join(repr(record.scale) for record in manifest.outputs) in contract.replace("[", "(")
    assert "(" + ", ".join(str(record.zero_point) for record in manifest.outputs) in contract.replace("[", "(")
    pixel_values = load_golden(out / "golden").encoder_input().transpose(0, 2, 3, 1)
    steps = np.rint(pixel_values / np.float32(given.scale)) + np.float32(given.zero_point)
    quantized = np.fromfile(out / "golden" / "quantized.bin", np.int8).reshape(pixel_values.shape)
    assert np.array_equal(quantized, steps.clip(-128, 127))


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        ("web", "pixel_values: expected float32 or uint8 for web, found int8: LiteRT.js has tensors of float32, int32"),
        ("mediapipe", "expected float32 or uint8 for mediapipe, found int8: MediaPipe's image tasks take and give"),
    ],
)
def test_integers_that_a_platform_cannot_pass_are_refused(
    platform: str, reason: str, site: Site, integers: Path, tmp_path: Path
) -> None:
    result = site.vitedge("embed", integers / "tflite", "--platform", platform, "--out", tmp_path / "app")
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.split())
    assert "build without --integer-io" in " ".join(result.stderr.split())
    assert not (tmp_path / "app").exists()


def test_twins_and_names_that_are_code_are_refused(site: Site, built: Path, tmp_path: Path) -> None:
    result = site.vitedge("embed", built / "fp32" / "onnx", "--platform", "cpp", "--out", tmp_path / "app")
    assert result.exit_code == 2
    assert "found an FP32 twin; pass OUT/onnx" in result.stderr
    shutil.copytree(built / "onnx", tmp_path / "out" / "onnx")
    shutil.copytree(built / "golden", tmp_path / "out" / "golden")
    manifest = load_manifest(built / "onnx")
    for changed, said in (
        ({"target": "avx2\n#include <x>"}, "expected letters, digits and . _ + -, found"),
        ({"minimum_runtime": '1"; system("id");"'}, "expected a version such as 1.17, found"),
        ({"precision": "$x"}, "expected precision to be one of int8, fp32, found $x"),
    ):
        replace(manifest, **changed).save(tmp_path / "out" / "onnx")
        result = site.vitedge("embed", tmp_path / "out" / "onnx", "--platform", "cpp", "--out", tmp_path / "app")
        assert result.exit_code == 2
        assert said in result.stderr
        assert not (tmp_path / "app").exists()
