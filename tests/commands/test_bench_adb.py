"""`vitedge bench --device adb:…`: the real adb against a scripted device, and what it measures."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import Result

from tests.adb_device import AdbDevice
from tests.commands.benchmark_tool import bench, tool
from tests.commands.conftest import Site
from vitedge.benchmarks.adb import parse_adb
from vitedge.benchmarks.devices import DeviceError
from vitedge.runtimes.file_records import sha256_of

pytestmark = [
    pytest.mark.skipif(os.environ.get("CI") is None and shutil.which("adb") is None, reason="needs Debian's adb"),
    pytest.mark.usefixtures("adb_server"),
]


def flags_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)["bench"]["runs"][0]
    return [*run["flags"], *run["pairs"]["tflite"]["flags"]]


def test_measures_both_in_turns(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    program = tool(tmp_path)
    result = bench(site, built, phone, program, "--json", "--threads", "4")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["format"], document["device"], document["selftest"]) == (
        "vitedge-device/1",
        f"adb:{phone.serial}",
        None,
    )
    model = built / "tflite" / "model.tflite"
    assert document["bench"]["artifacts"]["tflite"]["sha256"] == {"model.tflite": sha256_of(model)}
    (run,) = document["bench"]["runs"]
    pair = run["pairs"]["tflite"]
    artifact, fp32 = pair["artifact"], pair["fp32"]
    assert (artifact["latency_median_ms"], artifact["latency_interval_ms"]) == (12.0, [12.0, 12.0])
    assert (fp32["latency_median_ms"], fp32["latency_p95_ms"]) == (24.0, 26.0)
    assert (artifact["load_ms"], artifact["first_ms"], artifact["samples"]) == (5.5, 31.0, 240)
    assert (artifact["peak_bytes"], artifact["size_bytes"]) == (64 << 20, model.stat().st_size)
    assert (artifact["precision"], artifact["compared"], len(artifact["rounds"])) == ("int8", "sha256", 6)
    assert pair["speedup"] == {"median": 2.0, "low": 2.0, "high": 2.0, "rounds": 6}
    assert pair["verdict"] == "2.00× [2.00, 2.00] faster than FP32 here"
    assert (run["flags"], pair["flags"], run["threads"], run["delegate"]) == ([], [], 4, "none")
    assert run["tool"] == {"name": "benchmark_model", "sha256": sha256_of(program)}
    # In turns, every other round the other way round.
    calls = [line.split() for line in (phone.root / "calls").read_text().splitlines()]
    turns = [Path(words[0]).stem for words in calls]
    assert turns == ["int8", "fp32", "fp32", "int8"] * 3
    assert calls[0][1:] == ["--num_threads=4", "--num_runs=3", "--min_secs=0.05", "--use_xnnpack=true"]
    assert phone.left() == []


def test_what_the_device_says_of_itself(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    result = bench(site, built, phone, tool(tmp_path), "--json")
    run = json.loads(result.stdout)["bench"]["runs"][0]
    assert run["machine"] == {
        "cpu_model": "QTI SM8550, 2× Cortex-A520 + 1× Cortex-A715 + 1× Cortex-X3",
        "architecture": "arm64-v8a",
        "system": "Android 14",
        "product": "Phone 1",
        "soc": "SM8550",
        "soc_manufacturer": "QTI",
        "android_version": "14",
        "kernel": "5.15.104-android13",
        "isa_flags": ["asimd", "asimddp", "i8mm", "bf16"],
        "governor": "walt",
        "max_frequency_mhz": 3187.2,
    }
    assert (
        run["before"]
        == run["after"]
        == {
            "frequency_mhz": 3187.2,
            "frequency_limit_mhz": 3187.2,
            "temperature_celsius": 42.0,
            "zones_celsius": {"cpu-1-0": 42.0, "battery": 30.3},
            "thermal_status": "none",
            "battery_percent": 85.0,
            "battery_status": "charging",
            "battery_celsius": 30.3,
            "power_saving": False,
        }
    )


def test_as_text_and_without_a_twin(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    artifact = shutil.copytree(built / "tflite", tmp_path / "alone" / "tflite")
    result = bench(site, artifact, phone, tool(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "has no FP32 to compare with" in result.stderr
    assert result.stdout.splitlines() == [
        f"adb:{phone.serial}: QTI SM8550, 2× Cortex-A520 + 1× Cortex-A715 + 1× Cortex-X3, Android 14",
        "tflite: INT8 12.00 ms; no FP32 artifact to compare with",
    ]


def test_compare_reads_it(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    """Against itself, against a slower one, and against a build's report: quantities that both have."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(bench(site, built, phone, tool(tmp_path), "--json").stdout)
    after.write_text(bench(site, built, phone, tool(tmp_path, "median=$((median * 2))"), "--json").stdout)
    same = json.loads(site.vitedge("compare", before, before, "--json").stdout)["changes"]
    assert {change["quantity"] for change in same} == {"latency ms", "load ms", "peak bytes", "file bytes"}
    assert {change["verdict"] for change in same} == {"same"}
    slower = site.vitedge("compare", before, after)
    assert slower.exit_code == 1
    assert "tflite: latency ms 12 → 24" in slower.stderr
    other = json.loads(site.vitedge("compare", built / "report.json", before, "--json").stdout)
    assert {change["artifact"] for change in other["changes"]} == {"tflite"}


def test_benchmark_model_that_is_there(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    program = phone.program("own tool", tool(tmp_path).read_text())
    shutil.move(program, phone.place / "own tool; touch trapped")
    path = "/data/local/tmp/own tool; touch trapped"
    result = bench(site, built, phone, f"device:{path}", "--json")
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)["bench"]["runs"][0]
    assert run["tool"]["sha256"] == sha256_of(phone.place / "own tool; touch trapped")
    assert phone.left() == ["own tool; touch trapped"]  # it was there before
    missing = bench(site, built, phone, "device:/data/local/tmp/none")
    assert missing.exit_code == 2
    assert "sha256sum /data/local/tmp/none failed there (exit code 1)" in missing.stderr
    assert phone.left() == ["own tool; touch trapped"]


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (
            "applied='Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the"
            " delegate w/ 3 delegate kernels.'",
            "INT8: XNNPACK runs the graph partially (in 3 parts): other kernels run the rest",
        ),
        ("percentiles=", "FP32: this benchmark_model prints no median: latencies are means, which outliers raise"),
        (
            'finish() { [ $(wc -l < "$ROOT/calls") -lt 6 ] ||'
            " echo 1500000 > $ROOT/sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq; }",
            "the clock fell from 3187 to 2000 MHz during the run: throttling",
        ),
        (
            "echo 1500000 | tee $ROOT/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq > /dev/null",
            "the clock was at 1500 of 3187 MHz at most, all along: throttled from the start",
        ),
        ("echo 91000 > $ROOT/sys/class/thermal/thermal_zone0/temp", "the CPU was at 91 °C: it may throttle"),
        ("echo 91000 > $ROOT/sys/class/thermal/thermal_zone0/temp", "the CPU warmed by 49 °C to 91 °C"),
        ("echo 'Thermal Status: 3' > $ROOT/answers/dumpsys.thermalservice", "Android's thermal status was severe"),
        ("median=$((median + $(wc -l < $ROOT/calls) * 1000))", "slower during the run: throttling, or a neighbour"),
    ],
)  # fmt: skip
def test_what_is_doubtful(site: Site, built: Path, phone: AdbDevice, tmp_path: Path, change: str, flag: str) -> None:
    found = flags_of(bench(site, built, phone, tool(tmp_path, change), "--json"))
    assert any(flag in said for said in found), found


def test_power_saving_and_low_battery(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    phone.answer("settings.low_power", "1")
    phone.answer("dumpsys.battery", "  level: 15\n  scale: 100")
    found = flags_of(bench(site, built, phone, tool(tmp_path), "--json"))
    assert found == [
        "power saving is on, which lowers the clock: turn it off",
        "the battery is at 15 %: the device may save power; charge it",
    ]


def test_delegate_that_runs_nothing(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    change = (
        "applied='Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate.'"
    )
    found = flags_of(bench(site, built, phone, tool(tmp_path, change), "--json", "--delegate", "nnapi"))
    assert found == [
        f"{name}: NNAPI runs nothing of the graph: these are latencies of other kernels" for name in ("INT8", "FP32")
    ]
    assert "--use_xnnpack=true --use_nnapi=true" in (phone.root / "calls").read_text()


def test_device_that_says_nothing_of_itself(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    """No properties, sensors or dumps, and no sha256sum: sizes are compared."""
    for answer in (phone.root / "answers").iterdir():
        if answer.name != "df":
            answer.unlink()
    for folder in ("sys", "proc"):
        shutil.rmtree(phone.root / folder)
    phone.program("sha256sum", "exit 127")
    result = bench(site, built, phone, tool(tmp_path), "--json")
    assert flags_of(result) == []
    run = json.loads(result.stdout)["bench"]["runs"][0]
    assert (run["machine"]["cpu_model"], run["machine"]["system"]) == (None, "Android")
    assert {value for name, value in run["after"].items() if name != "zones_celsius"} == {None}
    assert run["pairs"]["tflite"]["artifact"]["compared"] == "size"


def test_artifact_of_another_runtime(site: Site, built: Path, tmp_path: Path) -> None:
    result = site.vitedge("bench", built / "onnx", "--device", "adb:R5CT", "--benchmark-model", tool(tmp_path))
    assert result.exit_code == 2
    assert "benchmark_model measures TFLite" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "adb:R5CT", "--delegate", "gpu"), "--delegate is for --benchmark-model"),
        (("--device", "adb:a", "--device-python", "python3"), "expected an absolute path on the device, found python3"),
        (
            ("--device", "adb:a", "--device-python", "/x", "--benchmark-model", "x"),
            "leave --device-python and --device-folder out, or --benchmark-model",
        ),
        (
            ("--device", "adb:a", "--device-folder", "/x", "--benchmark-model", "x"),
            "leave --device-python and --device-folder out, or --benchmark-model",
        ),
        (("--device", "ssh://a", "--device-folder", "x"), "expected an absolute path on the device, found x"),
        (("--device", "local", "--device-folder", "/x"), "for a --device"),
        (("--device", "adb:", "--benchmark-model", "x"), "expected adb:SERIAL with a serial that adb devices lists"),
        (("--device", "adb:a b", "--benchmark-model", "x"), "expected adb:SERIAL"),
        (
            ("--device", "adb:a", "--benchmark-model", "none"),
            "--benchmark-model: expected a file that can be read, found none at none",
        ),
        (("--device", "adb:a", "--benchmark-model", "device:x"), "expected device:/an/absolute/path, found device:x"),
        (("--device", "adb:a", "--no-install"), "leave --no-install and --ssh-config out"),
        (("--device", "ssh://a", "--delegate", "gpu"), "leave --benchmark-model and --delegate out; they are for adb"),
        (("--benchmark-model", "x"), "for a --device"),
        (("--device", "ssh://a", "--images", "x"), "they are for this host"),
        (("--device", "ssh://a", "--model", "x"), "they are for this host"),
        (("--images", "x"), "--images is for --vendors, and --model for --torch or --vendors"),
        (("--model", "x"), "--images is for --vendors, and --model for --torch or --vendors"),
        (("--device", "adb:a", "--threads", "1,2"), "expected one number of threads"),
    ],
)
def test_options_that_do_not_fit(site: Site, built: Path, options: tuple[str, ...], message: str) -> None:
    result = site.vitedge("bench", built, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_serials() -> None:
    for serial in ("R5CT10XYZ", "emulator-5554", "127.0.0.1:5555", "adb-1A2B-x._adb-tls-connect._tcp", "[::1]:5555"):
        assert parse_adb(f"adb:{serial}").name == f"adb:{serial}"
    with pytest.raises(DeviceError, match="expected adb:SERIAL"):
        parse_adb("usb:R5CT")
