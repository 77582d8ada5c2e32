"""`bench`, `run`, `inspect` and the bare command line, on one build of the tiny classifier."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import CLASSES, Site
from tests.tiny import save_checkpoint
from vitedge.benchmarks import vendor_recipes
from vitedge.benchmarks.machine import describe_machine
from vitedge.benchmarks.vendor_recipes import DEFAULT_RECIPES, Recipe
from vitedge.commands.inspect import cpu_verdict
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.saturation import Saturation, UnsafeLinear, UnsafePair

RUNTIMES = ("onnx", "openvino", "tflite")
WIDER = "it has VNNI, for which --target vnni is more accurate"
WRONG = "1 of 10 integer products can saturate here and give wrong features; build for avx2"


def damaged(built: Path, copy: Path, runtime: str = "onnx") -> Path:
    """A copy of an artifact with one byte of its model changed; the size stays."""
    folder = shutil.copytree(built / runtime, copy)
    model = folder / load_manifest(folder).files[0].name
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    return folder


def test_bench_measures_pairs_and_says_so(site: Site, built: Path) -> None:
    result = site.vitedge("bench", built, "--threads", "1,2", "--seconds", "0.2", "--json")
    assert result.exit_code == 0, result.stderr
    runs = json.loads(result.stdout)["runs"]
    assert [run["threads"] for run in runs] == [1, 2]
    for run in runs:
        assert set(run["pairs"]) == set(RUNTIMES)
        for pair in run["pairs"].values():
            assert pair["speedup"]["median"] > 0
            assert pair["artifact"]["peak_bytes"] > 20e6
            assert pair["verdict"]
        names = {f"{name} {kind}" for name in RUNTIMES for kind in ("INT8", "FP32")}
        itself = [] if run["threads"] == 1 else ["itself on 1 thread"]
        assert [[rival["name"] for rival in pair["rivals"]] for pair in run["pairs"].values()] == [itself] * 3
        assert run["best"]["verdict"].split(": ")[1].split(",")[0] in names
    table = site.vitedge("bench", built / "tflite", "--seconds", "0.2", "--device", "local").stdout  # the default
    assert "FP32 here" in table
    assert "on this machine: tflite" in table
    assert "instruction sets:" in table


def test_bench_runs_as_many_images_as_the_files_are_made_for(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert site.build(out, "--batch", "3", "--runtime", "onnx,tflite").exit_code == 0
    assert [load_manifest(out / name).inputs[0].shape[0] for name in ("onnx", "tflite")] == [3, 3]
    (run,) = json.loads(site.vitedge("bench", out, "--seconds", "0.2", "--json").stdout)["runs"]
    assert run["batch"] == 3
    (run,) = json.loads(site.vitedge("bench", out, "--batch", "6", "--seconds", "0.2", "--json").stdout)["runs"]
    assert run["batch"] == 6
    refused = site.vitedge("bench", out, "--batch", "1")
    assert refused.exit_code == 2
    assert "onnx: its files are made for 3 images at a time, found --batch 1" in " ".join(refused.stderr.split())


def test_bench_finds_the_twin_of_the_current_folder(site: Site, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built / "tflite")
    result = site.vitedge("bench", ".", "--seconds", "0.2")
    assert result.exit_code == 0
    assert "FP32 here" in result.stdout
    assert "--keep-fp32" not in result.stderr


def test_bench_pins_what_it_measures(site: Site, built: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    options = ("--seconds", "0.2", "--cpus", cpu, "--threads", "2")
    table = " ".join(site.vitedge("bench", built / "onnx", *options).stdout.split())
    assert f"threads 2, batch 1, CPU {cpu}" in table
    assert "doubt: 2 threads share 1 CPU: use --threads 1, or more --cpus" in table
    (run,) = json.loads(site.vitedge("bench", built / "onnx", *options, "--json").stdout)["runs"]
    assert run["cpus"] == [cpu]
    assert run["flags"][-1].startswith("2 threads share 1 CPU")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cpus", "4096"), "--cpus: expected some of the CPUs that this process may run on"),
        (("--cpus", "1,-2"), "--cpus: expected numbers of CPUs such as 0 or 0,1, found 1,-2"),
        (("--seconds", "inf"), "--seconds: expected a finite number, found inf"),
        (("--vendors",), "--vendors: static recipes need images to calibrate on; pass --images DIR"),
        (("--torch", "--model", "{tmp}/none"), "none: no such folder. Pass a folder with config.json"),
        (("--torch", "--model", "{other}"), "built from a checkpoint with digest"),
        (("--vendors", "--images", "{images}", "--model", "{other}"), "pass the right one with --model"),
    ],
)
def test_bench_refuses_wrong_input(
    site: Site, built: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    other = save_checkpoint(tmp_path / "other", classes=CLASSES, seed=7)
    places = {"tmp": tmp_path, "other": other, "images": site.calibration}
    result = site.vitedge("bench", built / "onnx", *(option.format(**places) for option in options))
    assert result.exit_code == 2
    assert message in result.stderr


def test_bench_against_torch_and_vendors(site: Site, built: Path) -> None:
    options = ("--seconds", "0.2", "--torch", "--vendors", "--images", site.calibration)
    result = site.vitedge("bench", built / "onnx", *options, "--json")
    assert result.exit_code == 0, result.stderr
    pair = json.loads(result.stdout)["runs"][0]["pairs"]["onnx"]
    names = ["quantize_static, defaults", "quantize_dynamic, defaults", "PyTorch eager FP32"]
    assert [rival["name"] for rival in pair["rivals"]] == names
    for rival, precision in zip(pair["rivals"], ("int8", "int8", "fp32"), strict=True):
        assert rival["result"]["precision"] == precision
        assert rival["speedup"]["rounds"] == pair["speedup"]["rounds"]
        assert f" {rival['name']} here" in rival["verdict"]
        # The right way up; how near, a busy machine decides.
        ratio = rival["result"]["latency_median_ms"] / pair["artifact"]["latency_median_ms"]
        assert ratio / 3 < rival["speedup"]["median"] < ratio * 3
    # PyTorch brings much more than a runtime.
    assert pair["rivals"][2]["result"]["bare_bytes"] > 2 * pair["artifact"]["bare_bytes"]


def test_bench_goes_on_without_a_vendor_that_fails(site: Site, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such operator")

    recipes = (Recipe("bad", "onnx", broken), *DEFAULT_RECIPES)
    monkeypatch.setattr(vendor_recipes, "DEFAULT_RECIPES", recipes)
    result = site.vitedge("bench", built / "onnx", "--seconds", "0.2", "--vendors", "--images", site.calibration)
    assert result.exit_code == 0, result.stderr
    assert "warning: onnx, bad: ValueError: no such operator" in result.stderr
    assert "ONNX: bad" not in result.stdout
    assert "quantize_dynamic, defaults here" in " ".join(result.stdout.split())


def test_bench_without_twin_warns(site: Site, built: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(built / "tflite", tmp_path / "tflite")
    result = site.vitedge("bench", alone, "--seconds", "0.2")
    assert result.exit_code == 0
    assert "build with --keep-fp32" in result.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run_names_classes_and_saves_outputs(site: Site, built: Path, tmp_path: Path, runtime: str) -> None:
    images = sorted(site.evaluation.rglob("*.png"))[:2]
    saved = tmp_path / "features.npz"
    result = site.vitedge("run", built / runtime, *images, "--save", saved, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["images"]
    assert [entry["image"] for entry in found] == [str(image) for image in images]
    for entry in found:
        assert {c["label"] for c in entry["classes"]} == {f"LABEL_{index}" for index in range(CLASSES)}
        assert sum(c["probability"] for c in entry["classes"]) == pytest.approx(1)
    with np.load(saved) as arrays:
        assert set(arrays) == {"images", "last_hidden_state", "logits"}
        assert arrays["last_hidden_state"].shape == (2, 17, 48)
    assert "LABEL_" in site.vitedge("run", built / runtime, images[0]).stdout


def test_run_of_a_missing_image_is_told(site: Site, built: Path, tmp_path: Path) -> None:
    result = site.vitedge("run", built / "onnx", tmp_path / "cat.jpg")
    assert result.exit_code == 2
    assert "cat.jpg: expected an image file, found no such file" in result.stderr


@pytest.mark.parametrize("command", ["run", "verify", "inspect", "bench"])
def test_changed_file_is_refused(site: Site, built: Path, tmp_path: Path, command: str) -> None:
    folder = damaged(built, tmp_path / "onnx")
    rest = {"run": [next(site.evaluation.rglob("*.png"))], "verify": ["--eval", site.evaluation]}.get(command, [])
    result = site.vitedge(command, folder, *rest)
    assert result.exit_code == 2
    assert "model.onnx: expected SHA-256" in result.stderr
    assert "copy the artifact again" in result.stderr


@pytest.mark.parametrize(
    ("runtime", "module", "extra"),
    [
        ("onnx", "onnxruntime", "vitedge[onnx]"),
        ("openvino", "openvino", "vitedge[openvino]"),
        ("tflite", "ai_edge_litert", "vitedge[tflite]"),
    ],
)
def test_missing_runtime_is_told_with_its_extra(site: Site, built: Path, runtime: str, module: str, extra: str) -> None:
    """In a process that cannot import the runtime, as on a device where it was not installed."""
    script = (
        "import sys, importlib.metadata as metadata; real = metadata.version\n"
        f"sys.modules[{module!r}] = None\n"
        "def version(name):\n"
        f"    if name.replace('-', '_') == {module!r}: raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
        "from vitedge.cli import main; main()"
    )
    image = str(next(site.evaluation.rglob("*.png")))
    result = subprocess.run(
        [sys.executable, "-c", script, "run", str(built / runtime), image], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert extra in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect_lists_what_is_integer(site: Site, built: Path) -> None:
    result = site.vitedge("inspect", built, "--json")
    assert result.exit_code == 0, result.stderr
    found = {item["runtime"]: item for item in json.loads(result.stdout)["artifacts"]}
    assert set(found) == set(RUNTIMES)
    for item in found.values():
        assert "layers.1.mlp.fc2" in item["operations"]["integer"]
        assert "patch_embedding" in item["operations"]["integer"]
        assert "softmax, LayerNorm, GELU, residual adds" in item["operations"]["floating"]
        # Per layer and 17 tokens: qkv, output, fc1 and fc2; then patches and classifier. Attention: 2 · 17² · 48.
        linears = 2 * 17 * (48 * 144 + 48 * 48 + 2 * 48 * 96) + 16 * 192 * 48 + CLASSES * 48
        assert item["integer_macs_share"] == pytest.approx(linears / (linears + 2 * 2 * 17 * 17 * 48))
    assert found["onnx"]["minimum_runtime"] == "1.17"
    table = site.vitedge("inspect", built / "onnx").stdout
    assert "1.17 or later" in table
    assert "ai.onnx 20, com.microsoft 1" in table
    assert "match the manifest" in table


def test_inspect_shows_the_saturation_certificate(site: Site, built: Path, tmp_path: Path) -> None:
    """Pair-safe weights are proven safe; the same model with all 8 bits free names what can saturate, and where."""
    linears = 2 * (48 * 144 + 48 * 48 + 2 * 48 * 96) + 48 * 192 + CLASSES * 48
    safe = site.vitedge("inspect", built / "onnx").stdout
    assert f"proven safe on every CPU (10 linears, {linears // 2:,} pairs)" in " ".join(safe.split())
    assert "not applicable: XNNPACK widens" in " ".join(site.vitedge("inspect", built / "tflite").stdout.split())
    wide = tmp_path / "wide"
    assert site.build(wide, "--target", "vnni", "--runtime", "onnx").exit_code == 0
    (found,) = json.loads(site.vitedge("inspect", wide / "onnx", "--json").stdout)["artifacts"]
    assert found["saturation"]["proven_safe"] is False
    assert found["instruction_sets"] == ["x86-vnni", "arm64-dotprod", "arm64"]
    name, unsafe = max(found["saturation"]["unsafe"].items(), key=lambda item: item[1]["max_excess"])
    assert unsafe["worst"][0]["excess"] == unsafe["max_excess"]
    table = " ".join(site.vitedge("inspect", wide / "onnx").stdout.split())
    assert "can saturate on x86 CPUs without VNNI:" in table
    assert f"{name} ({unsafe['pairs']:,} pairs, by up to {unsafe['max_excess']:,})" in table


@pytest.mark.parametrize(
    ("target", "safe", "flags", "verdict"),
    [
        ("avx2", True, ("avx2",), "exact on this CPU"),
        ("avx2", True, ("avx2", "avx_vnni"), f"exact on this CPU; {WIDER}"),
        ("vnni", True, ("avx2",), "exact on this CPU"),
        ("vnni", True, ("avx2", "avx512_vnni"), "exact on this CPU"),
        ("vnni", False, ("avx2", "avx512_vnni"), "exact on this CPU; not on x86 CPUs without VNNI"),
        ("arm64", False, ("asimd",), "exact on this CPU; not on x86 CPUs without VNNI"),
        ("vnni", False, ("avx2",), f"this CPU has no VNNI: {WRONG}"),
        ("arm64", False, ("avx2",), f"this CPU has no VNNI: {WRONG}"),
        ("vnni", False, (), f"this CPU is of no kind that vitedge knows; if it is x86 without VNNI: {WRONG}"),
    ],
)
def test_verdict_on_a_cpu_is_the_certificates(
    built: Path, target: str, safe: bool, flags: tuple[str, ...], verdict: str
) -> None:
    unsafe = {} if safe else {"layers.0.mlp.fc1": UnsafeLinear(1, 8225, (UnsafePair(0, (0, 1), 8225),))}
    saturation = Saturation(safe, None, 10, 3456, unsafe)
    manifest = replace(load_manifest(built / "openvino"), target=target, saturation=saturation)
    assert cpu_verdict(manifest, replace(describe_machine(), isa_flags=flags)) == verdict


def test_verdict_on_what_only_the_wrapper_makes_exact(site: Site, tmp_path: Path) -> None:
    assert site.build(tmp_path / "wide", "--target", "arm64", "--runtime", "onnx").exit_code == 0
    manifest = load_manifest(tmp_path / "wide" / "onnx")
    verdict = cpu_verdict(manifest, replace(describe_machine(), isa_flags=("avx2",)))
    assert verdict.startswith(
        "this CPU has no VNNI: exact in vitedge's wrapper, by slower kernels; in other programs 10 of"
    )


def test_verdict_where_nothing_can_saturate(built: Path) -> None:
    for manifest in (load_manifest(built / "tflite"), load_manifest(built / "fp32" / "onnx")):
        assert cpu_verdict(manifest, replace(describe_machine(), isa_flags=("avx2",))) == "runs on any CPU"


def test_help_teaches_by_example(site: Site) -> None:
    assert "vitedge demo" in site.vitedge("--help").stdout
    for command in ("demo", "build", "verify", "bench", "run", "inspect"):
        result = site.vitedge(command, "--help")
        assert result.exit_code == 0
        assert f"vitedge {command}" in result.stdout.split("Example")[1]


def test_version_needs_no_heavy_import() -> None:
    script = "import sys, vitedge.cli; print(sorted({'torch', 'onnxruntime', 'cv2', 'openvino'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
