"""The clock of a build."""

import pytest

from vitedge.commands.clock import Clock
from vitedge.runtimes.errors import PlanError


def test_steps_that_fail_took_time_too_and_steps_add_up() -> None:
    clock = Clock()
    with pytest.raises(PlanError), clock("search"):
        raise PlanError("nothing better")
    assert clock.seconds["search"] >= 0
    clock.seconds["search"] = 5.0
    with clock("search"):
        pass
    assert 5 <= clock.seconds["search"] < 6
