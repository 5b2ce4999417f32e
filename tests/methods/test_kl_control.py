"""The weight of the KL against arithmetic by hand, and a reference that moves."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from token_tools import LENGTHS, PROMPTS, language

from visgrpo.errors import UserError
from visgrpo.methods.token_groups import AdaptiveKL, FixedKL, KLControl
from visgrpo.models.language import LanguageModel
from visgrpo.models.reference import MovingReference
from visgrpo.models.trains import adapt


def after(kl: float, samples: int = 100) -> float:
    controller = AdaptiveKL(0.2, target=6.0, horizon=1000)
    controller.update(kl, samples)
    return controller.coefficient


def test_one_update_by_hand() -> None:
    # 6.6/6 - 1 = 0.1;  0.2 (1 + 0.1 · 100/1000) = 0.202
    assert after(6.6) == pytest.approx(0.202, rel=1e-12)
    # 5.4/6 - 1 = -0.1;  0.2 (1 - 0.01) = 0.198
    assert after(5.4) == pytest.approx(0.198, rel=1e-12)
    assert after(6.0) == pytest.approx(0.2, rel=1e-12)
    # 6.6 again, over a batch of twice as many: 0.2 (1 + 0.1 · 200/1000)
    assert after(6.6, samples=200) == pytest.approx(0.204, rel=1e-12)


@pytest.mark.parametrize("kl", [0.0, -3.0, 4.7])
def test_errors_are_clipped_below(kl: float) -> None:
    assert after(kl) == pytest.approx(0.2 * (1 - 0.2 * 0.1))


@pytest.mark.parametrize("kl", [7.3, 60.0, 1e30])
def test_errors_are_clipped_above(kl: float) -> None:
    assert after(kl) == pytest.approx(0.2 * (1 + 0.2 * 0.1))


def test_it_finds_the_weight_that_holds_the_target() -> None:
    """The optimum of a reward that is N(0, 1) under the reference has a KL of 1/(2 β²)."""
    controller = AdaptiveKL(1.0, target=2.0, horizon=500)
    for _ in range(2000):
        controller.update(1 / (2 * controller.coefficient**2), samples=50)
    assert controller.coefficient == pytest.approx(0.5, rel=1e-6)  # 1/(2 · 0.25) = 2


def test_state_goes_on_where_it_was() -> None:
    one = AdaptiveKL(0.2, 6.0, 1000)
    one.update(9.0, 100)
    other = AdaptiveKL(0.7, 6.0, 1000)
    other.restore(one.state())
    assert other.state() == one.state() == {"coefficient": pytest.approx(0.204)}
    one.update(1.0, 100)
    other.update(1.0, 100)
    assert other.coefficient == one.coefficient


def test_a_fixed_weight_stays() -> None:
    controller: KLControl = FixedKL(0.05)
    controller.update(100.0, 64)
    controller.restore(controller.state())
    assert controller.coefficient == 0.05
    assert controller.state() == {}


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("place", ["first weight", "target", "horizon"])
def test_settings_must_be_above_zero(place: str, bad: float) -> None:
    settings = {"first weight": 0.2, "target": 6.0, "horizon": 1000.0, place: bad}
    with pytest.raises(UserError, match=f"The {place} of the adaptive KL is {bad:g}: give a"):
        AdaptiveKL(*settings.values())


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_a_fixed_weight_must_not_be_negative(bad: float) -> None:
    with pytest.raises(UserError, match=f"The weight of the KL is {bad:g}: give a number from 0"):
        FixedKL(bad)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_not_finite(kl: float) -> None:
    with pytest.raises(UserError, match=f"The KL to the reference is {kl}: lower the learning"):
        after(kl)


def test_a_horizon_shorter_than_a_batch_is_wide() -> None:
    with pytest.raises(UserError, match=r"is 1000: with 5000 completions at once .* above 1000"):
        after(6.6, samples=5000)
    assert after(0.0, samples=4999) > 0


@pytest.mark.parametrize("lora", [False, True])
def test_a_moving_reference_follows_as_trls(lora: bool) -> None:
    """A part of the way when it is due, and not before; an adapter has a copy of its own."""
    model = language()
    if lora:
        model = LanguageModel(adapt(model.lm, ["lora"]))
    reference = MovingReference(model, every=3, mix=0.6)
    theirs, policy = (copy.deepcopy(model.lm) for _ in range(2))
    with torch.no_grad():
        for weight in model.lm.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape), alpha=0.1)
    tokens = torch.tensor([[[3, 9, 4]]])
    asked = (PROMPTS[:1], LENGTHS[:1], tokens)
    before = LanguageModel(policy).score(*asked)
    for step in (0, 1, 2):
        reference.follow(step)
        assert torch.equal(reference.log_probs(*asked), before)
    reference.follow(3)
    for own, new in zip(theirs.parameters(), model.lm.parameters(), strict=True):
        own.data.mul_(1 - 0.6).add_(new.data, alpha=0.6)  # TRL's SyncRefModelCallback
    expected = LanguageModel(theirs).score(*asked)
    torch.testing.assert_close(reference.log_probs(*asked), expected, atol=1e-5, rtol=0)
    assert (expected - before).abs().max() > 1e-3
    trained = {name for name, p in model.lm.named_parameters() if p.requires_grad}
    assert reference.weights.keys() == trained
    assert reference.own_bytes == sum(weight.nbytes for weight in reference.weights.values())
