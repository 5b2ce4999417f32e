"""Supervised learning on text against the losses of transformers and of the formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from token_tools import VOCABULARY, language
from torch import Tensor, nn

from visgrpo.data.batches import Batch
from visgrpo.methods.supervised import NextToken, PreferredCompletion

BLOCKS = torch.randint(1, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))


def batch_of(inputs: Tensor, lengths: Tensor) -> Batch:
    return Batch(torch.arange(len(inputs)), inputs, lengths_N=lengths)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_next_token_is_the_cross_entropy_of_transformers(kind: str) -> None:
    model = language(kind)
    expected = model.lm(BLOCKS, labels=BLOCKS).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    batch = batch_of(BLOCKS, torch.full((3,), 6))
    result = NextToken().loss(model, batch, None, 0)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
    assert result.metrics["nll"].item() == result.loss.item()
    with torch.no_grad():
        log_probs = model.lm(BLOCKS).logits[:, :-1].log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    assert result.metrics["entropy"].item() == pytest.approx(entropy.item(), abs=1e-5)
    assert not any(value.requires_grad for value in result.metrics.values())


class Scores(nn.Module):
    """A reward model that weighs tokens, and counts only those within a row's length."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, VOCABULARY, dtype=torch.float64))

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        within = torch.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        return (self.weights[tokens_BT] * within).sum(-1)


def test_the_chosen_completion_is_to_score_above_the_rejected() -> None:
    pairs = torch.randint(1, VOCABULARY, (4, 2, 5), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([[5, 3], [2, 5], [4, 4], [1, 2]])
    model = Scores()
    result = PreferredCompletion().loss(model, batch_of(pairs, lengths), None, 0)
    weights = np.linspace(-1, 1, VOCABULARY)
    leads = [
        sum(weights[t] for t in pair[0][: ends[0]]) - sum(weights[t] for t in pair[1][: ends[1]])
        for pair, ends in zip(pairs.tolist(), lengths.tolist(), strict=True)
    ]
    expected = np.mean([math.log(1 + math.exp(-lead)) for lead in leads])
    assert result.loss.item() == pytest.approx(expected)
    assert result.metrics["accuracy"].item() == pytest.approx(np.mean([d > 0 for d in leads]))
    assert result.metrics["margin"].item() == pytest.approx(np.mean(leads))
    result.loss.backward()
    assert model.weights.grad.any()
    assert not any(value.requires_grad for value in result.metrics.values())


@pytest.mark.parametrize("method", [NextToken(), PreferredCompletion()])
def test_there_is_nothing_to_draw(method: Any) -> None:
    assert method.rollout(None, batch_of(BLOCKS, BLOCKS), 0, chunk=1) is None
    assert method.samples(None, 4) == []
