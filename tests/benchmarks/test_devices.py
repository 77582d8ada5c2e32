"""What is kept and told if a device cannot be cleaned up, whichever way it is reached."""

from typing import NoReturn

import pytest

from vitedge.benchmarks.devices import DeviceError, DeviceResult, cleaned_up

RESULT = DeviceResult("board", None, None)
LEFT = "/tmp/x perhaps: its removal was interrupted; look there, and remove it"


def interrupted() -> NoReturn:
    raise KeyboardInterrupt


def fails() -> NoReturn:
    raise DeviceError("board: no Python there")


def test_nothing_left_is_told_as_nothing() -> None:
    assert cleaned_up("board", "/tmp/x", lambda: RESULT, lambda: None) == RESULT


def test_an_interrupted_clean_up_costs_no_measurement() -> None:
    """It waits for a device that is gone; who stops that wants what was measured."""
    found = cleaned_up("board", "/tmp/x", lambda: RESULT, interrupted)
    assert (found.device, found.left) == ("board", LEFT)


def test_an_interrupted_clean_up_after_an_error_is_told_with_it() -> None:
    with pytest.raises(DeviceError) as caught:
        cleaned_up("board", "/tmp/x", fails, interrupted)
    assert str(caught.value) == f"board: no Python there; and {LEFT}"
    with pytest.raises(DeviceError) as caught:
        cleaned_up("board", "/tmp/x", interrupted, interrupted)
    assert str(caught.value) == f"board: {LEFT}"


def test_an_interrupt_stays_one_if_nothing_is_left() -> None:
    with pytest.raises(KeyboardInterrupt):
        cleaned_up("board", "/tmp/x", interrupted, lambda: None)
