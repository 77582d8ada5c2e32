"""These tests run on shared, noisy machines: speed is measured in benchmarks/, and no example has a deadline.

`make test` runs two processes. A file stays in one of them, as its tests share what its fixtures make; so do all files
that share a system unpacked below `build/`. What takes longest comes first, so that both end together.
"""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("noisy", deadline=None)
settings.load_profile("noisy")

_TESTS = Path(__file__).parent
_UNPACKED = (_TESTS / "commands" / "embed", _TESTS / "commands" / "test_bundle_arm64.py")
_LONGEST = (*_UNPACKED, _TESTS / "test_real_npu.py", _TESTS / "test_real_encoder.py")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _below(item, _LONGEST))
    for item in items:
        item.add_marker(pytest.mark.xdist_group("unpacked" if _below(item, _UNPACKED) else str(item.path)))


def _below(item: pytest.Item, places: tuple[Path, ...]) -> bool:
    return any(item.path.is_relative_to(place) for place in places)
