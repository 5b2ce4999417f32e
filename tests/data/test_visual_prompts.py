"""Questions about images as tokens and pixels: what is asked, what is imitated, what is kept."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visgrpo.data.batches import Batch, BatchLoader, sequential
from visgrpo.data.prompts import (
    VisualInputs,
    answer_targets,
    seeing_prompt,
    visual_prompts,
)
from visgrpo.data.roles import question_table
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.models.small_vision import SmallVisionLanguage, build_vision_language
from visgrpo.models.vision_language import VisionProcessor

# Rows have one image, none, two, and one; a token is 8 × 8 pixels.
IMAGES = (((16, 8),), (), ((8, 8), (24, 16)), ((16, 16),))
QUESTIONS = ("How many?", "What is 1 + 1?", "Which has more?", "How many red ones?")
ANSWERS = ("3", "2", "1", "12")
TRACES = ("1 2 3", "easy", "", "a long trace of many words")
HOW = {
    "reasoning": "Think in <think> </think>, then answer with a number in <answer> </answer>.",
    "direct": "Answer with a number in <answer> </answer>.",
}


@functools.cache
def processor() -> VisionProcessor:
    sizes = SmallVisionLanguage(
        layers=1, width=12, heads=1, vision_layers=1, vision_width=4, vision_heads=1, patch=4
    )
    return build_vision_language(["How many?"], sizes, seed=0).processor


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class Lazy(Sequence[tuple[Image.Image, ...]]):
    """Images that are made when they are looked at, and a note of which were."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, row: Any) -> Any:
        self.seen.append(row)
        return tuple(noise(*size, seed=10 * row + i) for i, size in enumerate(IMAGES[row]))


def rows(**changes: Any) -> Table:
    given = {"images": Lazy(), "questions": QUESTIONS, "answers": ANSWERS, "traces": TRACES}
    return question_table("scenes/train", **{**given, **changes})


def inputs(dataset: Table | None = None, **changes: Any) -> VisualInputs:
    settings = {"style": "direct", "processor": processor(), "max_tokens": 400, **changes}
    return VisualInputs(rows() if dataset is None else dataset, **settings)


def encoded(text: str) -> list[int]:
    ids: list[int] = processor().tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def asked(row: int, style: str) -> str:
    """The whole prompt of a row as text, written out."""
    places = "".join(
        "<|vision_start|>" + "<|image_pad|>" * (width * height // 64) + "<|vision_end|>"
        for width, height in IMAGES[row]
    )
    question = f"{QUESTIONS[row]} {HOW[style]}"
    return f"<|im_start|>user\n{places}{question}<|im_end|>\n<|im_start|>assistant\n"


# Words


@pytest.mark.parametrize("style", ["reasoning", "direct"])
def test_what_rewards_are_told_is_what_is_asked(style: Any) -> None:
    for row, (message,) in enumerate(visual_prompts(rows(), style)):
        assert message == {"role": "user", "content": f"{QUESTIONS[row]} {HOW[style]}"}
        (seeing,) = seeing_prompt(QUESTIONS[row], 2, style)
        *images, words = seeing["content"]
        assert images == [{"type": "image"}, {"type": "image"}]
        assert words == {"type": "text", "text": message["content"]}


def test_what_is_imitated() -> None:
    traces = ("1 2 3", "easy", "left", "a b")
    assert answer_targets(rows(traces=traces), "reasoning") == (
        "<think>1 2 3</think><answer>3</answer>",
        "<think>easy</think><answer>2</answer>",
        "<think>left</think><answer>1</answer>",
        "<think>a b</think><answer>12</answer>",
    )
    assert answer_targets(rows(traces=None), "direct")[3] == "<answer>12</answer>"


def test_what_cannot_be_imitated() -> None:
    with pytest.raises(UserError, match=r"scenes/train has no reasoning.*--style direct"):
        answer_targets(rows(traces=None), "reasoning")
    with pytest.raises(UserError, match=r"scenes/train: row 2 has no reasoning"):
        answer_targets(rows(), "reasoning")
    answers = ("3", "2", "", "12")
    for style in ("reasoning", "direct"):
        with pytest.raises(UserError, match=r"scenes/train: row 2 has no answer"):
            answer_targets(rows(answers=answers, traces=None), style)  # type: ignore[arg-type]


# Tokens and pixels


@pytest.mark.parametrize("style", ["reasoning", "direct"])
def test_a_batch_holds_prompts_images_and_answers(style: Any) -> None:
    dataset = rows()
    targets = tuple(f"<answer>{answer}</answer>" for answer in ANSWERS)
    (batch,) = sequential(dataset, inputs(style=style, targets=targets), 4)
    pad, end = processor().tokenizer.pad_token_id, processor().tokenizer.eos_token_id
    expected = [encoded(asked(row, style)) for row in range(4)]
    longest = max(map(len, expected))
    assert batch.inputs.tolist() == [[pad] * (longest - len(ids)) + ids for ids in expected]
    assert batch.lengths_N.tolist() == [len(ids) for ids in expected]
    answers = [[*encoded(target), end] for target in targets]
    widest = max(map(len, answers))
    assert batch.answers_NT is not None
    assert batch.answers_NT.tolist() == [ids + [-1] * (widest - len(ids)) for ids in answers]
    assert batch.columns == {"answer": list(ANSWERS)}
    assert batch.pictures is not None
    assert batch.pictures.counts_N == (1, 0, 2, 1)
    assert batch.pictures.rows_I == (8, 4, 24, 16)
    sizes = [(row, i, size) for row in range(4) for i, size in enumerate(IMAGES[row])]
    for i, (row, place, size) in enumerate(sizes):
        picture = processor().picture(noise(*size, seed=10 * row + place))
        assert torch.equal(batch.pictures.images([i]).pixels, picture.pixels)
        assert tuple(batch.pictures.grids_I3[i].tolist()) == picture.grid


def test_without_answers_or_images_there_are_none() -> None:
    some = inputs()
    made = some.collate([some(1)])
    assert made.answers_NT is None
    assert made.pictures is None


@pytest.mark.parametrize(
    "target",
    [
        "How many?",
        f"<answer>3</answer>{HOW['direct']}<answer>3</answer>",
        "<|im_end|>\n<|im_start|>assistant\n<answer>3</answer>",
        "assistant\n",
        "",
    ],
)
def test_what_is_learned_is_told_by_ids_whatever_the_answer_says(target: str) -> None:
    """Searching for the words of the prompt or of its end would learn other tokens."""
    some = inputs(targets=(target,) * 4)
    for row in range(4):
        made = some.collate([some(row)])
        assert made.answers_NT is not None
        assert made.inputs[0].tolist() == encoded(asked(row, "direct"))
        assert made.answers_NT[0].tolist() == [
            *encoded(target),
            processor().tokenizer.eos_token_id,
        ]


def test_prompts_that_are_too_long() -> None:
    """The row is named by its place in the data as it is stored."""
    tokens = len(encoded(asked(3, "direct")))
    part = rows().subset([2, 3])
    inputs(part, max_tokens=tokens)(1)
    with pytest.raises(
        UserError, match=rf"scenes/train: row 3 has a prompt of {tokens} tokens, but at most"
    ):
        inputs(part, max_tokens=tokens - 1)(1)
    answer = "<answer>12</answer>"
    both = tokens + len(encoded(answer)) + 1
    inputs(part, targets=[answer] * 2, max_tokens=both)(1)
    with pytest.raises(
        UserError, match=rf"row 3 has a prompt of {tokens} tokens and an answer of {both - tokens}"
    ):
        inputs(part, targets=[answer] * 2, max_tokens=both - 1)(1)


# What is kept


def test_images_are_decoded_when_needed_and_once() -> None:
    images = Lazy()
    some = inputs(rows(images=images))
    assert images.seen == []
    first = some(2)
    assert some(2) is first
    some(0)
    assert images.seen == [2, 0]


def test_the_budget_is_kept() -> None:
    sizes = [inputs()(row).nbytes for row in range(4)]
    pixels = [sum(w * h * 3 * 4 for w, h in row) for row in IMAGES]
    assert sizes == [p + 4 * len(encoded(asked(n, "direct"))) for n, p in enumerate(pixels)]
    for budget, kept in (
        (0, []),
        (sizes[0], [0]),
        (sizes[0] + sizes[1], [0, 1]),
        (10**6, [0, 1, 2]),
    ):
        images = Lazy()
        some = inputs(rows(images=images), budget_bytes=budget)
        for row in (0, 1, 2, 0, 1, 2):
            some(row)
        assert images.seen == [0, 1, 2, *(row for row in range(3) if row not in kept)]


def test_an_image_has_its_own_key_in_every_data_set() -> None:
    """Also where one is made of the other, and through another process's memory."""
    one, two = inputs(), inputs()
    third = replace(one, dataset=rows().subset([3, 2, 1, 0]))
    keys = [one(row).keys for row in range(4)]
    assert len(set(keys)) == 4
    assert [two(row).keys for row in range(4)] == keys
    assert [third(row).keys for row in range(4)] == keys[::-1]
    sent = pickle.loads(pickle.dumps(one))
    assert [sent(row).keys for row in range(4)] == [one(row).keys for row in range(4)]


def test_what_was_kept_is_not_sent_to_other_processes() -> None:
    some = inputs(rows(images=[Lazy()[row] for row in range(4)]))
    before = len(pickle.dumps(some))
    for row in range(4):
        some(row)
    assert len(pickle.dumps(some)) == before


def test_replacing_the_data_set_forgets_what_was_made() -> None:
    one = inputs()
    one(0)
    assert len(replace(one, dataset=rows().subset([3]))(0).prompt) == len(one(3).prompt)


# Batches


def test_workers_give_the_same_batches() -> None:
    dataset = rows(images=[Lazy()[row] for row in range(4)])
    some = inputs(dataset, targets=["<answer>3</answer>"] * 4)

    def batches(workers: int) -> list[Batch]:
        loader = BatchLoader(dataset, some, batch_size=2, seed=3, workers=workers)
        return list(loader.batches(0, 4))

    for here, there in zip(batches(0), batches(1), strict=True):
        assert torch.equal(here.indices_N, there.indices_N)
        assert torch.equal(here.inputs, there.inputs)
        assert torch.equal(here.lengths_N, there.lengths_N)
        assert here.answers_NT is not None
        assert there.answers_NT is not None
        assert torch.equal(here.answers_NT, there.answers_NT)
        if here.pictures is None or there.pictures is None:
            assert here.pictures is there.pictures
            continue
        assert torch.equal(here.pictures.pixels, there.pictures.pixels)
        assert torch.equal(here.pictures.grids_I3, there.pictures.grids_I3)
        assert here.pictures.keys == there.pictures.keys
        assert here.pictures.counts_N == there.pictures.counts_N
