"""Prompts read once for the rollout and the update: the same loss and gradient, fewer passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from token_tools import batch_of, grpo, language, moved_from_start
from torch import Tensor, nn

from visgrpo.methods.token_groups import TokenGroups
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import LanguageModel

ON_POLICY = TokenTerms(kl_in="loss", entropy_weight=0.1, on_policy=True)


def learned(
    model: LanguageModel, method: TokenGRPO, chunk: int = 4
) -> tuple[Tensor, dict[str, Tensor], TokenGroups]:
    """Draw, learn once as the trainer does, and return loss, gradients and groups."""
    batch = batch_of()
    with torch.no_grad():
        groups = method.rollout(model, batch, 0, chunk=chunk)
    loss = method.loss(model, batch, groups, 0).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients, groups


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_loss_and_gradient_are_those_of_a_second_reading(kind: str) -> None:
    reference, model = moved_from_start(kind)
    twice = grpo(terms=ON_POLICY, reference=reference)
    loss, gradients, groups = learned(model, replace(twice, read_once=True))
    expected_loss, expected, _ = learned(model, twice)
    assert groups.read is not None
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_prompts_is_part_of_it() -> None:
    """Without what flows back into the prompts the loss is the same and the gradient is not."""
    model, method = language(), replace(grpo(terms=ON_POLICY), read_once=True)
    _, whole, groups = learned(model, method)
    assert groups.read is not None
    for layer in groups.read.cache.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    cut = replace(groups, read=groups.read._replace(hidden_ND=groups.read.hidden_ND.detach()))
    method.loss(model, batch_of(), cut, 0).loss.backward()
    name = "lm.transformer.h.0.attn.c_attn.weight"
    found = model.get_parameter(name).grad
    assert found is not None
    assert (found - whole[name]).norm() > 0.1 * whole[name].norm()


def passes(model: nn.Module, method: TokenGRPO) -> int:
    """Passes of a step through the first layer."""
    calls = []
    hook = model.get_submodule("lm.transformer.h.0").register_forward_hook(
        lambda *_: calls.append(1)
    )
    learned(model, method)  # type: ignore[arg-type]
    hook.remove()
    return len(calls)


def test_it_saves_a_pass() -> None:
    model, method = language(), grpo(terms=ON_POLICY)
    assert passes(model, replace(method, read_once=True)) == passes(model, method) - 1


@pytest.mark.parametrize(
    ("engine", "chunk"), [("shared", 2), ("plain", 4)], ids=["in pieces", "plain engine"]
)
def test_a_batch_in_pieces_and_the_plain_engine_read_again(engine: str, chunk: int) -> None:
    model = LanguageModel(language().lm, engine=engine)  # type: ignore[arg-type]
    loss, _, groups = learned(model, replace(grpo(terms=ON_POLICY), read_once=True), chunk)
    assert groups.read is None
    torch.testing.assert_close(loss, learned(model, grpo(terms=ON_POLICY))[0])


def test_what_was_read_together_is_not_taken_apart() -> None:
    _, _, groups = learned(language(), replace(grpo(terms=ON_POLICY), read_once=True))
    with pytest.raises(AssertionError, match="learned from together"):
        groups.select(torch.tensor([0]))
