"""Gates: each passes at its limit and trips beyond it; what is not there to be judged is an error."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.fidelity import OutputAccuracy
from vitedge.quantization.gates import NO_GATES, Gates, check, doubts, gated_drop, parse_fraction
from vitedge.quantization.intervals import Interval
from vitedge.quantization.labels import Drop
from vitedge.quantization.per_image import PerImage
from vitedge.runtimes.errors import AccuracyError


def drop_of(metric: str, drop: float, interval: Interval, images: int = 100) -> Drop:
    return Drop(metric, 0.9, 0.9 - drop, drop, *interval, images=images, lost=2, gained=1, p_value=1.0)


TOP1 = drop_of("top-1", 0.01, (0.0, 0.02))
TOP5 = drop_of("top-5", 0.2, (0.1, 0.3))
KNN = drop_of("k-NN", 0.03, (0.01, 0.05))


def output(cosine: float = 0.99, sqnr_db: float = 20.0) -> OutputAccuracy:
    """Its worst cosine, and that of the 1st percentile, fail every gate; gates are not about them."""
    return OutputAccuracy(
        cosine_mean=cosine,
        cosine_p01=-1.0,
        cosine_worst=-1.0,
        worst_image="image7",
        sqnr_db=sqnr_db,
        max_abs_error=1.0,
        cosine_mean_interval=(cosine - 0.01, cosine + 0.01),
        sqnr_db_interval=(sqnr_db - 1, sqnr_db + 1),
        norm_drift_mean=1.0,
        norm_drift_mean_interval=(0.9, 1.1),
        norm_drift_worst=-1.0,
    )


def report(
    *drops: Drop, outputs: Mapping[str, OutputAccuracy] | None = None, notes: tuple[str, ...] = ()
) -> AccuracyReport:
    judged = {"last_hidden_state": output()} if outputs is None else outputs
    return AccuracyReport(100, judged, output(-1.0), None, None, drops, notes, PerImage((), ()))


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
    assert check(report(KNN), Gates(max_drop=0.02)) == (
        "k-NN accuracy drops by 3.00%, more than 2.00% (95 % interval 1.00% to 5.00%, 100 images)",
    )


def test_a_gain_passes_every_drop() -> None:
    assert check(report(drop_of("top-1", -0.1, (-0.2, 0.0))), Gates(max_drop=0.0)) == ()


# What the number of images cannot vouch for


def test_40_images_cannot_vouch_for_half_a_percent() -> None:
    """None of them differs: it passes, and is told what that is worth."""
    equal = report(drop_of("top-1", 0.0, (-0.088, 0.088), images=40))
    gates = Gates(max_drop=0.005)
    assert check(equal, gates) == ()
    assert doubts(equal, gates) == (
        "top-1: a drop of 0.00% passes 0.50%, but 40 images resolve no drop below 2.50% and cannot rule out one of"
        " 8.81% (95 % interval); judge on at least 736",
    )


@pytest.mark.parametrize(
    ("drop", "limit", "doubt"),
    [
        (drop_of("top-1", 0.001, (-0.002, 0.005), 1000), 0.005, None),
        (drop_of("top-1", 0.001, (-0.002, 0.0051), 1000), 0.005, "cannot rule out one of 0.51% (95 % interval); judge"),
        # The interval is narrow, but 700 images would miss a share of 0.53 %.
        (drop_of("top-1", 0.0, (-0.001, 0.001), 700), 0.005, "700 images cannot rule out one of 0.53%"),
        (drop_of("top-1", 0.0, (-0.001, 0.001), 736), 0.005, None),
        # One image of 250 is 0.4 %, one of 150 more than the limit.
        (drop_of("top-1", 0.0, (-0.01, 0.01), 250), 0.005, "250 images cannot rule out one of 1.46%"),
        (drop_of("top-1", 0.0, (-0.01, 0.01), 150), 0.005, "150 images resolve no drop below 0.67% and cannot rule"),
        (drop_of("top-1", 0.0, (-0.001, 0.001), 1000), 0.0, "judge on as many as you have"),
        (drop_of("top-1", -0.01, (-0.02, 0.01), 1000), 0.005, "judge on at least 1001"),
        (drop_of("top-1", 0.006, (0.0, 0.01), 1000), 0.005, None),  # it fails: nothing to doubt
        (drop_of("top-1", 0.0, (-0.5, 0.5), 2), 1.0, None),
    ],
)
def test_a_passed_drop_is_doubted_if_it_could_be_more(drop: Drop, limit: float, doubt: str | None) -> None:
    found = doubts(report(drop), Gates(max_drop=limit))
    if doubt is None:
        assert found == ()
    else:
        assert len(found) == 1
        assert doubt in found[0]


def test_passed_cosine_and_sqnr_are_doubted_within_their_intervals() -> None:
    outputs = {"last_hidden_state": output(0.99, 20), "pooler_output": output(0.999, 5)}
    judged = report(outputs=outputs)
    assert doubts(judged, Gates(min_cosine=0.98, min_sqnr_db=19)) == ()
    assert doubts(judged, Gates(min_cosine=0.985, min_sqnr_db=19.5)) == (
        "last_hidden_state: mean cosine 0.99 passes 0.985, but 100 images cannot rule out 0.98 (95 % interval);"
        " judge on more",
        "last_hidden_state: SQNR in dB 20 passes 19.5, but 100 images cannot rule out 19 (95 % interval);"
        " judge on more",
    )
    # The first one fails the gate, which `check` tells.
    (pooler,) = doubts(judged, Gates(min_cosine=0.995))
    assert pooler.startswith("pooler_output: mean cosine 0.999 passes 0.995, but 100 images cannot rule out 0.989")


def test_one_image_vouches_for_nothing() -> None:
    single = replace(output(), cosine_mean_interval=None, sqnr_db_interval=None)
    found = doubts(report(outputs={"last_hidden_state": single}), Gates(min_cosine=0.5, min_sqnr_db=1.0))
    assert found == (
        "last_hidden_state: one image cannot tell how far its mean cosine of 0.99 is chance",
        "last_hidden_state: one image cannot tell how far its SQNR in dB of 20 is chance",
    )


def test_without_gates_there_is_nothing_to_doubt() -> None:
    assert doubts(report(TOP1), NO_GATES) == ()


def test_a_doubt_about_what_was_not_measured_is_an_error() -> None:
    with pytest.raises(AccuracyError, match="max_drop needs labelled images"):
        doubts(report(TOP5), Gates(max_drop=1.0))


# What is not there


@pytest.mark.parametrize("drops", [(), (TOP5,)])
def test_a_drop_that_was_not_measured_is_an_error(drops: tuple[Drop, ...]) -> None:
    with pytest.raises(AccuracyError, match="max_drop needs labelled images: a folder with a sub-folder for each clas"):
        check(report(*drops), Gates(max_drop=1.0))
    with pytest.raises(AccuracyError, match=r"each class .*; k-NN not measured: one class$"):
        check(report(*drops, notes=("k-NN not measured: one class",)), Gates(max_drop=1.0))


@pytest.mark.parametrize("gates", [Gates(min_sqnr_db=-300.0), Gates(min_cosine=-1.0)])
def test_an_output_that_was_not_measured_is_an_error(gates: Gates) -> None:
    """A loop over no outputs finds no failure either."""
    with pytest.raises(AccuracyError, match="last_hidden_state was not measured"):
        check(report(TOP1, outputs={}), gates)


def test_nan_metrics_fail() -> None:
    broken = report(drop_of("top-1", math.nan, (0.0, 0.0)), outputs={"last_hidden_state": output(math.nan)})
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
    assert parse_fraction(text, "--max-drop") == expected


@pytest.mark.parametrize(
    "text",
    ["50", "1.01", "101%", "-1", "-0.5%", "nan", "nan%", "snan", "inf", "-inf%", "1e999999999%", "x", "", "%", "1%%"],
)
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(AccuracyError) as caught:
        parse_fraction(text, "--max-drop")
    assert str(caught.value) == f"--max-drop: expected a share such as 0.5% or 0.005, found {text}"


def test_a_share_above_one_where_it_makes_sense() -> None:
    assert parse_fraction("150%", "--max-slowdown", most=math.inf) == 1.5
    with pytest.raises(AccuracyError, match=r"^--max-slowdown: .*found inf$"):
        parse_fraction("inf", "--max-slowdown", most=math.inf)


@given(st.integers(0, 1000))
def test_percent_and_fraction_are_the_same_number(tenths: int) -> None:
    """0.7 / 100 is less than 0.007: a drop of 7 in 1000 would fail a gate of 0.7%."""
    assert (
        parse_fraction(f"{tenths / 10}%", "--max-drop")
        == parse_fraction(f"{tenths / 1000}", "--max-drop")
        == tenths / 1000
    )


def test_a_drop_at_the_edge_of_a_percentage_passes() -> None:
    edge = drop_of("top-1", 7 / 1000, (0.0, 0.01))
    assert check(report(edge), Gates(max_drop=parse_fraction("0.7%", "--max-drop"))) == ()
