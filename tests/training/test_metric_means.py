from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from visgrpo.training.metrics import MetricMeans, peak_memory_bytes, reset_peak_memory


def test_means_are_over_the_observations_of_each_metric() -> None:
    means = MetricMeans()
    means.add({"loss": torch.tensor(1.0), "reward": 4.0})
    means.add({"loss": 2.0})
    assert means.take() == {"loss": 1.5, "reward": 4.0}


def test_observations_count_for_their_weights() -> None:
    means = MetricMeans()
    means.add({"clip": torch.tensor(0.5), "loss": 1.0}, {"clip": torch.tensor(6)})
    means.add({"clip": torch.tensor(1.0), "loss": 2.0, "idle": 3.0}, {"clip": 2, "idle": 0})
    assert means.take() == {"clip": 0.625, "loss": 1.5}


def test_processes_add_what_each_of_them_has() -> None:
    """One may have seen nothing of a metric: no labelled pixel, say."""
    one, other = MetricMeans(), MetricMeans()
    one.add({"loss": 1.0, "accuracy": 0.25}, {"accuracy": 3})
    other.add({"loss": 3.0})
    theirs: list[dict[str, tuple[float, float]]] = []
    other.take(lambda own: theirs.append(own) or [own])
    assert one.take(lambda own: [own, *theirs]) == {"loss": 2.0, "accuracy": 0.25}


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


def test_tensors_are_read_only_when_the_means_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor waits for the device: adding must not, and taking does it once."""
    reads = []
    monkeypatch.setattr(
        torch.Tensor, "__float__", lambda tensor: reads.append("float") or tensor.item()
    )
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append("list") or to_list(t))
    means = MetricMeans()
    for value in (1.0, 2.0):
        means.add({"loss": torch.tensor(value, requires_grad=True), "kl": torch.tensor(value)})
    assert reads == []
    assert means.take() == {"loss": 1.5, "kl": 1.5}
    assert reads == ["list"]


def test_sums_are_in_float64_whatever_the_metric() -> None:
    """2²⁴ + 1 is no float32; 0.1 in float16 is 0.0999755859375."""
    means = MetricMeans()
    means.add({"large": torch.tensor(2.0**24), "half": torch.tensor(0.1, dtype=torch.float16)})
    means.add({"large": torch.tensor(1.0), "half": torch.tensor(0.1, dtype=torch.float16)})
    state = means.state()
    assert state["sums"] == {"large": 2.0**24 + 1, "half": 2 * 0.0999755859375}


def test_tensors_after_a_restore_add_up_to_the_bit() -> None:
    values = torch.rand(9, generator=torch.Generator().manual_seed(0))
    before, after = MetricMeans(), MetricMeans()
    for value in values[:5]:
        before.add({"loss": value})
    after.restore(json.loads(json.dumps(before.state())))
    for value in values[5:]:
        for means in (before, after):
            means.add({"loss": value})
    expected = sum(values.tolist()) / 9
    assert after.take() == before.take() == {"loss": expected}


def test_peak_memory_is_in_bytes() -> None:
    assert peak_memory_bytes(torch.device("cpu")) > 50e6  # torch alone takes more


def test_means_of_nothing_are_nothing() -> None:
    assert MetricMeans().take() == pytest.approx({})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux keeps the mark")
def test_the_peak_starts_anew() -> None:
    cpu = torch.device("cpu")
    held = torch.ones(10**8 // 4)
    before = peak_memory_bytes(cpu)
    del held
    reset_peak_memory(cpu)
    assert peak_memory_bytes(cpu) < before - 50e6
