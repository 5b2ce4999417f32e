"""Weights kept in bfloat16: the numbers of float32 weights under autocast, in half the memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from token_tools import batch_of, grpo, language
from torch import Tensor, nn

from visgrpo.methods.tokens import TokenTerms
from visgrpo.models.language import LanguageModel
from visgrpo.models.options import Weights
from visgrpo.models.reference import reference_of
from visgrpo.models.save import merged
from visgrpo.models.trains import adapt, keep_weights, matrices
from visgrpo.training.optimizer import Masters

KINDS = ("gpt2", "qwen2")


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def start(kind: str, train: str, weights: Weights = "float32") -> LanguageModel:
    """A model whose matrices were stored in bfloat16, as published ones are."""
    model = language(kind)
    with torch.no_grad():
        for weight in matrices(model):
            weight.copy_(weight.bfloat16())
    torch.manual_seed(0)
    model = LanguageModel(adapt(model.lm, [train]))
    for name, weight in model.named_parameters():
        if ".lora_B" in name:  # an adapter that does something
            nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(1))
    keep_weights(model, weights)
    return model


def step_of(model: LanguageModel, terms: TokenTerms) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Return the loss of a step, the gradients, and the groups that were drawn."""
    reference = reference_of(model, "bfloat16" if _halved(model) else "float32")
    method = grpo(terms=terms, reference=reference)
    method.rollouts.memory.control.coefficient = 0.1  # type: ignore[misc]
    with bf16():
        groups = method.rollout(model.train(), batch_of(), 0, chunk=4)
        result = method.loss(model, batch_of(), groups, 0)
    result.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return result.loss.detach(), gradients, groups


def _halved(model: nn.Module) -> bool:
    return any(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_matrices_in_bfloat16_change_no_number(kind: str) -> None:
    """Draws, loss and gradients are those of float32 weights under autocast, to the bit."""
    whole, half = start(kind, "lora"), start(kind, "lora", "bfloat16")
    (loss, gradients, groups), (ours, our_gradients, our_groups) = (
        step_of(model, TokenTerms()) for model in (whole, half)
    )
    assert torch.equal(groups.tokens_NGT, our_groups.tokens_NGT)
    assert torch.equal(loss, ours)
    assert gradients.keys() == our_gradients.keys()
    assert all(torch.equal(gradients[name], our_gradients[name]) for name in gradients)
    assert all(gradient.dtype == torch.float32 for gradient in our_gradients.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["bfloat16", "all-bfloat16"])
def test_which_weights_are_kept_in_what(kind: str, weights: Weights) -> None:
    model = start(kind, "lora", weights)
    halves = set(map(id, matrices(model)))
    for name, weight in model.named_parameters():
        rounded = id(weight) in halves and (weights != "bfloat16" or not weight.requires_grad)
        assert weight.dtype == (torch.bfloat16 if rounded else torch.float32), name
    assert any(weight.ndim == 1 for weight in model.parameters())


@pytest.mark.parametrize("weights", ["bfloat16", "all-bfloat16"])
def test_a_frozen_copy_is_the_start_and_stays_it(weights: Weights) -> None:
    model = start("qwen2", "all", weights)
    reference = reference_of(model, weights)
    own = sum(2 * p.numel() if p.ndim > 1 else 4 * p.numel() for p in model.parameters())
    assert reference.own_bytes == own
    batch = batch_of()
    completions = torch.randint(2, 12, (4, 3, 5), generator=torch.Generator().manual_seed(0))
    inputs = batch.prompts_NP, batch.lengths_N, completions
    with bf16():
        before = model.score(*inputs)
        assert torch.equal(reference.log_probs(*inputs), before)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1)
        assert not torch.allclose(model.score(*inputs), before, atol=0.01)
        assert torch.equal(reference.log_probs(*inputs), before)


def test_what_is_saved_is_merged_in_float32() -> None:
    """An adapter's small change of a large weight would be rounded away in bfloat16."""
    model = start("qwen2", "lora", "bfloat16")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.mul_(1e-3)
    plain = merged(model.lm)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    layer = model.lm.base_model.model.model.layers[0].mlp.up_proj
    change = layer.scaling["default"] * (layer.lora_B.default.weight @ layer.lora_A.default.weight)
    expected = layer.base_layer.weight.float() + change
    found = plain.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert layer.base_layer.weight.dtype == torch.bfloat16  # the run's own stay as they are


# Masters


def test_masters_move_as_float32_weights_do() -> None:
    """Against torch's AdamW on float32 weights, given the same gradients."""
    torch.manual_seed(0)
    theirs = nn.Parameter(torch.randn(6, 5).bfloat16().float())
    rounded = nn.Parameter(theirs.detach().bfloat16())
    masters = Masters({"rounded": rounded})
    options: Any = {"lr": 1e-4, "weight_decay": 0.1}
    optimizers = [torch.optim.AdamW([w], **options) for w in (theirs, masters.moved["rounded"])]
    for _ in range(20):
        gradient = torch.randn(6, 5).bfloat16()
        theirs.grad, rounded.grad = gradient.float(), gradient
        masters.take_gradients()
        assert rounded.grad is None
        for optimizer in optimizers:
            optimizer.step()
        masters.give_weights()
    assert torch.equal(masters.own["rounded"], theirs)
    assert torch.equal(rounded, theirs.bfloat16())


def test_small_steps_are_not_lost() -> None:
    weight = nn.Parameter(torch.ones(3).bfloat16())
    masters = Masters({"weight": weight})
    optimizer = torch.optim.SGD(masters.moved.values(), lr=1e-3)
    for _ in range(50):  # 2⁻⁸ is between two numbers below 1
        weight.grad = torch.ones(3).bfloat16()
        masters.take_gradients()
        optimizer.step()
        masters.give_weights()
    torch.testing.assert_close(weight.float(), torch.full((3,), 0.95), atol=2e-3, rtol=0)


def test_float32_weights_have_no_masters() -> None:
    model = copy.deepcopy(language())
    masters = Masters(dict(model.named_parameters()))
    assert not masters.own
    assert list(masters.moved.values()) == list(model.parameters())
