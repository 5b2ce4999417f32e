"""The shared caches on plain tensors, and the frozen references of a run over tokens."""

from __future__ import annotations

import pytest
import torch
from token_models import COMPLETIONS, KINDS, LENGTHS, PAD, PROMPTS, policy
from torch import Tensor
from transformers import DynamicCache

from visgrpo.models.language import LanguageModel
from visgrpo.models.options import Adapt
from visgrpo.models.prompt_reading import rollout_cache, shared_prefix
from visgrpo.models.reference import AdapterOff, FrozenStart, reference_of
from visgrpo.models.trains import adapt
from visgrpo.objectives.token_distribution import TokenDistribution

N, G, HEADS, P, D = 2, 3, 2, 4, 5
BATCH = (PROMPTS, LENGTHS, COMPLETIONS)
CUT = TokenDistribution(temperature=0.8, top_k=6, forbidden=(PAD,))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(*, requires_grad: bool = False) -> tuple[DynamicCache, Tensor, Tensor]:
    """A cache of two prompts and one layer, with its keys and values (N, h, P, d)."""
    keys, values = random(N, HEADS, P, D), random(N, HEADS, P, D, seed=1)
    cache = DynamicCache()
    cache.update(keys.requires_grad_(requires_grad), values.requires_grad_(requires_grad), 0)
    return cache, keys, values


def test_a_shared_prefix_stands_before_every_completion_of_its_prompt() -> None:
    cache, keys, values = prompts(requires_grad=True)
    new_keys, new_values = random(N * G, HEADS, 2, D, seed=2), random(N * G, HEADS, 2, D, seed=3)
    shared = shared_prefix(cache, G)
    seen_keys, seen_values = shared.update(new_keys, new_values, 0)
    for row in range(N * G):
        expected = torch.cat([keys[row // G], new_keys[row]], dim=1)
        assert torch.equal(seen_keys[row], expected)
        assert torch.equal(seen_values[row, :, P:], new_values[row])
        assert torch.equal(seen_values[row, :, :P], values[row // G])
    # A prompt's gradient is the sum of what its completions send back.
    weights = random(*seen_keys.shape, seed=4)
    (seen_keys * weights).sum().backward()
    expected = torch.stack([weights[n * G : (n + 1) * G, :, :P].sum(0) for n in range(N)])
    torch.testing.assert_close(keys.grad, expected)


def test_scoring_leaves_the_prompts_as_they_were() -> None:
    cache, keys, _ = prompts()
    shared = shared_prefix(cache, G)
    assert shared.get_seq_length() == P
    shared.update(random(N * G, HEADS, 2, D), random(N * G, HEADS, 2, D), 0)
    assert shared.get_seq_length() == cache.get_seq_length() == P
    assert torch.equal(cache.layers[0].keys, keys)


def test_a_rollout_cache_grows_in_place() -> None:
    cache, keys, values = prompts()
    rollout = rollout_cache(cache, G, 3)
    expected_keys = keys.repeat_interleave(G, dim=0)
    expected_values = values.repeat_interleave(G, dim=0)
    places = set()
    for step in range(3):
        new = [random(N * G, HEADS, 1, D, seed=10 * step + i) for i in range(2)]
        seen_keys, seen_values = rollout.update(*new, 0)
        expected_keys = torch.cat([expected_keys, new[0]], dim=2)
        expected_values = torch.cat([expected_values, new[1]], dim=2)
        assert torch.equal(seen_keys, expected_keys)
        assert torch.equal(seen_values, expected_values)
        assert rollout.get_seq_length() == P + step + 1
        places.add(seen_keys.data_ptr())
    assert len(places) == 1
    assert torch.equal(cache.layers[0].keys, keys)


def test_a_rollout_cache_goes_on_with_some_rows() -> None:
    cache, keys, _ = prompts()
    rollout = rollout_cache(cache, G, 2)
    first = random(N * G, HEADS, 1, D, seed=5)
    rollout.update(first, first, 0)
    rows = torch.tensor([1, 4])
    rollout.layers[0].keep(rows)
    second = random(2, HEADS, 1, D, seed=6)
    seen, _ = rollout.update(second, second, 0)
    assert torch.equal(seen, torch.cat([keys[rows // G], first[rows], second], dim=2))


# References


def moved(model: LanguageModel) -> None:
    """Change everything that trains."""
    with torch.no_grad():
        for parameter in model.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * random(*parameter.shape, seed=9))


def fresh(kind: str) -> LanguageModel:
    """A policy as a run begins with it: its adapters are no change yet."""
    if not kind.endswith("lora"):
        return policy(kind)
    lm = policy(kind.removesuffix("-lora")).lm
    return LanguageModel(adapt(lm, ["lora"], Adapt(2, 4.0)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_stays_at_the_start(kind: str) -> None:
    model = fresh(kind)
    start = model.score(*BATCH, CUT)
    reference = reference_of(model)
    moved(model)
    torch.testing.assert_close(reference.log_probs(*BATCH, CUT), start)
    assert not reference.log_probs(*BATCH, CUT).requires_grad
    assert (model.score(*BATCH, CUT) - start).abs().max() > 0.01
    adapted = kind.endswith("lora")
    assert isinstance(reference, AdapterOff if adapted else FrozenStart)
    assert reference.kind == ("adapter_off" if adapted else "copy")


def test_the_reference_costs_the_bytes_of_what_trains() -> None:
    model = fresh("gpt2")
    total = sum(p.nbytes for p in model.lm.parameters())
    assert reference_of(model).own_bytes == total
    frozen = model.lm.transformer.wte.weight.requires_grad_(False)
    assert reference_of(model).own_bytes == total - frozen.nbytes
    assert reference_of(fresh("gpt2-lora")).own_bytes == 0


def test_a_frozen_copy_trains_nothing_and_leaves_the_policy_trainable() -> None:
    model = fresh("qwen2")
    reference = reference_of(model)
    assert isinstance(reference, FrozenStart)
    assert not any(p.requires_grad for p in reference._frozen.parameters())
    assert all(p.requires_grad for p in model.parameters())
