"""Rewards for outputs that are class labels: each is one function, or one table.

A new one is a function under `@built_in("name")`, or a row of `WITH_ARGUMENT` where something
follows its colon. Users' own functions have the same signature, see `LabelReward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.tables import read_credit, read_hierarchy, read_table

Scope = Literal["any", "batch", "mask"]
"""Over what the advantages of a reward make sense; or that its outputs are whole masks."""


class LabelReward(Protocol):
    """A reward for class labels.

    It is called as `reward(outputs_NG, label=…, probabilities=…, classes=…, **columns)`:

    * `outputs_NG`: class ids, G for each of N images (every class, G = K, under `exact`);
    * `label` (N,): the true class ids;
    * `probabilities` (N, K): the old policy's, without gradient;
    * `classes`: the K class names, position = class id;
    * `columns`: every other column of the data set, each a list of length N.

    It returns the rewards (N, G). An attribute `scope` says over what its advantages make sense:
    "any", which holds without one, or "batch" when all outputs of one image earn the same number.
    """

    def __call__(
        self,
        outputs_NG: Tensor,
        /,
        *,
        label: Tensor,
        probabilities: Tensor,
        classes: Sequence[str],
        **columns: Any,
    ) -> Tensor:
        """Return the reward of each output, (N, G)."""


class Known(NamedTuple):
    """What is known about the K labels of N images.

    Attributes:
        observed_NK: bool: the reward of this pair was seen.
        usable_NK: bool: the pair may be an output of a group; None where all may, since a reward
            was put in for what was not seen.
    """

    observed_NK: Tensor
    usable_NK: Tensor | None


@runtime_checkable
class PartialReward(LabelReward, Protocol):
    """A reward that is not known of every label of an image."""

    @property
    def masks(self) -> bool:
        """Whether what is not known takes no part in a group."""

    def known(self, columns: Mapping[str, Any], device: torch.device) -> Known:
        """Return what is known about all labels of the images with these columns."""


class Shape(NamedTuple):
    """A reward that is level + peak·1[k = y] + slope·p_k for output k: all it takes of K numbers.

    ``level`` and ``peak`` are (N, 1), or one number for all images. A reward says with an attribute
    `shape(label_N1, true_N1, n_classes)` that it is one, true_N1 being the probability of the true
    class; losses in closed form ask for it.
    """

    level: Tensor | float = 0.0
    peak: Tensor | float = 0.0
    slope: float = 0.0

    @staticmethod
    def total(shapes: Sequence[Shape], weights: Sequence[float]) -> Shape:
        """Return the weighted sum."""
        pairs = list(zip(shapes, weights, strict=True))
        return Shape(
            sum(shape.level * weight for shape, weight in pairs),
            sum(shape.peak * weight for shape, weight in pairs),
            sum(shape.slope * weight for shape, weight in pairs),
        )


ShapeOf = Callable[[Tensor, Tensor, int], Shape]

PLAIN: dict[str, LabelReward] = {}
"""The built-in rewards that take no argument, by name."""


def built_in(
    name: str, *, scope: Scope = "any", shape: ShapeOf | None = None
) -> Callable[[Any], Any]:
    """Let a reward be asked for by a name."""

    def register(function: Any) -> Any:
        function.scope, function.shape = scope, shape
        PLAIN[name] = function
        return function

    return register


def scope_of(reward: LabelReward) -> Scope:
    """Return over what the advantages of a reward make sense."""
    scope: Scope = getattr(reward, "scope", "any")
    return scope


@built_in("hard", shape=lambda label, true, n_classes: Shape(peak=1.0))
def hard(outputs_NG: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
    """1 if the output is the true label, else 0."""
    return (outputs_NG == label[:, None]).float()


@built_in("soft", scope="batch")
def soft(outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any) -> Tensor:
    """The old policy's probability of the true label, the same for every output of an image.

    Inside one image's group its advantage is therefore exactly zero, and it is refused there. Over
    the batch the advantage A_n differs between images but still does not depend on the output, so

        E_{k ~ π}[A_n ∇log π(k)] = A_n ∇ Σ_k π(k) = 0:

    with the `sampled` estimator it is noise of mean zero, with `exact` it is zero. Mixed with
    another reward it acts only indirectly, as a baseline of its own for each image and as a part
    of the std that all advantages are divided by.
    """
    return probabilities.gather(1, label[:, None]).float().expand(outputs_NG.shape)


@built_in("certainty")
def certainty(outputs_NG: Tensor, /, *, probabilities: Tensor, **_: Any) -> Tensor:
    """log p_k of the old policy, whose policy gradient is that of minus the entropy.

        Σ_k π_k ∇log π_k · log π_k = ∇ Σ_k π_k log π_k = -∇H,  since Σ_k π_k ∇log π_k = 0

    So it is entropy minimisation (Wang et al. 2021, "Tent", arXiv 2006.10726), which no label is
    needed for: what a reward without labels has to beat.
    """
    tiny = torch.finfo(torch.float32).tiny
    return probabilities.gather(1, outputs_NG).float().clamp(min=tiny).log()


# For groups that are the whole class set, as in GRPO-RM (arXiv 2511.15256). Its accuracy reward is
# `hard` with a weight c; its uniformity reward is the first of these, with two variants of our own
# that leave the true class out. They look at the old policy's probabilities, so that a class is
# paid for being *unlikely*; alone they would end at the uniform distribution.


@built_in("uniformity", shape=lambda label, true, n_classes: Shape(slope=-1.0))
def uniformity(outputs_NG: Tensor, /, *, probabilities: Tensor, **_: Any) -> Tensor:
    """-p_k for every class k.

    With c·`hard` all classes earn the same, and learning is over, where p_y - p_k = c for every
    wrong k: at the one-hot target for c = 1, at label smoothing 1 - c below it.
    """
    return -probabilities.gather(1, outputs_NG).float()


@built_in("uniformity-wrong", shape=lambda label, true, n_classes: Shape(0.0, true, -1.0))
def uniformity_of_wrong(
    outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any
) -> Tensor:
    """-p_k for every wrong class, 0 for the true one, which is thus never paid less."""
    return uniformity(outputs_NG, probabilities=probabilities) * (outputs_NG != label[:, None])


def _spread(label: Tensor, true: Tensor, n_classes: int) -> Shape:
    mean = (1 - true) / (n_classes - 1)
    return Shape(mean, true - mean, -1.0)


@built_in("spread", shape=_spread)
def spread(outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any) -> Tensor:
    """How far a wrong class lies below the mean of the wrong ones; 0 for the true class.

        r_k = (1 - p_y) / (K - 1) - p_k

    It evens the wrong classes out and, summing to 0 over them, says nothing about their total.
    """
    true_N1 = probabilities.gather(1, label[:, None]).float()
    mean_N1 = (1 - true_N1) / (probabilities.shape[1] - 1)
    wrong_NG = outputs_NG != label[:, None]
    return (mean_N1 - probabilities.gather(1, outputs_NG).float()) * wrong_NG


# Of what is drawn as a whole: sets of labels, (N, G, 1, K) of 0 and 1, and masks, (N, G, H, W),
# where any class but 0 is in the set of the pixels of the foreground.


def _overlap(outputs_NGHW: Tensor, label_NHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many are in both sets, in ours and in the true one, (N, G) each."""
    ours, true = outputs_NGHW.flatten(2) > 0, (label_NHW.flatten(1) > 0)[:, None]
    return (ours & true).sum(2), ours.sum(2), true.sum(2).expand(outputs_NGHW.shape[:2])


@built_in("f1", scope="mask")
def f1(outputs_NGHW: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
    """2 |A ∩ B| / (|A| + |B|); 1 for an empty set where nothing is true."""
    both_NG, ours_NG, true_NG = _overlap(outputs_NGHW, label)
    size_NG = ours_NG + true_NG
    return (2 * both_NG / size_NG.clamp(min=1)).where(size_NG > 0, 1.0)


@built_in("jaccard", scope="mask")
def jaccard(outputs_NGHW: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
    """|A ∩ B| / |A ∪ B|; 1 for an empty set where nothing is true."""
    both_NG, ours_NG, true_NG = _overlap(outputs_NGHW, label)
    either_NG = ours_NG + true_NG - both_NG
    return (both_NG / either_NG.clamp(min=1)).where(either_NG > 0, 1.0)


@dataclass(eq=False)
class TableReward:
    """The entry [true label, output] of a table (K, K): rows are truth, columns are answers.

    The table moves to the outputs' device at a call, and stays there for the next.
    """

    table_KK: Tensor

    def __call__(self, outputs_NG: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
        self.table_KK = self.table_KK.to(outputs_NG.device)
        return self.table_KK[label[:, None], outputs_NG]


@dataclass(eq=False)
class HierarchyReward:
    """1 for the true class, `partial` for another class of its superclass, else 0.

    `superclass_K` holds the superclass number of each class; it moves to the outputs' device at a
    call, and stays there for the next.
    """

    superclass_K: Tensor
    partial: float = 0.5

    def __call__(self, outputs_NG: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
        self.superclass_K = self.superclass_K.to(outputs_NG.device)
        related_NG = self.superclass_K[outputs_NG] == self.superclass_K[label][:, None]
        return torch.where(outputs_NG == label[:, None], 1.0, self.partial * related_NG.float())


@dataclass(eq=False)
class ClassCredit:
    """What the true class earns, by class, as output of an image or pixel of that class; else 0.

    `credit_K` moves to the outputs' device at a call, and stays there for the next.
    """

    credit_K: Tensor

    def __call__(self, outputs_NG: Tensor, /, *, label: Tensor, **_: Any) -> Tensor:
        self.credit_K = self.credit_K.to(outputs_NG.device)
        return torch.where(outputs_NG == label[:, None], self.credit_K[label][:, None], 0.0)

    def shape(self, label_N1: Tensor, true_N1: Tensor, n_classes: int) -> Shape:
        return Shape(peak=self.credit_K.to(label_N1.device)[label_N1])


@dataclass(frozen=True)
class TopK:
    """1 for the true label; for a wrong output, `partial` if the truth was a near miss, else 0.

    A near miss: the true label is among the old policy's k most probable classes. Every wrong
    output of an image earns the same, so inside one group this moves only the level of the wrong
    answers; over the batch, a near miss costs less than a blunder.
    """

    k: int
    partial: float = 0.5

    def __call__(
        self, outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any
    ) -> Tensor:
        near_N = (probabilities.topk(self.k, dim=1).indices == label[:, None]).any(dim=1)
        right_NG = (outputs_NG == label[:, None]).float()
        return torch.maximum(right_NG, self.partial * near_N[:, None].float())


NO_ANSWER = "no answer"
"""The class that stands last where a model may abstain; no image has it."""
ABSTAIN = "abstain"


@dataclass(frozen=True)
class Abstain:
    """`pay` for the last class, which is `NO_ANSWER`; 0 for others, which other rewards pay.

    Beside `hard`, the best answer is none where the likeliest class has a probability below `pay`
    (Chow 1970): a rule that `--decide threshold:T` follows without training.
    """

    pay: float

    def __call__(self, outputs_NG: Tensor, /, *, classes: Sequence[str], **_: Any) -> Tensor:
        return self.pay * (outputs_NG == len(classes) - 1).float()


def abstain(argument: str, classes: Sequence[str]) -> Abstain:
    """`Abstain` from the text of what it pays.

    Raises:
        UserError: it is no finite number, or there is no such output.
    """
    try:
        pay = float(argument)
    except ValueError:
        pay = math.nan
    if not math.isfinite(pay):
        raise UserError(
            f'Reward "abstain:{argument}": write what no answer earns beside 1 for a right one, '
            'for example "abstain:0.6".'
        )
    if classes[-1] != NO_ANSWER:
        raise UserError('Reward "abstain" is of whole images: of visgrpo clip and representation.')
    return Abstain(pay)


@dataclass(frozen=True)
class AnyOf:
    """How likely it is that the truth is in a set of k labels drawn from the policy, 1 - (1 - p)^k.

    p is the old policy's probability of the truth. The right label earns the slope of this score,
    k (1 - p)^(k-1), more than the wrong ones, and all labels of an image as much besides as makes
    their mean under the policy the score itself, which no advantage in a group sees. So

        Σ_j π_j ∇log π_j · r_j = k (1 - p)^(k-1) ∇p = ∇[1 - (1 - p)^k]

    is the exact gradient of pass@k (Walder & Karkhanis 2025, arXiv 2505.15201): an image pulls no
    more once its truth is all but sure to be in the set. k = 1 is `hard`.
    """

    k: int

    def shape(self, label_N1: Tensor, true_N1: Tensor, n_classes: int) -> Shape:
        missed_N1 = 1 - true_N1
        slope_N1 = self.k * missed_N1 ** (self.k - 1)
        return Shape(1 - missed_N1**self.k - slope_N1 * true_N1, slope_N1)

    def __call__(
        self, outputs_NG: Tensor, /, *, label: Tensor, probabilities: Tensor, **_: Any
    ) -> Tensor:
        true_N1 = probabilities.gather(1, label[:, None]).float()
        level, peak, _slope = self.shape(label[:, None], true_N1, probabilities.shape[1])
        return level + peak * (outputs_NG == label[:, None])


def any_of(argument: str, classes: Sequence[str]) -> AnyOf:
    """`AnyOf` from the text of k.

    Raises:
        UserError: k is not a whole number above 0.
    """
    if not (argument.isdecimal() and 0 < int(argument) <= MOST_DRAWN):
        raise UserError(
            f'Reward "any-of:{argument}": k must be a whole number from 1 to {MOST_DRAWN:,}, the '
            "labels in a set."
        )
    return AnyOf(int(argument))


def top_k(argument: str, classes: Sequence[str]) -> TopK:
    """`TopK` from the text of k.

    Raises:
        UserError: k is not a whole number from 1 to the number of classes.
    """
    if not (argument.isdecimal() and 1 <= int(argument) <= len(classes)):
        raise UserError(
            f'Reward "top-k:{argument}": k must be a whole number from 1 to {len(classes)}, '
            "the number of classes."
        )
    return TopK(int(argument))


MOST_DRAWN = 1000  # of a set
WITH_ARGUMENT: Mapping[str, tuple[str, Callable[[str, Sequence[str]], LabelReward]]] = {
    ABSTAIN: ("0.6", abstain),
    "any-of": ("5", any_of),
    # Minus what an answer costs, given the truth: a cost of 0 is 0, not -0.
    "cost": ("costs.csv", lambda path, classes: TableReward(0 - read_table(path, classes))),
    "credit": ("credit.yaml", lambda path, classes: ClassCredit(read_credit(path, classes))),
    "graded": ("credit.csv", lambda path, classes: TableReward(read_table(path, classes))),
    "hierarchy": ("tree.yaml", lambda path, names: HierarchyReward(read_hierarchy(path, names))),
    "top-k": ("5", top_k),
}
"""The others: an example of what follows their colon, and what makes a reward of it."""


@dataclass(frozen=True)
class CountReward:
    """A score of a whole mask, or batch, that is made of counts: no single label earns it.

    What a label of one pixel or image changes of it, methods find out that look at all of them;
    `numbers` are those of `visgrpo.objectives.counts.CountScore`.
    """

    numbers: tuple[float, float, float]

    def __call__(self, outputs_NG: Tensor, /, **_: Any) -> Tensor:
        raise TypeError("A score of counts pays no label by itself.")


BELIEVED = "agreement"
"""The reward that a frozen judge gives: made where there are models to ask."""

COUNTED = ("miou", "dice", "macro-f1", "fbeta")
"""The rewards that are scores of counts; macro-F1 is Dice by the name that it has for images."""


def count_reward(name: str, argument: str) -> CountReward:
    """Return a score of counts, one of `COUNTED`.

    Raises:
        UserError: an argument is missing, superfluous or wrong.
    """
    if name == "fbeta":
        try:
            beta = float(argument)
        except ValueError:
            beta = math.nan
        if not 0 < beta < math.inf:
            raise UserError(
                f'Reward "fbeta:{argument}": write for example "fbeta:2", which counts a missed '
                "pixel for more than a wrong one; 1 is Dice."
            )
        return CountReward((1 + beta**2, beta**2, 0.0))
    if argument:
        raise UserError(f'Reward "{name}" takes no argument: write "{name}".')
    return CountReward((1.0, 1.0, -1.0) if name == "miou" else (2.0, 1.0, 0.0))


LABEL_REWARDS: tuple[str, ...] = (*PLAIN, *WITH_ARGUMENT, *COUNTED)
"""Names of the built-in rewards."""


def label_reward(name: str, argument: str, classes: Sequence[str]) -> LabelReward:
    """Return the built-in reward `name`, one of `LABEL_REWARDS`.

    Args:
        name: the reward.
        argument: what follows the colon in "cost:costs.csv"; empty when nothing does.
        classes: class names, position = class id.

    Raises:
        UserError: an argument is missing, superfluous or wrong.
    """
    if name in COUNTED:
        return count_reward(name, argument)
    if name in PLAIN:
        if argument:
            raise UserError(f'Reward "{name}" takes no argument: write "{name}".')
        return PLAIN[name]
    example, build = WITH_ARGUMENT[name]
    if not argument:
        raise UserError(f'Reward "{name}" needs an argument: write for example "{name}:{example}".')
    return build(argument, classes)
