"""The loss over tokens against a loop in float64, and against itself in pieces and processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from token_tools import (
    ENDED,
    LENGTHS,
    MASK,
    PROMPTS,
    GivenScores,
    batch_of,
    given_groups,
    given_scores,
    grpo,
    in_two_processes,
    language,
    large_tokens,
    moved_from_start,
    random,
    rollouts,
    sampling,
)
from torch import Tensor

from visgrpo.methods.token_groups import FixedKL, TokenGroups
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import Scores
from visgrpo.objectives import preset
from visgrpo.objectives.presets import PRESETS, Objective
from visgrpo.training.metrics import MetricMeans

LIMIT, BETA = 6, 0.3
OFF_POLICY = TokenTerms(on_policy=False)


def kl_by_hand(
    estimator: str,
    log_prob: float,
    reference: float,
    old: float | None = None,
    at: float = 0.0,
) -> float:
    """One token's; the weight of k2 is a constant, taken where ``at`` says."""
    d = reference - log_prob
    value = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[estimator]
    if old is None:
        return value
    return value * math.exp((at if estimator == "k2" else log_prob) - old)


def loss_by_hand(
    log_probs: np.ndarray,
    entropies: np.ndarray,
    groups: TokenGroups,
    objective: Objective,
    terms: TokenTerms,
    *,
    at: np.ndarray,
    beta: float = 0.0,
) -> float:
    """The formulas, one token at a time; ``at`` is the point where detached weights are taken."""
    old = at if terms.on_policy else groups.old_log_probs_NGT.numpy()
    reference = groups.reference_log_probs_NGT.numpy()
    advantages = groups.advantages.numpy()
    n_inputs, group_size, length = log_probs.shape
    counted = MASK & ENDED[..., None] if terms.mask_truncated else MASK
    all_tokens = counted.sum().item()
    total = 0.0
    for n, g in np.ndindex(n_inputs, group_size):
        kept = [t for t in range(length) if MASK[n, g, t]]
        if terms.mask_truncated and not ENDED[n, g]:
            continue
        divisor = {
            "sequence_mean": n_inputs * group_size * len(kept),
            "token_mean": all_tokens,
            "constant": n_inputs * group_size * LIMIT,
        }[objective.aggregation]
        for t in kept:

            def ratio(point: np.ndarray, n: int = n, g: int = g, t: int = t) -> float:
                whole = [s for s in range(length) if MASK[n, g, s]]
                places = [t] if objective.ratio_level == "token" else whole
                return math.exp(np.mean([point[n, g, s] - old[n, g, s] for s in places]))

            a, low, high = advantages[n, g], 1 - objective.epsilon_low, 1 + objective.epsilon_high
            rho = ratio(log_probs)
            if objective.clip == "two_sided":
                value = -min(rho * a, min(max(rho, low), high) * a)
            elif objective.clip == "detached":
                value = -min(max(ratio(at), low), high) * a * log_probs[n, g, t]
            elif objective.clip == "soft":
                tau = objective.temperatures[0 if a > 0 else 1]
                value = -4 / tau / (1 + math.exp(-tau * (rho - 1))) * a
            else:
                value = -rho * a
            if terms.kl_in == "loss":
                value += beta * kl_by_hand(
                    terms.kl_estimator,
                    log_probs[n, g, t],
                    reference[n, g, t],
                    old[n, g, t],
                    at[n, g, t],
                )
            value -= terms.entropy_weight * entropies[n, g, t]
            total += value / divisor
    return total


def numeric_gradient(value: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        if MASK[index]:
            step = np.zeros_like(at)
            step[index] = 1e-6
            gradient[index] = (value(at + step) - value(at - step)) / 2e-6
    return gradient


def assert_loss_by_hand(objective: Objective, terms: TokenTerms, beta: float = 0.0) -> None:
    groups, scores = given_groups(), given_scores()
    method = TokenGRPO(rollouts(drawn=sampling(LIMIT), control=FixedKL(beta)), objective, terms)
    loss = method.loss(scores, batch_of([0, 1]), groups, 0).loss
    loss.backward()
    log_probs = scores.log_probs.detach().numpy()
    entropies = scores.entropy.detach().numpy()

    def by_hand(point: np.ndarray) -> float:
        return loss_by_hand(point, entropies, groups, objective, terms, at=log_probs, beta=beta)

    assert loss.item() == pytest.approx(by_hand(log_probs), rel=1e-10)
    np.testing.assert_allclose(
        scores.log_probs.grad.numpy(), numeric_gradient(by_hand, log_probs), atol=1e-8
    )


@pytest.mark.parametrize("terms", [OFF_POLICY, replace(OFF_POLICY, mask_truncated=True)])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_the_loop(name: str, terms: TokenTerms) -> None:
    """Off policy, where clips act, with NaN and infinities at masked places."""
    assert_loss_by_hand(preset(name), terms)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_on_policy(name: str) -> None:
    """What generation rounds is ignored: the ratio is 1 and the old policy is the present one."""
    assert_loss_by_hand(preset(name), TokenTerms(on_policy=True), BETA)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("truncated", [False, True])
def test_kl_in_the_loss_is_weighted_by_the_ratio(
    name: str, estimator: str, truncated: bool
) -> None:
    terms = replace(OFF_POLICY, kl_estimator=estimator, mask_truncated=truncated)
    assert_loss_by_hand(preset(name), terms, BETA)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_entropy_is_aggregated_as_the_surrogate(name: str) -> None:
    terms = replace(OFF_POLICY, entropy_weight=0.2, mask_truncated=True)
    assert_loss_by_hand(preset(name), terms, BETA)
    scores = given_scores()
    TokenGRPO(rollouts(drawn=sampling(LIMIT)), preset("dr_grpo"), terms).loss(
        scores, batch_of([0, 1]), given_groups(), 0
    ).loss.backward()
    learned = MASK & ENDED[..., None]
    expected = torch.where(learned, -0.2 / (6 * LIMIT), 0.0).double()
    torch.testing.assert_close(scores.entropy.grad, expected)


def test_kl_in_the_reward_is_no_term_of_the_loss() -> None:
    terms = replace(OFF_POLICY, kl_in="reward")
    assert_loss_by_hand(preset("grpo"), terms, BETA)


def test_metrics_against_the_loop() -> None:
    groups, scores, objective = given_groups(), given_scores(), preset("grpo")
    method = TokenGRPO(rollouts(drawn=sampling(LIMIT)), objective, OFF_POLICY)
    metrics = method.loss(scores, batch_of([0, 1]), groups, 0).metrics
    assert not any(value.requires_grad for value in metrics.values())
    new, old = scores.log_probs.detach().numpy(), groups.old_log_probs_NGT.numpy()
    reference, entropies = groups.reference_log_probs_NGT.numpy(), scores.entropy.detach().numpy()
    places = [index for index in np.ndindex(MASK.shape) if MASK[index]]
    a = groups.advantages.numpy()
    ratios = {index: math.exp(new[index] - old[index]) for index in places}
    rewards = groups.rewards_NGR[..., 0].numpy()
    expected = {
        "ratio_mean": np.mean(list(ratios.values())),
        "clip_ratio/low_mean": np.mean([ratios[i] < 0.8 and a[i[:2]] < 0 for i in places]),
        "clip_ratio/high_mean": np.mean([ratios[i] > 1.2 and a[i[:2]] > 0 for i in places]),
        "entropy": np.mean([entropies[i] for i in places]),
        "kl": np.mean([kl_by_hand("k3", new[i], reference[i]) for i in places]),
        "kl_k1": np.mean([new[i] - reference[i] for i in places]),
        "completions/mean_length": len(places) / 6,
        "completions/clipped_ratio": 2 / 6,
        "reward": rewards.mean(),
        "reward_std": rewards.std(axis=1, ddof=1).mean(),
        "rewards/large_tokens/mean": rewards.mean(),
        "frac_reward_zero_std": 0.0,
        "advantage_abs": np.abs(a).mean(),
    }
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-6), name
    assert metrics["clip_ratio/low_mean"] > 0
    assert metrics["clip_ratio/high_mean"] > 0
    both = metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]
    assert metrics["clip_ratio/region_mean"] == both
    assert set(metrics) == {*expected, "clip_ratio/region_mean"}


def test_rewards_that_do_not_apply_count_for_nothing() -> None:
    def other(**given: Any) -> list[float]:
        return [0.0]

    rewards = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[4.0, torch.nan], [4.0, torch.nan]]])
    groups = replace(
        given_groups(), rewards_NGR=rewards, gold_NG=torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    )
    groups = replace(groups, **{
        name: getattr(groups, name)[:, :2]
        for name in ("mask_NGT", "ended_NG", "old_log_probs_NGT", "tokens_NGT", "advantages")
    }, reference_log_probs_NGT=None)  # fmt: skip
    parts = {"log_probs_NGT": random(2, 2, 5), "entropy_NGT": random(2, 2, 5)}
    source = rollouts(rewards=(large_tokens, other), weights=(1.0, 0.5))
    metrics = TokenGRPO(source, preset("grpo"), OFF_POLICY).loss(
        given_scores(**parts), batch_of([0, 1]), groups, 0
    ).metrics  # fmt: skip
    assert metrics["reward"].item() == pytest.approx((2.0 + 5.5 + 4.0 + 4.0) / 4)
    assert metrics["rewards/large_tokens/mean"].item() == 3.0
    assert metrics["rewards/other/mean"].item() == 3.5
    assert metrics["frac_reward_zero_std"].item() == 0.5
    assert metrics["gold_reward"].item() == 3.0
    assert "kl" not in metrics


# Pieces


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_a_batch_in_pieces_has_the_loss_and_gradient_of_the_whole(
    name: str, truncated: bool
) -> None:
    """A mean over all tokens too, though pieces have different numbers of tokens."""
    reference, model = moved_from_start()
    terms = TokenTerms(entropy_weight=0.1, mask_truncated=truncated)
    method = grpo(name, reference=reference, control=FixedKL(BETA), terms=terms)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    whole = method.loss(model, batch_of(), groups, 0)
    whole.loss.backward()
    expected = gradients(model)
    for size in (1, 2):
        model.zero_grad()
        pieces = torch.arange(4).split(size)
        total = 0.0
        for rows in pieces:
            piece = groups.select(rows)
            result = method.loss(model, batch_of().select(rows), piece, 0)
            (result.loss / len(pieces)).backward()
            total += result.loss.item() / len(pieces)
        assert total == pytest.approx(whole.loss.item(), abs=1e-6)
        for parameter, value in gradients(model).items():
            torch.testing.assert_close(value, expected[parameter], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_two_processes_have_the_loss_and_gradient_of_one(name: str) -> None:
    """Each draws its half; gradients are averaged, as data parallelism does."""

    copies = [moved_from_start() for _ in range(3)]

    def work(shard: Any, rows: list[int]) -> tuple[float, dict[str, Tensor]]:
        reference, model = copies[2 if shard is None else shard.rank]
        method = grpo(name, reference=reference, control=FixedKL(BETA), terms=TokenTerms(),
            **({} if shard is None else {"shards": shard}),
        )  # fmt: skip
        batch = batch_of(rows, torch.tensor(rows))
        groups = method.rollout(model, batch, 0, chunk=1)
        result = method.loss(model, batch, groups, 0)
        result.loss.backward()
        return result.loss.item(), gradients(model)

    loss, expected = work(None, [0, 1, 2, 3])
    halves = in_two_processes(lambda shard: work(shard, [shard.rank, shard.rank + 2]))
    assert np.mean([half for half, _ in halves]) == pytest.approx(loss, abs=1e-6)
    for parameter, value in expected.items():
        mean = (halves[0][1][parameter] + halves[1][1][parameter]) / 2
        torch.testing.assert_close(mean, value, atol=1e-6, rtol=1e-5)


def test_forbidden_padding_after_an_end_leaves_gradients_finite() -> None:
    """The padding id can never be drawn: its log-prob after an end is -inf, and nobody minds."""
    reference, model = moved_from_start("qwen2")
    terms = TokenTerms(entropy_weight=0.1, on_policy=False)
    method = grpo(reference=reference, control=FixedKL(BETA), terms=terms)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    assert not groups.mask_NGT.all()
    cuts = method.rollouts.sampling.distribution
    scores = model(groups.prompts_NP, groups.lengths_N, groups.tokens_NGT, cuts)
    assert (scores.log_probs[~groups.mask_NGT] == -math.inf).any()
    result = method.loss(model, batch_of(), groups, 0)
    result.loss.backward()
    assert result.loss.isfinite()
    assert all(value.isfinite() for value in result.metrics.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert method.rollouts.memory.control.coefficient == BETA


def test_the_first_pass_has_ratio_one_whatever_generation_rounds() -> None:
    groups, scores = given_groups(), given_scores()
    for on_policy, expected in ((True, 1.0), (False, None)):
        method = TokenGRPO(rollouts(), preset("grpo"), TokenTerms(on_policy=on_policy))
        metrics = method.loss(scores, batch_of([0, 1]), groups, 0).metrics
        assert (metrics["ratio_mean"].item() == 1.0) == (expected == 1.0)


def test_an_older_policys_completions_are_weighted_by_their_ratio() -> None:
    """Drawn by one set of weights, learned from with another: ratios are those of full forwards."""
    drawer, model = language(seed=0), language(seed=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    method = grpo("rloo")
    groups = method.rollout(drawer, batch_of(), 0, chunk=4)
    metrics = method.loss(model, batch_of(), groups, 0).metrics
    how = method.rollouts.sampling.distribution
    new, old = (m.score(PROMPTS, LENGTHS, groups.tokens_NGT, how) for m in (model, drawer))
    expected = (new - old).exp()[groups.mask_NGT].mean()
    assert metrics["ratio_mean"].item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item() - 1) > 1e-3


def test_pieces_add_up_to_the_metrics_of_the_whole() -> None:
    """Also where completions of one piece, or process, are longer than those of another."""
    _, model = moved_from_start()
    method = grpo("dapo")
    groups = method.rollout(language(seed=1), batch_of(), 0, chunk=4)
    whole, parts = MetricMeans(), MetricMeans()
    for means, size in ((whole, 4), (parts, 1)):
        for rows in torch.arange(4).split(size):
            result = method.loss(model, batch_of(), groups.select(rows), 0)
            means.add(result.metrics, result.weights)
    expected, found = whole.take(), parts.take()
    assert expected["clip_ratio/region_mean"] > 0
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_entropies_that_only_the_log_needs_are_made_for_it_alone(weight: float) -> None:
    """The loss is the same; without a bonus a step between two lines asks for no entropies."""
    method = TokenGRPO(
        rollouts(drawn=sampling(LIMIT)), preset("grpo"), replace(OFF_POLICY, entropy_weight=weight)
    )
    asked: list[str] = []

    class Asked(GivenScores):
        def forward(self, *given: Any, entropies: str, **named: Any) -> Scores:
            asked.append(entropies)
            scores = super().forward(*given, **named)
            return scores._replace(entropy=None) if entropies == "none" else scores

    given = given_scores()
    model = Asked(given.log_probs.detach(), given.entropy.detach())
    batch = batch_of([0, 1])
    shown, quiet = (
        method.loss(model, replace(batch, logged=logged), given_groups(), 0)
        for logged in (True, False)
    )
    assert asked == (["gradient", "gradient"] if weight else ["value", "none"])
    torch.testing.assert_close(shown.loss, quiet.loss, rtol=0, atol=0)
    assert ("entropy" in quiet.metrics) == bool(weight)
    assert "entropy" in shown.metrics
