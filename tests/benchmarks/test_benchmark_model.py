"""What is read from the output of LiteRT's benchmark_model: recorded lines, and any numbers in their place."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.benchmarks.benchmark_model import Delegate, arguments, parse_run
from vitedge.benchmarks.devices import DeviceError

APPLIED = "INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate."
WARM_UP = "INFO: count=1 curr=633430 p5=633430 median=633430 p95=633430"
BENCHMARK = (
    "INFO: count=50 first=605745 curr=618849 min=568228 max=1.72219e+06 avg=602943 std=27690"
    " p5=570001 median=601002 p95=700003"
)
SUMMARY = (
    "INFO: Inference timings in us: Init: 592232, First inference: 633430, Warmup (avg): 633430, Inference (avg): {}"
)
MEMORY = "INFO: Memory footprint delta from the start of the tool (MB): init=133.086 overall=149.5"


def output(benchmark: str = BENCHMARK, *, applied: str = APPLIED, memory: str = MEMORY) -> str:
    """As version 2.x prints it, from its first line on."""
    return "\n".join(
        (
            "INFO: STARTING!",
            "INFO: Log parameter values verbosely: [0]",
            "INFO: Num threads: [4]",
            "INFO: Graph: [/data/local/tmp/x/int8.tflite]",
            "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
            applied,
            "INFO: The input model file size (MB): 67.3128",
            "INFO: Initialized session in 592.232ms.",
            "INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150"
            " seconds.",
            WARM_UP,
            "",
            "INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150"
            " seconds.",
            benchmark,
            "",
            SUMMARY.format(602943),
            "INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to"
            " the actual memory footprint of the model at runtime. Take the information at your discretion.",
            memory,
        )
    )


def test_percentiles() -> None:
    run = parse_run(output())
    assert (run.latency_ms, run.is_median, run.p95_ms, run.samples) == (601.002, True, 700.003, 50)
    assert (run.load_ms, run.first_ms, run.memory_bytes) == (592.232, 633.43, 156762112)
    assert run.delegates == {"XNNPACK": "completely"}
    assert run.fallback("none") is None


def test_older_version_without_percentiles() -> None:
    """Of 2021: no level before the text, no percentiles, another word for memory."""
    text = output("count=50 first=74456 curr=74516 min=73909 max=75323 avg=7.44816e+04 std=268", memory="")
    run = parse_run(text.replace("INFO: ", "") + "Peak memory footprint (MB): init=6.44141 overall=64\n")
    assert (run.latency_ms, run.is_median, run.p95_ms) == (74.4816, False, None)
    assert run.memory_bytes == 64 << 20


def test_equal_latencies() -> None:
    run = parse_run(output("INFO: count=3 curr=905463(all same)", memory=""))
    assert (run.latency_ms, run.is_median, run.samples, run.memory_bytes) == (905.463, True, 3, None)


@pytest.mark.parametrize(
    ("line", "delegate", "doubt"),
    [
        (APPLIED.replace("XNNPACK", "GPU"), "gpu", None),
        (
            "Explicitly applied NNAPI delegate, and the model graph will be partially executed by the delegate w/ 11"
            " delegate kernels.",
            "nnapi",
            "NNAPI runs the graph partially (in 11 parts): other kernels run the rest",
        ),
        (
            "Though NNAPI delegate is explicitly applied, the model graph will not be executed by the delegate.",
            "nnapi",
            "NNAPI runs nothing of the graph: these are latencies of other kernels",
        ),
        (
            "GPU acceleration is unsupported on this platform.",
            "gpu",
            "benchmark_model does not say that GPU was applied: other kernels may have run",
        ),
    ],
)  # fmt: skip
def test_fallback_of_delegates(line: str, delegate: Delegate, doubt: str | None) -> None:
    """XNNPACK, which is applied as well, says nothing about the one that was asked for."""
    assert parse_run(output(applied=f"INFO: {line}\n{APPLIED}")).fallback(delegate) == doubt


def test_arguments() -> None:
    common = ["--graph=m.tflite", "--num_threads=4", "--num_runs=3", "--min_secs=0.666667", "--use_xnnpack=true"]
    assert arguments("m.tflite", threads=4, seconds=2 / 3, delegate="none") == common
    assert arguments("m.tflite", threads=4, seconds=2 / 3, delegate="gpu") == [*common, "--use_gpu=true"]
    assert arguments("m.tflite", threads=4, seconds=2 / 3, delegate="nnapi") == [*common, "--use_nnapi=true"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 0 and 0; it ended with: nothing"),
        ("INFO: STARTING!\nERROR: Failed to load\nERROR: Benchmarking failed.", "with: ERROR: Benchmarking failed"),
        (output().partition("INFO: Inference timings")[0], "found 2 and 0"),
        (output("INFO: nothing"), "found 1 and 1"),
        (output() + "\n" + WARM_UP, "found 3 and 1"),
        (output("count=50 first=1 min=1"), "latency: expected a number of at least 1, found nothing"),
        (output("count=0 p5=0 median=0 p95=0"), "latency: expected a number of at least 1, found 0"),
        (output("count=50 avg=nan"), "latency: expected a number of at least 1, found nan"),
        (output("count=50 avg=-1.2e+05"), "found -1.2e"),
        (output("count=50 avg=12,5"), "found 12,5"),
        (output("count=5 avg=inf"), "found inf"),
        (output(memory="Memory footprint delta (MB): init=1 overall=x"), "memory: expected a number of at least 0"),
    ],
)  # fmt: skip
def test_what_is_no_result(text: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        parse_run(text)


def printed(value: float) -> str:
    """As a C++ stream prints a double."""
    return f"{value:g}"


@given(st.floats(1, 1e9), st.floats(1, 1e9), st.integers(2, 10**6), st.booleans())
def test_any_numbers(median_us: float, mean_us: float, count: int, has_percentiles: bool) -> None:
    line = f"INFO: count={count} first=7 curr=8 min=1 max=9 avg={printed(mean_us)} std=1"
    if has_percentiles:
        line += f" p5=1 median={printed(median_us)} p95={printed(2 * median_us)}"
    run = parse_run(output(line))
    assert math.isclose(run.latency_ms, (median_us if has_percentiles else mean_us) / 1000, rel_tol=1e-5)
    assert (run.is_median, run.samples) == (has_percentiles, count)
    assert run.p95_ms is None or math.isclose(run.p95_ms, 2 * median_us / 1000, rel_tol=1e-5)


@given(st.text(), st.integers(0, 2000))
def test_garbage_is_an_error_or_a_sound_result(noise: str, place: int) -> None:
    """Text that another process mixed in, anywhere."""
    whole = output()
    try:
        run = parse_run(whole[:place] + noise + whole[place:])
    except DeviceError:
        return
    assert math.isfinite(run.latency_ms)
    assert run.latency_ms > 0
    assert run.samples >= 1
