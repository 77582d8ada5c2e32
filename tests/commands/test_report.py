"""`vitedge report`: what the page shows of real builds, and what it must not let in."""

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.commands.conftest import LINEARS, Site, contents, names, report_of
from tests.commands.report_page import Html, changed, page_of, saved
from vitedge.report.images import read_images

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def page(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Html:
    return page_of(site, built, tmp_path_factory.mktemp("page"))


def test_numbers_are_those_of_the_report(built: Path, page: Html) -> None:
    report = report_of(built)
    assert page.text.startswith("model: vitedge report")
    assert f"calibrated on {report['calibration']['images']} images, judged on 24" in page.text
    for runtime in ("onnx", "openvino", "tflite"):
        accuracy, pair = report["accuracy"][runtime], report["bench"]["pairs"][runtime]
        last = accuracy["outputs"]["last_hidden_state"]
        for text in (
            f"{last['cosine_mean']:.5f}",
            f"{last['cosine_worst']:.5f}",
            f"{last['sqnr_db']:.2f} ± ",
            f"{accuracy['retrieval']['overlap_at_10']['mean']:.1%} ± ",
            f"{pair['artifact']['latency_median_ms']:.2f} ms",
            f"{pair['fp32']['latency_median_ms']:.2f} ms",
            f"{pair['speedup']['median']:.2f}× [{pair['speedup']['low']:.2f}, {pair['speedup']['high']:.2f}]",
            f"{pair['artifact']['size_bytes'] / 1e6:.2f} MB",
            *accuracy["verdicts"],
            pair["verdict"],
        ):
            assert text in page.text, text
        card = page.source.partition(f'<h3 class="{runtime}">')[2].partition("</dl>")[0]
        assert re.findall(r"<dd>([^<]*)</dd>", card)[:5] == [
            f"{pair['speedup']['median']:.2f}×",
            f"{pair['artifact']['latency_median_ms']:.2f} ms",
            f"{last['cosine_mean']:.5f}",
            f"{last['sqnr_db']:.1f} dB",
            f"{pair['artifact']['size_bytes'] / 1e6:.1f} MB",
        ]
    assert report["bench"]["best"]["verdict"][1:] in page.text
    assert set(page.values("section", "id")) == {
        "verdicts", "trade-off", "images", "sensitivity", "devices", "numbers", "build"
    }  # fmt: skip
    assert "Not measured: the plan met what was asked for without a search" in page.text
    assert "None yet: vitedge bench OUT --device" in page.text


def test_trade_off_places_faster_to_the_left(built: Path, page: Html) -> None:
    chart = page.source.partition('id="trade-off"')[2].partition("</section>")[0]
    found = re.findall(r'cx="([\d.]+)%" cy="([\d.]+)" r="([\d.]+)"><title>(\w+) (INT8|FP32): ([\d.]+) ms', chart)
    assert len(found) == 6
    pairs = report_of(built)["bench"]["pairs"]
    latency = {(name.lower(), precision): float(x) for x, _, _, name, precision, _ in found}
    expected = {
        (runtime, side["precision"].upper()): side["latency_median_ms"]
        for runtime, pair in pairs.items()
        for side in (pair["artifact"], pair["fp32"])
    }
    slowest = max(expected, key=expected.__getitem__)
    scale = latency[slowest] / expected[slowest]  # percent of the width per millisecond: one axis that begins at 0
    assert scale > 0
    for key, milliseconds in expected.items():
        # Both positions are printed with two decimals, each up to 0.005 off.
        assert latency[key] == pytest.approx(scale * milliseconds, abs=0.0101)
    int8_y = [float(y) for _, y, _, _, precision, _ in found if precision == "INT8"]
    assert min(int8_y) > max(float(y) for _, y, _, _, precision, _ in found if precision == "FP32")


def test_every_image_is_in_the_histograms_and_the_worst_are_shown(built: Path, page: Html) -> None:
    kept, report = read_images(built / "report"), report_of(built)
    counts = [int(text.split()[0]) for text in re.findall(r"<title>(\d+ images from [^<]*)</title>", page.source)]
    assert sum(counts) == 3 * 24
    for runtime, found in kept.artifacts.items():
        last = report["accuracy"][runtime]["outputs"]["last_hidden_state"]
        assert min(found.cosines) == pytest.approx(last["cosine_worst"], abs=1e-8)
        assert np.mean(found.cosines) == pytest.approx(last["cosine_mean"], abs=1e-8)
        assert kept.names[found.worst[0].image] == last["worst_image"]
        assert len(found.worst) == 6
        for item in found.worst:
            assert kept.names[item.image].rpartition("/")[2] in page.text
            assert f"{item.cosine:.5f} to its FP32" in page.text
    sources = page.values("img", "src")
    assert len(sources) == 3 * 6 * 3
    for source in set(sources):
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert max(picture.shape[:2]) <= 160


def test_build_keeps_thumbnails_of_what_is_shown_and_nothing_more(built: Path) -> None:
    kept = read_images(built / "report")
    shown = {
        number
        for found in kept.artifacts.values()
        for item in found.worst
        for number in (item.image, item.fp32.image, item.int8.image)
    }
    assert names(built / "report") == {"images.json", *(f"{number}.jpg" for number in shown)}
    manifest = json.loads((built / "onnx" / "manifest.json").read_text())
    assert "per_image" not in manifest["accuracy"]


def test_sensitivity_of_a_search(site: Site, searched: Path, tmp_path: Path) -> None:
    page, found = page_of(site, searched, tmp_path), report_of(searched)["search"]["onnx"]
    assert found["sensitivity_db"].pop("classifier")  # reads the output that is measured, and is left out
    assert "classifier, static" not in page.text
    for name, levels in found["sensitivity_db"].items():
        for precision, value in levels.items():
            assert f"{name}, {precision}: {value:.1f} dB" in page.text
    worst = min(found["sensitivity_db"], key=lambda name: min(found["sensitivity_db"][name].values()))
    table = page.source.partition('id="sensitivity"')[2].partition("<tbody>")[2]
    assert re.search(r"<td>([^<]*)</td>", table)[1] == worst  # type: ignore[index]
    assert f"{found['found']['steps']} steps from static to dynamic, then to float" in page.text
    assert f"{found['found']['sqnr_db']:.2f} dB" in page.text
    assert len(found["sensitivity_db"]) == LINEARS - 1
    assert "Not measured" not in page.text


def test_search_of_an_npu_build(site: Site, tmp_path: Path) -> None:
    def build(out: Path, *options: str) -> Any:
        assert site.build(out, "--target", "npu", *options).exit_code == 0
        return report_of(out)

    narrow = build(tmp_path / "narrow", "--activations", "int8")["accuracy"]["tflite"]["outputs"]["last_hidden_state"]
    found = build(tmp_path / "out", "--min-sqnr", str(narrow["sqnr_db"] + 3))["search"]["tflite"]
    page = page_of(site, tmp_path / "out", tmp_path)
    for name, value in found["sensitivity_db"].items():
        is_head = name.startswith(("pooler", "logits"))
        assert (f"{name}, 8 bits: {value:.1f} dB" in page.text) is not is_head
    assert f"{found['found']['sixteen_bit_tensors']} activations with 16 bits" in page.text
    assert "Not benchmarked by this build" in page.text


def test_devices(site: Site, built: Path, said: Any, tmp_path: Path) -> None:
    page = page_of(site, built, tmp_path, "--device", saved(said, tmp_path))
    assert "ssh://pi@board self-test passed" in page.text
    for check in said["selftest"]["checks"]:
        assert check["found"] in page.text
    for pair in said["bench"]["runs"][0]["pairs"].values():
        assert f"{pair['artifact']['latency_median_ms']:.2f} {pair['fp32']['latency_median_ms']:.2f}" in page.text
    # What makes a whole run doubtful, and which delegate ran, are told too.
    doubtful = json.loads(json.dumps(said))
    doubtful["bench"]["runs"][0] |= {"flags": ["power saving was on"], "delegate": "gpu"}
    page = page_of(site, built, tmp_path, "--device", saved(doubtful, tmp_path))
    assert "doubt: power saving was on" in page.text
    assert "1 × 1, gpu" in page.text
    assert "left behind" not in page.text
    more = {"left": "remove /data/x by hand", "not_installed": {"openvino": "no wheel for this <Python>"}}
    page = page_of(site, built, tmp_path, "--device", saved(said | more, tmp_path))
    assert "left behind: remove /data/x by hand" in page.text
    assert "not installed: openvino: no wheel for this <Python>" in page.text
    # The halves, as printed on the device; and a device whose files arrived damaged.
    for name, half in (("selftest", said["selftest"]), ("bench", said["bench"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(half))
    damaged = {"step": "files", "artifact": None, "status": "fail", "found": "other", "cause": "in transit"}
    selftest = said["selftest"] | {"passed": False, "source_digest": None, "artifacts": {}, "checks": [damaged]}
    broken = saved(said | {"selftest": selftest, "bench": None}, tmp_path)
    halves = ("--device", tmp_path / "selftest.json", "--device", tmp_path / "bench.json")
    page = page_of(site, built, tmp_path, *halves, "--device", broken)
    assert "selftest self-test passed" in page.text
    assert "self-test FAILED" in page.text
    assert "likely cause: in transit" in page.text


def test_what_was_not_measured_says_how(site: Site, built: Path, tmp_path: Path) -> None:
    def bare(document: Any) -> None:
        document |= {"bench": None, "accuracy": {}, "evaluation": None}

    build = changed(built, tmp_path, bare)
    shutil.rmtree(build / "report")
    text = page_of(site, build, tmp_path).text
    assert "Not judged: no evaluation images" in text
    assert "Not benchmarked by this build" in text
    assert "No images were judged" in text


def test_random_weights_have_no_accuracy(site: Site, built: Path, tmp_path: Path) -> None:
    def random(document: Any) -> None:
        document["accuracy"] = None
        document["source"]["random_weights"] = True

    build = changed(built, tmp_path, random)
    shutil.rmtree(build / "report")
    text = page_of(site, build, tmp_path).text
    assert "Random weights: speed and size are those of the shape" in text
    assert "There is latency, but no accuracy" in text


def test_older_builds_and_refused_ones(site: Site, built: Path, tmp_path: Path) -> None:
    def refused(document: Any) -> None:
        document["gate_failures"] = ["onnx: SQNR 20 dB, below 30"]

    build = changed(built, tmp_path, refused)
    shutil.rmtree(build / "report")
    text = page_of(site, build, tmp_path).text
    assert "ONNX refused" in text
    assert "refused by a gate: SQNR 20 dB, below 30" in text
    assert "an older vitedge made it" in text


def test_hostile_names_are_text(site: Site, built: Path, said: Any, tmp_path: Path) -> None:
    def name_images(document: Any) -> None:
        document["names"] = [HOSTILE] * 24

    build = changed(built, tmp_path, name_images, "report/images.json")
    report = report_of(build)
    report["source"]["source"] = HOSTILE.replace("/", "")
    report["bench"]["best"]["verdict"] = report["bench"]["machine"]["cpu_model"] = HOSTILE
    report["accuracy"]["onnx"]["verdicts"] = report["accuracy"]["onnx"]["notes"] = [HOSTILE]
    report["accuracy"]["onnx"]["outputs"]["last_hidden_state"]["worst_image"] = HOSTILE
    report["search"] = {
        "onnx": {
            "found": {"steps": 1, "sqnr_db": 1.0},
            "curve": [{"steps": 0, "sqnr_db": 0.0}],
            "sensitivity_db": {HOSTILE: {"static": 1.0}},
        }
    }
    (build / "report.json").write_text(json.dumps(report))
    check = {"step": HOSTILE, "artifact": HOSTILE, "status": HOSTILE, "found": HOSTILE, "cause": HOSTILE}
    selftest = said["selftest"] | {"checks": [check]}
    page = page_of(site, build, tmp_path, "--device", saved(said | {"device": HOSTILE, "selftest": selftest}, tmp_path))
    assert not {"script", "iframe", "object", "link", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("<img src=x onerror=alert(2)>") > 3 * 6 * 3  # as text
    assert "<script" not in page.source
    assert len(page.values("img", "src")) == 3 * 6 * 3


def test_nothing_comes_from_elsewhere(site: Site, searched: Path, page: Html, tmp_path: Path) -> None:
    for found in (page, page_of(site, searched, tmp_path)):
        assert [value for value in found.values("meta", "content") if "default-src 'none'" in value]
        loads = [
            value for _, name, value in found.attributes if name in ("src", "href", "srcset", "data", "xlink:href")
        ]
        assert loads
        assert all(value.startswith("data:image/jpeg;base64,") for value in loads)
        assert not re.search(r"url\(|@import|https?://", found.source)


def test_out_is_replaced_at_once_or_not_at_all(
    site: Site, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pages" / "page.html"
    out.parent.mkdir()
    result = site.vitedge("report", built, "--out", out, "--json")
    assert json.loads(result.stdout) == {
        "format": "vitedge-page/1", "out": str(out), "size_bytes": out.stat().st_size
    }  # fmt: skip
    before = contents(out.parent)
    assert before.keys() == {"page.html"}

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        result = site.vitedge("report", built, "--out", out)
    assert result.exit_code == 2
    assert "cannot be written (No space left on device); what was there before is unchanged" in result.stderr
    assert contents(out.parent) == before


def test_default_place_is_the_build(site: Site, built: Path, tmp_path: Path) -> None:
    build = changed(built, tmp_path, lambda _: None)
    result = site.vitedge("report", build)
    assert result.exit_code == 0
    page = build / "report.html"
    assert "".join(result.stdout.split()) == f"{page}:{page.stat().st_size / 1e3:.0f}kB;openitinabrowser"
