"""A model that sees as a policy, against transformers' own forward of one sequence at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from vision_models import (
    TRAINED,
    Answer,
    answer_of,
    differences,
    logits_of_each,
    qwen,
    scene,
    seeing,
    sharing_keys,
    smol,
    truth_of,
)

from visgrpo.errors import UserError
from visgrpo.models.language import LanguageModel
from visgrpo.models.prompt_reading import ReadPrompts
from visgrpo.models.vision_families.qwen import QwenVision
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution

# Norms and rotations are of float32 whatever the weights are.
CLOSE = 1e-5
SCENES: dict[str, dict[str, Any]] = {
    "ragged": {},
    "one token": {"length": 1},
    "one completion": {"group_size": 1},
    "equal lengths": {"sizes_N": [[(24, 16)], [(24, 16)]], "ragged": False},
    "no image": {"sizes_N": [[], []]},
    "padding nobody needs": {"sizes_N": [[], [(16, 24)]], "padding": 3},
}


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", TRAINED)
def test_scores_and_gradients_are_those_of_single_sequences(train: str, engine: Any) -> None:
    """Of prompts with one, two and no image; the second time frozen parts are not run again."""
    seen, model = scene(), seeing(train, engine).double()
    expected = truth_of(model, seen)
    for _ in range(2):
        assert max(differences(answer_of(model, seen.batch()), expected)) < CLOSE


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("name", list(SCENES)[1:])
def test_batches_of_other_shapes(name: str, engine: Any) -> None:
    seen, model = scene(**SCENES[name]), seeing("all", engine).double()
    assert max(differences(answer_of(model, seen.batch()), truth_of(model, seen))) < CLOSE


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", ["all", "lora"])
def test_heads_that_share_keys(train: str, engine: Any) -> None:
    seen, model = scene(), seeing(train, engine, sharing_keys()).double()
    assert max(differences(answer_of(model, seen.batch()), truth_of(model, seen))) < CLOSE


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", ["all", "lora and merger"])
def test_in_single_precision(train: str, engine: Any) -> None:
    seen, model = scene(), seeing(train, engine)
    expected = truth_of(seeing(train).double(), seen)
    ours = answer_of(model, seen.batch())
    single = Answer(ours.log_probs.double(), ours.entropy.double(), ours.gradients)
    assert max(differences(single, expected)[:2]) < 5 * CLOSE
    assert differences(ours, truth_of(model, seen)).gradient < 10 * CLOSE


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_tokens_that_are_never_drawn_have_no_share_in_scores_and_gradients(engine: Any) -> None:
    cut = TokenDistribution(forbidden=qwen().processor.placeholder_ids)
    seen, model = scene(), seeing("all", engine).double()
    expected = truth_of(model, seen, cut)
    assert max(differences(answer_of(model, seen.batch(), cut), expected)) < CLOSE
    assert differences(answer_of(model, seen.batch()), expected).log_probs > 1e-3


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_scores_without_gradient_are_the_same(engine: Any) -> None:
    model, batch = seeing("merger", engine), scene().batch()
    alone = model.score(**batch)
    assert not alone.requires_grad
    torch.testing.assert_close(alone, model(**batch).log_probs.detach(), atol=1e-5, rtol=0)


# What would go wrong without being seen


def test_a_detached_cache_of_prompts_leaves_values_right_and_gradients_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The classic: every log-prob is right, and what the prompts should learn is missing."""

    attached = VisionLanguageModel._read

    def detached(self: VisionLanguageModel, *given: Any) -> ReadPrompts:
        read = attached(self, *given)
        for layer in read.cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return read

    seen, model = scene(), seeing().double()
    expected = truth_of(model, seen)
    monkeypatch.setattr(VisionLanguageModel, "_read", detached)
    wrong = differences(answer_of(model, seen.batch()), expected)
    assert max(wrong[:2]) < CLOSE
    assert wrong.gradient > 0.5


def test_swapped_images_are_told_apart() -> None:
    """Of two prompts, and of one prompt, where all images have one size."""
    seen, model = scene([[(24, 16)], [(24, 16), (24, 16)]]), seeing().double()
    expected = truth_of(model, seen)
    assert max(differences(answer_of(model, seen.batch()), expected)) < CLOSE
    [a], [b, c] = seen.pictures_N
    for swapped in ([[b], [a, c]], [[a], [c, b]]):
        wrong = differences(answer_of(model, replace(seen, pictures_N=swapped).batch()), expected)
        assert wrong.log_probs > 0.05
        assert wrong.gradient > 0.05


def test_positions_that_are_off_by_one_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = QwenVision.positions

    def off_by_one(self: QwenVision, *given: Any) -> tuple[Tensor, Tensor]:
        positions, following = right(self, *given)
        return positions, following + 1

    seen, model = scene(), seeing().double()
    expected = truth_of(model, seen)
    monkeypatch.setattr(QwenVision, "positions", off_by_one)
    ours = answer_of(model, seen.batch())
    assert differences(ours, expected).log_probs > 0.01
    # The prompt itself is read right: it predicts the first token as before.
    first = (ours.log_probs - expected.log_probs)[..., 0]
    assert first.abs().max() < CLOSE


# Seeing


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_another_image_changes_its_own_prompts_completions_alone(engine: Any) -> None:
    model, seen = seeing(engine=engine), scene([[(24, 16)], [(16, 16)], []])
    [image], *others = seen.pictures_N
    negative = image._replace(pixels=-image.pixels)
    changed = replace(seen, pictures_N=[[negative], *others])
    differs = (model.score(**changed.batch()) - model.score(**seen.batch())).abs()
    assert (differs[0].amax(-1) > 0.05).all()
    assert differs[1:].max() < 1e-5


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("train", ["all", "merger", "tower"])
def test_what_sees_learns(train: str, engine: Any) -> None:
    model = seeing(train, engine)
    gradients = answer_of(model, scene().batch()).gradients
    for name, weight in model.named_parameters():
        if weight.requires_grad and "visual" in name:
            assert gradients[name].norm() > 0, name


def test_an_image_goes_through_the_tower_once_for_a_group() -> None:
    rows: dict[str, int] = {"shared": 0, "plain": 0}
    for engine in rows:
        model, batch = seeing(engine=engine), scene(group_size=3).batch()
        tower = model.family.tower(model.plain)

        def count(module: Any, given: Any, engine: str = engine) -> None:
            rows[engine] += len(given[0])

        tower.register_forward_pre_hook(count)
        model(**batch)
    assert rows["shared"] == len(batch["pictures"].pixels)
    assert rows["plain"] == 3 * rows["shared"]


# What is refused


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_places_that_are_not_as_many_as_features_are_refused(engine: Any) -> None:
    """By the row of the prompt, also where the number in the whole batch happens to be right."""
    model, seen = seeing(engine=engine), scene([[(24, 16)], [(16, 16)], []], length=2)
    a, b, c = seen.pictures_N
    for pictures, message in (
        ([b, a, c], "Prompt 0 of the batch has 6 image tokens for 4 features"),
        ([a, c, b], "Prompt 1 of the batch has 4 image tokens for 0 features"),
        ([a, b, b], "Prompt 2 of the batch has 0 image tokens for 4 features"),
        ([c, c, c], "Prompt 0 of the batch has 6 image tokens for 0 features"),
    ):
        with pytest.raises(UserError, match=message):
            model(**replace(seen, pictures_N=pictures).batch())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointing_that_drops_the_cache_is_refused() -> None:
    """Transformers leaves the cache out then, and completions would not see their prompt."""
    model, batch = seeing(), scene().batch()
    expected = answer_of(model, batch)
    model.plain.gradient_checkpointing_enable()
    model.eval()
    assert max(differences(answer_of(model, batch), expected)) < CLOSE
    model.train()
    with pytest.raises(UserError, match="keeps no cache of prompts"):
        model(**batch)
    model.engine = "plain"
    assert max(differences(answer_of(model, batch), expected)) < CLOSE
    with pytest.raises(UserError, match="keeps no cache"):  # a decoder lives on its cache
        model.begin(batch["prompts_NP"], batch["lengths_N"], 2, 4, batch["pictures"])


def test_a_language_model_sees_no_images() -> None:
    model = LanguageModel(seeing().lm)
    with pytest.raises(AssertionError, match="sees no images"):
        model(**scene().batch())


# Generation, one token at a time


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("name", SCENES)
def test_the_decoder_gives_the_logits_of_single_sequences(name: str, engine: Any) -> None:
    seen, model = scene(**SCENES[name]), seeing("lora", engine).double()
    batch, tokens_NGT = seen.batch(), seen.completions_NGT
    expected = logits_of_each(model, seen)
    group_size, length = tokens_NGT.shape[1:]
    prompts = (batch["prompts_NP"], batch["lengths_N"])
    decoder = model.begin(*prompts, group_size, length, batch["pictures"])
    for step in range(length):
        if step:
            decoder.feed(tokens_NGT[..., step - 1].flatten())
        ours = decoder.logits_BV
        torch.testing.assert_close(ours, expected[:, :, step].flatten(0, 1), atol=CLOSE, rtol=0)


def test_rows_that_the_decoder_keeps_go_on_after_their_own_images() -> None:
    seen, model = scene(), seeing().double()
    batch, tokens = seen.batch(), seen.completions_NGT.flatten(0, 1)
    expected = logits_of_each(model, seen).flatten(0, 1)
    decoder = model.begin(batch["prompts_NP"], batch["lengths_N"], 2, 4, batch["pictures"])
    decoder.feed(tokens[:, 0])
    decoder.keep(torch.tensor([0, 3, 4]))
    decoder.feed(tokens[[0, 3, 4], 1])
    torch.testing.assert_close(decoder.logits_BV, expected[[0, 3, 4], 2], atol=CLOSE, rtol=0)


def test_half_precision_stays_finite() -> None:
    model, batch = seeing().to(torch.bfloat16), scene().batch()
    scores = model(**batch)
    assert scores.log_probs.dtype == torch.float32
    scores.log_probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_towers_dropout_is_off_whatever_it_is_called() -> None:
    """SmolVLM's attention keeps it as `dropout`, Qwen2.5-VL's as `attention_dropout`."""
    parts = smol("smolvlm")
    config = copy.deepcopy(parts.model.config)
    config.vision_config.attention_dropout = 0.3
    lm = type(parts.model)(config)
    lm.load_state_dict(parts.model.state_dict())
    model, batch = VisionLanguageModel(lm).train(), scene(parts=parts).batch()
    torch.testing.assert_close(model(**batch).log_probs, model.eval()(**batch).log_probs)
