"""Blocks that the backward pass runs again: the same values and gradients, and less is kept."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from more_families import OTHERS, QWENS, parts_of
from token_models import COMPLETIONS, KINDS, LENGTHS, PROMPTS, policy
from torch import Tensor, nn
from vision_models import qwen, scene, seeing, smol

from visgrpo.models import prompt_reading
from visgrpo.models.language import LanguageModel
from visgrpo.models.reference import FrozenStart


@pytest.fixture(params=["copied", "shared"])
def prompts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions have copies of their prompts, or attend to them where they are."""
    for name in ("WORTH_SHARING", "LONG_PROMPT", "SHORTEST_SHARED"):
        monkeypatch.setattr(prompt_reading, name, 10**12 if request.param == "copied" else 0)


def gradients_of(model: LanguageModel, inputs: dict[str, Any], **more: Any) -> list[Tensor]:
    """The log-probs, and all gradients of a loss of log-probs, entropies and values."""
    scores = model(**inputs, entropies="gradient", **more)
    loss = scores.log_probs.square().sum() + scores.entropy.sum()
    if scores.values is not None:
        loss = loss + (scores.values - 1).square().sum()
    loss.backward()
    found = [scores.log_probs.detach()]
    for weight in model.parameters():
        found.append(torch.zeros(()) if weight.grad is None else weight.grad)
        weight.grad = None
    return found


def both(model: LanguageModel, inputs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    usual = gradients_of(model, inputs)
    model.recompute = True
    return usual, gradients_of(model, inputs)


def texts() -> dict[str, Any]:
    return {"prompts_NP": PROMPTS, "lengths_N": LENGTHS, "completions_NGT": COMPLETIONS}


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("prompts")
def test_a_language_models_numbers_stay(kind: str, engine: Any) -> None:
    model = policy(kind)
    model.engine = engine
    usual, again = both(model, texts())
    assert any(gradient.any() for gradient in usual[1:])
    for ours, theirs in zip(again, usual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_so_do_a_critics(critic: Any) -> None:
    model = policy("qwen2", critic=critic)
    with torch.no_grad():
        model.critic.value.weight.normal_(generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(*both(model, texts()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "smolvlm", *QWENS, *OTHERS])
def test_so_do_those_of_a_model_that_sees(kind: str, engine: Any) -> None:
    parts = {"qwen2_5_vl": qwen, "smolvlm": smol}.get(kind, lambda: parts_of(kind))()
    model, seen = seeing("all", engine, parts), scene([[(24, 16)], [(40, 12)], []], parts=parts)
    for ours, theirs in zip(*both(model, seen.batch()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("prompts")
def test_prompts_that_a_rollout_read_are_gone_on_from() -> None:
    model = policy("qwen2-lora")
    results = []
    for model.recompute in (False, True):
        model.eval()
        read = model.begin(PROMPTS, LENGTHS, 2, 4).read
        model.train()
        results.append(gradients_of(model, texts(), read=read))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_a_block_makes_inside_is_not_kept(recompute: bool) -> None:
    model = policy("qwen2")
    model.recompute = recompute
    made: list[weakref.ref[Tensor]] = []
    for block in model.trunk.layers:
        block.mlp.down_proj.register_forward_pre_hook(
            lambda module, inputs: made.append(weakref.ref(inputs[0]))
        )
    scores = model(**texts())
    assert len(made) == 2 * 2  # blocks, each for prompts and for completions
    assert all((ref() is None) == recompute for ref in made)
    scores.log_probs.sum().backward()
    assert len(made) == 2 * 2 * (1 + recompute)


def test_a_copy_runs_its_own_blocks() -> None:
    """Nothing of it stays in a model: a reference made of it has its own weights."""
    model = policy("gpt2")
    model.recompute = True
    model(**texts())
    reference = FrozenStart(model)
    before = model.score(**texts())
    with torch.no_grad():
        nn.init.normal_(model.trunk.h[0].mlp.c_fc.weight)
    assert not torch.allclose(model.score(**texts()), before)
    distribution = reference.log_probs(PROMPTS, LENGTHS, COMPLETIONS)
    torch.testing.assert_close(distribution, before)
