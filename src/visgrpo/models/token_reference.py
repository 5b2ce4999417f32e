"""The frozen start of a language model, for KL: its own weights, never the policy's."""

from __future__ import annotations

import copy
from typing import Literal, Protocol

import torch
from torch import Tensor

from visgrpo.data.pictures import Pictures
from visgrpo.models.language import LanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution


class TokenReference(Protocol):
    """Answers with the start's log-probs (N, G, T) of completions, without gradient."""

    kind: Literal["adapter_off", "copy"]
    own_bytes: int  # of weights that are there for the reference alone

    def log_probs(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution,
        pictures: Pictures | None = None,
    ) -> Tensor: ...


class AdapterOff:
    """The start seen through its own adapted model with the adapter off; costs no memory."""

    kind: Literal["adapter_off", "copy"] = "adapter_off"
    own_bytes = 0

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @torch.no_grad()
    def log_probs(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution,
        pictures: Pictures | None = None,
    ) -> Tensor:
        with self._model.adapter_off():
            return self._model.score(prompts_NP, lengths_N, completions_NGT, distribution, pictures)


class FrozenStart:
    """A frozen copy of the start; what does not train is shared with the policy."""

    kind: Literal["adapter_off", "copy"] = "copy"

    def __init__(self, model: LanguageModel) -> None:
        shared = {id(p): p for p in model.lm.parameters() if not p.requires_grad}
        frozen = copy.deepcopy(model.lm, shared).requires_grad_(False)
        self._frozen = model.like(frozen).eval()
        own = (p for p in frozen.parameters() if id(p) not in shared)
        self.own_bytes = sum(p.nbytes for p in own)

    @torch.no_grad()
    def log_probs(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution,
        pictures: Pictures | None = None,
    ) -> Tensor:
        return self._frozen.score(prompts_NP, lengths_N, completions_NGT, distribution, pictures)


def reference_of(model: LanguageModel) -> TokenReference:
    """Return the cheapest reference to the model as it is now, before its first update."""
    return AdapterOff(model) if adapters_alone(model) else FrozenStart(model)


def adapters_alone(model: LanguageModel) -> bool:
    """Whether low-rank adapters are all that trains: the model without them is its start then."""
    trained = [name for name, p in model.lm.named_parameters() if p.requires_grad]
    return model.has_adapter and all(".lora_" in name for name in trained)
