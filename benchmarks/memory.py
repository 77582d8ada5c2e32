"""The memory of this process, as the kernel counts it."""

from pathlib import Path


def memory_bytes(field: str) -> int | None:
    """A field of Linux's /proc/self/status: VmRSS is what it has now, VmHWM its peak; None where there is no such."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kibibytes[0]) * 1024 if kibibytes else None
