"""A loss on some inputs at a time is the loss of all of them: value, gradient and metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from label_tools import grpo, names
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import (
    ClassSetGRPO,
    ClassSetSupervised,
    ImageView,
    OldPolicy,
    PixelView,
    View,
    in_chunks,
)
from visgrpo.methods.method import Metrics
from visgrpo.training.metrics import MetricMeans

LIMIT = "visgrpo.methods.class_set.NUMBERS_AT_ONCE"
N, K, SIDE = 7, 5, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cubes(logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
    """Mean of (i + 1)·x³, which knows which inputs it was given."""
    factors = torch.arange(1, N + 1)[some, None]
    value = (factors * logits**3).sum(dim=1).mean()
    return value, {"first": logits[:, 0].detach().mean(), "value": value.detach()}


# By itself


@pytest.mark.parametrize("inputs_at_once", [1, 2, 3, 6, 7, 100])
def test_value_gradient_and_metrics(inputs_at_once: int) -> None:
    logits = random(N, K).requires_grad_()
    loss, metrics = in_chunks(cubes, logits, inputs_at_once)
    expected = (torch.arange(1, N + 1)[:, None] * logits**3).sum() / N
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert metrics["first"].item() == pytest.approx(logits[:, 0].mean().item())
    assert metrics["value"].item() == pytest.approx(expected.item())
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("factor", [65536.0, 0.25])
def test_the_gradient_goes_on_into_the_model_times_what_comes_after(factor: float) -> None:
    """A loss is divided by accumulation passes, scaled up for fp16, and added to others."""
    inputs, weights = random(N, 3), random(3, K, seed=1)
    grads = []
    for inputs_at_once in (N, 2):
        leaf = weights.clone().requires_grad_()
        loss, _ = in_chunks(cubes, inputs @ leaf, inputs_at_once)
        ((loss / 4 + leaf.square().sum()) * factor).backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-4)


def test_without_gradient_there_is_the_value_alone() -> None:
    logits = random(N, K).requires_grad_()
    expected, _ = in_chunks(cubes, logits, N)
    with torch.no_grad():
        loss, _ = in_chunks(cubes, logits, 2)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(expected.item())
    again, _ = in_chunks(cubes, logits, 2)  # and a use without leaves nothing behind
    again.backward()
    assert logits.grad is not None
    detached, _ = in_chunks(cubes, logits.detach(), 2)
    assert not detached.requires_grad


def test_a_chunk_is_done_before_the_next_begins() -> None:
    """Its graph is gone by then: memory does not grow with the batch."""
    alive: list[int] = []
    done: list[int] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            alive.append(len(done))
            return values.clone()

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            done.append(1)
            return upstream

    def watched(logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
        return cubes(Watched.apply(logits), some)

    in_chunks(watched, random(N, K).requires_grad_(), 2)
    assert alive == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_have_a_loss_in_float32(dtype: torch.dtype) -> None:
    """As in one piece; the factor of an fp16 scaler, 65536, would be infinite in fp16."""

    def likelihood(logits: Tensor, some: slice) -> tuple[Tensor, Metrics]:
        return logits.float().log_softmax(-1)[:, 0].mean(), {}

    grads = []
    for inputs_at_once in (N, 2):
        logits = random(N, K).to(dtype).requires_grad_()
        loss, _ = in_chunks(likelihood, logits, inputs_at_once)
        assert loss.dtype == torch.float32
        (loss * 65536.0).backward()
        assert logits.grad is not None
        grads.append(logits.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0.02, atol=1.0)


# Through the class-set methods


def masks(*, unlabelled: bool = False) -> Tensor:
    """Masks with ignored pixels, a different number in each; two images without any label."""
    generator = torch.Generator().manual_seed(3)
    labels_NHW = torch.randint(0, K, (N, SIDE, SIDE), generator=generator)
    ignored = (
        torch.rand(N, SIDE, SIDE, generator=generator) < torch.linspace(0, 0.8, N)[:, None, None]
    )
    labels_NHW[ignored] = 255
    if unlabelled:
        labels_NHW[[1, 4]] = 255
    return labels_NHW


def bilinear(logits_NHWK: Tensor, size: Any) -> Tensor:
    up = F.interpolate(logits_NHWK.permute(0, 3, 1, 2), size=tuple(size), mode="bilinear")
    return up.permute(0, 2, 3, 1)


def case(name: str) -> tuple[View, Tensor, Tensor]:
    """A view with logits and labels; "unlabelled" has images in which nothing is labelled."""
    if name == "image":
        return ImageView(), random(N, K), torch.arange(N) % K
    decide_at: Any = "pixel" if "pixel" in name else "patch"
    view = PixelView(2, 255, bilinear, decide_at)
    return view, random(N, SIDE // 2, SIDE // 2, K), masks(unlabelled="unlabelled" in name)


def outcome(
    method: Any, batch: Batch, logits: Tensor, old: OldPolicy | None
) -> tuple[float, Tensor, dict[str, float]]:
    leaf = logits.clone().requires_grad_()
    result = method.loss(lambda inputs: leaf, batch, old, 3)
    (gradient,) = torch.autograd.grad(result.loss, leaf)
    return result.loss.item(), gradient, {n: v.item() for n, v in result.metrics.items()}


def same(
    whole: tuple[float, Tensor, dict[str, float]],
    parts: tuple[float, Tensor, dict[str, float]],
    *,
    apart_from: tuple[str, ...] = (),
) -> None:
    assert parts[0] == pytest.approx(whole[0], abs=1e-6)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-7)
    assert parts[2].keys() == whole[2].keys()
    for name in whole[2].keys() - set(apart_from):
        assert parts[2][name] == pytest.approx(whole[2][name], abs=1e-5), name


VIEWS = ["image", "patch", "pixel", "patch, unlabelled", "pixel, unlabelled"]
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {"estimator": "uniform", "entropy_weight": 0.1},
    "exact": {"estimator": "exact"},
    "subset": {"estimator": "uniform", "class_subset": 3},
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("stale", [False, True])
def test_class_set_grpo(
    name: str, setting: str, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, logits, labels = case(name)
    batch = Batch(torch.arange(N), logits, labels, {})
    policy = grpo(rewards=("hard", "uniformity"), n_classes=K, **SETTINGS[setting])
    method = ClassSetGRPO(policy, view)
    old = (
        OldPolicy(replace(batch, inputs=logits + 0.5 * random(*logits.shape, seed=5)), 0)
        if stale
        else None
    )
    whole = outcome(method, batch, logits, old)
    assert (whole[2]["clip_ratio/region_mean"] > 0) == stale
    for numbers in (1, 3 * view.numbers_of_one(logits, labels)):
        monkeypatch.setattr(LIMIT, numbers)
        parts = outcome(method, batch, logits, old)
        same(whole, parts)


@pytest.mark.parametrize("name", ["patch, unlabelled", "pixel, unlabelled"])
def test_images_without_labels_count_for_nothing_in_the_log(name: str) -> None:
    """Neither in a batch, nor where they are alone in a piece of it, or on a process."""
    view, logits, labels = case(name)
    whole, parts, labelled = MetricMeans(), MetricMeans(), MetricMeans()
    method = ClassSetGRPO(grpo(rewards=("hard",), n_classes=K, estimator="uniform"), view)
    batch = Batch(torch.arange(N), logits, labels, {})
    some = [n for n in range(N) if n not in (1, 4)]
    pieces = {whole: [list(range(N))], parts: [[n] for n in range(N)], labelled: [some]}
    for means, of_rows in pieces.items():
        for rows in of_rows:
            piece = batch.select(rows)
            result = method.loss(lambda inputs: inputs.requires_grad_(), piece, None, 3)
            means.add(result.metrics, result.weights)
    expected = labelled.take()
    assert expected["ratio_mean"] == pytest.approx(1)
    assert whole.take() == pytest.approx(expected, abs=1e-6)
    assert parts.take() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["patch, unlabelled", "pixel, unlabelled"])
def test_metrics_of_the_clip_with_unlabelled_images(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, logits, labels = case(name)
    batch = Batch(torch.arange(N), logits, labels, {})
    policy = grpo(rewards=("hard", "uniformity"), n_classes=K, estimator="uniform")
    method = ClassSetGRPO(policy, view)
    whole = outcome(method, batch, logits, None)
    monkeypatch.setattr(LIMIT, 1)
    same(whole, outcome(method, batch, logits, None))


@pytest.mark.parametrize("name", VIEWS)
def test_class_set_supervised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view, logits, labels = case(name)
    batch = Batch(torch.arange(N), logits, labels, {})
    whole = outcome(ClassSetSupervised(view), batch, logits, None)
    monkeypatch.setattr(LIMIT, 1)
    same(whole, outcome(ClassSetSupervised(view), batch, logits, None))


@pytest.mark.parametrize("name", VIEWS[:3])
def test_minibatches_of_an_old_policy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes over two parts of a batch, each cut into chunks of one input."""
    view, logits, labels = case(name)
    columns = {"place": [f"row {row}" for row in range(N)]}
    batch = Batch(torch.arange(N), logits, labels, columns)
    method = ClassSetGRPO(
        grpo(rewards=("hard", "uniformity"), n_classes=K, estimator="uniform"), view
    )
    old = method.rollout(lambda inputs: inputs + 0.3, batch, 0, chunk=3)
    torch.testing.assert_close(old.logits, logits + 0.3)
    ends = []
    for numbers in (2**20, 1):
        monkeypatch.setattr(LIMIT, numbers)
        now = logits.clone()
        for _ in range(2):
            for piece in (torch.tensor([5, 0, 2]), torch.tensor([1, 3, 4, 6])):
                part = old.select(piece)
                assert torch.equal(part.answers.labels_N, labels[piece])
                assert part.answers.columns["place"] == [f"row {row}" for row in piece.tolist()]
                now[piece] -= 2 * outcome(method, batch.select(piece), now[piece], part)[1]
        ends.append(now)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    assert (ends[0] - logits).abs().max() > 0.01


def test_columns_and_reference_follow_their_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of the user see the rows of their chunk, and the KL those rows' reference."""
    logits, labels = random(N, K), torch.arange(N) % K
    reference_MK = random(20, K, seed=9).log_softmax(-1)

    class Table:
        def log_probs(self, batch: Batch) -> Tensor:
            return reference_MK[batch.indices_N]

    def priced(outputs_NG: Tensor, price: list[float]) -> Tensor:
        return outputs_NG * torch.tensor(price)[:, None]

    prices = {"price": [0.1 * row for row in range(N)]}
    batch = Batch(torch.arange(N) + 10, logits, labels, prices)
    policy = grpo(
        rewards=(priced, "uniformity"),
        n_classes=K,
        estimator="uniform",
        reference=Table(),
        beta=0.7,
    )
    method = ClassSetGRPO(policy)
    whole = outcome(method, batch, logits, None)
    log_probs_NK = logits.log_softmax(-1)
    kl = (log_probs_NK.exp() * (log_probs_NK - reference_MK[10 : 10 + N])).sum(-1).mean()
    assert whole[2]["kl"] == pytest.approx(kl.item(), rel=1e-4)
    monkeypatch.setattr(LIMIT, 1)
    same(whole, outcome(method, batch, logits, None))
    assert names(K) == policy.classes


def test_a_second_backward_pass_is_refused() -> None:
    """The first one has used the gradient up."""
    logits = random(N, K).requires_grad_()
    loss, _ = in_chunks(lambda some, _: (some.square().mean(), {}), logits, 2)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="no second backward pass"):
        loss.backward()
