"""How numbers are written."""

from __future__ import annotations

import pytest

from visgrpo.metrics import describe_gain, duration, memory, metric, number, ordered


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (-0.0001, "−1.00e−04"), (0.0125, "0.013"), (12.34, "12.3"), (1234.0, "1234")],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2.0 s"), (59.7, "1 min 00 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_memory():
    assert memory(512 * 2**20) == "512 MiB"
    assert memory(3.5 * 2**30) == "3.5 GiB"


def test_gain_of_a_share_is_in_points_and_of_a_number_plain():
    assert describe_gain(0.81, 0.842) == "81.0 % → 84.2 % (+3.2 points)"
    assert describe_gain(0.842, 0.81) == "84.2 % → 81.0 % (−3.2 points)"
    assert describe_gain(0.1, 0.046, "ece") == "0.100 → 0.046 (−0.054)"
    assert describe_gain(0.0, 0.3, "kl") == "0.000 → 0.300 (+0.300)"
    assert describe_gain(0.5, 0.50001, "kl") == "0.500 → 0.500 (+1.00e−05)"


def test_no_change_has_no_sign():
    assert metric("accuracy").change(0.5, 0.5) == "0.0 points"
    assert metric("accuracy").change(0.5, 0.49999) == "0.0 points"
    assert metric("kl").change(0.5, 0.5) == "0.000"


@pytest.mark.parametrize(
    ("key", "before", "after", "verdict"),
    [
        ("accuracy", 0.5, 0.6, "gain"),
        ("accuracy", 0.6, 0.5, "loss"),
        ("eval/ece", 0.2, 0.1, "gain"),
        ("nll", 0.1, 0.2, "loss"),
        ("kl", 0.0, 0.4, "same"),
        ("accuracy", 0.5, 0.5, "same"),
    ],
)
def test_verdict_follows_the_direction_that_is_better(key, before, after, verdict):
    assert metric(key).verdict(before, after) == verdict


def test_every_metric_has_a_title_and_a_unit():
    assert (metric("kl").title, metric("kl").unit) == ("KL to the start", "nats")
    assert metric("rewards/correct/mean").title == "Reward: correct"
    assert (metric("eval/odd").title, metric("odd").unit) == ("odd", "odd")


def test_known_metrics_come_first_in_reading_order():
    assert ordered(["zeta", "kl", "alpha", "accuracy"]) == ["accuracy", "kl", "zeta", "alpha"]
