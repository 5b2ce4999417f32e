"""The frozen reference of the KL term: what the start would have answered, never the policy.

Cheapest first:

    cached        logits of every training image computed once; needs images that never change
    adapter_off   a second forward pass with the adapter switched off; needs a start without one
    copy          a second forward pass through a frozen copy of the start
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from visgrpo.data.batches import Batch
from visgrpo.data.pictures import Pictures
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.language import LanguageModel
from visgrpo.models.options import Weights
from visgrpo.models.trains import keep_weights, matrices
from visgrpo.objectives.token_distribution import TokenDistribution

ReferenceKind = Literal["cached", "adapter_off", "copy"]


class Reference(Protocol):
    """Whatever answers a batch with the reference's log-probs (N, K), without gradient."""

    kind: ReferenceKind

    def log_probs(self, batch: Batch) -> Tensor: ...


class TokenReference(Protocol):
    """Answers with the start's log-probs (N, G, T) of completions, without gradient."""

    kind: ReferenceKind
    own_bytes: int  # of weights that are there for the reference alone

    def log_probs(
        self,
        prompts_NP: Tensor,
        lengths_N: Tensor,
        completions_NGT: Tensor,
        distribution: TokenDistribution,
        pictures: Pictures | None = None,
    ) -> Tensor: ...


class CachedReference:
    """A table (M, K) of log-probs, looked up by the position of an image in its data set."""

    kind: ReferenceKind = "cached"

    def __init__(self, logits_MK: Tensor) -> None:
        self._log_probs_MK = logits_MK.float().log_softmax(dim=-1)

    def log_probs(self, batch: Batch) -> Tensor:
        rows = batch.indices_N.to(self._log_probs_MK.device)
        return self._log_probs_MK[rows].to(batch.inputs.device)


class AdapterOffReference:
    """The start seen through its own adapted classifier with the adapter off.

    Text features and scale are kept from the start, so that neither a trained text side nor a
    trained scale leaks in. Call it before the first update.
    """

    kind: ReferenceKind = "adapter_off"

    def __init__(self, classifier: ClipClassifier) -> None:
        self._classifier = classifier
        with torch.no_grad(), self._off():
            self._texts_KD = classifier.embed_classes().clone()
            self._scale = classifier.scale().clone()
        classifier.forget_text()

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Tensor:
        classifier = self._classifier
        training = classifier.training
        classifier.eval()
        with self._off():
            images_ND = classifier.embed_images(batch.inputs)
        classifier.train(training)
        logits_NK = self._scale * (images_ND @ self._texts_KD.to(images_ND.dtype).T).float()
        return logits_NK.log_softmax(dim=-1)

    def _off(self) -> AbstractContextManager[Any]:
        return self._classifier.encoder.disable_adapter()


class CopyReference:
    """A frozen copy of a classifier; costs what trains and one forward pass a step."""

    kind: ReferenceKind = "copy"

    def __init__(self, classifier: ClipClassifier, weights: Weights = "float32") -> None:
        classifier.forget_text()
        self._frozen = _frozen_copy(classifier, weights).eval()

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> Tensor:
        return self._frozen(batch.inputs).log_softmax(dim=-1)


class AdapterOff:
    """The start of a language model, its adapter off; costs no memory."""

    kind: ReferenceKind = "adapter_off"
    own_bytes = 0

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @torch.no_grad()
    def log_probs(self, *inputs: Any, **more: Any) -> Tensor:
        with self._model.adapter_off():
            return self._model.score(*inputs, **more)


class FrozenStart:
    """A frozen copy of a language model; what does not train is shared with the policy."""

    kind: ReferenceKind = "copy"

    def __init__(self, model: LanguageModel, weights: Weights = "float32") -> None:
        frozen = _frozen_copy(model.lm, weights)
        self._frozen = model.like(frozen).eval()
        shared = set(map(id, model.lm.parameters()))
        self.own_bytes = sum(p.nbytes for p in frozen.parameters() if id(p) not in shared)

    @torch.no_grad()
    def log_probs(self, *inputs: Any, **more: Any) -> Tensor:
        return self._frozen.score(*inputs, **more)


class MovingReference(FrozenStart):
    """A copy of a language model that follows it: now and then a part of the way.

        π_ref ← α π + (1 - α) π_ref        of every weight that trains, each so many steps

    Source: Gorbatovski et al. 2024, TR-DPO (arXiv 2404.09656), as TRL has it for GRPO.

    Args:
        every: steps from one move to the next.
        mix: α.
    """

    def __init__(
        self, model: LanguageModel, weights: Weights = "float32", *, every: int, mix: float
    ) -> None:
        super().__init__(model, weights)
        self._every, self._mix = every, mix
        trained = {name: p for name, p in model.lm.named_parameters() if p.requires_grad}
        self._policy: dict[str, Tensor] = dict(trained)
        own = dict(self._frozen.lm.named_parameters())
        self.weights: dict[str, Tensor] = {name: own[name] for name in trained}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move where that is due before a step, counted from 0."""
        if step and step % self._every == 0:
            for name, weight in self.weights.items():
                weight.lerp_(self._policy[name].to(weight.dtype), self._mix)


def live_reference(classifier: ClipClassifier, weights: Weights = "float32") -> Reference:
    """Return the cheapest reference that can answer for images that change from epoch to epoch.

    Args:
        weights: what a frozen copy is kept in.
    """
    if classifier.has_adapter:
        return AdapterOffReference(classifier)
    return CopyReference(classifier, weights)


def reference_of(model: LanguageModel, weights: Weights = "float32") -> TokenReference:
    """Return the cheapest reference to the model as it is now, before its first update.

    Args:
        weights: what a frozen copy is kept in.
    """
    return AdapterOff(model) if adapters_alone(model) else FrozenStart(model, weights)


def adapters_alone(model: LanguageModel) -> bool:
    """Whether low-rank adapters are all that trains: the model without them is its start then."""
    trained = [name for name, p in model.lm.named_parameters() if p.requires_grad]
    return model.has_adapter and all(".lora_" in name for name in trained)


def _frozen_copy(module: nn.Module, weights: Weights) -> Any:
    """Return a copy that shares what does not train."""
    copies = {id(p): p for p in module.parameters() if not p.requires_grad}
    if weights != "float32":
        for weight in matrices(module):
            if weight.requires_grad:
                half = weight.detach().to(torch.bfloat16, copy=True)
                copies[id(weight)] = nn.Parameter(half, requires_grad=False)
    frozen = copy.deepcopy(module, copies).requires_grad_(False)
    keep_weights(frozen, weights)
    return frozen
