"""A language model as a policy against transformers' plain forward of one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from token_models import (
    COMPLETIONS,
    KINDS,
    LENGTHS,
    PAD,
    PROMPTS,
    VOCABULARY,
    WIDTH,
    causal_lm,
    each_plain,
    policy,
)
from torch import Tensor

from visgrpo.models.language import LanguageModel, critic_of
from visgrpo.objectives.token_distribution import TokenDistribution

# Qwen2's norms and rotations are of float32 whatever the weights are.
EXACTLY = {"gpt2": 1e-9, "gpt2-lora": 1e-9, "qwen2": 1e-6, "qwen2-lora": 1e-6}
CUT = TokenDistribution(temperature=1.3, top_k=7, top_p=0.9, forbidden=(PAD,))
BATCHES = {
    "ragged": (PROMPTS, LENGTHS, COMPLETIONS),
    "equal lengths": (
        PROMPTS[:1].repeat(3, 1) + torch.arange(3)[:, None],
        LENGTHS[:1].repeat(3),
        COMPLETIONS,
    ),
    "one token": (PROMPTS, LENGTHS, COMPLETIONS[..., :1]),
    "prompts of one token": (PROMPTS[:, -1:], torch.ones(3, dtype=torch.long), COMPLETIONS),
    "padding nobody needs": (torch.nn.functional.pad(PROMPTS, (3, 0)), LENGTHS, COMPLETIONS),
}


def cut_log_probs(logits: Tensor, chosen: Tensor, cut: TokenDistribution) -> Tensor:
    """Log-probs of chosen tokens, one row after the other, by sorting."""
    rows = []
    for row, token in zip(logits.flatten(0, -2), chosen.flatten().tolist(), strict=True):
        order = [i for i in row.argsort(descending=True).tolist() if i not in cut.forbidden]
        order = order[: cut.top_k or None]
        p = (row[order] / cut.temperature).softmax(0)
        kept = [i for i, before in zip(order, (p.cumsum(0) - p).tolist(), strict=True)
                if before < cut.top_p]  # fmt: skip
        kept = kept if token in kept else [*kept, token]
        rows.append(row[token] / cut.temperature - (row[kept] / cut.temperature).logsumexp(0))
    return torch.stack(rows).view(chosen.shape)


def entropies(logits: Tensor, cut: TokenDistribution) -> Tensor:
    kept = [i for i in range(VOCABULARY) if i not in cut.forbidden]
    p = (logits[..., kept] / cut.temperature).softmax(-1)
    return -(p * p.log()).sum(-1)


@pytest.mark.parametrize("cut", [TokenDistribution(), CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_the_plain_forward(
    kind: str, name: str, cut: TokenDistribution
) -> None:
    batch = BATCHES[name]
    model = policy(kind).double()
    a, b = torch.randn(2, *batch[2].shape, generator=torch.Generator().manual_seed(1)).double()
    logits = each_plain(model, *batch)
    expected = cut_log_probs(logits, batch[2], cut), entropies(logits, cut)
    ((a * expected[0]).sum() + (b * expected[1]).sum()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    scores = model(*batch, cut, entropies="gradient")
    ((a * scores.log_probs).sum() + (b * scores.entropy).sum()).backward()
    close = {"atol": EXACTLY[kind], "rtol": EXACTLY[kind]}
    torch.testing.assert_close(scores.log_probs, expected[0], **close)
    torch.testing.assert_close(scores.entropy, expected[1], **close)
    assert scores.values is None
    assert gradients
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[parameter_name], **close)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_without_gradient_are_the_same(kind: str) -> None:
    model = policy(kind)
    batch = BATCHES["ragged"]
    alone = model.score(*batch, CUT)
    assert not alone.requires_grad
    torch.testing.assert_close(alone, model(*batch, CUT).log_probs.detach(), atol=1e-6, rtol=0)


def test_one_prompt_alone_scores_as_in_a_batch() -> None:
    model = policy("qwen2")
    together = model.score(*BATCHES["ragged"])
    for row, length in enumerate(LENGTHS.tolist()):
        prompt = PROMPTS[row : row + 1, -length:]
        alone = model.score(prompt, LENGTHS[row : row + 1], COMPLETIONS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_what_stands_in_padding_changes_nothing(kind: str) -> None:
    """Ids before a prompt's start are looked at by nobody; those after an end by no real token."""
    model = policy(kind)
    before = torch.arange(PROMPTS.shape[1]) < PROMPTS.shape[1] - LENGTHS[:, None]
    other_prompts = PROMPTS.masked_fill(before, 9)
    other_ends = COMPLETIONS.clone()
    other_ends[:, :, 2:] = 12
    expected = model.score(PROMPTS, LENGTHS, COMPLETIONS)[..., :2]
    assert torch.equal(model.score(other_prompts, LENGTHS, COMPLETIONS)[..., :2], expected)
    assert torch.equal(model.score(PROMPTS, LENGTHS, other_ends)[..., :2], expected)


def test_each_prompt_goes_through_the_trunk_once() -> None:
    """N·P tokens of prompts and N·G·(T - 1) of completions, and no token twice."""
    model = policy("gpt2")
    tokens: list[tuple[int, ...]] = []
    model.plain.get_input_embeddings().register_forward_pre_hook(
        lambda module, given: tokens.append(tuple(given[0].shape))
    )
    model(PROMPTS, LENGTHS, COMPLETIONS)
    assert tokens == [(3, 5), (6, 3)]
    tokens.clear()
    decoder = model.begin(PROMPTS, LENGTHS, 2, 4)
    assert tokens == [(3, 5)]
    decoder.feed(COMPLETIONS[..., 0].flatten())
    assert tokens == [(3, 5), (6,)]


def test_only_completion_tokens_get_logits() -> None:
    model = policy("qwen2")
    rows: list[int] = []
    model.plain.get_output_embeddings().register_forward_hook(
        lambda module, given, out: rows.append(out.shape[:-1].numel())
    )
    model(PROMPTS, LENGTHS, COMPLETIONS)
    assert sum(rows) == COMPLETIONS.numel()


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_gives_the_logits_of_the_plain_forward(kind: str, name: str) -> None:
    prompts, lengths, completions = BATCHES[name]
    model = policy(kind).double()
    expected = each_plain(model, prompts, lengths, completions)
    decoder = model.begin(prompts, lengths, 2, completions.shape[-1])
    for step in range(completions.shape[-1]):
        if step:
            decoder.feed(completions[..., step - 1].flatten())
        torch.testing.assert_close(
            decoder.logits_BV, expected[:, :, step].flatten(0, 1), atol=EXACTLY[kind], rtol=0
        )


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_rows_that_the_decoder_keeps_go_on_as_before(kind: str) -> None:
    model = policy(kind).double()
    expected = each_plain(model, PROMPTS, LENGTHS, COMPLETIONS).flatten(0, 1)
    tokens = COMPLETIONS.flatten(0, 1)
    decoder = model.begin(PROMPTS, LENGTHS, 2, 4)
    decoder.feed(tokens[:, 0])
    kept = torch.tensor([1, 2, 5])
    decoder.keep(kept)
    torch.testing.assert_close(decoder.logits_BV, expected[kept, 1], atol=EXACTLY[kind], rtol=0)
    decoder.feed(tokens[kept, 1])
    decoder.keep(torch.tensor([2, 0]))
    decoder.feed(tokens[[5, 1], 2])
    torch.testing.assert_close(decoder.logits_BV, expected[[5, 1], 3], atol=EXACTLY[kind], rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off_while_training(kind: str) -> None:
    """Log-probs of generation and of training must be those of one policy."""
    batch = BATCHES["ragged"]
    model = policy(kind, dropout=0.5).train()
    assert torch.equal(model.score(*batch), model.score(*batch))
    torch.testing.assert_close(model.score(*batch), policy(kind).score(*batch))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_padding_stays_finite_in_half_precision(kind: str) -> None:
    for precision in (torch.bfloat16, torch.float16):
        model = policy(kind).to(precision)
        scores = model(*BATCHES["ragged"], CUT)
        assert scores.log_probs.dtype == torch.float32
        scores.log_probs.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_transformers_model_inside_its_adapters() -> None:
    bare, adapted = policy("gpt2"), policy("gpt2-lora")
    assert (bare.has_adapter, adapted.has_adapter) == (False, True)
    assert bare.plain is bare.lm
    assert type(adapted.plain) is type(bare.lm)
    assert bare.device == torch.device("cpu")
    hidden = torch.randn(2, WIDTH)
    assert torch.equal(bare.head(hidden), bare.lm.lm_head(hidden))


def test_the_adapter_is_off_within_the_block_alone() -> None:
    model, start = policy("qwen2-lora"), policy("qwen2")
    batch = BATCHES["ragged"]
    on = model.score(*batch)
    with model.adapter_off():
        torch.testing.assert_close(model.score(*batch), start.score(*batch))
    assert torch.equal(model.score(*batch), on)
    assert (on - start.score(*batch)).abs().max() > 0.01


@torch.no_grad()
def values_of(model: LanguageModel) -> Tensor:
    """Values (3, 2, 4) as a rollout has them: of the decoder's states, or of a critic's own."""
    assert model.critic is not None
    if model.critic.trunk is not None:
        return model.values(*BATCHES["ragged"])
    decoder = model.begin(PROMPTS, LENGTHS, 2, 4)
    values = [model.critic.of_states(decoder.states_BD)]
    for tokens_NG in COMPLETIONS[..., :-1].unbind(2):
        decoder.feed(tokens_NG.flatten())
        values.append(model.critic.of_states(decoder.states_BD))
    return torch.stack(values, dim=1).unflatten(0, (3, 2))


@pytest.mark.parametrize("kind", ["gpt2", "gpt2-lora", "qwen2"])
@pytest.mark.parametrize("critic", ["head", "separate"])
def test_values_are_a_linear_map_of_the_state_before_each_token(kind: str, critic: str) -> None:
    """At the start 0 everywhere; then of the hidden states of plain forwards."""
    model = policy(kind, critic=critic)
    batch = BATCHES["ragged"]
    assert torch.equal(values_of(model), torch.zeros(3, 2, 4))
    torch.nn.init.normal_(model.critic.value.weight, generator=torch.Generator().manual_seed(2))
    trunk = model.plain.base_model if critic == "head" else model.critic.trunk
    expected = np.zeros(COMPLETIONS.shape)
    for n, g in np.ndindex(3, 2):
        prompt = PROMPTS[n, -int(LENGTHS[n]) :]
        sequence = torch.cat([prompt, COMPLETIONS[n, g]])[None]
        with torch.no_grad():
            states = trunk(sequence, use_cache=False).last_hidden_state[0]
            expected[n, g] = model.critic.value(states)[len(prompt) - 1 : -1, 0].numpy()
    values = values_of(model)
    assert not values.requires_grad
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    together = model(*batch)
    np.testing.assert_allclose(together.values.detach().numpy(), expected, atol=1e-5)
    torch.testing.assert_close(
        together.log_probs.detach(), policy(kind).score(*batch), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("critic", "reached"), [("head", True), ("separate", False)])
def test_how_far_the_gradient_of_the_values_goes(critic: str, reached: bool) -> None:
    model = policy("gpt2", critic=critic)
    torch.nn.init.normal_(model.critic.value.weight)
    model(*BATCHES["ragged"]).values.square().sum().backward()
    trunk = model.lm.transformer.h[0].mlp.c_fc.weight.grad
    assert (trunk is not None and bool(trunk.any())) == reached
    assert model.critic.value.weight.grad.any()
    if critic == "separate":
        assert all(p.grad is None or not p.grad.any() for p in model.lm.parameters())
        assert model.critic.trunk.h[0].mlp.c_fc.weight.grad.any()


def test_a_separate_critic_starts_as_a_copy_and_shares_nothing() -> None:
    lm = causal_lm("qwen2")
    critic = critic_of(lm, "separate")
    model = LanguageModel(lm, critic)
    theirs = {p.data_ptr() for p in model.lm.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in critic.parameters())
    for ours, its in zip(lm.base_model.parameters(), critic.trunk.parameters(), strict=True):
        assert torch.equal(ours, its)
    assert critic_of(lm, "head").trunk is None
    assert sum(p.numel() for p in critic_of(lm, "head").parameters()) == WIDTH + 1
