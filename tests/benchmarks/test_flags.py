"""Every flag trips on a made-up run that deserves it, and none on one that does not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.benchmarks.flags import Conditions, clock_flags, conditions, machine_flags, outlier_share, pair_flags
from vitedge.benchmarks.machine import CpuTimes, Sensors, describe_machine

QUIET = Conditions(None, None, 0.0, 0.0)
NAMES = ("INT8", "FP32")


def run(factors: list[float], found: Conditions = QUIET, noise: float = 0.01) -> tuple[str, ...]:
    """Flags of a run of 10 and 20 ms, each round slower by its factor."""
    generator = np.random.default_rng(0)
    rounds = [
        tuple((latency * factor * (1 + noise * generator.standard_normal(8))).tolist() for latency in (10, 20))
        for factor in factors
    ]
    return pair_flags(NAMES, rounds, found)


def test_a_steady_run_has_no_flags() -> None:
    assert run([1.0] * 20) == ()
    # Without throttling the clock and the temperature wander, others work a little, an hour has a few interruptions.
    calm = Conditions((3000, 2900), (60, 70), 0.01, 0.05)
    assert run([1.0] * 20, calm) == ()


def test_outliers() -> None:
    few = [[10.0] * 96 + [30.0] * 4]
    many = [[10.0] * 90 + [30.0] * 10]
    assert pair_flags(["INT8", "FP32"], [(*few, *few)] * 6, QUIET) == ()
    assert pair_flags(["INT8", "FP32"], [(*few, *many)] * 6, QUIET) == (
        "FP32: 10% of latencies are outliers, beyond 1.5 times the median",
    )


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=50))
def test_share_of_outliers_is_below_half(latencies_ms: list[float]) -> None:
    assert 0 <= outlier_share(latencies_ms) <= 0.5
    assert outlier_share([value * 4 for value in latencies_ms]) == outlier_share(latencies_ms)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (
            [1.0] * 10 + [1.2] * 10,
            "inference became 20% slower during the run: throttling, or a neighbour that woke up",
        ),
        (
            [1.2] * 10 + [1.0] * 10,
            "inference became 20% faster during the run: it began on a machine that was not at rest",
        ),
    ],
)
def test_drift(factors: list[float], words: str) -> None:
    assert run(factors, noise=0.0001) == (words,)


@pytest.mark.parametrize(
    "factors",
    [
        [1.0] * 10 + [1.03] * 10,  # clear, but too little to matter
        [1.0, 1.3] * 10,  # as noisy in the first half as in the second
        [1.0, 1.3],  # too few rounds to tell
    ],
)
def test_what_is_no_drift(factors: list[float]) -> None:
    assert run(factors) == ()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(QUIET, frequency_mhz=(3000, 2400)), "the clock fell from 3000 to 2400 MHz during the run: throttling"),
        (replace(QUIET, temperature_celsius=(70, 91)), "the CPU was at 91 °C: it may throttle; let it cool"),
        (replace(QUIET, steal_share=0.05), "5% of the CPU time was stolen by other virtual machines"),
        (replace(QUIET, others_share=0.3), "the machine was busy: other processes took 30% of its CPU time"),
    ],
)
def test_conditions(found: Conditions, words: str) -> None:
    assert run([1.0] * 20, found) == (words,)


def test_what_the_system_does_not_say_raises_no_flag() -> None:
    found = conditions([Sensors(None, None)] * 6, None, None, 1.0)
    assert found == Conditions(None, None, None, None)
    assert run([1.0] * 20, found) == ()
    # A container whose /proc/stat stands still.
    still = CpuTimes(5, 0, 10)
    assert conditions([], still, still, 1.0) == Conditions(None, None, None, None)


def test_shares_of_cpu_time() -> None:
    """10 s of 4 cores: 10 s were ours, 6 s others', 2 s stolen."""
    found = conditions([], CpuTimes(100, 10, 1000), CpuTimes(116, 12, 1040), own_seconds=10)
    assert found.others_share == pytest.approx(6 / 40)
    assert found.steal_share == pytest.approx(2 / 18)


@given(*[st.floats(0, 1e4)] * 4)
def test_shares_are_shares(busy: float, steal: float, idle: float, own: float) -> None:
    found = conditions([], CpuTimes(1, 1, 2), CpuTimes(1 + busy, 1 + steal, 2 + busy + steal + idle), own)
    for share in (found.others_share, found.steal_share):
        assert share is None or 0 <= share <= 1 + 1e-9


def test_sensors_are_compared_by_halves() -> None:
    read = [Sensors(mhz, None) for mhz in (3000, 3000, 10, 2000, 2000, 2000)]
    assert conditions(read, None, None, 0).frequency_mhz == (3000, 2000)
    assert conditions(read[:1], None, None, 0).frequency_mhz == (3000, 3000)


def test_machine() -> None:
    machine = replace(describe_machine(), governor=None, usable_cores=4)
    assert machine_flags(machine, threads=4, cpus=()) == ()
    assert machine_flags(replace(machine, governor="performance"), threads=2, cpus=(0, 1)) == ()
    assert machine_flags(replace(machine, governor="powersave"), threads=1, cpus=()) == (
        "the clock's governor is powersave, not performance: the clock may be lowered",
    )
    assert machine_flags(machine, threads=2, cpus=(3,)) == ("2 threads share 1 CPU: use --threads 1, or more --cpus",)
    assert machine_flags(machine, threads=8, cpus=()) == ("8 threads share 4 CPUs: use --threads 4, or more --cpus",)


@pytest.mark.parametrize(
    ("clocks", "flagged"),
    [
        ([(1000, 1000)], True),
        ([(1000, 1000), (1500, 1200)], True),
        ([(1000, 1000), (2400, 2400)], False),  # low in one measurement alone: that one's own flags tell
        ([(1700, 1700)], False),  # what all cores reach together
        ([None], False),
    ],
)
def test_a_clock_that_was_low_all_along(clocks: list[tuple[float, float] | None], flagged: bool) -> None:
    found = [replace(QUIET, frequency_mhz=clock) for clock in clocks]
    assert bool(clock_flags(2400, found)) is flagged
    assert clock_flags(None, found) == ()
