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

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.methods.groups import mean_over_inputs, policy_metrics
from visgrpo.methods.labels import LabelGRPO, Model
from visgrpo.methods.method import LossResult, Metrics, WithoutGroups
from visgrpo.methods.views import ImageView, Rows, View
from visgrpo.objectives.losses import gaussian_potential

NUMBERS_AT_ONCE = 2**20
"""Logits worked on at one time: 4 MiB in each of the tensors between logits and loss."""


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
    """

    answers: Batch
    step: int

    @property
    def logits(self) -> Tensor:
        """Of the old policy, without gradient."""
        return self.answers.inputs

    def select(self, rows: Tensor) -> OldPolicy:
        """Return the part of some inputs, for a minibatch."""
        return OldPolicy(self.answers.select(rows), self.step)


@dataclass(frozen=True)
class ClassSetGRPO:
    """GRPO over all classes, or a subset of them, at every image or pixel.

    Attributes:
        policy: rewards, advantages and loss of rows.
        view: what a row is.
        feature_uniformity: weight of the Gaussian potential of the features, see
            :mod:`visgrpo.objectives.losses`; it is taken over the batch as a whole.

    Raises:
        UserError: for groups that are drawn or compared with each other: what is done for some
            inputs must not depend on the rest of the batch.
    """

    policy: LabelGRPO
    view: View = ImageView()  # noqa: RUF009 (it has no state)
    feature_uniformity: float = 0.0

    def __post_init__(self) -> None:
        if self.policy.estimator == "sampled" or not self.policy.groups_stand_alone:
            raise UserError(
                "Groups that are the class set take the uniform or the exact estimator, and "
                "advantages over each group alone; LabelGRPO does the rest."
            )

    @torch.no_grad()
    def rollout(self, old_model: Model, batch: Batch, step: int, *, chunk: int) -> OldPolicy:
        """Run the old policy over this process's share of a batch, ``chunk`` inputs at a time."""
        logits = torch.cat([old_model(inputs) for inputs in batch.inputs.split(chunk)])
        return OldPolicy(replace(batch, inputs=logits), step)

    def loss(
        self, model: ModelWithFeatures, batch: Batch, groups: OldPolicy | None, step: int
    ) -> LossResult:
        """Return the loss of a batch. Without an old policy this same forward pass is it."""
        if self.feature_uniformity:
            logits, features_ND = model(batch.inputs, with_features=True)
        else:
            logits = model(batch.inputs)

        def loss_of(some_logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
            now = self.view.rows(some_logits, batch.labels_N[some])
            if not len(now.labels_R):
                return _nothing_to_decide(some_logits)
            old_RK = None
            if groups is not None:
                old_RK = self.view.rows(groups.logits[some], batch.labels_N[some]).logits_RK
            rows = _batch_of_rows(batch, some, now)

            def loss_of_rows(logits_RK: Tensor, these: slice) -> tuple[Tensor, Metrics]:
                part = _rows(rows, these)
                weights_R = None if now.weights_R is None else now.weights_R[these]
                if old_RK is None:
                    first = self.policy.first_pass(logits_RK, part, step, weights_R)
                    return first.loss, first.metrics
                its_groups = self.policy.groups(old_RK[these], part, step, weights_R)
                return self.policy.loss_of(logits_RK, its_groups)

            return in_chunks(loss_of_rows, now.logits_RK, rows_at_once(now))

        loss, metrics = in_chunks(loss_of, logits, inputs_at_once(self.view, logits, batch))
        if self.feature_uniformity:
            potential = gaussian_potential(features_ND)
            metrics["feature_uniformity"] = potential.detach()
            loss = loss + self.feature_uniformity * potential
        old = groups or OldPolicy(replace(batch, inputs=logits.detach()), step)
        return LossResult(loss, metrics, old)

    def samples(self, groups: OldPolicy, rows: int) -> list[dict[str, Any]]:
        """Return the first groups as plain data; pixels are shown as pictures elsewhere."""
        if not isinstance(self.view, ImageView):
            return []
        first = groups.select(torch.arange(min(rows, len(groups.answers))))
        return self.policy.samples(
            self.policy.groups(first.logits, first.answers, groups.step), rows
        )


@dataclass(frozen=True)
class ClassSetSupervised(WithoutGroups):
    """Cross-entropy of the true class at every image or pixel, weighted as in `ClassSetGRPO`."""

    view: View = ImageView()  # noqa: RUF009 (it has no state)

    def loss(self, model: Model, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the mean over images of the cross-entropy of their rows."""
        logits = model(batch.inputs)

        def loss_of(some_logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
            rows = self.view.rows(some_logits, batch.labels_N[some])
            if not len(rows.labels_R):
                return _nothing_to_decide(some_logits)

            def loss_of_rows(logits_RK: Tensor, these: slice) -> tuple[Tensor, Metrics]:
                log_probs_RK = logits_RK.float().log_softmax(dim=-1)
                labels_R = rows.labels_R[these]
                weights_R = None if rows.weights_R is None else rows.weights_R[these]
                nll_R = -log_probs_RK.gather(1, labels_R[:, None])[:, 0]
                metrics = policy_metrics(log_probs_RK.detach(), labels_R, weights_R)
                return mean_over_inputs(nll_R, weights_R), metrics

            return in_chunks(loss_of_rows, rows.logits_RK, rows_at_once(rows))

        loss, metrics = in_chunks(loss_of, logits, inputs_at_once(self.view, logits, batch))
        return LossResult(loss, metrics)


def inputs_at_once(view: View, logits: Tensor, batch: Batch) -> int:
    """Return how many inputs a chunk takes, one at least."""
    return max(1, NUMBERS_AT_ONCE // view.numbers_of_one(logits, batch.labels_N))


def rows_at_once(rows: Rows) -> int:
    """Return how many rows a chunk takes, one at least: an image has many pixels."""
    return max(1, NUMBERS_AT_ONCE // rows.logits_RK.shape[1])


def _rows(batch: Batch, these: slice) -> Batch:
    """Some rows of a batch, without copying them."""
    return Batch(
        batch.indices_N[these],
        batch.inputs[these],
        batch.labels_N[these],
        {name: column[these] for name, column in batch.columns.items()},
        None if batch.positions_N is None else batch.positions_N[these],
    )


def _batch_of_rows(batch: Batch, some: slice, rows: Rows) -> Batch:
    """The rows of some inputs as a batch of their own; other columns belong to whole images."""
    columns: dict[str, list[Any]] = {}
    positions_N = None
    if rows.one_per_input:
        columns = {name: column[some] for name, column in batch.columns.items()}
        positions_N = None if batch.positions_N is None else batch.positions_N[some]
    indices_R = batch.indices_N[some][rows.inputs_R]
    return Batch(indices_R, rows.logits_RK, rows.labels_R, columns, positions_N)


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
    n_inputs = len(logits)
    if n_inputs <= inputs_at_once:
        return loss_of(logits, slice(0, n_inputs))
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    losses = []
    metrics: Metrics = {}
    for start in range(0, n_inputs, inputs_at_once):
        some = slice(start, min(start + inputs_at_once, n_inputs))
        share = (some.stop - some.start) / n_inputs
        with torch.enable_grad():
            leaf = logits[some].detach().requires_grad_()
            loss, its_metrics = loss_of(leaf, some)
            (gradient[some],) = torch.autograd.grad(loss * share, leaf)
        losses.append(loss.detach() * share)
        for name, value in its_metrics.items():
            metrics[name] = metrics.get(name, 0) + value * share
    return _WithGradient.apply(logits, torch.stack(losses).sum(), gradient), metrics


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
