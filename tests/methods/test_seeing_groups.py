"""Completions of prompts with images: drawn, scored, cut up, and learned from with their images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from seeing_tools import IMAGES, ROOM, parts, pictures, prompt, questions, sampling, seeing
from token_tools import in_two_processes, rollouts
from torch import Tensor

from visgrpo.data.pictures import Pictures
from visgrpo.methods.generate import Completions, Sampling, generate
from visgrpo.methods.groups import uniforms_for
from visgrpo.methods.token_groups import FixedKL
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.reference import reference_of
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.objectives import preset
from visgrpo.objectives.token_distribution import TokenDistribution

G = 4
PLACES = {
    "everything trains": (),
    "a frozen tower": ("model.visual.blocks", "model.visual.patch_embed"),
    "frozen vision": ("model.visual",),
}


def uniforms(room: int = ROOM) -> Tensor:
    return uniforms_for(0, 0, torch.arange(4), 4, G, room)


def drawn_by(
    model: VisionLanguageModel, how: Sampling, seen: Pictures | None = None
) -> Completions:
    batch = questions()
    numbers = uniforms(how.max_new_tokens)
    shown = seen or batch.pictures
    return generate(model, batch.inputs, batch.lengths_N, numbers, how, shown)


def even_numbers(*, completion_ids: list[list[int]], **others: Any) -> list[float]:
    """A reward: the share of tokens with an even id."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def grpo(name: str = "grpo", **settings: Any) -> TokenGRPO:
    terms = settings.pop("terms", TokenTerms(entropy_weight=0.1))
    how = sampling()
    source = rollouts(rewards=(even_numbers,), drawn=how, group_size=G, **settings)
    source = replace(source, decode=lambda groups: [" ".join(map(str, ids)) for ids in groups])
    return TokenGRPO(source, preset(name), terms)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


# Draws


@torch.no_grad()
def by_hand(model: Any, row: int, numbers_T: Tensor, how: Sampling) -> tuple[list[int], Any]:
    """One completion: a whole forward of transformers for every token, and a loop over tokens."""
    sequence, tokens, log_probs = prompt(row).tolist(), [], []
    for number in numbers_T.tolist():
        ids = torch.tensor([sequence])
        seen: dict[str, Any] = {}
        if IMAGES[row]:
            seen = {
                "pixel_values": torch.cat([picture.pixels for picture in pictures()[row]]),
                "image_grid_thw": torch.tensor([picture.grid for picture in pictures()[row]]),
                "mm_token_type_ids": (ids == model.lm.config.image_token_id).int(),
            }
        logits = model.lm(input_ids=ids, **seen, use_cache=False).logits[0, -1].double()
        kept = [i for i in range(len(logits)) if i not in how.distribution.forbidden]
        p = logits[kept].softmax(0)
        place = min(int((p.cumsum(0) <= number).sum()), len(kept) - 1)
        tokens.append(kept[place])
        log_probs.append(math.log(p[place]))
        sequence.append(kept[place])
        if kept[place] in how.stop:
            break
    return tokens, log_probs


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_completions_are_those_drawn_one_by_one(engine: Any) -> None:
    """Some end early, and the others go on after their own images."""
    model, how = seeing(engine=engine), sampling()
    ours = drawn_by(model, how)
    ended = 0
    for n, g in np.ndindex(4, G):
        tokens, log_probs = by_hand(model, n, uniforms()[n, g], how)
        assert ours.ids()[n][g] == tokens
        found = ours.log_probs_NGT[n, g, : len(tokens)].tolist()
        assert found == pytest.approx(log_probs, abs=1e-5)
        ended += tokens[-1] in how.stop
    assert 0 < ended < 4 * G
    assert len({len(ids) for group in ours.ids() for ids in group}) > 2


@pytest.mark.parametrize("cut", [{}, {"temperature": 1.4, "top_k": 40, "top_p": 0.9}])
@pytest.mark.parametrize("frozen", PLACES)
def test_both_engines_draw_the_same_and_score_what_they_drew(frozen: str, cut: Any) -> None:
    how, batch = sampling(**cut), questions()
    models = {engine: seeing(*PLACES[frozen], engine=engine) for engine in ("shared", "plain")}  # type: ignore[arg-type]
    drawn = {engine: drawn_by(model, how) for engine, model in models.items()}
    assert torch.equal(drawn["shared"].tokens_NGT, drawn["plain"].tokens_NGT)
    assert torch.equal(drawn["shared"].ended_NG, drawn["plain"].ended_NG)
    mask = drawn["shared"].mask_NGT
    for engine, model in models.items():
        scores = model.score(
            batch.inputs,
            batch.lengths_N,
            drawn[engine].tokens_NGT,
            how.distribution,
            batch.pictures,
        )
        ours = drawn[engine].log_probs_NGT
        torch.testing.assert_close(ours[mask], scores[mask], atol=1e-5, rtol=0)


def test_places_of_images_are_never_drawn() -> None:
    """Though the model would write little else; and scores leave them out likewise."""
    model, placeholders = seeing(), parts().processor.placeholder_ids
    with torch.no_grad():  # input and output embeddings are one matrix
        likely = model.plain.get_output_embeddings().weight
        likely[list(placeholders)] = 4 * likely[list(range(60, 60 + len(placeholders)))]
    free = Sampling(TokenDistribution(), ROOM, (), 0)
    wanted = torch.isin(drawn_by(model, free).tokens_NGT, torch.tensor(placeholders))
    assert wanted.float().mean() > 0.1
    how = sampling()
    drawn = drawn_by(model, how)
    assert not torch.isin(drawn.tokens_NGT, torch.tensor(placeholders)).any()
    batch = questions()
    given = (batch.inputs, batch.lengths_N, drawn.tokens_NGT)
    banned = model.score(*given, how.distribution, batch.pictures)[drawn.mask_NGT]
    torch.testing.assert_close(banned, drawn.log_probs_NGT[drawn.mask_NGT], atol=1e-5, rtol=0)
    whole = model.score(*given, TokenDistribution(), batch.pictures)[drawn.mask_NGT]
    assert (banned - whole).mean() > 0.1


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_another_image_leads_to_other_completions_of_its_own_prompt(engine: Any) -> None:
    model, how, batch = seeing(engine=engine), sampling(), questions()
    assert batch.pictures is not None
    order = [3, 1, 2, 0]  # the first and the last are of one size
    swapped = batch.pictures.select([3, 1, 2, 0])
    assert swapped is not None
    assert swapped.counts_N == batch.pictures.counts_N
    before, after = drawn_by(model, how), drawn_by(model, how, swapped)
    for n, source in enumerate(order):
        same = before.ids()[n] == after.ids()[n]
        assert same == (source == n)


# Groups


def moved() -> tuple[Any, VisionLanguageModel]:
    """A reference, and a policy whose tower and language model have moved away from it."""
    model = seeing()
    reference = reference_of(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    return reference, model


def test_groups_hold_their_images_and_the_starts_log_probs() -> None:
    reference, model = moved()
    batch = questions()
    method = grpo(reference=reference)
    groups = method.rollout(model, batch, 0, chunk=4)
    assert groups.pictures is batch.pictures
    how, mask = method.rollouts.sampling.distribution, groups.mask_NGT
    given = (batch.inputs, batch.lengths_N, groups.tokens_NGT, how, batch.pictures)
    old, start = model.score(*given)[mask], reference.log_probs(*given)[mask]
    torch.testing.assert_close(groups.old_log_probs_NGT[mask], old, atol=1e-5, rtol=0)
    assert groups.reference_log_probs_NGT is not None
    torch.testing.assert_close(groups.reference_log_probs_NGT[mask], start, atol=1e-5, rtol=0)
    original = seeing().score(*given)[mask]
    torch.testing.assert_close(start, original, atol=1e-5, rtol=0)
    assert (old - start).abs().max() > 0.05


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_groups_are_the_same_however_they_were_drawn(chunk: int) -> None:
    """Also where a chunk has no image at all."""
    reference, model = moved()
    whole = grpo(reference=reference).rollout(model, questions(), 0, chunk=4)
    parts_of_it = grpo(reference=reference).rollout(model, questions(), 0, chunk=chunk)
    assert torch.equal(whole.tokens_NGT, parts_of_it.tokens_NGT)
    for name in ("old_log_probs_NGT", "reference_log_probs_NGT", "rewards_NGR", "advantages"):
        ours, theirs = getattr(parts_of_it, name), getattr(whole, name)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[3, 1], [2], [1, 0, 3, 2], [2, 3]])
def test_a_minibatch_has_its_own_images(rows: list[int]) -> None:
    model, method = seeing(), grpo()
    groups = method.rollout(model, questions(), 0, chunk=4)
    how = method.rollouts.sampling.distribution
    whole = model.score(
        groups.prompts_NP, groups.lengths_N, groups.tokens_NGT, how, groups.pictures
    )
    part = groups.select(torch.tensor(rows))
    ours = model.score(part.prompts_NP, part.lengths_N, part.tokens_NGT, how, part.pictures)
    theirs = whole[rows][..., : ours.shape[-1]]
    mask = part.mask_NGT
    torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=0)


# Learning


@pytest.mark.parametrize("engine", ["shared", "plain"])
@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_a_batch_in_pieces_has_the_loss_and_gradient_of_the_whole(name: str, engine: Any) -> None:
    reference, model = moved()
    model.engine = engine
    method = grpo(name, reference=reference, control=FixedKL(0.3))
    groups, batch = method.rollout(model, questions(), 0, chunk=4), questions()
    whole = method.loss(model, batch, groups, 0).loss
    whole.backward()
    expected = gradients(model)
    assert expected["lm.model.visual.merger.mlp.0.weight"].norm() > 0
    for pieces in (torch.arange(4).split(2), torch.tensor([2, 0, 3, 1]).split(1)):
        total = 0.0
        for rows in pieces:
            loss = method.loss(model, batch.select(rows), groups.select(rows), 0).loss
            (loss / len(pieces)).backward()
            total += loss.item() / len(pieces)
        assert total == pytest.approx(whole.item(), abs=1e-5)
        assert_close(gradients(model), expected)


def test_two_processes_have_the_gradient_of_one() -> None:
    models = [moved() for _ in range(3)]

    def work(shard: Any) -> dict[str, Tensor]:
        reference, model = models[2 if shard is None else shard.rank]
        settings = {} if shard is None else {"shards": shard}
        method = grpo("dapo", reference=reference, control=FixedKL(0.3), **settings)
        batch = questions()
        if shard is not None:
            batch = batch.select([shard.rank, shard.rank + 2])
        groups = method.rollout(model, batch, 0, chunk=1)
        method.loss(model, batch, groups, 0).loss.backward()
        return gradients(model)

    expected = work(None)
    halves = in_two_processes(work)
    assert_close({name: (halves[0][name] + halves[1][name]) / 2 for name in expected}, expected)


@pytest.mark.parametrize("frozen", PLACES)
def test_prompts_and_images_read_once_teach_as_if_read_again(frozen: str) -> None:
    """The rollout's pass through tower, merger and prompts serves the update, gradient and all."""
    reference, model = reference_of(seeing()), seeing(*PLACES[frozen])
    passes: list[int] = []
    model.plain.model.visual.register_forward_hook(lambda *_: passes.append(1))
    batch = questions()
    found, seen = [], []
    for once in (True, False):
        method = replace(grpo(reference=reference, control=FixedKL(0.3)), read_once=once)
        passes.clear()
        groups = method.rollout(model, batch, 0, chunk=4)
        assert (groups.read is not None) == once
        method.loss(model, batch, groups, 0).loss.backward()
        found.append(gradients(model))
        seen.append(len(passes))
    assert_close(*found)
    # Where the tower trains, reading again is a second pass; else its work is kept anyway.
    assert seen == ([1, 2] if frozen == "everything trains" else [1, 0])
    bridge = "lm.model.visual.merger.mlp.2.weight"
    assert (bridge in found[0]) == (frozen != "frozen vision")
    assert bridge not in found[0] or found[0][bridge].norm() > 0
