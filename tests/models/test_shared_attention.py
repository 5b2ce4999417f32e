"""Attention over prompts that are there once, against attention over copies of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from token_models import COMPLETIONS, KINDS, LENGTHS, PROMPTS, policy
from torch import Tensor

from visgrpo.models import prompt_reading
from visgrpo.models.language import LanguageModel
from visgrpo.models.prompt_reading import SharedPrompt, after, pays
from visgrpo.models.prompt_reading import shared_attention as attend

N, G, KEY_HEADS, SHARING, P, T, WIDTH = 2, 3, 2, 2, 5, 4, 8
EXACTLY = {"atol": 1e-6, "rtol": 1e-6}  # Qwen2's norms and rotations are of float32


def share(patch: pytest.MonkeyPatch, least: int) -> None:
    """Share prompts from some size on."""
    for name in ("WORTH_SHARING", "LONG_PROMPT", "SHORTEST_SHARED"):
        patch.setattr(prompt_reading, name, least)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share prompts of any size."""
    share(monkeypatch, 0)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    share(monkeypatch, 10**12)


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def trunk(kind: str = "sdpa", heads: int = KEY_HEADS * SHARING) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(_attn_implementation=kind, num_attention_heads=heads)
    )


def one_by_one(
    query: Tensor, keys: Tensor, values: Tensor, own: tuple[Tensor, Tensor], padding: list[int]
) -> Tensor:
    """The weighted mean of every query, as a loop: softmax over real places before and own ones."""
    out = torch.zeros(N * G, T, KEY_HEADS * SHARING, WIDTH, dtype=torch.float64)
    for row in range(N * G):
        for head in range(KEY_HEADS * SHARING):
            k = head // SHARING
            for t in range(T):
                first = padding[row // G]
                seen_k = torch.cat([keys[row // G, k, first:], own[0][row, k, : t + 1]])
                seen_v = torch.cat([values[row // G, k, first:], own[1][row, k, : t + 1]])
                weights = (seen_k @ query[row, head, t] * 0.3).exp()
                out[row, t, head] = weights @ seen_v / weights.sum()
    return out


@pytest.mark.parametrize("kernel", [True, False])
def test_values_and_gradients_are_those_of_a_loop(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_reading, "_has_kernel", lambda query, keys: kernel)
    heads = KEY_HEADS * SHARING
    tensors = [
        random(N * G, heads, T, WIDTH, seed=0),
        random(N, KEY_HEADS, P, WIDTH, seed=1),
        random(N, KEY_HEADS, P, WIDTH, seed=2),
        random(N * G, KEY_HEADS, T, WIDTH, seed=3),
        random(N * G, KEY_HEADS, T, WIDTH, seed=4),
    ]
    weight = random(N * G, T, heads, WIDTH, seed=5)
    padding = [0, 2]
    blocked = torch.zeros(N, 1, 1, P, dtype=torch.float64)
    blocked[1, ..., :2] = -1e4
    later = torch.full((T, T), -1e4, dtype=torch.float64).triu(1)[None, None]
    found = [t.clone().requires_grad_() for t in tensors]
    module = SimpleNamespace(layer_idx=0)
    with after(SharedPrompt(((found[1], found[2]),), G, blocked), trunk()):
        ours, _ = attend(module, found[0], found[3], found[4], later, scaling=0.3)
    (ours * weight).sum().backward()
    wanted = [t.clone().requires_grad_() for t in tensors]
    expected = one_by_one(wanted[0], wanted[1], wanted[2], (wanted[3], wanted[4]), padding)
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours, expected)
    for tensor, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad)


@pytest.mark.parametrize("kernel", [True, False])
def test_autocast_decides_what_it_computes_in(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotations make float32 of queries and keys, and values stay bfloat16."""
    monkeypatch.setattr(prompt_reading, "_has_kernel", lambda query, keys: kernel)
    shapes = [
        (N * G, KEY_HEADS * SHARING, T),
        *[(N, KEY_HEADS, P)] * 2,
        *[(N * G, KEY_HEADS, T)] * 2,
    ]
    exact = [random(*s, WIDTH, seed=i).bfloat16().double() for i, s in enumerate(shapes)]
    expected = one_by_one(exact[0], exact[1], exact[2], (exact[3], exact[4]), [0, 2])
    found = [t.float().requires_grad_() for t in exact]
    found[4] = exact[4].bfloat16().requires_grad_()
    blocked = torch.zeros(N, 1, 1, P)
    blocked[1, ..., :2] = -1e4
    later = torch.full((T, T), -1e4).triu(1)[None, None]
    prompt = SharedPrompt(((found[1], found[2]),), G, blocked)
    with after(prompt, trunk()), torch.autocast("cpu", torch.bfloat16):
        ours, _ = attend(
            SimpleNamespace(layer_idx=0), found[0], found[3], found[4], later, scaling=0.3
        )
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), expected, atol=0.02, rtol=0.02)
    ours.float().sum().backward()
    assert [t.grad.dtype for t in found] == [t.dtype for t in found]


def test_without_a_prompt_it_is_the_usual_attention() -> None:
    query, keys, values = (random(2, 4, 3, WIDTH, seed=seed) for seed in range(3))
    module = SimpleNamespace(layer_idx=0, num_key_value_groups=1, is_causal=True)
    found, _ = attend(module, query, keys, values, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def scored(model: LanguageModel) -> tuple[Tensor, list[Tensor]]:
    scores = model(PROMPTS, LENGTHS, COMPLETIONS, entropies="gradient")
    weight = random(*COMPLETIONS.shape, seed=6)
    (scores.log_probs * weight + scores.entropy * weight.flip(0)).sum().backward()
    return scores.log_probs.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_models_score_alike_with_the_same_gradients(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for least in (10**12, 0):
        share(monkeypatch, least)
        results.append(scored(policy(kind).double()))
    torch.testing.assert_close(results[1][0], results[0][0], **EXACTLY)
    assert len(results[1][1]) == len(results[0][1]) > 0
    for ours, expected in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(ours, expected, **EXACTLY)


@torch.no_grad()
def logits_of(model: LanguageModel, kept: list[int]) -> list[Tensor]:
    """Logits after every token of the completions, half of which go on after the second."""
    decoder = model.begin(PROMPTS, LENGTHS, COMPLETIONS.shape[1], COMPLETIONS.shape[2])
    tokens_BT, rows = COMPLETIONS.flatten(0, 1), torch.tensor(kept)
    seen = [decoder.logits_BV]
    for step in range(COMPLETIONS.shape[2]):
        if step == 2:
            decoder.keep(rows)
            tokens_BT = tokens_BT[rows]
        if step == 3:  # and once more, when they are no groups any longer
            decoder.keep(torch.tensor([0, 2]))
            tokens_BT = tokens_BT[[0, 2]]
        decoder.feed(tokens_BT[:, step])
        seen.append(decoder.logits_BV)
    return seen


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_generation_has_the_same_logits_also_when_rows_leave(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for least in (10**12, 0):
        share(monkeypatch, least)
        results.append(logits_of(policy(kind).double(), [1, 3, 4]))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, **EXACTLY)


@pytest.mark.usefixtures("always")
def test_a_prompt_before_another_call_is_forgotten() -> None:
    """What shares a prompt must not leave it behind for the next, plain forward pass."""
    model = policy("qwen2")
    expected = model.lm(PROMPTS).logits
    model.score(PROMPTS, LENGTHS, COMPLETIONS)
    torch.testing.assert_close(model.lm(PROMPTS).logits, expected)


def test_small_prompts_are_copied_and_long_completions_too() -> None:
    keys = torch.empty(2, KEY_HEADS, 2**14, 8)  # 2^19 numbers, before any copy
    assert pays(trunk(), keys, 8, 1)
    assert pays(trunk(), keys[:, :, :64], 8, 32)
    assert not pays(trunk(), keys[:, :, :64], 8, 33)  # more than half as many tokens
    assert not pays(trunk(), keys[:, :, :63], 8, 2)
    elsewhere = keys.to("meta")  # without the kernel scores are kept
    assert pays(trunk(), elsewhere, 8, 7)  # 7 × 4 heads of queries < 2 × 2 heads of keys × 8
    assert not pays(trunk(), elsewhere, 8, 8)
    assert not pays(trunk(), keys, 1, 1)  # nothing to share
    assert not pays(trunk(), keys[:, :, :64], 8, 1)
    assert not pays(trunk("eager"), keys, 8, 1)


@pytest.mark.usefixtures("never")
def test_models_with_another_attention_are_left_alone() -> None:
    model = policy("qwen2")
    model.lm.set_attn_implementation("eager")
    model.score(PROMPTS, LENGTHS, COMPLETIONS)
    assert model.lm.config._attn_implementation == "eager"
