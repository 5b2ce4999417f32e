"""GRPO whose group is the class set, for every image or pixel of a batch; cross-entropy beside it.

GRPO-RM (arXiv 2511.15256) is this with the ``uniform`` estimator, the rewards ``hard`` and
``uniformity``, advantages divided by the group's standard deviation, ε = 0.2 and β = 0. Then, at
π = π_old and with a weight c on ``hard``, the logit gradient of an image is

    -A_k / K,   A = (c·1[k = y] - p_k - mean) / std,

the gradient of cross-entropy with label smoothing 1 - c, brought to length 1/√K: the direction is
that of cross-entropy, and what is new is that every image pulls equally hard. Without the division
(``scale="none"``) and with c = 1 it *is* the gradient of cross-entropy, divided by K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.data.preprocess import majority_labels
from visgrpo.errors import UserError
from visgrpo.methods import closed_form
from visgrpo.methods.closed_form import Part, Piece
from visgrpo.methods.counts import INPUT, Counting, Credit
from visgrpo.methods.groups import policy_metrics
from visgrpo.methods.labels import LabelGRPO, Model
from visgrpo.methods.method import LossResult, Metrics, WithoutGroups
from visgrpo.objectives.counts import Counts
from visgrpo.objectives.label_losses import mean_loss
from visgrpo.objectives.losses import gaussian_potential

NUMBERS_AT_ONCE = 2**20
"""Logits worked on at one time: 4 MiB in each of the tensors between logits and loss."""
IN_CACHE = 2**18
"""The same where the gradient is known, and what lies between stays in the processor's cache."""
FEW_CLASSES = 64


# How the output of a model asks for decisions: one for each image, or one for each pixel. A view
# turns logits and labels into rows, each of which has its own group of classes. The policy and the
# supervised baseline see rows alone, so images and pixels share both.

DecideAt = Literal["patch", "pixel"]
Upsample = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Rows:
    """R decisions of N inputs; of all places of masks (N, P) in the place of R.

    Attributes:
        logits_RK: with the gradient of the logits they were made from.
        labels_R: true class ids, int64; 0 at places without a label.
        inputs_R: which of the N inputs a row belongs to, int64.
        weights_R: how much each row counts, so that the mean over rows of value × weight is the
            mean over inputs of their own means; None where that is the plain mean. 0 at places
            without a label.
        decided: how many of the N inputs have a row.
        one_per_input: whether row n is input n.
    """

    logits_RK: Tensor
    labels_R: Tensor
    inputs_R: Tensor
    weights_R: Tensor | None
    decided: int
    one_per_input: bool = False

    def weights(self, these: Piece) -> Tensor | None:
        return None if self.weights_R is None else self.weights_R[these]


class View(Protocol):
    """What a decision is about."""

    def rows(self, logits: Tensor, labels: Tensor, *, whole: bool = False) -> Rows:
        """Return the rows of some inputs.

        Args:
            whole: take all places as they lie in memory, which copies nothing. Those without a
                label weigh 0, and are no use to what asks for more than a row's own numbers.
        """

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        """Return how many logits the rows of one input hold."""


@dataclass(frozen=True)
class ImageView:
    """One class for each image: logits (N, K), labels (N,)."""

    def rows(self, logits: Tensor, labels: Tensor, *, whole: bool = False) -> Rows:
        inputs_R = torch.arange(len(labels), device=labels.device)
        return Rows(logits, labels, inputs_R, None, len(labels), one_per_input=True)

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        return logits.shape[1]


@dataclass(frozen=True)
class PixelView:
    """One class for each labelled pixel, or for each patch: logits (N, h, w, K), masks (N, H, W).

    Every *image* counts the same, however many of its pixels have labels: the loss is the mean over
    images of the mean over their pixels, and so does not depend on how a batch is cut into pieces.

    Attributes:
        stride: pixels of a patch on a side; h = ⌈H / stride⌉, and so for w.
        ignore_index: the mask's value of pixels without a label.
        upsample: brings logits of the patches to pixels of the given height and width.
        decide_at: ``patch``, where the most frequent label of its pixels is the truth; or
            ``pixel``, on upsampled logits.
    """

    stride: int
    ignore_index: int
    upsample: Upsample
    decide_at: DecideAt = "patch"

    def rows(self, logits: Tensor, labels: Tensor, *, whole: bool = False) -> Rows:
        n_inputs = len(logits)
        logits, labels = self.places(logits, labels)
        labels_NP = labels.flatten(1)
        labelled_NP = labels_NP != self.ignore_index
        counts_N = labelled_NP.sum(dim=1)
        total, decided = int(counts_N.sum()), int((counts_N > 0).sum())
        inputs_NP = torch.arange(n_inputs, device=labels.device)[:, None].expand_as(labels_NP)
        everywhere = total == labels_NP.numel()
        if whole:
            weights_NP = None
            if not everywhere:
                each_N = labels_NP.shape[1] / counts_N.clamp(min=1).float()
                weights_NP = labelled_NP * each_N[:, None]
                labels_NP = labels_NP.where(labelled_NP, 0)
            return Rows(_by_class(logits), labels_NP, inputs_NP, weights_NP, decided)

        def chosen(values_NP: Tensor) -> Tensor:
            return values_NP.flatten(0, 1) if everywhere else values_NP[labelled_NP]

        inputs_R = chosen(inputs_NP)
        equal = total > 0 and bool((counts_N == counts_N[0]).all())
        weights_N = total / (n_inputs * counts_N.clamp(min=1).float())
        return Rows(
            chosen(logits.flatten(1, 2)),
            chosen(labels_NP),
            inputs_R,
            None if equal else weights_N[inputs_R],
            decided,
        )

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, H, W, K) and labels (N, H, W) of the patches, or of the pixels."""
        if self.decide_at == "pixel":
            return self.upsample(logits, labels.shape[1:]), labels
        classes = logits.shape[-1]
        return logits, majority_labels(labels, self.stride, self.ignore_index, classes)

    def numbers_of_one(self, logits: Tensor, labels: Tensor) -> int:
        places = logits[0, ..., 0] if self.decide_at == "patch" else labels[0]
        return places.numel() * logits.shape[-1]


def _by_class(logits_NHWK: Tensor) -> Tensor:
    """Return logits (N, P, K) that lie class by class in memory if classes are few.

    So lie upsampled masks anyway; sums over a few classes that are neighbours are slow.
    """
    if logits_NHWK.stride(-1) == 1 and logits_NHWK.shape[-1] < FEW_CLASSES:
        logits_NHWK = logits_NHWK.movedim(-1, 1).contiguous().movedim(1, -1)
    return logits_NHWK.flatten(1, 2)


class ModelWithFeatures(Protocol):
    """A model that gives the features its logits are made from, (N, D), when asked to."""

    def __call__(self, inputs: Tensor, /, with_features: bool = ...) -> Any: ...


@dataclass(frozen=True)
class OldPolicy:
    """What the old policy said of N inputs; rewards and advantages are made from it when needed.

    One tensor is kept for each batch, whatever the number of classes and rewards.

    Attributes:
        answers: the batch, with the old policy's logits in the place of its inputs.
        step: which batch of the run this is.
        credit: what scores of counts pay; None without any.
    """

    answers: Batch
    step: int
    credit: Credit | None = None

    @property
    def logits(self) -> Tensor:
        """Of the old policy, without gradient."""
        return self.answers.inputs

    def select(self, rows: Tensor) -> OldPolicy:
        """Return the part of some inputs, for a minibatch."""
        credit = self.credit and self.credit.select(rows)
        return OldPolicy(self.answers.select(rows), self.step, credit)


@dataclass(frozen=True)
class ClassSetGRPO:
    """GRPO over all classes, or a subset of them, at every image or pixel.

    Attributes:
        policy: rewards, advantages and loss of rows.
        view: what a row is.
        feature_uniformity: weight of the Gaussian potential of the features, see
            :mod:`visgrpo.objectives.losses`; it is taken over the batch as a whole.
        counting: makes payments of rewards that are scores of counts.

    Raises:
        UserError: for groups that are drawn or compared with each other: what is done for some
            inputs must not depend on the rest of the batch; and for scores of counts without the
            exact estimator.
    """

    policy: LabelGRPO
    view: View = ImageView()
    feature_uniformity: float = 0.0
    counting: Counting | None = None

    def __post_init__(self) -> None:
        if self.counting is not None and self.policy.estimator != "exact":
            raise UserError(
                f'Reward "{next(iter(self.policy.rewards.counted))}" takes --estimator exact: '
                "classes weighted by the policy are what its counts are expected under."
            )
        if self.policy.estimator == "sampled" or not self.policy.groups_stand_alone:
            raise UserError(
                "Groups that are the class set take the uniform or the exact estimator, and "
                "advantages over each group alone; LabelGRPO does the rest."
            )

    @torch.no_grad()
    def rollout(self, old_model: Model, batch: Batch, step: int, *, chunk: int) -> OldPolicy:
        """Run the old policy over this process's share of a batch, ``chunk`` inputs at a time."""
        logits = torch.cat([old_model(inputs) for inputs in batch.inputs.split(chunk)])
        return OldPolicy(replace(batch, inputs=logits), step, self._credit(logits, batch))

    def loss(
        self, model: ModelWithFeatures, batch: Batch, groups: OldPolicy | None, step: int
    ) -> LossResult:
        """Return the loss of a batch. Without an old policy this same forward pass is it."""
        if self.feature_uniformity:
            logits, features_ND = model(batch.inputs, with_features=True)
        else:
            logits = model(batch.inputs)
        credit = groups.credit if groups is not None else self._credit(logits.detach(), batch)
        policy, decided = self._paid(credit), list[int]()

        def loss_of(some_logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
            whole = groups is None and closed_form.is_known(policy, batch)
            whole = whole and closed_form.has_shapes(policy)
            now = self.view.rows(some_logits, batch.labels_N[some], whole=whole)
            decided.append(now.decided)
            if not now.decided:
                return _nothing_to_decide(some_logits)
            rows = _batch_of_rows(batch, some, now, paid=credit is not None)
            if groups is not None:
                old = self.view.rows(groups.logits[some], batch.labels_N[some])
                return _later_pass(policy, now, old.logits_RK, rows, step)
            return _first_pass(policy, now, rows, step)

        loss, metrics = in_chunks(loss_of, logits, inputs_at_once(self.view, logits, batch))
        metrics, weights = _over_decided(metrics, sum(decided), len(batch))
        if self.feature_uniformity:
            potential = gaussian_potential(features_ND)
            metrics["feature_uniformity"] = potential.detach()
            loss = loss + self.feature_uniformity * potential
        if credit is not None and metrics and batch.logged:
            metrics = credit.logged(metrics, policy.rewards)
        old = groups or OldPolicy(replace(batch, inputs=logits.detach()), step, credit)
        return LossResult(loss, metrics, old, weights)

    @torch.no_grad()
    def _credit(self, logits: Tensor, batch: Batch) -> Credit | None:
        """Return what scores of counts pay a policy with these logits; None without such scores."""
        if self.counting is None:
            return None
        parts, decisions = [], []
        at_once = inputs_at_once(self.view, logits, batch)
        for some, labels in zip(logits.split(at_once), batch.labels_N.split(at_once), strict=True):
            rows = self.view.rows(some, labels)
            p_RK = self.policy.log_probs(rows.logits_RK).exp()
            parts.append(Counts.of(p_RK, rows.labels_R, rows.inputs_R, len(some)).stacked())
            decisions.append(torch.bincount(rows.inputs_R, minlength=len(some)))
        return self.counting.credit(Counts(*torch.cat(parts, dim=1)), torch.cat(decisions))

    def _paid(self, credit: Credit | None) -> LabelGRPO:
        """Return the policy whose rewards are what is paid, in the place of scores of counts."""
        if credit is None:
            return self.policy
        return replace(self.policy, rewards=self.policy.rewards.replaced(credit.paid))

    def samples(self, groups: OldPolicy, rows: int) -> list[dict[str, Any]]:
        """Return the first groups as plain data; pixels are shown as pictures elsewhere."""
        if not isinstance(self.view, ImageView):
            return []
        first = groups.select(torch.arange(min(rows, len(groups.answers))))
        policy, answers = self._paid(first.credit), first.answers
        if first.credit is not None:
            columns: dict[str, Any] = dict(answers.columns)
            columns[INPUT] = torch.arange(len(answers), device=answers.labels_N.device)
            answers = replace(answers, columns=columns)
        return policy.samples(policy.groups(first.logits, answers, groups.step), rows)


def _first_pass(policy: LabelGRPO, now: Rows, rows: Batch, step: int) -> tuple[Tensor, Metrics]:
    if closed_form.is_known(policy, rows):

        def part(
            logits_RK: Tensor, these: Piece, gradient_RK: Tensor, share: float
        ) -> tuple[Tensor, Metrics]:
            some = _rows(rows, these), step, now.weights(these)
            return closed_form.first_pass(policy, logits_RK, *some, gradient_RK, share)

        return without_graph(part, now.logits_RK, IN_CACHE)

    def loss_of(logits_RK: Tensor, these: slice) -> tuple[Tensor, Metrics]:
        first = policy.first_pass(logits_RK, _rows(rows, these), step, now.weights(these))
        return first.loss, first.metrics

    return in_chunks(loss_of, now.logits_RK, rows_at_once(now))


def _later_pass(
    policy: LabelGRPO, now: Rows, old_RK: Tensor, rows: Batch, step: int
) -> tuple[Tensor, Metrics]:
    def loss_of(logits_RK: Tensor, these: slice) -> tuple[Tensor, Metrics]:
        some = _rows(rows, these), step, now.weights(these)
        return policy.loss_of(logits_RK, policy.groups(old_RK[these], *some))

    return in_chunks(loss_of, now.logits_RK, rows_at_once(now))


@dataclass(frozen=True)
class ClassSetSupervised(WithoutGroups):
    """Learning from the true class at every image or pixel, weighted as in `ClassSetGRPO`.

    Attributes:
        view: what a row is.
        losses: whose sum is minimised, by the names of `visgrpo.objectives.label_losses`; those of
            sets are of the rows of this process's batch together, or of each image.
        shares_K: of the classes in training; None where no loss asks.
        each_image: whether the losses of sets are of each image.
    """

    view: View = ImageView()
    losses: tuple[str, ...] = ("ce",)
    shares_K: Tensor | None = None
    each_image: bool = False

    def loss(self, model: Model, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the mean over images of the loss of their rows, and losses of sets."""
        if self.losses == ("ce",):
            return self._cross_entropy(model, batch)
        logits = model(batch.inputs)
        rows = self.view.rows(logits.float(), batch.labels_N)
        if not len(rows.labels_R):
            return LossResult(*_nothing_to_decide(logits))
        loss = mean_loss(
            self.losses,
            rows.logits_RK,
            rows.labels_R,
            self.shares_K,
            weights_R=rows.weights_R,
            scopes_R=rows.inputs_R if self.each_image else None,
            scopes=len(batch) if self.each_image else 1,
        )
        log_probs_RK = rows.logits_RK.detach().log_softmax(dim=1)
        metrics = policy_metrics(log_probs_RK, rows.labels_R, rows.weights_R)
        metrics, weights = _over_decided(metrics, rows.decided, len(batch))
        return LossResult(loss, metrics, weights=weights)

    def _cross_entropy(self, model: Model, batch: Batch) -> LossResult:
        logits = model(batch.inputs)
        decided: list[int] = []

        def loss_of(some_logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
            rows = self.view.rows(some_logits, batch.labels_N[some], whole=True)
            decided.append(rows.decided)
            if not rows.decided:
                return _nothing_to_decide(some_logits)

            def part(
                logits_RK: Tensor, these: Piece, gradient_RK: Tensor, share: float
            ) -> tuple[Tensor, Metrics]:
                some_rows, weights_R = _rows(of_rows, these), rows.weights(these)
                return closed_form.cross_entropy(
                    logits_RK, some_rows, weights_R, gradient_RK, share
                )

            of_rows = _batch_of_rows(batch, some, rows)
            return without_graph(part, rows.logits_RK, IN_CACHE)

        loss, metrics = in_chunks(loss_of, logits, inputs_at_once(self.view, logits, batch))
        metrics, weights = _over_decided(metrics, sum(decided), len(batch))
        return LossResult(loss, metrics, weights=weights)


def _over_decided(metrics: Metrics, decided: int, inputs: int) -> tuple[Metrics, Metrics]:
    """Return means over the inputs that have a row, and their weights, of means over all inputs."""
    if decided in (0, inputs):
        return (metrics if decided else {}), {}
    share = decided / inputs
    means = {name: value / share for name, value in metrics.items()}
    return means, {name: torch.full_like(value, share) for name, value in means.items()}


def inputs_at_once(view: View, logits: Tensor, batch: Batch) -> int:
    """Return how many inputs a chunk takes, one at least."""
    return max(1, NUMBERS_AT_ONCE // view.numbers_of_one(logits, batch.labels_N))


def rows_at_once(rows: Rows) -> int:
    """Return how many rows a chunk takes, one at least: an image has many pixels."""
    return max(1, NUMBERS_AT_ONCE // rows.logits_RK.shape[1])


def _rows(batch: Batch, these: Any) -> Batch:
    """Some rows of a batch, without copying them."""
    return Batch(
        batch.indices_N[these],
        batch.inputs[these],
        batch.labels_N[these],
        {name: column[these] for name, column in batch.columns.items()},
        None if batch.positions_N is None else batch.positions_N[these],
        logged=batch.logged,
    )


def _batch_of_rows(batch: Batch, some: slice, rows: Rows, *, paid: bool = False) -> Batch:
    """The rows of some inputs as a batch of their own; other columns belong to whole images.

    Args:
        paid: whether rows say which input of the whole batch they belong to.
    """
    columns: dict[str, Any] = {}
    positions_N = None
    if rows.one_per_input:
        columns = {name: column[some] for name, column in batch.columns.items()}
        positions_N = None if batch.positions_N is None else batch.positions_N[some]
    if paid:
        columns[INPUT] = rows.inputs_R + some.start
    indices_R = batch.indices_N[some]
    if rows.inputs_R.ndim == 2:
        indices_R = indices_R[:, None].expand_as(rows.inputs_R)
    elif not rows.one_per_input:
        indices_R = indices_R[rows.inputs_R]
    return Batch(
        indices_R, rows.logits_RK, rows.labels_R, columns, positions_N, logged=batch.logged
    )


def _nothing_to_decide(logits: Tensor) -> tuple[Tensor, Metrics]:
    """Return the loss of images none of whose pixels has a label: 0, with a gradient of 0."""
    return logits.sum() * 0.0, {}


LossOfSome = Callable[[Tensor, slice], tuple[Tensor, Metrics]]


def in_chunks(loss_of: LossOfSome, logits: Tensor, inputs_at_once: int) -> tuple[Tensor, Metrics]:
    """Return the mean loss over N inputs, and metrics, from a loss of some inputs.

    The loss of one chunk is differentiated before the next is begun. Beside the logits only their
    gradient is ever whole; the tensors between them exist for one chunk, and stay in the cache of
    the processor. Value and gradient are those of the loss of all inputs at once, up to rounding.

    Args:
        loss_of: takes the logits of some inputs (n, …) and which these are; returns the *mean* loss
            of those inputs, which must not depend on other inputs, and metrics that are means too.
        logits: (N, …), with gradient.
        inputs_at_once: inputs in a chunk.
    """
    if len(logits) <= inputs_at_once:
        return loss_of(logits, slice(0, len(logits)))

    def part(
        some_logits: Tensor, some: slice, gradient: Tensor, share: float
    ) -> tuple[Tensor, Metrics]:
        with torch.enable_grad():
            leaf = some_logits.requires_grad_()
            loss, metrics = loss_of(leaf, some)
            gradient[:] = torch.autograd.grad(loss * share, leaf)[0]
        return loss.detach() * share, {name: value * share for name, value in metrics.items()}

    return without_graph(part, logits, inputs_at_once * logits[0].numel())


def without_graph(part: Part, logits: Tensor, numbers_at_once: int) -> tuple[Tensor, Metrics]:
    """Return the mean loss over rows, and metrics, from parts that know their gradient.

    Args:
        part: see `visgrpo.methods.closed_form.Part`; it is given float32 and writes float32.
        logits: (R, K) or (N, P, K), or any (N, …) whose parts are some N; with gradient.
        numbers_at_once: logits of one part, of one row at least.
    """
    gradient = torch.empty_like(logits)
    parts: list[Metrics] = []
    with torch.no_grad():
        for some in _pieces(logits, min(numbers_at_once, NUMBERS_AT_ONCE)):
            here = gradient[some].float()  # itself, where it is float32 already
            share = here.numel() / logits.numel()
            loss, metrics = part(logits[some].detach().float(), some, here, share)
            if here.dtype != gradient.dtype:
                gradient[some] = here
            parts.append({"loss": loss, **metrics})
    names = dict.fromkeys(name for metrics in parts for name in metrics)
    zero = torch.zeros((), device=logits.device)
    sums = {
        name: torch.stack([metrics.get(name, zero) for metrics in parts]).sum() for name in names
    }
    return _WithGradient.apply(logits, sums.pop("loss"), gradient), sums


def _pieces(logits: Tensor, numbers_at_once: int) -> Iterator[Piece]:
    """Yield pieces of some inputs; or of some places of one, where one has too many numbers."""
    inputs = max(1, numbers_at_once // logits[0].numel())
    places = logits.shape[1]
    if logits.ndim == 3:
        places = max(1, numbers_at_once // logits.shape[2])
    for first in range(0, len(logits), inputs):
        some = slice(first, first + inputs)
        if logits.ndim != 3 or places >= logits.shape[1]:
            yield some
        else:
            for place in range(0, logits.shape[1], places):
                yield some, slice(place, place + places)


class _WithGradient(torch.autograd.Function):
    """A number whose gradient is known already. It can be gone through backwards once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("A loss made in chunks has no second backward pass.")
        return gradient.mul_(upstream), None, None  # in place: it can be as large as the logits
