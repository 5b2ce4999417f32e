"""Held-out answers: what is drawn, what is measured of it, and how processes share the rows."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from teams import One, together

from visgrpo.data.prompts import VisualInputs, answer_targets, visual_prompts
from visgrpo.data.roles import question_table
from visgrpo.data.table import Table
from visgrpo.measures.answers import HeldOutAnswers, answer_likelihood, pass_at_k
from visgrpo.measures.over import batches
from visgrpo.methods.generate import Sampling
from visgrpo.methods.token_groups import TokenMemory, TokenRollouts
from visgrpo.models.parts import Parts
from visgrpo.models.small_vision import SmallVisionLanguage, build_vision_language
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.answers import ANSWER_REWARDS
from visgrpo.rewards.texts import parse_text_rewards

ANSWERS = ("1", "2", "2", "0", "2")
SIZES = SmallVisionLanguage(
    layers=1, width=16, heads=1, vision_layers=1, vision_width=16, vision_heads=1, patch=4
)


@pytest.fixture(scope="module")
def parts() -> Parts:
    words = ["How many? Answer with a number in <answer> </answer>. <answer>2</answer>"] * 4
    return build_vision_language(words, SIZES, seed=0)


@pytest.fixture(scope="module")
def dataset() -> Table:
    images = [
        (Image.fromarray(np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)),)
        for i in range(5)
    ]
    questions = tuple(f"How many?{'!' * i}" for i in range(5))
    return question_table("five", images, questions, ANSWERS)


def held_out(parts: Parts, dataset: Table, shards: Any = None) -> HeldOutAnswers:
    tokenizer = parts.tokenizer
    pad = tokenizer.pad_token_id
    forbidden = tuple({*parts.processor.placeholder_ids, pad})
    rollouts = TokenRollouts(
        rewards=parse_text_rewards(["exact", "length:4"], [1.0, 0.5], ANSWER_REWARDS),
        sampling=Sampling(
            TokenDistribution(forbidden=forbidden), 8, (tokenizer.eos_token_id,), pad
        ),
        group_size=2,
        prompts=visual_prompts(dataset, "direct"),
        decode=lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
        memory=TokenMemory(),
    )
    inputs = VisualInputs(dataset, "direct", parts.processor, 100)
    return HeldOutAnswers(rollouts, dataset, inputs, True, shards or One())


def written(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    """Let the greedy completions be these texts, and the sampled ones the same, then none."""
    answers = iter([text, text, "?"] for text in texts)
    monkeypatch.setattr(HeldOutAnswers, "_texts", lambda self, M: [next(answers) for _ in M])


def test_measures_of_known_answers(
    parts: Parts, dataset: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"<answer>{n}</answer>" for n in (1, 2, 4, 0)] + ["2"]
    written(monkeypatch, texts)
    seen = held_out(parts, dataset).look(VisionLanguageModel(parts.model))
    found = seen.measures
    assert seen.texts == texts
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["unparsed"] == pytest.approx(1 / 5)
    assert found["format"] == pytest.approx(4 / 5)
    assert found["mean_absolute_error"] == pytest.approx(2 / 4)
    assert found["majority"] == pytest.approx(3 / 5)
    assert found["examples"] == 5
    assert found["sampled_accuracy"] == pytest.approx(3 / 10)
    assert found["sampled_format"] == pytest.approx(4 / 10)
    assert found["pass@2"] == pytest.approx(3 / 5)
    assert found["sampled_unparsed"] == pytest.approx(6 / 10)


def test_rewards_and_lengths_are_those_of_the_sampled(parts: Parts, dataset: Table) -> None:
    measured = held_out(parts, dataset)
    model = VisionLanguageModel(parts.model)
    found = measured.measures(model)
    (batch,) = batches(dataset, measured.inputs, One(), 64)
    tokens = measured.rollouts.draw(model, batch, 0, 64, total=5).mask_NGT.sum(dim=-1).float()
    assert tokens.shape == (5, 2)
    paid = (2 - tokens / 4).clamp(0, 1)  # by "length:4"; a random model answers nothing
    assert found["length"] == pytest.approx(float(tokens.mean()))
    assert found["rewards/length"] == pytest.approx(float(paid.mean()), abs=1e-6)
    assert found["rewards/exact"] == 0
    assert found["reward"] == pytest.approx(0.5 * float(paid.mean()), abs=1e-6)
    assert measured.measures(model) == found  # the same random numbers


def test_rows_without_an_answer_count_in_the_rewards_alone(
    parts: Parts, dataset: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ended = question_table("open", dataset.images, dataset.questions, ("1", "", "2", "0", "2"))
    written(monkeypatch, ["<answer>1</answer>"] * 5)
    found = held_out(parts, open_ended).measures(VisionLanguageModel(parts.model))
    assert (found["examples"], found["accuracy"]) == (4, 0.25)
    nothing = question_table("no truth", dataset.images, dataset.questions, ("",) * 5)
    monkeypatch.undo()
    measured = held_out(parts, nothing)
    rewards = parse_text_rewards(["length:4"], None, ANSWER_REWARDS)
    object.__setattr__(measured.rollouts, "rewards", rewards)
    found = measured.measures(VisionLanguageModel(parts.model))
    assert "accuracy" not in found
    assert "reward" in found


def test_answers_that_are_words_have_no_error_in_counts(
    parts: Parts, dataset: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = question_table("words", dataset.images, dataset.questions, ("a", "b", "b", "c", "b"))
    written(monkeypatch, ["<answer>b</answer>"] * 5)
    found = held_out(parts, words).measures(VisionLanguageModel(parts.model))
    assert found["accuracy"] == found["majority"] == pytest.approx(3 / 5)
    assert "mean_absolute_error" not in found


def test_two_processes_measure_what_one_does(parts: Parts, dataset: Table) -> None:
    """Five rows are three and three, the last one twice; it counts once."""
    model = VisionLanguageModel(parts.model).eval()
    alone = held_out(parts, dataset).look(model)
    found = together(2, lambda team: held_out(parts, dataset, team).look(model))
    for each in found:
        assert each.texts == alone.texts
        assert each.measures == pytest.approx(alone.measures)


def test_likelihood_is_that_of_plain_transformers(parts: Parts, dataset: Table) -> None:
    targets = answer_targets(dataset, "direct")
    inputs = VisualInputs(dataset, "direct", parts.processor, 200, targets)
    model = VisionLanguageModel(parts.model).eval()
    nll, tokens = 0.0, 0
    for row in range(5):
        made = inputs(row)
        assert made.answer is not None
        ids = torch.from_numpy(np.concatenate([made.prompt, made.answer])).long()[None]
        (picture,) = made.pictures
        with torch.no_grad():
            logits = parts.model(
                input_ids=ids,
                pixel_values=picture.pixels,
                image_grid_thw=torch.tensor([picture.grid]),
                mm_token_type_ids=(ids == parts.model.config.image_token_id).int(),
            ).logits.log_softmax(-1)
        for place in range(len(made.prompt), ids.shape[1]):
            nll -= float(logits[0, place - 1, ids[0, place]])
            tokens += 1
    found = answer_likelihood(model, dataset, inputs, One())
    assert found == {"nll": pytest.approx(nll / tokens, rel=1e-5)}


def test_pass_at_k_is_the_chance_that_one_of_k_is_right() -> None:
    """1 - C(S - c, k) / C(S, k), and the mean over all subsets of k."""
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 3, (7, 6))
    texts = [[f"<answer>{n}</answer>" if n else "none" for n in row] for row in samples]
    answers = [str(n) for n in generator.integers(1, 3, 7)]
    found = pass_at_k(texts, answers)
    assert list(found) == ["pass@2", "pass@4", "pass@6"]
    right = samples == np.array(list(map(int, answers)))[:, None]
    for k in (2, 4, 6):
        chances = [1 - comb(6 - c, k) / comb(6, k) for c in right.sum(axis=1).tolist()]
        assert found[f"pass@{k}"] == pytest.approx(np.mean(chances))
        subsets = [row[list(chosen)].any() for row in right for chosen in combinations(range(6), k)]
        assert found[f"pass@{k}"] == pytest.approx(np.mean(subsets))
