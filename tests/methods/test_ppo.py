"""PPO over completions: advantages worked by hand, the value loss as a loop, where gradients go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from token_tools import (
    ENDED,
    MASK,
    STOP,
    GivenScores,
    batch_of,
    given_groups,
    given_scores,
    in_two_processes,
    language,
    large_tokens,
    random,
    rollouts,
    sampling,
)
from torch import Tensor

from visgrpo.methods.method import ONE_PROCESS
from visgrpo.methods.ppo import TokenPPO
from visgrpo.methods.token_groups import FixedKL, TokenGroups
from visgrpo.methods.tokens import TokenTerms
from visgrpo.models.reference import reference_of
from visgrpo.objectives import Objective

LIMIT = 6
PLAIN = TokenTerms(on_policy=False)


class GivenRollouts:
    """Rollouts that hand out given groups instead of drawing."""

    def __init__(self, groups: TokenGroups, coefficient: float = 0.0, shards: Any = None) -> None:
        real = rollouts(control=FixedKL(coefficient), drawn=sampling(LIMIT))
        self.rewards, self.memory, self.sampling = real.rewards, real.memory, real.sampling
        self.shards = shards or ONE_PROCESS
        self._groups = groups

    def draw(self, *given: Any, **how: Any) -> TokenGroups:
        return self._groups

    def move_reference(self, step: int) -> None:
        """There is none."""


class GivenValues:
    """A critic that says what it is told; notes the pieces in which it is asked."""

    def __init__(self, values_NGT: Tensor) -> None:
        self._values, self.pieces = values_NGT, []

    def values(self, prompts_NP: Tensor, lengths_N: Tensor, tokens_NGT: Tensor) -> Tensor:
        start = sum(self.pieces)
        self.pieces.append(len(tokens_NGT))
        return self._values[start : start + len(tokens_NGT)]


def rolled_out(
    groups: TokenGroups, values: Tensor, terms: TokenTerms = PLAIN, beta: float = 0.0, **knobs: Any
) -> TokenGroups:
    method = TokenPPO(GivenRollouts(groups, beta), terms, **knobs)
    return method.rollout(GivenValues(values), batch_of([0, 1]), 0, chunk=1)


def tensor(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_completions(**changes: Any) -> TokenGroups:
    """Three tokens worth 2 and two worth -1; log π_old - log π_ref is (1, -1, 2) and (0.5, 0)."""
    groups = given_groups()
    fields = {
        "prompts_NP": groups.prompts_NP,
        "tokens_NGT": torch.zeros(2, 1, 3, dtype=torch.long),
        "mask_NGT": torch.tensor([[[1, 1, 1]], [[1, 1, 0]]]).bool(),
        "ended_NG": torch.ones(2, 1).bool(),
        "old_log_probs_NGT": tensor([[[-1.0, -2.0, -0.5]], [[-1.5, -1.0, 0.0]]]),
        "reference_log_probs_NGT": tensor([[[-2.0, -1.0, -2.5]], [[-2.0, -1.0, -torch.inf]]]),
        "rewards_NGR": tensor([[[2.0]], [[-1.0]]]),
        "advantages": torch.zeros(2, 1),
    }
    return replace(groups, **{**fields, **changes})


VALUES = tensor([[[0.5, 1.0, 0.5]], [[1.0, -2.0, 77.0]]])


def test_advantages_by_hand() -> None:
    """γ = 1, λ = ½. δ = (0.5, -0.5, 1.5) and (-3, 1): the reward comes at the last own token."""
    groups = rolled_out(two_completions(), VALUES, lam=0.5, whiten_advantages=False)
    assert groups.advantages.tolist() == [[[0.625, 0.25, 1.5]], [[-2.5, 1.0, 0.0]]]
    returns = groups.returns_NGT.masked_fill(~groups.mask_NGT, 0.0)
    assert returns.tolist() == [[[1.125, 1.25, 2.0]], [[-1.5, -1.0, 0.0]]]
    assert torch.equal(groups.old_values_NGT, VALUES)


def test_discounted_advantages_by_hand() -> None:
    """γ = ½, λ = 1: returns are the discounted reward, ½, 1, 2 and -½, -1."""
    groups = rolled_out(two_completions(), VALUES, gamma=0.5, lam=1.0, whiten_advantages=False)
    assert groups.returns_NGT[0].tolist() == [[0.5, 1.0, 2.0]]
    assert groups.returns_NGT[1, :, :2].tolist() == [[-0.5, -1.0]]
    assert groups.advantages.tolist() == [[[0.0, 0.0, 1.5]], [[-1.5, 1.0, 0.0]]]


def test_kl_in_the_reward_comes_at_every_token() -> None:
    """r = (0, 0, 2) - 0.1 (1, -1, 2) and (0, -1) - 0.1 (0.5, 0); λ = 1 sums what is to come."""
    groups = rolled_out(
        two_completions(),
        torch.zeros_like(VALUES),
        replace(PLAIN, kl_in="reward"),
        beta=0.1,
        lam=1.0,
        whiten_advantages=False,
    )
    assert groups.advantages.flatten().tolist() == pytest.approx([1.8, 1.9, 1.8, -1.05, -1.0, 0.0])


def test_kl_in_the_loss_leaves_the_reward_alone() -> None:
    plain = rolled_out(two_completions(), VALUES)
    in_loss = rolled_out(two_completions(), VALUES, replace(PLAIN, kl_in="loss"), beta=0.1)
    assert torch.equal(plain.advantages, in_loss.advantages)


def test_rewards_are_weighed_and_missing_ones_are_nothing() -> None:
    groups = two_completions(rewards_NGR=tensor([[[2.0, 4.0]], [[-1.0, torch.nan]]]))
    source = GivenRollouts(groups)
    source.rewards = rollouts(
        rewards=(large_tokens, lambda **columns: [0.0]), weights=(1.0, 0.5)
    ).rewards
    method = TokenPPO(source, PLAIN, lam=1.0, whiten_advantages=False)
    values = torch.zeros_like(VALUES)
    rolled = method.rollout(GivenValues(values), batch_of([0, 1]), 0, chunk=2)
    assert rolled.advantages[0].tolist() == [[4.0, 4.0, 4.0]]
    assert rolled.advantages[1, 0, :2].tolist() == [-1.0, -1.0]


def test_a_critic_that_knows_leaves_no_advantage() -> None:
    knowing = tensor([[[2.0, 2.0, 2.0]], [[-1.0, -1.0, 5.0]]])
    groups = rolled_out(two_completions(), knowing, lam=0.9)
    assert not groups.advantages.any()


def test_whitening_brings_mean_0_and_variance_1() -> None:
    plain = rolled_out(two_completions(), VALUES, lam=0.5, whiten_advantages=False)
    white = rolled_out(two_completions(), VALUES, lam=0.5)
    five = np.array([0.625, 0.25, 1.5, -2.5, 1.0])
    expected = (five - five.mean()) / five.std(ddof=1)
    assert white.advantages[white.mask_NGT].tolist() == pytest.approx(expected, rel=1e-6)
    assert not white.advantages[~white.mask_NGT].any()
    # Returns, which the critic learns, stay as they are.
    assert torch.equal(white.returns_NGT, plain.returns_NGT)


def test_explained_variance_is_that_of_the_whole_batch() -> None:
    """Of every input the same number, so that pieces of the batch say what the whole says."""
    groups = rolled_out(two_completions(), VALUES, lam=0.5)
    advantages = np.array([0.625, 0.25, 1.5, -2.5, 1.0])
    returns = np.array([1.125, 1.25, 2.0, -1.5, -1.0])
    expected = 1 - advantages.var(ddof=1) / returns.var(ddof=1)
    assert groups.explained_variance_N.tolist() == pytest.approx([expected] * 2)


def test_whitening_is_over_all_processes() -> None:
    """Also with shares of different numbers of tokens."""
    groups = two_completions()
    whole = rolled_out(groups, VALUES, lam=0.5)

    def work(shard: Any) -> Tensor:
        mine = slice(shard.rank, shard.rank + 1)
        part = two_completions(**{
            name: getattr(groups, name)[mine]
            for name in ("tokens_NGT", "mask_NGT", "ended_NG", "old_log_probs_NGT",
                         "reference_log_probs_NGT", "rewards_NGR", "prompts_NP")
        })  # fmt: skip
        method = TokenPPO(GivenRollouts(part, shards=shard), PLAIN, lam=0.5)
        return method.rollout(GivenValues(VALUES[mine]), batch_of([0]), 0, chunk=1).advantages

    torch.testing.assert_close(torch.cat(in_two_processes(work)), whole.advantages)


def test_the_critic_is_asked_in_pieces() -> None:
    critic = GivenValues(VALUES)
    method = TokenPPO(GivenRollouts(two_completions()), PLAIN)
    method.rollout(critic, batch_of([0, 1]), 0, chunk=1)
    assert critic.pieces == [1, 1]


# The loss


def ppo_groups() -> TokenGroups:
    return given_groups(
        advantages=random(2, 3, 5, seed=11).masked_fill(~MASK, 0.0),
        old_values_NGT=random(2, 3, 5, seed=12).masked_fill(~MASK, torch.nan),
        returns_NGT=random(2, 3, 5, seed=13).masked_fill(~MASK, torch.nan),
        explained_variance_N=torch.full((2,), 0.25),
    )


def ppo_scores() -> GivenScores:
    scores = given_scores()
    old = random(2, 3, 5, seed=12)
    values = (old + 0.3 * random(2, 3, 5, seed=14)).masked_fill(~MASK, torch.nan)
    return GivenScores(scores.log_probs.detach(), scores.entropy.detach(), values)


@pytest.mark.parametrize("value_clip", [None, 0.2])
@pytest.mark.parametrize("truncated", [False, True])
def test_loss_and_gradients_against_the_loop(value_clip: float | None, truncated: bool) -> None:
    groups, scores = ppo_groups(), ppo_scores()
    terms = replace(PLAIN, mask_truncated=truncated, kl_in="reward")
    method = TokenPPO(
        GivenRollouts(groups, 0.5),
        terms,
        objective=Objective(epsilon_low=0.15, epsilon_high=0.25),
        value_clip=value_clip,
        value_weight=0.7,
    )
    result = method.loss(scores, batch_of([0, 1]), groups, 0)
    result.loss.backward()
    policy_gradient, value_gradient = torch.zeros(2, 2, 3, 5, dtype=torch.float64)
    log_probs, values = scores.log_probs.detach(), scores.values.detach()
    learned = [i for i in np.ndindex(MASK.shape) if MASK[i] and (ENDED[i[:2]] or not truncated)]
    tokens, loss, value_loss, decided = len(learned), 0.0, 0.0, 0
    for i in learned:
        ratio = float((log_probs[i] - groups.old_log_probs_NGT[i]).exp())
        a = float(groups.advantages[i])
        clipped = min(max(ratio, 0.85), 1.25)
        loss -= min(ratio * a, clipped * a) / tokens
        if ratio * a <= clipped * a:
            policy_gradient[i] = -ratio * a / tokens
        value, old = float(values[i]), float(groups.old_values_NGT[i])
        target = float(groups.returns_NGT[i])
        error = (value - target) ** 2
        if value_clip is not None:
            near = min(max(value, old - value_clip), old + value_clip)
            other = (near - target) ** 2
            decided += other > error
            if other > error:
                value_loss += 0.5 * other / tokens
                continue
        value_loss += 0.5 * error / tokens
        value_gradient[i] = 0.7 * (value - target) / tokens
    assert result.loss.item() == pytest.approx(loss + 0.7 * value_loss, rel=1e-10)
    torch.testing.assert_close(scores.log_probs.grad, policy_gradient, atol=1e-10, rtol=0)
    torch.testing.assert_close(scores.values.grad, value_gradient, atol=1e-10, rtol=0)
    assert result.metrics["value_loss"].item() == pytest.approx(value_loss)
    assert result.metrics["value_clip_ratio"].item() == pytest.approx(decided / len(learned))
    assert (decided > 0) == (value_clip is not None)
    assert result.metrics["explained_variance"].item() == pytest.approx(0.25)
    expected = groups.advantages[MASK].abs().mean().item()
    assert result.metrics["advantage_abs"].item() == pytest.approx(expected)
    assert not any(value.requires_grad for value in result.metrics.values())


def moved_method(critic: str, **settings: Any) -> tuple[Any, TokenPPO]:
    """A policy off its start, with a critic that knows something."""
    model = language(critic=critic)
    reference = reference_of(model)
    with torch.no_grad():
        for weight in model.lm.parameters():
            weight.mul_(1.1)
        model.critic.value.weight.copy_(random(1, 16, seed=3) / 4)
    source = rollouts(
        drawn=sampling(LIMIT, stop=(STOP, 6)), reference=reference, control=FixedKL(0.3)
    )
    return model, TokenPPO(source, **{"terms": TokenTerms(), "value_weight": 0.5, **settings})


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_where_the_gradients_go(critic: str) -> None:
    """A head's value loss reaches the policy's trunk, a separate critic's never."""
    model, method = moved_method(critic, value_clip=None)
    method = replace(method, rollouts=replace(method.rollouts, memory=rollouts().memory))
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    silent = replace(groups, advantages=torch.zeros_like(groups.advantages))
    method.loss(model, batch_of(), silent, 0).loss.backward()
    policy = [p.grad for p in model.lm.parameters()]
    assert any(g is not None and g.any() for g in policy) == (critic == "head")
    assert model.critic.value.weight.grad.any()
    if critic == "separate":
        assert any(p.grad.any() for p in model.critic.trunk.parameters() if p.grad is not None)
    model.zero_grad()
    without = replace(method, value_weight=0.0)
    without.loss(model, batch_of(), groups, 0).loss.backward()
    assert model.lm.transformer.h[0].mlp.c_fc.weight.grad.any()
    assert not any(p.grad.any() for p in model.critic.parameters() if p.grad is not None)


def test_the_critic_learns_alone_while_it_warms_up() -> None:
    model, method = moved_method("separate", critic_warmup=3)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    for step, learns in ((2, False), (3, True)):
        model.zero_grad()
        result = method.loss(model, batch_of(), groups, step)
        result.loss.backward()
        # There for every parameter, as several processes wait for each: 0, and not missing.
        assert all(p.grad is not None for p in model.lm.parameters())
        assert any(p.grad.any() for p in model.lm.parameters()) == learns
        assert model.critic.value.weight.grad.any()
        whole = replace(method, critic_warmup=0).loss(model, batch_of(), groups, step)
        for name, value in whole.metrics.items():
            assert result.metrics[name].item() == pytest.approx(value.item()), name


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_a_batch_in_pieces_has_the_loss_and_gradient_of_the_whole(critic: str) -> None:
    model, method = moved_method(critic, terms=TokenTerms(entropy_weight=0.1))
    groups = method.rollout(model, batch_of(), 0, chunk=3)
    whole = method.loss(model, batch_of(), groups, 0)
    whole.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for size in (1, 2):
        model.zero_grad()
        total, pieces = 0.0, torch.arange(4).split(size)
        for rows in pieces:
            its_groups = groups.select(rows)
            result = method.loss(model, batch_of().select(rows), its_groups, 0)
            (result.loss / len(pieces)).backward()
            total += result.loss.item() / len(pieces)
        assert total == pytest.approx(whole.loss.item(), abs=1e-6)
        for name, value in expected.items():
            ours = dict(model.named_parameters())[name].grad
            torch.testing.assert_close(ours, value, atol=1e-6, rtol=1e-5)


def test_two_processes_have_the_loss_and_gradient_of_one() -> None:
    """Whitening and the mean over tokens are those of the whole batch."""
    copies = [moved_method("head") for _ in range(3)]

    def work(shard: Any, number: int, rows: list[int]) -> tuple[float, Tensor]:
        model, method = copies[number]
        if shard is not None:
            method = replace(method, rollouts=replace(method.rollouts, shards=shard))
        batch = batch_of(rows, torch.tensor(rows))
        groups = method.rollout(model, batch, 0, chunk=2)
        loss = method.loss(model, batch, groups, 0).loss
        loss.backward()
        return loss.item(), model.lm.transformer.wte.weight.grad

    loss, expected = work(None, 2, [0, 1, 2, 3])
    halves = in_two_processes(lambda s: work(s, s.rank, [s.rank, s.rank + 2]))
    assert np.mean([half for half, _ in halves]) == pytest.approx(loss, abs=1e-6)
    mean = (halves[0][1] + halves[1][1]) / 2
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)


def test_a_critic_of_zeros_gives_every_token_the_completions_reward() -> None:
    """A new critic says 0, and with λ = 1 PPO's first advantages are the rewards themselves."""
    model = language(critic="head")
    source = rollouts(drawn=sampling(LIMIT, stop=(STOP, 6)))
    method = TokenPPO(source, PLAIN, lam=1.0, whiten_advantages=False)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    expected = groups.rewards_NGR.float().expand(*groups.mask_NGT.shape) * groups.mask_NGT
    torch.testing.assert_close(groups.advantages, expected)
    sample = method.samples(groups, 1)[0]
    assert sample["advantages"] == pytest.approx(sample["rewards"], rel=1e-6)


def test_the_value_loss_teaches_the_critic_its_returns() -> None:
    torch.manual_seed(0)
    model = language(critic="separate")
    source = rollouts(drawn=sampling(LIMIT, stop=(STOP, 6)))
    method = TokenPPO(source, PLAIN, lam=1.0, value_clip=None, value_weight=1.0)
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    optimizer = torch.optim.Adam(model.critic.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        result = method.loss(model, batch_of(), groups, 0)
        result.loss.backward()
        optimizer.step()
        losses.append(result.metrics["value_loss"].item())
    assert losses[-1] < 0.1 * losses[0]
