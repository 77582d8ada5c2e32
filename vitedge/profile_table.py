"""What a profile looks like in a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table

from vitedge.benchmarks.profile import NO_TIMES, Profile
from vitedge.benchmarks.profile_nodes import DELEGATED
from vitedge.runtimes.encoder import DISTRIBUTIONS

_SMALL_SHARE = 0.005  # operators below it share a row


def profile_table(profile: Profile) -> RenderableType:
    """Where the time of an inference goes, by operator and kernel, and what is not as promised in words."""
    threads = "as many threads as it likes" if profile.threads is None else f"threads {profile.threads}"
    title = f"{DISTRIBUTIONS[profile.runtime]}, {threads}: {profile.latency_ms:.2f} ms, median of {profile.runs} runs"
    table = Table(title=title, title_justify="left", header_style="bold")
    columns = ("operator", "kernel", "", "nodes") + (("ms", "share") if profile.operators_ms is not None else ())
    for column in columns:
        table.add_column(column, justify="right" if column in ("nodes", "ms", "share") else "left")
    small = [group for group in profile.groups if group.share is not None and group.share < _SMALL_SHARE]
    for group in profile.groups:
        if group not in small:
            role = "" if group.role == "other" else group.role
            table.add_row(group.kind, group.kernel, role, str(group.count), *_time(group.ms, group.share))
    if small:
        ms, share = sum(group.ms or 0 for group in small), sum(group.share or 0 for group in small)
        table.add_row("others", "", "", str(sum(group.count for group in small)), *_time(ms, share))
    lines = _timed(profile) if profile.operators_ms is not None else _untimed(profile)
    return Group(table, *lines, *(f"warning: {warning}" for warning in profile.warnings))


def _timed(profile: Profile) -> list[str]:
    _, integer = _time(profile.role_ms("integer"), profile.role_share("integer"))
    spent, part = _time(profile.role_ms("conversion"), profile.role_share("conversion"))
    return [
        f"operators: {profile.operators_ms:.2f} ms; the rest is the wrapper, the profiler and other processes",
        f"integer products: {integer} of that time, {profile.integer_macs_share:.1%} of the multiply-accumulates",
        f"conversions between float and integer: {spent} ms, {part}",
    ]


def _untimed(profile: Profile) -> list[str]:
    inside = sum(node.kernel == DELEGATED for node in profile.nodes)
    return [
        f"XNNPACK: {inside} of {len(profile.nodes)} nodes; partitions: {profile.partitions}",
        f"integer products: {profile.integer_macs_share:.1%} of the multiply-accumulates",
        NO_TIMES,
    ]


def _time(ms: float | None, share: float | None) -> tuple[str, ...]:
    return () if ms is None or share is None else (f"{ms:.3f}", f"{share:.1%}")
