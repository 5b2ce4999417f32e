"""The distribution that a token is drawn from, and its log-probs: the same for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from visgrpo.errors import UserError
from visgrpo.objectives.divergences import entropy

Entropies = Literal["none", "value", "gradient"]
"""Whether entropies are not asked for, only shown, or part of a loss."""

# Numbers in the largest tensor (tokens × vocabulary) that scoring makes: 128 MiB in float32.
LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True)
class TokenDistribution:
    """softmax(logits / temperature) without the forbidden tokens, cut to top-k, then to top-p.

    A token that was drawn stays in the set when it is scored, also where the policy has meanwhile
    moved it out: its ratio then is small and finite instead of 0. At the weights that it was drawn
    with, the set is the one it was drawn from.

    Attributes:
        temperature: above 0; 1 is the model's own distribution.
        top_k: keep this many most probable tokens, and those equal to the last; 0 keeps all.
        top_p: keep the fewest most probable tokens that together reach this probability.
        forbidden: ids of tokens that can never be drawn, such as padding or an image's places.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    forbidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"--temperature must be above 0, not {self.temperature}.")
        if self.top_k < 0:
            raise UserError(f"--top-k must be 0 (all tokens) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p must lie in (0, 1], not {self.top_p}.")

    def log_probs(self, logits: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return log-probs (..., V) in float32; -inf for tokens that cannot be drawn.

        Args:
            logits: (..., V), of the model.
            chosen: (...), tokens that were drawn, which stay in the set.
        """
        scaled = self._scaled(logits)
        kept = self._kept(scaled.detach(), chosen)
        if kept is not None:
            scaled = scaled.masked_fill(~kept, -torch.inf)
        return scaled.log_softmax(dim=-1)

    def whole(self) -> TokenDistribution:
        """Return the distribution before top-k and top-p cut any token away."""
        return replace(self, top_k=0, top_p=1.0)

    def _scaled(self, logits: Tensor) -> Tensor:
        scaled = logits.float() if logits.dtype.itemsize < 4 else logits
        if self.temperature != 1.0:
            scaled = scaled / self.temperature
        if self.forbidden:
            ids = torch.tensor(self.forbidden, device=logits.device)
            scaled = scaled.index_fill(-1, ids, -torch.inf)
        return scaled

    def _kept(self, scaled: Tensor, chosen: Tensor | None) -> Tensor | None:
        """Which tokens top-k and top-p leave, bool (..., V); None for all."""
        kept = None
        if 0 < self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            kept = scaled >= least
        if self.top_p < 1:
            within = scaled if kept is None else scaled.masked_fill(~kept, -torch.inf)
            probabilities, order = within.softmax(dim=-1).sort(dim=-1, descending=True)
            before = probabilities.cumsum(dim=-1) - probabilities
            # The most probable token stays, however small top-p is: nothing comes before it.
            kept = torch.zeros_like(scaled, dtype=torch.bool).scatter(
                -1, order, (before < self.top_p) & (probabilities > 0)
            )
        if kept is not None and chosen is not None:
            kept = kept.scatter(-1, chosen.unsqueeze(-1), True)
        return kept


class TokenScores(NamedTuple):
    """Log-probs of tokens and the entropy of what they were drawn from, of the tokens' shape.

    The entropy is that of the whole softmax at the temperature, in nats, whatever top-k and top-p
    cut away from the log-probs; None where nobody asked for it.
    """

    log_probs: Tensor
    entropy: Tensor | None


def score_tokens(
    hidden_BD: Tensor,
    head: Callable[[Tensor], Tensor],
    chosen_B: Tensor,
    distribution: TokenDistribution,
    *,
    entropies: Entropies = "value",
    at_once: int = LOGITS_AT_ONCE,
) -> TokenScores:
    """Score B tokens from the hidden states that predict them.

    Logits are made for some tokens at a time, and made again in the backward pass: memory does not
    grow with tokens × vocabulary.

    Args:
        head: from hidden states (…, D) to logits (…, V).
        entropies: what is asked of them; three passes over the logits that steps without a line in
            the log do without.
        at_once: numbers (tokens × vocabulary) in the logits that exist at one time.
    """

    def score(hidden_CD: Tensor, chosen_C: Tensor) -> tuple[Tensor, ...]:
        logits_CV = head(hidden_CD)
        log_probs_CV = distribution.log_probs(logits_CV, chosen_C)
        log_probs_C = log_probs_CV.gather(-1, chosen_C.unsqueeze(-1)).squeeze(-1)
        if entropies == "none":
            return (log_probs_C,)
        with torch.set_grad_enabled(entropies == "gradient" and torch.is_grad_enabled()):
            whole_CV = log_probs_CV
            if distribution.top_k or distribution.top_p < 1:
                whole_CV = distribution.whole().log_probs(logits_CV)
            entropy_C = entropy(whole_CV)
        return log_probs_C, entropy_C

    chunk = max(1, at_once // _width(head, hidden_BD))
    if len(hidden_BD) <= chunk:
        return _scores(*score(hidden_BD, chosen_B))
    parts = [
        checkpoint(score, hidden_CD, chosen_C, use_reentrant=False)
        if torch.is_grad_enabled()
        else score(hidden_CD, chosen_C)
        for hidden_CD, chosen_C in zip(hidden_BD.split(chunk), chosen_B.split(chunk), strict=True)
    ]
    return _scores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _scores(log_probs_B: Tensor, entropy_B: Tensor | None = None) -> TokenScores:
    return TokenScores(log_probs_B, entropy_B)


def _width(head: Callable[[Tensor], Tensor], hidden_BD: Tensor) -> int:
    """Return V without running the head where its weight tells.

    Under autocast, torch before 2.11 keeps the first cast of a weight for the whole block, also one
    made under no_grad (pytorch#158232): a head that ran there first would get no gradient.
    """
    width = getattr(head, "out_features", None)
    return int(head(hidden_BD[:1]).shape[-1] if width is None else width)
