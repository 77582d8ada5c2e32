"""`vitedge bench --device ssh://…` where a device lacks something: what is installed, skipped, told and left behind."""

import json
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import Site
from tests.commands.device_side import sealed, write_site
from tests.commands.sshd import Host, bench, needs_sshd
from vitedge.benchmarks.environment import environment_bytes
from vitedge.benchmarks.remote import measure_bundle
from vitedge.benchmarks.ssh import SshDevice

pytestmark = needs_sshd
# Debian's patch to Python's venv prints this on standard output, and ends with exit code 1.
DEBIAN = """The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command.

    apt install python3.11-venv

You may need to use sudo with that command.  After installing the python3-venv
package, recreate your virtual environment.

Failing command: /tmp/vitedge/venv/bin/python3
"""
REAL = f'exec {sys.executable} "$@"'


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python_with_pip(folder: Path, pip: str, hidden: tuple[str, ...] = ()) -> Path:
    """A Python whose environments have a pip of our own, so that nothing comes from a network, and lack packages."""
    site = folder / "site"
    site.mkdir()
    write_site(site, hidden=hidden)
    inner = script(folder / "inner", f'if [ "$1 $2" = "-m pip" ]; then {pip}; fi\nexport PYTHONPATH={site}\n{REAL}')
    make = f'mkdir -p "$3/bin" && cp {inner} "$3/bin/python"'
    return script(folder / "python", f'if [ "$1 $2" = "-m venv" ]; then {make}; exit; fi\n{REAL}')


def test_a_python_without_venv(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(DEBIAN)
    for number, said in enumerate((f"cat {tmp_path / 'said'}", "echo python: No module named venv >&2")):
        python = script(tmp_path / f"{number}", f'if [ "$1 $2" = "-m venv" ]; then {said}; exit 1; fi\n{REAL}')
        result = bench(site, built / "onnx", server, "--device-python", str(python))
        assert result.exit_code == 2
        assert "cannot make virtual environments: install python3-venv there" in result.stderr
        assert "network" not in result.stderr
    python = script(tmp_path / "full", f'if [ "$1 $2" = "-m venv" ]; then echo disk full >&2; exit 1; fi\n{REAL}')
    result = bench(site, built / "onnx", server, "--device-python", str(python))
    assert "a virtual environment could not be made there: disk full" in result.stderr
    assert server.left() == []


def test_a_pip_that_fails(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    python = python_with_pip(tmp_path, "echo WARNING: Retrying >&2; echo ERROR: no route to host >&2; exit 1")
    result = bench(site, built, server, "--device-python", str(python))
    assert result.exit_code == 2
    assert "pip install failed there (onnxruntime: ERROR: no route to host; openvino: ERROR: no route" in result.stderr
    assert "without a network, install the packages of requirements.txt there and pass --no-install" in result.stderr
    assert server.left() == []


def test_one_runtime_without_a_wheel_costs_the_others_nothing(
    site: Site, built: Path, server: Host, tmp_path: Path
) -> None:
    why = "ERROR: No matching distribution found for ai-edge-litert>=2.0"
    pip = f'echo "$@" >> {tmp_path}/pip; case "$*" in *litert*) echo "{why}" >&2; exit 1;; esac; exit 0'
    python = python_with_pip(tmp_path, pip, hidden=("ai-edge-litert",))
    result = bench(site, built, server, "--device-python", str(python), "--json")
    assert result.exit_code == 0, result.stderr
    installs = [line.split()[-2:] for line in (tmp_path / "pip").read_text().splitlines()]
    assert [runtime.partition(">=")[0] for _, runtime in installs] == ["onnxruntime", "openvino", "ai-edge-litert"]
    assert {common for common, _ in installs} == {"numpy>=2.0"}
    document = json.loads(result.stdout)
    assert document["not_installed"] == {"ai-edge-litert": why}
    assert document["bench"]["runs"][0]["pairs"].keys() == {"onnx", "openvino"}
    steps = {(check["step"], check["artifact"]): check["status"] for check in document["selftest"]["checks"]}
    assert [steps["inference", name] for name in ("onnx", "openvino", "tflite")] == ["pass", "pass", "skip"]
    said = bench(site, built, server, "--device-python", str(python)).stdout
    assert f"not installed: ai-edge-litert: {why}\n" in said
    assert server.left() == []


def test_what_does_not_load_costs_the_others_no_benchmark(
    built: Path, site: Site, server: Host, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built / "onnx", built / "tflite", "--out", bundle).exit_code == 0
    manifest = bundle / "artifacts" / "onnx" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"minimum_runtime": "99"}))
    sealed(bundle)
    device = SshDevice("127.0.0.1", None, server.port, sys.executable, install=False, config=server.config)
    result = measure_bundle(device, bundle, threads=1, seconds=0.1)
    assert not result.passed
    assert result.bench is not None
    assert result.bench["runs"][0]["pairs"].keys() == {"tflite"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"format": "vitedge-selftest/1"}', "selftest printed no result (expected 'passed' in a document of format"),
        ('{"format": "vitedge-selftest/9"}', "printed no result (expected a document of format vitedge-selftest/1)"),
        ("[]", "printed no result (expected a document of format vitedge-selftest/1)"),
    ],
)
def test_a_device_that_answers_something_else(
    site: Site, built: Path, server: Host, tmp_path: Path, said: str, message: str
) -> None:
    told = f'if [ "$2 $3" = "vitedge.device selftest" ]; then echo \'{said}\'; exit; fi'
    python = script(tmp_path / "python", f"{told}\n{REAL}")
    result = bench(site, built / "onnx", server, "--no-install", "--device-python", str(python))
    assert result.exit_code == 2, result.exception
    assert message in result.stderr
    assert server.left() == []


def test_works_in_a_folder_of_the_users_choice(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    place, seen = tmp_path / "card", tmp_path / "seen"
    place.mkdir()
    python = script(tmp_path / "python", f'if [ "$2" = vitedge.device ]; then pwd >> {seen}; fi\n{REAL}')
    options = ("--no-install", "--device-python", str(python), "--device-folder")
    result = bench(site, built / "onnx", server, *options, str(place))
    assert result.exit_code == 0, result.stderr
    assert {str(Path(line).parent) for line in seen.read_text().splitlines()} == {str(place)}
    assert list(place.iterdir()) == []
    result = bench(site, built / "onnx", server, *options, "/nowhere")
    assert result.exit_code == 2
    assert "expected a folder there that can be written to, found none at /nowhere" in result.stderr


def test_asks_for_the_space_that_its_runtimes_take(
    site: Site, built: Path, server: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, all_of_them = (environment_bytes(names) for names in (["onnxruntime"], ["onnxruntime", "openvino"]))
    assert 150e6 < one < 400e6 < all_of_them
    monkeypatch.setattr("vitedge.benchmarks.remote.environment_bytes", lambda runtimes: len(runtimes) << 60)
    result = bench(site, built / "onnx", server)
    assert "expected 11529215" in result.stderr
    assert "name another --device-folder, or measure fewer artifacts, or pass --no-install" in result.stderr


@pytest.mark.parametrize("install", [True, False])
def test_no_process_caches_what_it_imports(
    site: Site, built: Path, server: Host, tmp_path: Path, install: bool
) -> None:
    """Each imports a module that nobody has compiled, and none leaves it compiled."""
    module = tmp_path / "modules"
    module.mkdir()
    (module / "sitecustomize.py").write_text(f"open({str(tmp_path / 'started')!r}, 'a').write('x')\n")
    python = script(tmp_path / "python", f"export PYTHONPATH={module}\n{REAL}")
    options = () if install else ("--no-install",)
    result = bench(site, built / "onnx", server, "--device-python", str(python), *options)
    assert result.exit_code == 0, result.stderr
    assert "PASS  inference onnx" in result.stdout
    assert "onnx: INT8" in result.stdout
    assert len((tmp_path / "started").read_text()) >= 8
    assert [path.name for path in module.iterdir()] == ["sitecustomize.py"]
    assert server.left() == []
