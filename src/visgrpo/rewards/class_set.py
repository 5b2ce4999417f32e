"""Rewards for groups that are the whole class set, as in GRPO-RM (arXiv 2511.15256).

The accuracy reward of that method is `hard` with a weight c; its uniformity reward is here, with
two variants of our own that leave the true class out. They look at the old policy's probabilities,
so that a class is paid for being *unlikely*; alone they would end at the uniform distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visgrpo.rewards.scope import Scope


@dataclass(frozen=True)
class Uniformity:
    """-p_k for every class k.

    With c·`hard` all classes earn the same, and learning is over, where p_y - p_k = c for every
    wrong k: at the one-hot target for c = 1, at label smoothing 1 - c below it.
    """

    scope: ClassVar[Scope] = "any"

    def __call__(self, outputs_NG: Tensor, /, *, probabilities: Tensor, **_: Any) -> Tensor:
        return -probabilities.gather(1, outputs_NG).float()


@dataclass(frozen=True)
class UniformityOfWrong:
    """-p_k for every wrong class, 0 for the true one, which is thus never paid less."""

    scope: ClassVar[Scope] = "any"

    def __call__(
        self, outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any
    ) -> Tensor:
        wrong_NG = outputs_NG != label[:, None]
        return -probabilities.gather(1, outputs_NG).float() * wrong_NG


@dataclass(frozen=True)
class Spread:
    """How far a wrong class lies below the mean of the wrong ones; 0 for the true class.

        r_k = (1 - p_y) / (K - 1) - p_k

    It evens the wrong classes out and, summing to 0 over them, says nothing about their total.
    """

    scope: ClassVar[Scope] = "any"

    def __call__(
        self, outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any
    ) -> Tensor:
        true_N1 = probabilities.gather(1, label[:, None]).float()
        mean_N1 = (1 - true_N1) / (probabilities.shape[1] - 1)
        wrong_NG = outputs_NG != label[:, None]
        return (mean_N1 - probabilities.gather(1, outputs_NG).float()) * wrong_NG


@dataclass(eq=False)
class ClassCredit:
    """What the true class earns, by class, as output of an image or pixel of that class; else 0.

    `credit_K` moves to the outputs' device at a call, and stays there for the next.
    """

    credit_K: Tensor
    scope: ClassVar[Scope] = "any"

    def __call__(self, outputs_NG: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
        self.credit_K = self.credit_K.to(outputs_NG.device)
        right_NG = outputs_NG == label[:, None]
        return torch.where(right_NG, self.credit_K[label][:, None], 0.0)
