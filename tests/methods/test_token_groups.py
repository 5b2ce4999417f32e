"""Groups of completions: drawn in any pieces by any number of processes, rewarded, cut, counted."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from token_tools import (
    LENGTHS,
    MASK,
    PROMPT_TEXTS,
    PROMPTS,
    STOP,
    batch_of,
    decode,
    given_groups,
    in_two_processes,
    language,
    large_tokens,
    moved_from_start,
    rollouts,
    sampling,
)
from torch import Tensor

from visgrpo.methods.token_groups import (
    AdaptiveKL,
    FixedKL,
    TokenGroups,
    TokenMemory,
    sequence_kl,
    shown_prompt,
)
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.objectives import preset

HOW = sampling(6, stop=(STOP, 6), top_k=9)


class Noted:
    """A control of the KL weight that only notes what it is told."""

    def __init__(self, coefficient: float = 0.0) -> None:
        self.coefficient, self.told = coefficient, []

    def update(self, kl: float, samples: int) -> None:
        self.told.append((kl, samples))

    def state(self) -> dict[str, float]:
        return {"told": float(len(self.told))}

    def restore(self, state: Any) -> None:
        self.restored = dict(state)


def rows_of(groups: TokenGroups, rows: list[int]) -> TokenGroups:
    return groups.select(torch.tensor(rows))


def assert_same(ours: TokenGroups, theirs: TokenGroups) -> None:
    for field in fields(TokenGroups):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=field.name)
        else:
            assert one == other, field.name


def test_groups_hold_what_was_drawn() -> None:
    reference, model = moved_from_start("qwen2")
    groups = rollouts(drawn=HOW, reference=reference).draw(model, batch_of(), 3, chunk=4)
    scores = model.score(PROMPTS, LENGTHS, groups.tokens_NGT, HOW.distribution)
    whole = HOW.distribution.whole()  # of the start no token is cut away
    start = reference.log_probs(PROMPTS, LENGTHS, groups.tokens_NGT, whole)
    mask = groups.mask_NGT
    torch.testing.assert_close(groups.old_log_probs_NGT[mask], scores[mask], atol=1e-5, rtol=0)
    ours = groups.reference_log_probs_NGT[mask]
    torch.testing.assert_close(ours, start[mask], atol=1e-5, rtol=0)
    assert (ours - scores[mask]).abs().max() > 0.01
    lengths = mask.sum(-1)
    assert int(lengths.max()) == mask.shape[-1]
    assert groups.mean_tokens_N.tolist() == pytest.approx([lengths.double().mean().item()] * 4)
    last = groups.tokens_NGT.gather(-1, lengths[..., None] - 1).squeeze(-1)
    assert torch.equal(groups.ended_NG, torch.isin(last, torch.tensor(HOW.stop)))
    assert 0 < groups.ended_NG.sum() < groups.ended_NG.numel()
    for n, (prompt, texts) in enumerate(groups.texts):
        ids = [row[:length] for row, length in zip(
            groups.tokens_NGT[n].tolist(), lengths[n].tolist(), strict=True)]  # fmt: skip
        assert prompt == PROMPT_TEXTS[n]
        assert list(texts) == decode(ids)
        expected = large_tokens(completions=list(texts))
        assert groups.rewards_NGR[n, :, 0].tolist() == pytest.approx(expected)


def test_rewards_are_asked_once_for_all_completions_with_columns() -> None:
    calls: list[dict[str, Any]] = []

    def noted(**given: Any) -> list[float]:
        calls.append(given)
        return [float(i) for i in range(len(given["completions"]))]

    source = rollouts(rewards=(noted,), group_size=3, drawn=HOW)
    groups = source.draw(language(), batch_of([2, 0]), 0, chunk=1)
    (call,) = calls
    assert call["prompts"] == [PROMPT_TEXTS[2]] * 3 + [PROMPT_TEXTS[0]] * 3
    assert call["price"] == [3.0] * 3 + [1.0] * 3
    texts = [text for _, group in groups.texts for text in group]
    assert call["completions"] == texts
    assert decode(call["completion_ids"]) == texts
    assert groups.rewards_NGR[..., 0].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_pieces_of_any_size_draw_the_same(chunk: int) -> None:
    """Also with a completion that is longer in one piece than in another, and ragged prompts."""
    reference, model = moved_from_start("qwen2")
    source = rollouts(drawn=HOW, reference=reference)
    pieces = source.draw(model, batch_of(), 5, chunk=chunk)
    assert_same(pieces, source.draw(model, batch_of(), 5, chunk=4))


def test_another_step_or_seed_draws_others() -> None:
    model = language()
    drawn = [
        rollouts(drawn=HOW, seed=seed).draw(model, batch_of(), step, chunk=4).texts
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3] != drawn[0]


@pytest.mark.parametrize("places", [[[0, 1], [2, 3]], [[0, 2], [1, 3]]])
def test_two_processes_draw_what_one_draws(places: list[list[int]]) -> None:
    """Also where minibatches deal their blocks out, so that a share is not consecutive."""
    reference, model = moved_from_start("qwen2")
    control = Noted()
    alone = rollouts(drawn=HOW, reference=reference, control=control)
    whole = alone.draw(model, batch_of(), 2, chunk=4)

    copies = [moved_from_start("qwen2") for _ in places]

    def work(shard: Any) -> tuple[TokenGroups, TokenMemory]:
        its_start, its_model = copies[shard.rank]
        source = rollouts(drawn=HOW, reference=its_start, control=Noted(), shards=shard)
        mine = places[shard.rank]
        batch = batch_of(mine, torch.tensor(mine))
        return source.draw(its_model, batch, 2, chunk=1), source.memory

    for (groups, memory), mine in zip(in_two_processes(work), places, strict=True):
        assert_same(groups, rows_of(whole, mine))
        assert memory.sampled_tokens == alone.memory.sampled_tokens == int(whole.mask_NGT.sum())
        ((kl, samples),) = memory.control.told
        assert samples == 16
        assert kl == pytest.approx(control.told[0][0], abs=1e-5)


def test_the_control_is_told_nats_per_completion() -> None:
    reference, model = moved_from_start("qwen2")
    control = Noted()
    groups = rollouts(drawn=HOW, reference=reference, control=control).draw(
        model, batch_of(), 0, chunk=2
    )
    total = 0.0
    for n, g, t in np.ndindex(*groups.mask_NGT.shape):
        if groups.mask_NGT[n, g, t]:
            total += float(
                groups.old_log_probs_NGT[n, g, t] - groups.reference_log_probs_NGT[n, g, t]
            )
    assert control.told == [(pytest.approx(total / 16, abs=1e-5), 16)]


def test_without_a_reference_nobody_is_told() -> None:
    control = Noted()
    groups = rollouts(drawn=HOW, control=control).draw(language(), batch_of(), 0, chunk=4)
    assert groups.reference_log_probs_NGT is None
    assert control.told == []


def test_what_a_judge_says_stands_beside_the_rewards() -> None:
    def judge(*, completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    groups = rollouts(drawn=HOW, judge=judge).draw(language(), batch_of(), 0, chunk=4)
    assert groups.rewards_NGR.shape == (4, 4, 1)
    assert groups.gold_NG.tolist() == [[len(t) for t in texts] for _, texts in groups.texts]


def test_a_reward_that_does_not_apply_to_a_prompt() -> None:
    def sometimes(*, prompts: list[str], **columns: Any) -> list[float | None]:
        return [None if prompt == PROMPT_TEXTS[1] else 1.0 for prompt in prompts]

    source = rollouts(rewards=(large_tokens, sometimes), drawn=HOW)
    groups = source.draw(language(), batch_of(), 0, chunk=4)
    assert groups.rewards_NGR[1, :, 1].isnan().all()
    assert groups.rewards_NGR.isnan().sum() == 4


def test_measuring_apart_leaves_the_runs_memory_alone() -> None:
    reference, model = moved_from_start("qwen2")
    control = Noted(0.5)
    source = rollouts(drawn=HOW, reference=reference, control=control)
    apart = source.apart(PROMPT_TEXTS, 2)
    groups = apart.draw(model, batch_of([0, 1, 2]), 0, chunk=3, total=3)
    assert groups.ended_NG.shape == (3, 2)
    assert source.memory.sampled_tokens == 0
    assert control.told == []
    assert apart.memory.sampled_tokens == int(groups.mask_NGT.sum())
    assert apart.memory.state() == {"sampled_tokens": apart.memory.sampled_tokens}


def test_a_part_of_the_inputs_draws_what_it_would_in_the_whole() -> None:
    """The last, smaller batch of an evaluation."""
    source, model = rollouts(drawn=HOW), language()
    part = source.draw(model, batch_of([0, 1, 2]), 0, chunk=3, total=4)
    whole = source.draw(model, batch_of(), 0, chunk=4)
    expected = rows_of(whole, [0, 1, 2])
    tokens = part.mask_NGT.sum().item() / 16  # of a batch of four, three of which are here
    assert part.mean_tokens_N.tolist() == pytest.approx([tokens] * 3)
    assert_same(replace(part, mean_tokens_N=expected.mean_tokens_N), expected)


# Selecting and trimming


def test_selected_rows_lose_padding_that_none_of_them_needs() -> None:
    values = torch.arange(30.0).view(2, 3, 5)
    groups = given_groups(
        mask_NGT=MASK & (torch.arange(5) < 4) | torch.tensor([False, True]).view(2, 1, 1) & MASK,
        advantages=values,
        old_values_NGT=values + 1,
        returns_NGT=values + 2,
        rewards_NGR=torch.arange(30.0).view(2, 3, 5),
        gold_NG=torch.arange(6.0).view(2, 3),
    )
    first = groups.select(torch.tensor([0]))
    assert first.mask_NGT.shape == (1, 3, 4)
    assert first.prompts_NP.tolist() == PROMPTS[:1].tolist()
    assert torch.equal(first.advantages, values[:1, :, :4])
    assert torch.equal(first.old_values_NGT, values[:1, :, :4] + 1)
    assert torch.equal(first.returns_NGT, values[:1, :, :4] + 2)
    assert first.reference_log_probs_NGT.shape == first.old_log_probs_NGT.shape == (1, 3, 4)
    assert first.tokens_NGT.shape == (1, 3, 4)
    # Rewards are no tokens, however many there are.
    assert torch.equal(first.rewards_NGR, groups.rewards_NGR[:1])
    second = groups.select(torch.tensor([1]))
    assert second.mask_NGT.shape == (1, 3, 5)
    assert second.prompts_NP.tolist() == PROMPTS[1:2].tolist()  # as wide as the batch's
    assert second.texts == (groups.texts[1],)
    assert second.gold_NG.tolist() == [[3.0, 4.0, 5.0]]
    swapped = groups.select(torch.tensor([1, 0]))
    assert swapped.texts == groups.texts[::-1]
    assert torch.equal(swapped.advantages, values[[1, 0]])


def test_whole_groups_are_handed_out_as_they_are() -> None:
    groups = given_groups()
    assert groups.trimmed() is groups


def test_kl_of_completions_counts_their_own_tokens() -> None:
    groups = given_groups()
    kl = sequence_kl(groups)
    assert kl.isfinite().all()
    for n, g in np.ndindex(2, 3):
        expected = sum(
            float(groups.old_log_probs_NGT[n, g, t] - groups.reference_log_probs_NGT[n, g, t])
            for t in range(int(MASK[n, g].sum()))
        )
        assert kl[n, g].item() == pytest.approx(expected)


@pytest.mark.parametrize("rescored", [False, True])
def test_groups_hold_the_entropy_of_the_whole_softmax(rescored: bool) -> None:
    model, drawn = language(), rollouts(drawn=HOW)
    groups = drawn.draw(model, batch_of(), 3, chunk=3, entropies=True, rescored=rescored)
    entropy = model(PROMPTS, LENGTHS, groups.tokens_NGT, HOW.distribution).entropy.detach()
    mask = groups.mask_NGT
    torch.testing.assert_close(groups.entropies_NGT[mask], entropy[mask], atol=1e-5, rtol=0)
    assert (groups.entropies_NGT[~mask] == 0).all()
    assert drawn.draw(model, batch_of(), 3, chunk=3).entropies_NGT is None


def test_the_most_uncertain_tokens_are_those_of_the_whole_batch() -> None:
    """In pieces and on two processes too."""
    terms = TokenTerms(top_entropy=0.3)
    method = TokenGRPO(rollouts(drawn=HOW), preset("grpo"), terms)
    model = language()
    groups = method.rollout(model, batch_of(), 0, chunk=4)
    counted = groups.mask_NGT
    least = groups.entropies_NGT[counted].quantile(0.7)
    expected = counted & (groups.entropies_NGT >= least)
    assert torch.equal(groups.uncertain_NGT, expected)
    assert 0.2 < expected.sum() / counted.sum() < 0.4
    result = method.loss(model, batch_of(), groups, 0)
    by_token = groups.advantages[..., None] * expected
    other = TokenGRPO(method.rollouts, method.objective, replace(terms, top_entropy=1.0))
    same = replace(groups, advantages=by_token, uncertain_NGT=None)
    torch.testing.assert_close(result.loss, other.loss(model, batch_of(), same, 0).loss)

    models = [language(), language()]

    def work(shard: Any) -> Tensor:
        rows = [shard.rank * 2, shard.rank * 2 + 1]
        source = rollouts(drawn=HOW, shards=shard)
        half = TokenGRPO(source, preset("grpo"), terms)
        mine = half.rollout(models[shard.rank], batch_of(rows, torch.tensor(rows)), 0, chunk=1)
        return mine.entropies_NGT[mine.uncertain_NGT]

    halves = torch.cat(in_two_processes(work))
    torch.testing.assert_close(halves, groups.entropies_NGT[expected], atol=1e-5, rtol=0)


# Memory


def test_memory_comes_back_as_it_was() -> None:
    control = AdaptiveKL(0.1, target=2.0, horizon=100.0)
    memory = TokenMemory(control)
    memory.sampled_tokens = 7
    control.update(10.0, 50)
    assert memory.metrics() == {"sampled_tokens": 7, "kl_coefficient": pytest.approx(0.11)}
    other = TokenMemory(AdaptiveKL(0.1, target=2.0, horizon=100.0))
    other.restore(memory.state())
    assert other.state() == memory.state()
    assert other.control.coefficient == control.coefficient
    fixed = TokenMemory(FixedKL(0.3))
    fixed.restore({"sampled_tokens": 2.0})
    assert (fixed.sampled_tokens, fixed.control.coefficient) == (2, 0.3)


def test_messages_are_shown_with_their_roles() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert shown_prompt(messages) == "system: Be brief.\nuser: Hi"
    assert shown_prompt("plain") == "plain"


def test_messages_reach_rewards_as_messages() -> None:
    seen: list[Any] = []

    def noted(*, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.append((prompts[0], completions[0]))
        return [0.0] * len(prompts)

    messages = ({"role": "user", "content": "Hi"},)
    source = replace(rollouts(rewards=(noted,), drawn=HOW), prompts=(messages,) * 4)
    groups = source.draw(language(), batch_of(), 0, chunk=4)
    text = groups.texts[0][1][0]
    assert seen == [(list(messages), [{"role": "assistant", "content": text}])]
    assert groups.texts[0][0] == "user: Hi"
