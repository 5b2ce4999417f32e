"""Features of frozen parts are computed once, kept within a budget, and never stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vision_models import answer_of, differences, scene, seeing, truth_of

from visgrpo.models.reference import AdapterOff, FrozenStart, reference_of
from visgrpo.models.vision_language import FeatureCache, VisionLanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution

CLOSE = 1e-5


class Passes:
    """Rows of pixels that go through a model's tower, call by call."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.rows: list[int] = []
        tower = model.family.tower(model.plain)
        tower.register_forward_pre_hook(lambda module, given: self.rows.append(len(given[0])))


def stepped(model: VisionLanguageModel, batch: dict[str, Any], size: float = 0.02) -> None:
    """Move what trains a step up the log-probs."""
    model.zero_grad()
    model(**batch).log_probs.sum().backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight += size * weight.grad / weight.grad.norm().clamp(min=1e-9)
    model.zero_grad()


@pytest.mark.parametrize("train", ["language", "lora", "merger", "lora and merger"])
def test_images_that_were_seen_do_not_go_through_a_frozen_tower_again(train: str) -> None:
    model, seen = seeing(train), scene()
    batch, passes = seen.batch(), Passes(model)
    pixels = len(batch["pictures"].pixels)
    first = answer_of(model, batch)
    model.score(**batch)
    model.begin(batch["prompts_NP"], batch["lengths_N"], 2, 4, batch["pictures"])
    again = answer_of(model, batch)
    assert passes.rows == [pixels]
    assert max(differences(again, first)) < CLOSE
    # Of a batch in which some are known, the others are computed.
    other = scene([[(24, 16)], [(32, 32)]])
    scores = model.score(**other.batch(lambda n, i: ("0/0", "new")[n]))
    assert passes.rows == [pixels, 64]
    torch.testing.assert_close(scores, truth_of(model, other).log_probs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("train", ["all", "tower"])
def test_nothing_is_kept_of_a_tower_that_trains(train: str) -> None:
    model, batch = seeing(train), scene().batch()
    passes = Passes(model)
    before = model.score(**batch)
    stepped(model, batch)
    assert (model.score(**batch) - before).abs().max() > 0.01
    assert len(passes.rows) == 3
    assert model.cache.bytes == 0


def test_a_merger_that_trains_works_on_states_that_are_kept() -> None:
    """Values and gradients are those of the whole way, before and after its weights changed."""
    model, seen = seeing("merger").double(), scene()
    batch, passes = seen.batch(), Passes(model)
    before = answer_of(model, batch)
    for _ in range(2):
        stepped(model, batch)
    after = answer_of(model, batch)
    assert len(passes.rows) == 1
    assert max(differences(after, truth_of(model, seen))) < CLOSE
    assert differences(after, before).log_probs > 0.01
    width = model.plain.config.vision_config.hidden_size
    assert model.cache.bytes == len(batch["pictures"].pixels) * width * 8


def test_the_budget_is_kept() -> None:
    """Features of 6, 30 and 4 tokens, 16 float32 numbers each."""
    batch = scene().batch()
    for budget, kept, again in (
        (0, 0, 160),
        (6 * 64, 6, 136),
        (11 * 64, 10, 120),
        (40 * 64, 40, 0),
    ):
        model = seeing("language", feature_bytes=budget)
        passes = Passes(model)
        before = model.score(**batch)
        assert model.cache.bytes == kept * 64
        assert torch.equal(model.score(**batch), before)
        assert passes.rows == [160, again][: 1 + bool(again)]


def test_what_is_kept_holds_no_more_memory_than_it_counts() -> None:
    cache, whole = FeatureCache(1000), torch.ones(100, 4)
    cache.keep("a", whole[:3])
    kept = cache.get("a")
    assert kept is not None
    assert kept.untyped_storage().nbytes() == cache.bytes == 48
    cache.keep("a", whole)  # known already
    cache.keep("", whole[:1])  # without a name
    cache.keep("b", whole)  # too large
    assert cache.bytes == 48
    assert cache.get("") is cache.get("b") is None


def test_what_a_frozen_tower_made_serves_other_models_with_it(tmp_path: Path) -> None:
    """From the disk: of the same tower, whatever the rest learned, and of no other."""
    batch, model = scene().batch(), seeing("language", folder=tmp_path)
    passes = Passes(model)
    before = model.score(**batch)
    assert len(passes.rows) == 1
    for other, made in ((seeing("language", folder=tmp_path), 0), (seeing("language"), 1)):
        passes = Passes(other)
        assert torch.equal(other.score(**batch), before)
        assert len(passes.rows) == made
    moved = seeing("language", folder=tmp_path)
    with torch.no_grad():
        next(moved.family.tower(moved.plain).parameters()).mul_(1.5)
    passes = Passes(moved)
    assert (moved.score(**batch) - before).abs().max() > 1e-4
    assert len(passes.rows) == 1


def test_images_without_a_key_are_never_kept() -> None:
    model, batch = seeing("language"), scene().batch(lambda n, i: "")
    passes = Passes(model)
    torch.testing.assert_close(model.score(**batch), model.score(**batch))
    assert len(passes.rows) == 2
    assert model.cache.bytes == 0


def test_keys_tell_images_apart_and_equal_keys_are_believed() -> None:
    seen, model = scene([[(24, 16)]]), seeing("language")
    other = scene([[], [(24, 16)]]).pictures_N[1]
    first = model.score(**seen.batch())
    changed = type(seen)(seen.ids_N, [other], seen.completions_NGT)
    assert torch.equal(model.score(**changed.batch()), first)
    assert (model.score(**changed.batch("other {}/{}".format)) - first).abs().max() > 0.05


def test_what_is_kept_goes_when_more_or_less_trains() -> None:
    """States are no features, and features of an older merger are stale."""
    model, seen = seeing("language").double(), scene()
    batch, merger = seen.batch(), model.family.bridge(model.plain)
    model.score(**batch)
    merger.requires_grad_(True)
    stepped(model, batch)
    assert max(differences(answer_of(model, batch), truth_of(model, seen))) < CLOSE
    merger.requires_grad_(False)
    assert max(differences(answer_of(model, batch), truth_of(model, seen))) < CLOSE
    model.family.tower(model.plain).requires_grad_(True)
    stepped(model, batch)
    model.family.tower(model.plain).requires_grad_(False)
    assert max(differences(answer_of(model, batch), truth_of(model, seen))) < CLOSE


@pytest.mark.parametrize("train", ["language", "lora and merger"])
def test_what_was_kept_while_generating_serves_training(train: str) -> None:
    """A tensor made in inference mode could not be saved for a backward pass."""
    from visgrpo.methods.generate import Sampling, generate

    model, seen = seeing(train).double(), scene()
    batch = seen.batch()
    sampling = Sampling(TokenDistribution(), 3, (), 0)
    uniforms = torch.full((3, 2, 3), 0.5, dtype=torch.float64)
    generate(model, batch["prompts_NP"], batch["lengths_N"], uniforms, sampling, batch["pictures"])
    assert model.cache.bytes > 0
    assert not any(kept.is_inference() for kept in model.cache._kept.values())
    assert max(differences(answer_of(model, batch), truth_of(model, seen))) < CLOSE


# The start that KL is measured to


def reference_scores(reference: Any, batch: dict[str, Any]) -> Tensor:
    return reference.log_probs(
        batch["prompts_NP"],
        batch["lengths_N"],
        batch["completions_NGT"],
        TokenDistribution(),
        batch["pictures"],
    )


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", ["all", "tower", "merger", "language", "lora and merger"])
def test_a_frozen_start_stays_where_it_was(train: str, engine: Any) -> None:
    """Its own tower and merger too, not the policy's; also after a batch of other images."""
    model, batch = seeing(train, engine), scene().batch()
    start = model.score(**batch)
    reference = reference_of(model)
    assert isinstance(reference, FrozenStart)
    stepped(model, batch)
    torch.testing.assert_close(reference_scores(reference, batch), start, atol=1e-5, rtol=0)
    assert (model.score(**batch) - start).abs().max() > 0.01
    stepped(model, batch)
    torch.testing.assert_close(reference_scores(reference, batch), start, atol=1e-5, rtol=0)


def test_a_frozen_start_copies_no_more_than_what_trains() -> None:
    for train, own in (("merger", "merger"), ("all", "")):
        model = seeing(train)
        trained = sum(p.nbytes for n, p in model.lm.named_parameters() if own in n)
        assert FrozenStart(model).own_bytes == trained


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_the_adapter_off_is_the_start_images_and_all(engine: Any) -> None:
    model, batch = seeing("lora", engine), scene().batch()
    start = seeing("language", engine).score(**batch)
    reference = reference_of(model)
    assert isinstance(reference, AdapterOff)
    stepped(model, batch)
    moved = model.score(**batch)
    torch.testing.assert_close(reference_scores(reference, batch), start, atol=1e-5, rtol=0)
    assert torch.equal(model.score(**batch), moved)
    assert (moved - start).abs().max() > 0.01


def test_another_model_is_used_in_the_same_way() -> None:
    model = seeing("language", "plain", feature_bytes=77)
    model.score(**scene().batch())
    other = model.like(seeing().lm)
    assert type(other) is VisionLanguageModel
    assert (other.engine, other.cache.budget_bytes, other.cache.bytes) == ("plain", 77, 0)
    assert other.critic is None


@pytest.mark.parametrize("train", ["all", "merger", "language"])
def test_older_weights_see_with_their_own_eyes(train: str) -> None:
    """The trainer exchanges the tensors of what trains, and back, to draw with an older policy."""
    model, batch = seeing(train), scene().batch()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    old = {name: p.detach().clone() for name, p in trained.items()}
    start = model.score(**batch)
    stepped(model, batch)
    now = model.score(**batch)
    assert (now - start).abs().max() > 0.01
    for expected in (start, now):
        for name, parameter in trained.items():
            parameter.data, old[name] = old[name], parameter.data
        torch.testing.assert_close(model.score(**batch), expected, atol=1e-5, rtol=0)
