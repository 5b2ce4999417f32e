"""Generation: what is drawn, with which log-probs, where it stops, and what changes nothing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from token_tools import LENGTHS, PAD, PROMPTS, STOP, VOCABULARY, language, sampling
from torch import Tensor

from visgrpo.methods.generate import Completions, Sampling, generate
from visgrpo.methods.groups import uniforms_for
from visgrpo.models.language import Decoder, LanguageModel
from visgrpo.models.options import Adapt
from visgrpo.models.trains import adapt

G, ROOM = 5, 8
CUTS = {
    "whole": {},
    "cut": {"temperature": 1.4, "top_k": 8, "top_p": 0.9, "forbidden": (PAD, 3)},
    "cold": {"temperature": 0.6},
}


def model_of(kind: str) -> LanguageModel:
    if not kind.endswith("lora"):
        return language(kind)
    lm = language(kind.removesuffix("-lora")).lm
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = adapt(lm, ["lora"], Adapt(2, 4.0))
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    return LanguageModel(adapted)


def uniforms(rows: int = len(PROMPTS), *, group_size: int = G, room: int = ROOM) -> Tensor:
    return uniforms_for(0, 0, torch.arange(rows), rows, group_size, room)


def drawn_by(model: LanguageModel, how: Sampling, numbers: Tensor | None = None) -> Completions:
    return generate(
        model,
        PROMPTS,
        LENGTHS,
        uniforms(room=how.max_new_tokens) if numbers is None else numbers,
        how,
    )


@torch.no_grad()
def by_hand(
    model: LanguageModel, prompt_P: Tensor, numbers_T: Tensor, how: Sampling
) -> tuple[list[int], list[float], bool]:
    """One completion, a whole forward for every token, and the draw as a loop over tokens."""
    sequence, tokens, log_probs = prompt_P.tolist(), [], []
    for number in numbers_T.tolist():
        logits = model.lm(torch.tensor([sequence]), use_cache=False).logits[0, -1]
        cut = how.distribution
        order = [i for i in logits.argsort(descending=True).tolist() if i not in cut.forbidden]
        order = order[: cut.top_k or None]
        p = (logits[order].double() / cut.temperature).softmax(0)
        kept = [i for i, before in zip(order, (p.cumsum(0) - p).tolist(), strict=True)
                if before < cut.top_p]  # fmt: skip
        kept.sort()
        p = (logits[kept].double() / cut.temperature).softmax(0)
        place = min(int((p.cumsum(0) <= number).sum()), len(kept) - 1)
        tokens.append(kept[place])
        log_probs.append(math.log(p[place]))
        sequence.append(kept[place])
        if kept[place] in how.stop:
            return tokens, log_probs, True
    return tokens, log_probs, False


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gpt2-lora", "qwen2-lora"])
def test_completions_are_those_drawn_one_by_one(kind: str, cut: str) -> None:
    """Tokens, log-probs, where it stops and what is masked, with padding and ragged prompts."""
    model, how = model_of(kind), sampling(ROOM, stop=(STOP, 6), **CUTS[cut])
    ours, numbers = drawn_by(model, how), uniforms()
    ended = 0
    for n, g in np.ndindex(len(PROMPTS), G):
        tokens, log_probs, its_end = by_hand(
            model, PROMPTS[n, -int(LENGTHS[n]) :], numbers[n, g], how
        )
        length = len(tokens)
        assert ours.ids()[n][g] == tokens
        assert ours.log_probs_NGT[n, g, :length].tolist() == pytest.approx(log_probs, abs=1e-5)
        assert ours.mask_NGT[n, g].tolist() == [t < length for t in range(ours.mask_NGT.shape[-1])]
        assert set(ours.tokens_NGT[n, g, length:].tolist()) <= {PAD}
        assert not ours.log_probs_NGT[n, g, length:].any()
        assert bool(ours.ended_NG[n, g]) == its_end
        ended += its_end
    assert 0 < ended < len(PROMPTS) * G


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gpt2-lora", "qwen2-lora"])
def test_log_probs_of_generation_and_of_training_agree(kind: str, cut: str) -> None:
    model, how = model_of(kind), sampling(ROOM, stop=(STOP, 6), **CUTS[cut])
    drawn = drawn_by(model, how)
    scores = model(PROMPTS, LENGTHS, drawn.tokens_NGT, how.distribution)
    ours = scores.log_probs.detach()[drawn.mask_NGT]
    torch.testing.assert_close(ours, drawn.log_probs_NGT[drawn.mask_NGT], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", CUTS)
def test_draws_follow_the_truncated_softmax(cut: str) -> None:
    """χ² of 4,000 draws of two tokens, over all pairs that are expected five times or more."""
    model, how = language(), sampling(2, stop=(), **CUTS[cut])
    draws = 4000
    numbers = torch.from_numpy(np.random.default_rng(1).random((1, draws, 2)))
    drawn = generate(model, PROMPTS[:1], LENGTHS[:1], numbers, how)
    pairs = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * 2)
    with torch.no_grad():
        first = model.lm(PROMPTS[:1], use_cache=False).logits[:, -1]
        second = model.lm(
            torch.cat([PROMPTS[:1].expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]], 1),
            use_cache=False,
        ).logits[:, -1]
    joint = np.zeros((VOCABULARY, VOCABULARY))
    row = truncated(first[0].double().numpy(), how)
    for token in range(VOCABULARY):
        joint[token] = row[token] * truncated(second[token].double().numpy(), how)
    counts = Counter(map(tuple, drawn.tokens_NGT[0].tolist()))
    seen = np.array([counts[a, b] for a, b in pairs.tolist()], dtype=float)
    expected = joint.ravel() * draws
    assert seen[expected == 0].sum() == 0
    often = expected >= 5
    seen_often, expected_often = seen[often], expected[often]
    rest = expected[~often].sum()
    if rest >= 5:
        seen_often = np.append(seen_often, seen[~often].sum())
        expected_often = np.append(expected_often, rest)
    chi_square = ((seen_often - expected_often) ** 2 / expected_often).sum()
    freedom = len(seen_often) - 1
    # Wilson and Hilferty's normal approximation: 3.1 is one chance in a thousand.
    z = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert freedom > 5
    assert z < 3.1


def truncated(logits: np.ndarray, how: Sampling) -> np.ndarray:
    cut, p = how.distribution, np.zeros(len(logits))
    order = [i for i in np.argsort(-logits) if i not in cut.forbidden][: cut.top_k or None]
    powers = np.exp(logits[order] / cut.temperature)
    powers /= powers.sum()
    kept = int((np.cumsum(powers) - powers < cut.top_p).sum())
    p[order[:kept]] = powers[:kept] / powers[:kept].sum()
    return p


def test_without_stop_tokens_every_completion_has_the_full_length() -> None:
    drawn = drawn_by(language(), sampling(ROOM, stop=()))
    assert drawn.mask_NGT.all()
    assert drawn.tokens_NGT.shape == (4, G, ROOM)
    assert not drawn.ended_NG.any()


def test_a_completion_that_ends_with_its_last_token_has_ended() -> None:
    """Also where all end at once: there is nothing to go on with."""
    drawn = drawn_by(language(), sampling(1, stop=tuple(range(VOCABULARY))), uniforms(room=1))
    assert drawn.tokens_NGT.shape == (4, G, 1)
    assert drawn.ended_NG.all()
    early = drawn_by(language(), sampling(ROOM, stop=tuple(range(VOCABULARY))))
    assert early.tokens_NGT.shape == (4, G, 1)


def test_forbidden_tokens_are_never_drawn() -> None:
    how = sampling(ROOM, stop=(), forbidden=tuple(range(VOCABULARY - 1)))
    assert set(drawn_by(language(), how).tokens_NGT.flatten().tolist()) == {VOCABULARY - 1}


class Counted:
    """Counts the rows that each pass through a model gets."""

    def __init__(self, model: LanguageModel) -> None:
        self.rows: list[tuple[int, ...]] = []
        model.plain.get_input_embeddings().register_forward_pre_hook(
            lambda module, given: self.rows.append(tuple(given[0].shape))
        )


def test_each_prompt_is_read_once_and_finished_rows_are_dropped() -> None:
    model = language()
    counted = Counted(model)
    stop = (STOP, 6, 7)
    drawn = drawn_by(model, sampling(ROOM, stop=stop))
    first, *rest = counted.rows
    assert first == (4, 4)
    lengths = drawn.mask_NGT.sum(-1).flatten()
    # A row that goes on is fed; the others at most until they are half of those that are fed.
    for step, (rows,) in enumerate(rest, start=1):
        going = int(((lengths > step) | ((lengths == step) & ~drawn.ended_NG.flatten())).sum())
        assert going <= rows < max(2 * going, 1) + 1
    assert rest[0][0] == 4 * G
    assert rest[-1][0] < 4 * G


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_dropping_finished_rows_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how = sampling(ROOM, stop=(STOP, 6, 7))
    model = language(kind)
    shorter = drawn_by(model, how)
    dropped: list[int] = []
    keep = Decoder.keep
    monkeypatch.setattr(
        Decoder, "keep", lambda self, rows: dropped.append(len(rows)) or keep(self, rows)
    )
    drawn_by(model, how)
    assert dropped
    # All rows at once against each row alone, which is never dropped.
    for n, g in np.ndindex(4, G):
        alone = generate(
            model, PROMPTS[n : n + 1], LENGTHS[n : n + 1], uniforms()[n : n + 1, g : g + 1], how
        )
        length = alone.mask_NGT.shape[-1]
        assert alone.ids()[0][0] == shorter.ids()[n][g]
        torch.testing.assert_close(
            alone.log_probs_NGT[0, 0], shorter.log_probs_NGT[n, g, :length], atol=1e-5, rtol=0
        )


def test_the_same_draws_for_any_number_of_processes() -> None:
    whole = uniforms_for(3, 7, torch.arange(8), 8, G, ROOM)
    assert whole.shape == (8, G, ROOM)
    assert whole.dtype == torch.float64
    for positions in ([0, 1, 2, 3], [4, 5, 6, 7], [6, 1], [5]):
        part = uniforms_for(3, 7, torch.tensor(positions), 8, G, ROOM)
        assert torch.equal(part, whole[positions])
    assert not torch.equal(uniforms_for(3, 8, torch.arange(8), 8, G, ROOM), whole)
    assert not torch.equal(uniforms_for(4, 7, torch.arange(8), 8, G, ROOM), whole)


def test_draws_use_no_global_generator() -> None:
    before = torch.get_rng_state()
    drawn_by(language(), sampling())
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_keeps_no_gradient() -> None:
    assert not drawn_by(language(), sampling()).log_probs_NGT.requires_grad
