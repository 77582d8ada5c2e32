"""These tests run on shared, noisy machines: speed is measured in benchmarks/, and no example has a deadline."""

from hypothesis import settings

settings.register_profile("noisy", deadline=None)
settings.load_profile("noisy")
