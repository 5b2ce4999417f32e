"""The distribution of tokens against numpy: cuts, log-probs, entropy, gradients, memory."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visgrpo.errors import UserError
from visgrpo.objectives import token_kl
from visgrpo.objectives.advantages import draw
from visgrpo.objectives.token_distribution import Entropies, TokenDistribution, score_tokens

LOGITS = np.random.default_rng(3).normal(scale=2.0, size=(5, 9))
CUTS = [
    TokenDistribution(),
    TokenDistribution(temperature=0.7),
    TokenDistribution(top_k=3),
    TokenDistribution(top_p=0.6),
    TokenDistribution(temperature=1.7, top_k=5, top_p=0.8, forbidden=(0, 4)),
    TokenDistribution(forbidden=(8,)),
]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def kept_by_hand(logits: np.ndarray, cut: TokenDistribution) -> list[int]:
    """Ids that stay, one at a time from the most probable on."""
    allowed = [i for i in range(len(logits)) if i not in cut.forbidden]
    ranked = sorted(allowed, key=lambda i: -logits[i])
    if cut.top_k:
        ranked = ranked[: cut.top_k]
    probabilities = softmax(logits[ranked] / cut.temperature)
    kept, reached = [], 0.0
    for token, probability in zip(ranked, probabilities, strict=True):
        kept.append(token)
        reached += probability
        if reached >= cut.top_p:
            break
    return kept


def truncated_softmax(logits: np.ndarray, cut: TokenDistribution) -> np.ndarray:
    probabilities, kept = np.zeros(len(logits)), kept_by_hand(logits, cut)
    probabilities[kept] = softmax(logits[kept] / cut.temperature)
    return probabilities


def table_head(logits: np.ndarray) -> tuple[Tensor, nn.Linear]:
    """Hidden states and a head whose product is these logits, in float64."""
    head = nn.Linear(len(logits), logits.shape[1], bias=False).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(logits.T))
    return torch.eye(len(logits), dtype=torch.float64, requires_grad=True), head


@pytest.mark.parametrize("cut", CUTS)
def test_log_probs_are_those_of_the_truncated_softmax(cut: TokenDistribution) -> None:
    ours = cut.log_probs(torch.from_numpy(LOGITS)).exp().numpy()
    for row, logits in enumerate(LOGITS):
        np.testing.assert_allclose(ours[row], truncated_softmax(logits, cut), atol=1e-12)


def test_top_p_by_hand() -> None:
    """Of 0.5, 0.3, 0.15, 0.05 the first two reach 0.8 and not yet 0.81; one always stays."""
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    for top_p, expected in [
        (0.79, [0.625, 0.375, 0.0, 0.0]),
        (0.81, [10 / 19, 6 / 19, 3 / 19, 0.0]),
        (1e-9, [1.0, 0.0, 0.0, 0.0]),
        (1.0, [0.5, 0.3, 0.15, 0.05]),
    ]:
        ours = TokenDistribution(top_p=top_p).log_probs(logits).exp()
        assert ours.tolist() == pytest.approx(expected)


def test_top_p_that_is_reached_exactly_keeps_no_more() -> None:
    """Sums of powers of two are exact: 0.5 and 0.25 are 0.75 to the bit."""
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log2() * math.log(2)
    for top_p, kept in [(0.5, 1), (0.75, 2), (0.875, 3)]:
        ours = TokenDistribution(top_p=top_p).log_probs(logits)
        assert (ours > -math.inf).sum().item() == kept


def test_equals_of_the_last_of_top_k_stay() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert (TokenDistribution(top_k=2).log_probs(logits) > -math.inf).tolist() == [
        *(True, True, True, False)
    ]


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    logits = torch.from_numpy(LOGITS)
    whole = TokenDistribution().log_probs(logits)
    assert torch.equal(TokenDistribution(top_k=50).log_probs(logits), whole)


@pytest.mark.parametrize("cut", CUTS)
def test_draws_follow_the_distribution(cut: TokenDistribution) -> None:
    """χ² of 20,000 draws against the truncated softmax, at a chance of 1 in 1,000 of failing."""
    limits = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3, 8: 26.1}
    logits, draws = LOGITS[1], 20_000
    numbers = np.random.default_rng(5).random((1, draws))
    log_probs = cut.log_probs(torch.from_numpy(logits[None]))
    drawn = draw(log_probs, torch.from_numpy(numbers)).numpy()[0]
    counts = np.bincount(drawn, minlength=len(logits))
    expected = truncated_softmax(logits, cut) * draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < limits.get(possible.sum() - 1, 1e-9)


@pytest.mark.parametrize("cut", CUTS[2:5])
def test_a_token_that_was_drawn_stays_in_the_set(cut: TokenDistribution) -> None:
    logits = LOGITS[0]
    for chosen in range(len(logits)):
        if chosen in cut.forbidden:
            continue
        ours = cut.log_probs(torch.from_numpy(logits), torch.tensor(chosen)).exp().numpy()
        kept = sorted({*kept_by_hand(logits, cut), chosen})
        np.testing.assert_allclose(ours[kept], softmax(logits[kept] / cut.temperature))
        assert ours.sum() == pytest.approx(1.0)


def test_forbidden_tokens_have_no_probability_even_when_chosen() -> None:
    cut = TokenDistribution(top_k=2, forbidden=(4,))
    assert cut.log_probs(torch.from_numpy(LOGITS[0]), torch.tensor(4))[4] == -math.inf


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(precision: torch.dtype) -> None:
    logits = torch.from_numpy(LOGITS).to(precision)
    ours = TokenDistribution(temperature=0.7).log_probs(logits)
    assert ours.dtype == torch.float32
    expected = TokenDistribution(temperature=0.7).log_probs(logits.double())
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("at_once", [1, 20, 10**6])
@pytest.mark.parametrize("entropies", ["none", "value", "gradient"])
@pytest.mark.parametrize("cut", CUTS)
def test_scores_and_gradients_against_numpy(
    cut: TokenDistribution, entropies: Entropies, at_once: int
) -> None:
    """Σ a·log π + b·H, in one piece and one token at a time, against central differences."""
    chosen = np.array([kept_by_hand(row, cut)[-1] for row in LOGITS])
    a, b = np.random.default_rng(8).normal(size=(2, len(LOGITS)))
    whole = TokenDistribution(temperature=cut.temperature, forbidden=cut.forbidden)
    kept = [kept_by_hand(row, cut) for row in LOGITS]

    def parts(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_probs, of_softmax = [], []
        for row, token, its_kept in zip(logits, chosen, kept, strict=True):
            cut_softmax = softmax(row[its_kept] / cut.temperature)
            log_probs.append(math.log(cut_softmax[its_kept.index(token)]))
            p = truncated_softmax(row, whole)
            of_softmax.append(-sum(x * math.log(x) for x in p if x > 0))
        return np.array(log_probs), np.array(of_softmax)

    hidden, head = table_head(LOGITS)
    scores = score_tokens(
        hidden,
        head,
        torch.from_numpy(chosen),
        cut,
        entropies=entropies,
        at_once=at_once,
    )
    log_probs, expected = parts(LOGITS)
    np.testing.assert_allclose(scores.log_probs.detach().numpy(), log_probs, atol=1e-12)
    objective = (scores.log_probs * torch.from_numpy(a)).sum()
    if entropies == "none":
        assert scores.entropy is None
    else:
        np.testing.assert_allclose(scores.entropy.detach().numpy(), expected, atol=1e-12)
        assert scores.entropy.requires_grad == (entropies == "gradient")
    weighs = entropies == "gradient"
    if weighs:
        objective = objective + (scores.entropy * torch.from_numpy(b)).sum()
    objective.backward()
    numeric = np.zeros_like(LOGITS)
    for index in product(*map(range, LOGITS.shape)):
        values = []
        for sign in (1e-6, -1e-6):
            moved = LOGITS.copy()
            moved[index] += sign
            ours, its_entropies = parts(moved)
            values.append((a * ours).sum() + weighs * (b * its_entropies).sum())
        numeric[index] = (values[0] - values[1]) / 2e-6
    assert head.weight.grad is not None
    np.testing.assert_allclose(head.weight.grad.numpy().T, numeric, atol=1e-8)


def test_the_entropy_is_that_of_the_whole_softmax() -> None:
    """Top-k 1 leaves one token of log-prob 0, and the policy no surer than it is."""
    hidden, head = table_head(np.zeros((1, 9)))
    scores = score_tokens(hidden, head, torch.tensor([2]), TokenDistribution(top_p=1e-6))
    assert scores.entropy.item() == pytest.approx(math.log(9))


def test_a_head_whose_cast_is_kept_gets_its_gradient() -> None:
    """Autocast of torch before 2.11 keeps the first cast of a weight, made under no_grad or not."""
    head, kept = nn.Linear(4, 9, bias=False), {}

    def cast_once(hidden: Tensor) -> Tensor:
        weight = kept.setdefault("weight", head.weight.to(torch.bfloat16))
        return nn.functional.linear(hidden.to(torch.bfloat16), weight)

    scores = score_tokens(torch.ones(2, 4), cast_once, torch.tensor([1, 2]), TokenDistribution())
    scores.log_probs.sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.norm() > 0


@pytest.mark.parametrize("with_gradient", [False, True])
def test_logits_exist_for_some_tokens_at_a_time(with_gradient: bool) -> None:
    """Also in the backward pass: no tensor of tokens × vocabulary is ever made or kept."""
    tokens, vocabulary, at_once = 300, 1000, 8000
    head = nn.Linear(4, vocabulary, bias=False)
    made: list[int] = []
    head.register_forward_hook(lambda module, given, out: made.append(out.numel()))
    hidden = torch.randn(tokens, 4, generator=torch.Generator().manual_seed(0))
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with (
        torch.set_grad_enabled(with_gradient),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        chosen = torch.arange(tokens)
        scores = score_tokens(hidden, head, chosen, TokenDistribution(top_k=7), at_once=at_once)
        if with_gradient:
            scores.log_probs.sum().backward()
    assert max(made) <= at_once
    assert max(saved, default=0) <= at_once
    assert sum(made) >= tokens * vocabulary * (1 + with_gradient)


def test_a_forbidden_token_at_an_unused_place_leaves_gradients_finite() -> None:
    """Padding may be forbidden: its log-prob is -inf, and a loss that masks it stays finite."""
    hidden, head = table_head(LOGITS)
    cut = TokenDistribution(top_k=3, top_p=0.9, forbidden=(4,))
    chosen = torch.tensor([4, 4, 1, 2, 3])
    for at_once in (1, 10**6):
        scores = score_tokens(hidden, head, chosen, cut, entropies="gradient", at_once=at_once)
        assert scores.log_probs[:2].tolist() == [-math.inf, -math.inf]
        used = scores.log_probs.masked_fill(chosen == 4, 0.0).sum() + scores.entropy.sum()
        used.backward()
        assert head.weight.grad.isfinite().all()
        assert hidden.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"temperature": 0.0}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
    ],
)
def test_settings_that_make_no_distribution(settings: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        TokenDistribution(**settings)


@pytest.mark.parametrize("cut", [{"top_p": 0.8}, {"top_k": 3}])
def test_the_kl_of_what_is_drawn_to_the_whole_start(cut: dict[str, Any]) -> None:
    """Its estimate is the KL of the cut policy in the mean, and so never negative."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        policy_V, start_V = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        distribution = TokenDistribution(temperature=1.5, **cut)
        log_probs_V = distribution.log_probs(policy_V)
        drawn = (log_probs_V > -torch.inf).nonzero()[:, 0]
        start_log_probs = torch.stack(
            [distribution.whole().log_probs(start_V, token)[token] for token in drawn]
        )
        estimate = log_probs_V[drawn].exp() @ token_kl(
            log_probs_V[drawn], start_log_probs, estimator="k1"
        )
        share, start = log_probs_V.exp(), (start_V / 1.5).softmax(0)
        expected = sum(float(p * (p / q).log()) for p, q in zip(share, start, strict=True) if p)
        assert float(estimate) == pytest.approx(expected, abs=1e-12)
        assert expected >= 0
