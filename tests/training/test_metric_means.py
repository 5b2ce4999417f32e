from __future__ import annotations

import json

import pytest
import torch

from visgrpo.training.metrics import MetricMeans, peak_memory_bytes


def test_means_are_over_the_observations_of_each_metric() -> None:
    means = MetricMeans()
    means.add({"loss": torch.tensor(1.0), "reward": 4.0})
    means.add({"loss": 2.0})
    assert means.take() == {"loss": 1.5, "reward": 4.0}


def test_taking_starts_anew() -> None:
    means = MetricMeans()
    means.add({"loss": 1.0})
    means.take()
    assert means.take() == {}
    means.add({"loss": 5.0})
    assert means.take() == {"loss": 5.0}


def test_the_state_travels_through_json_to_the_bit() -> None:
    before, after = MetricMeans(), MetricMeans()
    for value in (0.1, 0.2, 1 / 3):
        before.add({"loss": value})
    after.restore(json.loads(json.dumps(before.state())))
    for means in (before, after):
        means.add({"loss": 1e-9})
    assert after.take() == before.take()


def test_the_state_does_not_change_with_later_observations() -> None:
    means = MetricMeans()
    means.add({"loss": 1.0})
    state = means.state()
    means.add({"loss": 3.0})
    assert state == {"sums": {"loss": 1.0}, "counts": {"loss": 1}}


def test_peak_memory_is_in_bytes() -> None:
    assert peak_memory_bytes(torch.device("cpu")) > 50e6  # torch alone takes more


def test_means_of_nothing_are_nothing() -> None:
    assert MetricMeans().take() == pytest.approx({})
