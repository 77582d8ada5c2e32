"""These tests run on shared, noisy machines: speed is measured in benchmarks/, and no example has a deadline."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("noisy", deadline=None)
settings.load_profile("noisy")

# What takes longest comes first, so that the processes of `make test` end together.
_LONGEST = ("test_real_encoder.py", "commands/embed", "test_real_npu.py", "benchmarks/test_vendors.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = [Path(__file__).parent / name for name in _LONGEST]
    items.sort(key=lambda item: not any(item.path.is_relative_to(place) for place in places))
