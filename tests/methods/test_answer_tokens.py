"""SFT on answers against the loss of transformers, whole and in pieces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from seeing_tools import IMAGES, answer, parts, pictures, prompt, questions, seeing
from token_tools import in_two_processes
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.supervised import AnswerTokens

FROZEN = {
    "everything trains": (),
    "a frozen tower": ("model.visual.blocks", "model.visual.patch_embed"),
    "frozen vision": ("model.visual",),
}


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def of_transformers(model: Any) -> Tensor:
    """Its own loss of whole sequences, padded on the right, with labels -100 at the prompts."""
    ids = [[*prompt(row).tolist(), *answer(row)] for row in range(4)]
    longest = max(map(len, ids))
    tokens = torch.zeros(4, longest, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for row, sequence in enumerate(ids):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
        start = len(sequence) - len(answer(row))
        labels[row, start : len(sequence)] = torch.tensor(answer(row))
    each = [picture for row in pictures() for picture in row]
    loss: Tensor = model.lm(
        input_ids=tokens,
        attention_mask=mask,
        labels=labels,
        pixel_values=torch.cat([picture.pixels for picture in each]),
        image_grid_thw=torch.tensor([picture.grid for picture in each]),
        mm_token_type_ids=(tokens == model.lm.config.image_token_id).int(),
        use_cache=False,
    ).loss
    return loss


def learned(method: AnswerTokens, model: Any, batch: Batch, size: int = 4) -> tuple[float, Any]:
    """The loss and gradient of a batch, cut into pieces as the trainer does it."""
    groups = method.rollout(model, batch, 0, chunk=size)
    pieces = torch.arange(len(batch)).split(size)
    total = 0.0
    for rows in pieces:
        result = method.loss(model, batch.select(rows), groups.select(rows), 0)
        (result.loss / len(pieces)).backward()
        total += result.loss.item() / len(pieces)
    found = gradients(model)
    model.zero_grad()
    return total, found


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert theirs
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-6, rtol=2e-5, msg=name)


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_the_loss_and_gradient_of_transformers_in_any_pieces(frozen: str, engine: Any) -> None:
    """Though pieces have answers of different lengths, and one has no image."""
    model = seeing(*FROZEN[frozen], engine=engine).double()
    theirs = of_transformers(model)
    theirs.backward()
    expected = gradients(model)
    model.zero_grad()
    for size in (4, 2, 1):
        loss, found = learned(AnswerTokens(), model, questions(), size)
        assert loss == pytest.approx(theirs.item(), abs=1e-6)
        assert_close(found, expected)


def test_tokens_of_some_rows_count_less() -> None:
    """As if their log-probs, and how many there are, were multiplied by the rows' weights."""
    model, batch = seeing().double(), questions()
    assert batch.answers_NT is not None
    weights_M = torch.tensor([1.0, 0.25, 1.0, 0.5])
    scores = model(
        batch.prompts_NP,
        batch.lengths_N,
        batch.answers_NT.clamp(min=0)[:, None],
        pictures=batch.pictures,
    )
    w_NT = (batch.answers_NT >= 0) * weights_M[batch.indices_N][:, None]
    expected = -(scores.log_probs[:, 0].where(w_NT > 0, 0.0) * w_NT).sum() / w_NT.sum()
    expected.backward()
    gradient = gradients(model)
    model.zero_grad()
    for size in (4, 1):
        loss, found = learned(AnswerTokens(weights_M=weights_M), model, batch, size)
        assert loss == pytest.approx(expected.item(), abs=1e-6)
        assert_close(found, gradient)


def test_two_processes_learn_as_one() -> None:
    expected_loss, expected = learned(AnswerTokens(), seeing().double(), questions())
    models = [seeing().double() for _ in range(2)]

    def work(shard: Any) -> tuple[float, Any]:
        share = questions().select([shard.rank, shard.rank + 2])
        return learned(AnswerTokens(shard), models[shard.rank], share, 1)

    halves = in_two_processes(work)
    assert np.mean([loss for loss, _ in halves]) == pytest.approx(expected_loss, abs=1e-6)
    mean = {name: (halves[0][1][name] + halves[1][1][name]) / 2 for name in expected}
    assert_close(mean, expected)


def test_what_stands_after_an_answers_end_is_not_learned() -> None:
    """Nor what stands before a prompt's start: wider padding changes nothing."""
    model, batch = seeing().double(), questions()
    assert batch.answers_NT is not None
    wide = replace(
        batch,
        inputs=torch.nn.functional.pad(batch.inputs, (2, 0), value=7),
        answers_NT=torch.nn.functional.pad(batch.answers_NT, (0, 3), value=-1),
    )
    loss, found = learned(AnswerTokens(), model, batch)
    other, same = learned(AnswerTokens(), model, wide)
    assert other == pytest.approx(loss, abs=1e-9)
    assert_close(same, found)


def test_the_metrics_are_means_over_the_answers_tokens() -> None:
    model, batch = seeing(), questions()
    groups = AnswerTokens().rollout(model, batch, 0, chunk=4)
    result = AnswerTokens().loss(model, batch, groups, 0)
    assert result.metrics["nll"].item() == result.loss.item()
    assert not any(value.requires_grad for value in result.metrics.values())
    entropies = []
    for row in range(4):
        sequence = torch.tensor([[*prompt(row).tolist(), *answer(row)]])
        seen: dict[str, Any] = {}
        if IMAGES[row]:
            seen = {
                "pixel_values": torch.cat([picture.pixels for picture in pictures()[row]]),
                "image_grid_thw": torch.tensor([picture.grid for picture in pictures()[row]]),
                "mm_token_type_ids": (sequence == model.lm.config.image_token_id).int(),
            }
        with torch.no_grad():
            log_p = model.lm(input_ids=sequence, **seen).logits[0].log_softmax(-1)
        its = -(log_p.exp() * log_p).sum(-1)[len(prompt(row)) - 1 : -1]
        entropies += its.tolist()
    assert len(entropies) == sum(len(answer(row)) for row in range(4))
    assert result.metrics["entropy"].item() == pytest.approx(np.mean(entropies), abs=1e-5)


def test_a_mean_length_of_the_whole_batch_is_handed_to_its_pieces() -> None:
    groups = AnswerTokens().rollout(None, questions(), 0, chunk=1)
    mean = np.mean([len(answer(row)) for row in range(4)])
    assert groups.mean_tokens_N.tolist() == pytest.approx([mean] * 4)
    assert len(groups.select(torch.tensor([3, 1])).mean_tokens_N) == 2
    assert AnswerTokens().samples(groups, 4) == []
    assert len({len(answer(row)) for row in range(4)}) > 1


def test_an_answers_image_is_looked_at() -> None:
    model, batch = seeing(), questions()
    assert batch.pictures is not None
    negative = replace(batch.pictures, pixels=-batch.pictures.pixels)
    loss, _ = learned(AnswerTokens(), model, batch)
    blind, _ = learned(AnswerTokens(), model, replace(batch, pictures=negative))
    assert abs(loss - blind) > 0.01
    assert parts().tokenizer.eos_token_id == answer(0)[-1]
