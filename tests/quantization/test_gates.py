"""Gates: each passes at its limit and trips beyond it; what is not there to be judged is an error."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.accuracy import AccuracyReport, Drop, OutputAccuracy
from vitedge.quantization.gates import NO_GATES, Gates, check, gated_drop, parse_fraction
from vitedge.runtimes.errors import AccuracyError

TOP1 = Drop("top-1", 0.90, 0.89, 0.01, 0.0, 0.02)
TOP5 = Drop("top-5", 0.99, 0.79, 0.2, 0.1, 0.3)
KNN = Drop("k-NN", 0.80, 0.77, 0.03, 0.01, 0.05)


def output(cosine: float = 0.99, sqnr_db: float = 20.0) -> OutputAccuracy:
    """Its worst cosine, and that of the 1st percentile, fail every gate; gates are not about them."""
    return OutputAccuracy(cosine, -1.0, -1.0, "image7", sqnr_db, 1.0)


def report(*drops: Drop, outputs: Mapping[str, OutputAccuracy] | None = None) -> AccuracyReport:
    return AccuracyReport(100, {"last_hidden_state": output()} if outputs is None else outputs, 0.9, None, drops)


@pytest.mark.parametrize(
    ("gates", "failure"),
    [
        (Gates(min_cosine=0.99), None),
        (Gates(min_cosine=math.nextafter(0.99, 1)), "last_hidden_state: mean cosine 0.99000 is below 0.99"),
        (Gates(min_cosine=0.995), "last_hidden_state: mean cosine 0.99000 is below 0.995"),
        (Gates(min_sqnr_db=20.0), None),
        (Gates(min_sqnr_db=math.nextafter(20, 21)), "last_hidden_state: SQNR 20.00 dB is below 20.0"),
        (Gates(min_sqnr_db=25.5), "last_hidden_state: SQNR 20.00 dB is below 25.5 dB"),
        (Gates(max_drop=0.01), None),
        (Gates(max_drop=math.nextafter(0.01, 0)), "top-1 accuracy drops by 1.00%, more than 1.00%"),
        (Gates(max_drop=0.005), "top-1 accuracy drops by 1.00%, more than 0.50%"),
        (Gates(max_drop=0.0), "top-1 accuracy drops by 1.00%, more than 0.00%"),
        (Gates(max_drop=1.0, min_cosine=-1.0, min_sqnr_db=-300.0), None),
        (NO_GATES, None),
    ],
)
def test_each_gate_passes_at_its_edge_and_trips_beyond(gates: Gates, failure: str | None) -> None:
    failures = check(report(TOP1, TOP5, KNN), gates)
    if failure is None:
        assert failures == ()
    else:
        (found,) = failures
        assert found.startswith(failure)


def test_every_failed_gate_is_named() -> None:
    failures = check(report(TOP1), Gates(max_drop=0.0, min_cosine=0.999, min_sqnr_db=40))
    assert [text.split(" ")[0] for text in failures] == ["last_hidden_state:", "last_hidden_state:", "top-1"]


def test_cosine_is_gated_on_every_output_and_sqnr_on_the_hidden_state() -> None:
    outputs = {"last_hidden_state": output(1.0, 30), "pooler_output": output(0.9, 5), "logits": output(0.8, 5)}
    failures = check(report(outputs=outputs), Gates(min_cosine=0.95, min_sqnr_db=30))
    assert failures == (
        "pooler_output: mean cosine 0.90000 is below 0.95",
        "logits: mean cosine 0.80000 is below 0.95",
    )


def test_the_drop_is_of_top_1_else_of_knn() -> None:
    assert gated_drop(report(TOP5, KNN, TOP1)) == TOP1
    assert gated_drop(report(KNN)) == KNN
    assert check(report(KNN), Gates(max_drop=0.03)) == ()
    assert check(report(KNN), Gates(max_drop=0.02)) == ("k-NN accuracy drops by 3.00%, more than 2.00%",)


def test_a_gain_passes_every_drop() -> None:
    assert check(report(Drop("top-1", 0.8, 0.9, -0.1, -0.2, 0.0)), Gates(max_drop=0.0)) == ()


# What is not there


@pytest.mark.parametrize("drops", [(), (TOP5,)])
def test_a_drop_that_was_not_measured_is_an_error(drops: tuple[Drop, ...]) -> None:
    with pytest.raises(AccuracyError, match="max_drop needs labelled images: a folder with a sub-folder for each clas"):
        check(report(*drops), Gates(max_drop=1.0))


@pytest.mark.parametrize("gates", [Gates(min_sqnr_db=-300.0), Gates(min_cosine=-1.0)])
def test_an_output_that_was_not_measured_is_an_error(gates: Gates) -> None:
    """A loop over no outputs finds no failure either."""
    with pytest.raises(AccuracyError, match="last_hidden_state was not measured"):
        check(report(TOP1, outputs={}), gates)


def test_nan_metrics_fail() -> None:
    broken = report(Drop("top-1", 1.0, math.nan, math.nan, 0.0, 0.0), outputs={"last_hidden_state": output(math.nan)})
    assert len(check(broken, Gates(max_drop=1.0, min_cosine=-1.0))) == 2
    no_sqnr = report(outputs={"last_hidden_state": output(1.0, math.nan)})
    assert len(check(no_sqnr, Gates(min_sqnr_db=-300.0))) == 1


@pytest.mark.parametrize("name", ["max_drop", "min_cosine", "min_sqnr_db"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_limits_are_finite(name: str, value: float) -> None:
    with pytest.raises(AccuracyError, match=f"{name}: expected a finite number, found {value}"):
        Gates(**{name: value})


def test_any_gate() -> None:
    assert not NO_GATES.any
    assert Gates(max_drop=0.0).any  # 0 is a limit, None is none


# Fractions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5%", 0.005),
        ("0.005", 0.005),
        ("0", 0.0),
        ("0%", 0.0),
        ("100%", 1.0),
        ("1", 1.0),
        ("50%", 0.5),
        ("5e-3", 0.005),
    ],
)
def test_fractions(text: str, expected: float) -> None:
    assert parse_fraction(text) == expected


@pytest.mark.parametrize(
    "text",
    ["50", "1.01", "101%", "-1", "-0.5%", "nan", "nan%", "snan", "inf", "-inf%", "1e999999999%", "x", "", "%", "1%%"],
)
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(AccuracyError) as caught:
        parse_fraction(text)
    assert str(caught.value) == f"expected a drop such as 0.5% or 0.005, found {text}"


@given(st.integers(0, 1000))
def test_percent_and_fraction_are_the_same_number(tenths: int) -> None:
    """0.7 / 100 is less than 0.007: a drop of 7 in 1000 would fail a gate of 0.7%."""
    assert parse_fraction(f"{tenths / 10}%") == parse_fraction(f"{tenths / 1000}") == tenths / 1000


def test_a_drop_at_the_edge_of_a_percentage_passes() -> None:
    edge = Drop("top-1", 0.9, 0.893, 7 / 1000, 0.0, 0.01)
    assert check(report(edge), Gates(max_drop=parse_fraction("0.7%"))) == ()
