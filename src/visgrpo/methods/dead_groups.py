"""Groups whose completions all earn the same teach nothing: drawn again, or told the truth."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from visgrpo.data.batches import Batch
from visgrpo.methods.groups import places_of
from visgrpo.methods.token_groups import TokenGroups, TokenRollouts
from visgrpo.models.language import LanguageModel
from visgrpo.objectives import all_equal, weighted_sum

OTHER_SEED = 104_729  # from one draw of a group to the next


def redrawn(
    rollouts: TokenRollouts,
    model: LanguageModel,
    batch: Batch,
    step: int,
    chunk: int,
    groups: TokenGroups,
    times: int,
    **asks: bool,
) -> TokenGroups:
    """Return groups in which those that earn the same were drawn again, up to so many times.

    The aim is that of dynamic sampling (DAPO, Yu et al. 2025, arXiv 2503.14476), which fills a
    batch with other prompts instead.

    Args:
        asks: what groups must hold, as `TokenRollouts.draw` is asked for it.
    """
    total = len(batch) * rollouts.shards.world_size
    placed = replace(batch, positions_N=places_of(batch, rollouts.shards))
    draws_N = torch.ones_like(groups.mean_tokens_N)
    for time in range(1, times + 1):
        dead_N = all_equal(totals_of(groups, rollouts))
        if not rollouts.shards.gather(dead_N.any()[None]).any():
            break
        # Processes count together what they draw: one without such groups draws one for nothing.
        rows = dead_N.nonzero().squeeze(1) if dead_N.any() else torch.tensor([0])
        again = replace(rollouts, seed=rollouts.seed + time * OTHER_SEED).draw(
            model, placed.select(rows), step, chunk, total=total, steer=False, **asks
        )
        if dead_N.any():
            groups = put(groups, rows, again)
            draws_N = draws_N + dead_N
    return replace(recounted(groups, rollouts), draws_N=draws_N)


def told(
    rollouts: TokenRollouts, model: LanguageModel, batch: Batch, groups: TokenGroups
) -> TokenGroups:
    """Return groups in which the true answer stands for a completion where all of them are wrong.

    All are wrong where they earn the same and the truth, by the same rewards, earns more. What the
    policy says of the truth is its old log-prob, as if it had been drawn (ViSurf, arXiv
    2510.10606).

    Args:
        batch: with ``answers_NT``, the tokens of the truths.
    """
    assert batch.answers_NT is not None
    before_NG = totals_of(groups, rollouts)
    told_N = torch.zeros_like(before_NG[:, 0], dtype=torch.bool)
    rows = all_equal(before_NG).nonzero().squeeze(1)
    if len(rows):
        some = _with_truth(rollouts, model, batch.select(rows), groups.select(rows))
        better = totals_of(some, rollouts)[:, -1] > before_NG[rows, -1]
        if better.any():
            groups = put(groups, rows[better], some.select(better.nonzero().squeeze(1)))
            told_N[rows[better]] = True
    return replace(recounted(groups, rollouts), told_N=told_N)


def _with_truth(
    rollouts: TokenRollouts, model: LanguageModel, batch: Batch, groups: TokenGroups
) -> TokenGroups:
    """Return groups with the truth in the place of the last completion."""
    assert batch.answers_NT is not None
    mask_N1T = (batch.answers_NT >= 0).unsqueeze(1)
    tokens_N1T = batch.answers_NT.clamp(min=0).unsqueeze(1)
    where = (batch.prompts_NP, batch.lengths_N, tokens_N1T)
    scores = model(*where, rollouts.sampling.distribution, pictures=batch.pictures)
    truth: dict[str, Tensor | None] = {
        "tokens_NGT": tokens_N1T,
        "mask_NGT": mask_N1T,
        "old_log_probs_NGT": scores.log_probs.masked_fill(~mask_N1T, 0.0),
        "entropies_NGT": scores.entropy,
    }
    if rollouts.reference is not None:
        whole = rollouts.sampling.distribution.whole()
        start = rollouts.reference.log_probs(*where, whole, batch.pictures)
        truth["reference_log_probs_NGT"] = start.masked_fill(~mask_N1T, 0.0)
    longest = max(groups.mask_NGT.shape[-1], mask_N1T.shape[-1])
    groups = widened(groups, longest)
    changes: dict[str, Any] = {}
    for name, last_N1T in truth.items():
        values_NGT = getattr(groups, name)
        if values_NGT is not None and last_N1T is not None:
            last_N1T = pad(last_N1T, (0, longest - last_N1T.shape[-1])).to(values_NGT.dtype)
            changes[name] = torch.cat([values_NGT[:, :-1], last_N1T], dim=1)
    ended_NG = torch.cat([groups.ended_NG[:, :-1], torch.ones_like(mask_N1T[..., 0])], dim=1)
    groups = replace(groups, **changes, ended_NG=ended_NG)
    return rollouts.rewarded(groups, batch)


def totals_of(groups: TokenGroups, rollouts: TokenRollouts) -> Tensor:
    """Return what each completion earns in all, (N, G)."""
    return weighted_sum(groups.rewards_NGR.nan_to_num(nan=0.0), rollouts.rewards.weights_R)


def recounted(groups: TokenGroups, rollouts: TokenRollouts) -> TokenGroups:
    """Return groups that know how many tokens a completion of the whole batch has now."""
    tokens_NG = groups.mask_NGT.sum(dim=-1)
    here_12 = torch.stack([tokens_NG.sum(), torch.ones_like(tokens_NG).sum()])[None]
    tokens, completions = rollouts.shards.gather(here_12).sum(dim=0).tolist()
    mean_N = torch.full_like(groups.mean_tokens_N, tokens / completions)
    return replace(groups, mean_tokens_N=mean_N).trimmed()


def put(groups: TokenGroups, rows: Tensor, others: TokenGroups) -> TokenGroups:
    """Return groups in which those of some inputs are others."""
    longest = max(groups.mask_NGT.shape[-1], others.mask_NGT.shape[-1])
    groups, others = widened(groups, longest), widened(others, longest)
    changes: dict[str, Any] = {}
    for field in fields(groups):
        mine, theirs = getattr(groups, field.name), getattr(others, field.name)
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor) and len(mine):
            changes[field.name] = mine.clone().index_copy_(0, rows.to(mine.device), theirs)
    texts = list(groups.texts)
    for row, text in zip(rows.tolist(), others.texts, strict=True):
        texts[row] = text
    # The prompts, as wide as in the whole batch, and their pictures are the same.
    changes["prompts_NP"] = groups.prompts_NP
    return replace(groups, **changes, texts=tuple(texts))


def widened(groups: TokenGroups, length: int) -> TokenGroups:
    """Return groups with room for so many tokens."""
    more = length - groups.mask_NGT.shape[-1]
    wide: dict[str, Any] = {
        name: pad(value, (0, more)) for name, value in groups.of_tokens().items()
    }
    return replace(groups, **wide)
