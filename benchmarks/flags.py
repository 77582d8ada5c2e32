"""What makes a measurement doubtful, in words. Flags warn; they fail nothing and correct nothing.

A flag compares the run with itself (outliers, drift, clock) or with what a quiet machine looks like (other processes,
stolen time, temperature, governor). What the system does not report is None and raises no flag.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vitedge.benchmarks.machine import CpuTimes, Machine, Sensors
from vitedge.benchmarks.speedup import median_interval

Rounds = Sequence[Sequence[Sequence[float]]]
# Latencies are skewed: a few long ones are any operating system's, and the median does not feel them.
_OUTLIER_RATIO, _OUTLIER_SHARE = 1.5, 0.05
_DRIFT_RATIO = 1.05
_CLOCK_RATIO = 0.9
# All cores of a CPU at once reach about 0.8 of what one alone does; boards that throttle go to two thirds and below.
_LOW_CLOCK_RATIO = 0.7
# Phones and boards begin to lower their clocks between 80 and 95 °C.
_HOT_CELSIUS = 85.0
_STEAL_SHARE = 0.02
_OTHERS_SHARE = 0.1


@dataclass(frozen=True)
class Conditions:
    """The machine while a pair was measured; None where the system does not say.

    `frequency_mhz` and `temperature_celsius` hold the medians over the first and the second half of the rounds.
    `steal_share` is the share of the CPU time wanted here that the hypervisor gave to others; `others_share` the share
    of all cores' time that processes other than the measuring ones took.
    """

    frequency_mhz: tuple[float, float] | None
    temperature_celsius: tuple[float, float] | None
    steal_share: float | None
    others_share: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def conditions(
    sensors: Sequence[Sensors], before: CpuTimes | None, after: CpuTimes | None, own_seconds: float
) -> Conditions:
    """Sums up what was read during a measurement.

    Args:
        sensors: After each round.
        before: Time that all cores had spent before the rounds.
        after: The same after them.
        own_seconds: CPU time of the measuring processes between the two.
    """
    steal = others = None
    if before is not None and after is not None:
        busy, stolen, total = after.busy - before.busy, after.steal - before.steal, after.total - before.total
        if total > 0:
            steal = stolen / max(busy + stolen, own_seconds, 1e-9)
            others = max(0.0, busy - own_seconds) / total
    return Conditions(
        _halves([found.frequency_mhz for found in sensors]),
        _halves([found.temperature_celsius for found in sensors]),
        steal,
        others,
    )


def pair_flags(names: Sequence[str], rounds: Rounds, found: Conditions) -> tuple[str, ...]:
    """What to doubt about one measurement.

    Args:
        names: Of the models, as they should be called.
        rounds: Latencies in milliseconds by round, then by model.
        found: The machine meanwhile.
    """
    return (*_outliers(names, rounds), *_drift(rounds), *_conditions(found))


def machine_flags(machine: Machine, *, threads: int, cpus: Sequence[int]) -> tuple[str, ...]:
    """What to doubt about every measurement on this machine with so many threads, pinned to CPUs or (empty) not."""
    flags = []
    if machine.governor is not None and machine.governor != "performance":
        flags.append(f"the clock's governor is {machine.governor}, not performance: the clock may be lowered")
    cores = len(cpus) or machine.usable_cores
    if cores is not None and threads > cores:
        flags.append(f"{threads} threads share {cores} CPU{'s' * (cores > 1)}: use --threads {cores}, or more --cpus")
    return tuple(flags)


def clock_flags(max_frequency_mhz: float | None, found: Sequence[Conditions]) -> tuple[str, ...]:
    """What to doubt about all measurements if the clock was low in each: a device that was hot when they began.

    Args:
        max_frequency_mhz: Of the fastest CPU that may run them.
        found: The machine while each was measured.
    """
    clocks = [clock for one in found if one.frequency_mhz for clock in one.frequency_mhz]
    if max_frequency_mhz is None or not clocks or max(clocks) >= _LOW_CLOCK_RATIO * max_frequency_mhz:
        return ()
    return (
        f"the clock was at {max(clocks):.0f} of {max_frequency_mhz:.0f} MHz at most, all along: throttled from the"
        " start, or limited; let it cool, and look at its power supply and governor",
    )


def outlier_share(latencies_ms: ArrayLike) -> float:
    """Share of latencies beyond 1.5 times their median."""
    found = np.asarray(latencies_ms, np.float64)
    return float(np.mean(found > _OUTLIER_RATIO * np.median(found)))


def _outliers(names: Sequence[str], rounds: Rounds) -> Iterator[str]:
    for place, name in enumerate(names):
        share = outlier_share([latency for blocks in rounds for latency in blocks[place]])
        if share > _OUTLIER_SHARE:
            yield f"{name}: {share:.0%} of latencies are outliers, beyond {_OUTLIER_RATIO:g} times the median"


def _drift(rounds: Rounds) -> Iterator[str]:
    """Second half of the rounds against the first, over all models alike, beyond what rounds differ by anyway."""
    medians = np.array([[np.median(block) for block in blocks] for blocks in rounds])
    pace = np.exp(np.log(medians / np.median(medians, axis=0)).mean(axis=1))  # 1 is usual, 1.1 is 10 % slower
    half = len(pace) // 2
    if half < 2:
        return
    # Unpaired: the furthest that the two halves' medians could lie together.
    (first_low, first_high), (second_low, second_high) = median_interval(pace[:half]), median_interval(pace[-half:])
    change = float(np.median(pace[-half:]) / np.median(pace[:half]))
    if second_low > first_high and change > _DRIFT_RATIO:
        yield f"inference became {change - 1:.0%} slower during the run: throttling, or a neighbour that woke up"
    if second_high < first_low and change < 1 / _DRIFT_RATIO:
        yield f"inference became {1 / change - 1:.0%} faster during the run: it began on a machine that was not at rest"


def _conditions(found: Conditions) -> Iterator[str]:
    if found.frequency_mhz and found.frequency_mhz[1] < _CLOCK_RATIO * found.frequency_mhz[0]:
        first, second = found.frequency_mhz
        yield f"the clock fell from {first:.0f} to {second:.0f} MHz during the run: throttling"
    if found.temperature_celsius and max(found.temperature_celsius) >= _HOT_CELSIUS:
        yield f"the CPU was at {max(found.temperature_celsius):.0f} °C: it may throttle; let it cool"
    if found.steal_share is not None and found.steal_share > _STEAL_SHARE:
        yield f"{found.steal_share:.0%} of the CPU time was stolen by other virtual machines"
    if found.others_share is not None and found.others_share > _OTHERS_SHARE:
        yield f"the machine was busy: other processes took {found.others_share:.0%} of its CPU time"


def _halves(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Medians of the first and the second half."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    half = max(1, len(known) // 2)
    return float(np.median(known[:half])), float(np.median(known[-half:]))
