"""From rollout to update under bf16 autocast: at equal weights every ratio is 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import seeing_tools
import torch
from token_tools import batch_of, grpo, language, rollouts, sampling

from visgrpo.methods.ppo import TokenPPO
from visgrpo.methods.token_groups import sequence_kl
from visgrpo.methods.tokens import TokenTerms
from visgrpo.models.reference import reference_of
from visgrpo.objectives import PRESETS

OFF_POLICY = TokenTerms(on_policy=False)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def check_ratios(method, model, batch) -> None:
    """Ratios of the whole batch, and of a minibatch."""
    model.train()
    with bf16():
        groups = method.rollout(model, batch, 0, chunk=2)
        for rows in (torch.arange(len(batch)), torch.tensor([2, 0])):
            result = method.loss(model, batch, groups.select(rows), 0)
            assert result.metrics["ratio_mean"].item() == pytest.approx(1, abs=1e-6)
            assert result.metrics["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_of_a_language_model(name: str, kind: str) -> None:
    check_ratios(grpo(name), language(kind), batch_of())


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_ppo(critic) -> None:
    source = rollouts(drawn=sampling(6, stop=(1, 6)))
    check_ratios(TokenPPO(source, OFF_POLICY), language(critic=critic), batch_of())


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_a_model_that_sees(name: str) -> None:
    source = replace(
        rollouts(rewards=[lambda *, completions, **_: [float(len(c)) for c in completions]]),
        sampling=seeing_tools.sampling(),
        decode=lambda groups: [" ".join(map(str, ids)) for ids in groups],
        prompts=["How many?"] * 4,
    )
    check_ratios(
        replace(grpo(name), rollouts=source), seeing_tools.seeing(), seeing_tools.questions()
    )


def test_what_decoding_rounds_would_show_in_the_ratios() -> None:
    method, model = grpo("gspo"), language()
    with bf16():
        decoded, scored = (
            method.rollouts.draw(model, batch_of(), 0, 4, rescored=rescored).old_log_probs_NGT
            for rescored in (False, True)
        )
    assert (decoded - scored).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_the_kl_of_the_reward_is_0_at_the_start(kind: str) -> None:
    """Rounding is no divergence: the start and the policy are looked at by the same pass."""
    model = language(kind)
    terms = TokenTerms(kl_in="reward", on_policy=True)
    method = grpo(terms=terms, reference=reference_of(model))
    with bf16():
        groups = method.rollout(model.train(), batch_of(), 0, chunk=2)
    assert torch.equal(sequence_kl(groups), torch.zeros(4, 4))
