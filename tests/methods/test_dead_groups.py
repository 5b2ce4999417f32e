"""Groups that earn the same: drawn again, or told the truth where all of them are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from token_tools import (
    LENGTHS,
    PROMPTS,
    STOP,
    batch_of,
    in_two_processes,
    language,
    moved_from_start,
    rollouts,
    sampling,
)
from torch import Tensor

from visgrpo.methods.dead_groups import redrawn, told, totals_of
from visgrpo.methods.token_groups import TokenGroups
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.objectives import all_equal, preset

HOW = sampling(6, stop=(STOP, 6))
ASKS = {"rescored": False, "entropies": True}


def rare(*, completions: list[str], **_: Any) -> list[float]:
    """A reward that most completions do not earn."""
    return [float("3 " in f"{text} ") for text in completions]


def pair(*, completions: list[str], **_: Any) -> list[float]:
    return [float("9 3 3 9" in text) for text in completions]


def never(*, completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def drawn_again(
    times: int,
) -> tuple[TokenGroups, TokenGroups, Any]:
    reference, model = moved_from_start()
    source = rollouts(rewards=(rare,), drawn=HOW, reference=reference)
    batch = batch_of()
    first = source.draw(model, batch, 2, 4, **ASKS)
    found = redrawn(source, model, batch, 2, 4, first, times, **ASKS)
    return first, found, source


def test_only_what_earned_the_same_is_drawn_again() -> None:
    first, found, source = drawn_again(3)
    dead = all_equal(totals_of(first, source))
    assert 0 < dead.sum() < 4
    assert torch.equal(found.draws_N > 1, dead)
    assert all_equal(totals_of(found, source)).sum() < dead.sum()
    longest = min(first.mask_NGT.shape[-1], found.mask_NGT.shape[-1])
    kept = ~dead
    same = first.tokens_NGT[kept, :, :longest] == found.tokens_NGT[kept, :, :longest]
    assert (same | ~first.mask_NGT[kept, :, :longest]).all()
    assert source.memory.sampled_tokens > int(found.mask_NGT.sum())
    assert found.mean_tokens_N[0].item() == pytest.approx(found.mask_NGT.sum().item() / 16)
    assert torch.equal(found.rewards_NGR, source.rewarded(found, batch_of()).rewards_NGR)
    assert found.texts == source.rewarded(found, batch_of()).texts


def test_what_is_known_of_tokens_is_known_of_those_drawn_again() -> None:
    _, found, source = drawn_again(3)
    _, model = moved_from_start()
    mask = found.mask_NGT
    scores = model(PROMPTS, LENGTHS, found.tokens_NGT, HOW.distribution)
    start = source.reference.log_probs(
        PROMPTS, LENGTHS, found.tokens_NGT, HOW.distribution.whole(), None
    )
    for ours, theirs in (
        (found.old_log_probs_NGT, scores.log_probs),
        (found.entropies_NGT, scores.entropy),
        (found.reference_log_probs_NGT, start),
    ):
        torch.testing.assert_close(ours[mask], theirs.detach()[mask], atol=1e-5, rtol=0)


def test_two_processes_draw_the_same_again() -> None:
    _, whole, _ = drawn_again(2)
    models = [moved_from_start() for _ in range(2)]

    def work(shard: Any) -> TokenGroups:
        reference, model = models[shard.rank]
        rows = [2 * shard.rank, 2 * shard.rank + 1]
        source = rollouts(rewards=(rare,), drawn=HOW, reference=reference, shards=shard)
        batch = batch_of(rows, torch.tensor(rows))
        first = source.draw(model, batch, 2, 4, **ASKS)
        return redrawn(source, model, batch, 2, 4, first, 2, **ASKS)

    halves = in_two_processes(work)
    assert torch.equal(torch.cat([half.draws_N for half in halves]), whole.draws_N)
    assert sum((half.texts for half in halves), ()) == whole.texts
    for half in halves:
        assert half.mean_tokens_N[0].item() == pytest.approx(whole.mean_tokens_N[0].item())


TRUTHS = torch.tensor([[3, 9, STOP, -1, -1, -1, -1, -1], [9, 3, 3, 9, 9, 9, 9, STOP]] * 2)


def test_the_truth_stands_where_all_are_wrong() -> None:
    reference, model = moved_from_start()
    source = rollouts(rewards=(rare,), drawn=HOW, reference=reference)
    batch = replace(batch_of(), answers_NT=TRUTHS)
    first = source.draw(model, batch, 2, 4, **ASKS)
    wrong = totals_of(first, source).sum(dim=1) == 0
    assert 0 < wrong.sum() < 4
    found = told(source, model, batch, first)
    assert torch.equal(found.told_N, wrong)
    assert (totals_of(found, source)[wrong] == torch.tensor([0.0, 0, 0, 1])).all()
    assert torch.equal(totals_of(found, source)[~wrong], totals_of(first, source)[~wrong])
    mask = found.mask_NGT
    for row in wrong.nonzero().flatten().tolist():
        own = found.tokens_NGT[row, -1][mask[row, -1]]
        assert own.tolist() == [token for token in TRUTHS[row].tolist() if token >= 0]
        assert found.ended_NG[row, -1]
    scores = model(PROMPTS, LENGTHS, found.tokens_NGT, HOW.distribution)
    torch.testing.assert_close(
        found.old_log_probs_NGT[mask], scores.log_probs.detach()[mask], atol=1e-5, rtol=0
    )
    assert found.mean_tokens_N[0].item() == pytest.approx(mask.sum().item() / 16)


def test_a_truth_that_earns_no_more_is_not_told() -> None:
    source, model = rollouts(rewards=(never,), drawn=HOW), language()
    batch = replace(batch_of(), answers_NT=TRUTHS)
    first = source.draw(model, batch, 2, 4)
    found = told(source, model, batch, first)
    assert not found.told_N.any()
    assert torch.equal(found.tokens_NGT, first.tokens_NGT)


def test_learning_from_a_truth_makes_it_likelier() -> None:
    model = language()
    source = rollouts(rewards=(pair,), drawn=HOW)
    method = TokenGRPO(source, preset("grpo"), TokenTerms(), redraws=1, insert_truth=True)
    batch = replace(batch_of(), answers_NT=TRUTHS)

    def chances() -> Tensor:
        tokens = TRUTHS.clamp(min=0)[:, None]
        each = model(PROMPTS, LENGTHS, tokens, source.sampling.distribution).log_probs
        return each.squeeze(1).masked_fill(TRUTHS < 0, 0.0).sum(dim=1).detach()

    before = chances()
    groups = method.rollout(model, batch, 2, chunk=4)
    assert groups.told_N.any()
    result = method.loss(model, batch, groups, 2)
    assert result.metrics["told"] == groups.told_N.float().mean()
    assert result.metrics["draws"] >= 1
    result.loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad
    assert (chances() - before)[groups.told_N].mean() > 0
