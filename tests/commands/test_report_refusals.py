"""What `vitedge report` refuses: damaged and foreign documents, and places that cannot be written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Site, names
from tests.commands.report_page import changed, saved


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("photo.jpg", "expected the name of an .html file"),
        ("nowhere/page.html", "cannot be written (No such file or directory)"),
        ("folder.html", "cannot be written (Is a directory)"),
    ],
)
def test_impossible_outputs(site: Site, built: Path, tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "folder.html").mkdir()
    result = site.vitedge("report", built, "--out", tmp_path / out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert names(tmp_path) == {"folder.html"}


def test_no_build_there(site: Site, tmp_path: Path) -> None:
    result = site.vitedge("report", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere: no such folder; expected the OUT of a vitedge build" in result.stderr
    result = site.vitedge("report", tmp_path)
    assert result.exit_code == 2
    assert "report.json: no such file; expected the OUT of a vitedge build" in result.stderr
    assert names(tmp_path) == set()


def without(*keys: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def put(value: Any, *keys: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


IMAGES = "report/images.json"


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (put("vitedge-report/9", "format"), "report.json", "expected format vitedge-report/1, found vitedge-report/9"),
        (without("bench", "machine"), "report.json", "report.json: not readable (KeyError: 'machine')"),
        (
            without("accuracy", "onnx", "outputs", "last_hidden_state", "sqnr_db"),
            "report.json",
            "not readable (TypeErr",
        ),
        (
            put(float("nan"), "bench", "pairs", "onnx", "artifact", "latency_median_ms"),
            "report.json",
            "finite number, found NaN",
        ),
        (
            put([1, float("inf")], "bench", "pairs", "onnx", "artifact", "latency_interval_ms"),
            "report.json",
            "found Inf",
        ),
        (put("fast", "bench", "pairs", "onnx", "artifact", "latency_median_ms"), "report.json", "not readable"),
        (put([], "accuracy"), "report.json", "not readable (AttributeError"),
        (put("x", "format"), IMAGES, "images.json: expected format vitedge-images/1, found x; build again"),
        (put([], "artifacts", "onnx", "cosines"), IMAGES, "expected a cosine for each of 24 images, found 0"),
        (put(2.0, "artifacts", "onnx", "cosines", 0), IMAGES, "expected a cosine, found 2.0"),
        (put(float("nan"), "artifacts", "onnx", "cosines", 0), IMAGES, "expected a finite number, found NaN"),
        (put(99, "artifacts", "onnx", "worst", 0, "image"), IMAGES, "images.json: not readable (ValueError: 99 is not"),
        (put(-1, "artifacts", "onnx", "worst", 0, "fp32", "image"), IMAGES, "not readable (ValueError: -1 is not in"),
        (put({"cosines": [], "worst": []}, "artifacts", "coreml"), "report/images.json", "images.json: not readable"),
        (put({"coreml": {}}, "search"), "report.json", "found coreml"),
        (put("x", "format"), "plan.json", "plan.json: expected a plan of format"),
        (put("x", "format"), "onnx/manifest.json", "manifest.json: expected format vitedge-artifact"),
    ],
)
def test_damaged_documents(
    site: Site, built: Path, tmp_path: Path, change: Callable[[Any], None], file: str, message: str
) -> None:
    build = changed(built, tmp_path, change, file)
    result = site.vitedge("report", build)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (build / "report.html").exists()


def test_lost_thumbnails_and_half_a_report(site: Site, built: Path, tmp_path: Path) -> None:
    build = changed(built, tmp_path, lambda _: None)
    next((build / "report").glob("*.jpg")).unlink()
    assert "images.json: not readable (ValueError: " in site.vitedge("report", build).stderr
    (build / "report.json").write_text('{"format"')
    result = site.vitedge("report", build)
    assert result.exit_code == 2
    assert "report.json: expected a JSON file" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("x", "format"), "expected format vitedge-device/1 or vitedge-selftest/1 or vitedge-benches/2, found x"),
        (put("0" * 64, "selftest", "source_digest"), "about checkpoint 000000000000…, but this build is of"),
        (put({}, "bench", "artifacts", "onnx", "sha256"), "onnx there has other files than this build's"),
        (without("bench", "artifacts"), "device.json: not readable (KeyError: 'artifacts')"),
        (put({"sha256": {}}, "bench", "artifacts", "coreml"), "coreml there has other files than this build's"),
        (without("selftest", "machine"), "device.json: not readable (KeyError: 'machine'); pass what vitedge bench"),
        (put([], "selftest"), "device.json: not readable (AttributeError"),
    ],
)
def test_documents_that_are_no_device_of_this_build(
    site: Site, built: Path, said: Any, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    document = json.loads(json.dumps(said))
    change(document)
    result = site.vitedge("report", built, "--device", saved(document, tmp_path), "--out", tmp_path / "page.html")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "page.html").exists()
