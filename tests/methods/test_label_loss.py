"""The loss: against numpy written from the formulas, finite differences, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_tools import LABELS, LOGITS, FixedReference, batch_of, graded, grpo
from torch import Tensor

from visgrpo.methods.labels import LabelGRPO, labelled_cross_entropy
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.objectives import Objective, preset

REFERENCE = torch.tensor([[0.3, 0.1, -0.2, 0.5]] * 4) * torch.tensor([[1.0], [2.0], [-1.0], [3.0]])
# Far enough from the old policy that some ratios leave [0.8, 1.2] on either side.
MOVED = LOGITS + torch.tensor([[0.9, 0.0, -0.6, 0.1]] * 4, dtype=torch.float64)


def numpy_loss(
    logits: np.ndarray,
    old: np.ndarray,
    outputs: np.ndarray,
    *,
    weights: str,
    temperature: float = 1.0,
    beta: float = 0.0,
    alpha: float = 0.0,
    supervised: float = 0.0,
) -> float:
    """The whole objective in plain loops over inputs, from the formulas."""

    def policy(row: np.ndarray, heat: float = temperature) -> np.ndarray:
        unnormalised = np.exp(row / heat)
        return unnormalised / unnormalised.sum()

    total = 0.0
    for n, label in enumerate(LABELS.tolist()):
        new_K, old_K = policy(logits[n]), policy(old[n])
        reference_K = policy(REFERENCE[n].double().numpy())
        chosen = outputs[n]
        rewards = 1.0 / (1.0 + np.abs(chosen - label))
        if weights == "sampled":
            w, spread = np.full(len(chosen), 1 / len(chosen)), rewards.std(ddof=1)
        else:
            w = old_K if weights == "exact" else np.full(len(chosen), 1 / len(chosen))
            spread = math.sqrt((w * (rewards - w @ rewards) ** 2).sum())
        advantage = (rewards - w @ rewards) / (spread + 1e-4)
        if np.ptp(rewards) == 0:
            advantage = np.zeros_like(rewards)
        ratio = new_K[chosen] / old_K[chosen]
        gain = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
        total -= w @ gain
        total += beta * (new_K * np.log(new_K / reference_K)).sum()
        total += alpha * (new_K * np.log(new_K)).sum()
        total -= supervised * math.log(policy(logits[n], 1.0)[label])
    return total / len(logits)


def finite_differences(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    slope = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = 1e-6
        slope[index] = (function(at + shift) - function(at - shift)) / 2e-6
    return slope


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"temperature": 0.7},
        {"beta": 0.3},
        {"alpha": 0.2},
        {"beta": 0.3, "alpha": 0.2, "supervised": 0.5, "temperature": 1.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("estimator", ["sampled", "exact", "uniform"])
def test_loss_and_gradient(estimator: Any, terms: dict[str, float], moved: bool) -> None:
    policy = grpo(
        rewards=[graded],
        estimator=estimator,
        group_size=6,
        temperature=terms.get("temperature", 1.0),
        beta=terms.get("beta", 0.0),
        entropy_weight=terms.get("alpha", 0.0),
        supervised_weight=terms.get("supervised", 0.0),
        reference=FixedReference(REFERENCE),
    )
    groups = policy.groups(LOGITS, batch_of(), step=1)
    # At π = π_old the clip has a corner only for min(), which is smooth there: ρ = 1 is inside.
    at = (MOVED if moved else LOGITS).clone().requires_grad_()
    loss, metrics = policy.loss_of(at, groups)
    loss.backward()

    def independent(logits: np.ndarray) -> float:
        outputs = groups.outputs_NG.numpy()
        return numpy_loss(logits, LOGITS.numpy(), outputs, weights=estimator, **terms)

    point = at.detach().numpy()
    assert loss.item() == pytest.approx(independent(point), rel=1e-4, abs=1e-5)
    assert at.grad is not None
    np.testing.assert_allclose(
        at.grad.numpy(), finite_differences(independent, point), rtol=1e-3, atol=1e-5
    )
    assert (metrics["clip_ratio/region_mean"].item() > 0) == moved


@pytest.mark.parametrize("estimator", ["sampled", "exact", "uniform"])
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "sapo", "reinforce"])
def test_first_pass_has_ratio_one_and_clips_nothing(name: str, estimator: Any) -> None:
    policy = grpo(objective=preset(name), estimator=estimator, temperature=0.8)
    result = policy.loss(lambda inputs: inputs, batch_of(), None, step=0)
    assert result.metrics["ratio_mean"].item() == 1.0
    for side in ("low", "high", "region"):
        assert result.metrics[f"clip_ratio/{side}_mean"].item() == 0.0


def test_loss_without_groups_is_the_loss_on_a_rollout() -> None:
    policy = grpo(rewards=[graded])
    model = torch.nn.Linear(4, 4).double()
    direct = policy.loss(model, batch_of(), None, step=4)
    rolled = policy.loss(model, batch_of(), policy.rollout(model, batch_of(), 4, chunk=4), step=4)
    assert torch.equal(direct.loss, rolled.loss)
    assert direct.groups is not None
    assert rolled.groups is not None
    assert torch.equal(direct.groups.outputs_NG, rolled.groups.outputs_NG)


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_inner_passes_make_the_clip_bite(
    tiny_clip_folder: Path, tiny_dataset: Any, estimator: Any
) -> None:
    """The ratio moves with every update on the same groups, and stops where it is clipped."""
    parts = load_clip(str(tiny_clip_folder))
    classifier = ClipClassifier(
        parts.model, parts.tokenizer, tiny_dataset.classes, ["a photo of a {}."]
    )
    classifier.backbone.text_model.requires_grad_(False)
    classifier.backbone.text_projection.requires_grad_(False)
    inputs = torch.stack([parts.preprocess(tiny_dataset.images[i]) for i in range(12)])
    batch = batch_of(torch.from_numpy(tiny_dataset.labels[:12]), inputs)
    policy = grpo(n_classes=3, estimator=estimator)
    groups = policy.rollout(classifier, batch, 0, chunk=12)
    optimizer = torch.optim.SGD(classifier.backbone.visual_projection.parameters(), lr=0.1)
    clipped = []
    for _ in range(4):
        result = policy.loss(classifier, batch, groups, 0)
        assert result.groups is groups
        clipped.append(result.metrics["clip_ratio/region_mean"].item())
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
    assert clipped[0] == 0.0
    assert clipped[-1] > 0.0
    if estimator == "exact":  # the mean under the old policy, Σ_k π_old π/π_old
        assert result.metrics["ratio_mean"].item() == pytest.approx(1.0, abs=1e-5)
    else:
        assert result.metrics["ratio_mean"].item() != 1.0


def test_minibatches_average_to_the_whole() -> None:
    policy = grpo(
        rewards=[graded],
        beta=0.2,
        reference=FixedReference(REFERENCE),
        supervised_weight=0.5,
        labelled=lambda rows: rows < 1,
    )
    groups = policy.groups(LOGITS, batch_of(), step=0)
    whole, _ = policy.loss_of(MOVED, groups)
    rows = torch.tensor([3, 0, 2, 1])
    parts = [policy.loss_of(MOVED[half], groups.select(half))[0] for half in rows.chunk(2)]
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


def flat(**settings: Any) -> LabelGRPO:
    """A policy whose rewards are all equal, so that only the other terms have a gradient."""
    return grpo(rewards=[lambda outputs: outputs * 0.0], estimator="exact", **settings)


def test_kl_by_hand() -> None:
    """Uniform policy, reference (1/2, 1/4, 1/4): KL = ⅓(ln ⅔ + 2 ln 4/3) = 0.0566330."""
    reference = FixedReference(torch.tensor([[2.0, 1.0, 1.0]]).log())
    policy = flat(n_classes=3, beta=0.5, reference=reference)
    result = policy.loss(lambda x: x, batch_of(torch.tensor([0]), torch.zeros(1, 3)), None, step=0)
    assert result.metrics["kl"].item() == pytest.approx(0.0566330, abs=1e-6)
    assert result.loss.item() == pytest.approx(0.5 * 0.0566330, abs=1e-6)


def test_kl_is_taken_at_the_policys_temperature() -> None:
    policy = flat(beta=1.0, temperature=2.0, reference=FixedReference(LOGITS))
    assert policy.loss(lambda x: x, batch_of(), None, 0).loss.item() == pytest.approx(0, abs=1e-7)


def test_reference_without_weight_is_measured_but_does_not_pull() -> None:
    logits = LOGITS.clone().requires_grad_()
    policy = flat(reference=FixedReference(REFERENCE))
    result = policy.loss(lambda x: logits, batch_of(), None, 0)
    result.loss.backward()
    assert result.metrics["kl"].item() > 0.1
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


def test_entropy_bonus_flattens_the_policy() -> None:
    logits = LOGITS.clone().requires_grad_()
    result = flat(entropy_weight=0.1).loss(lambda x: logits, batch_of(), None, 0)
    result.loss.backward()
    assert logits.grad is not None
    with torch.no_grad():
        stepped = logits - 5.0 * logits.grad
    after = flat().loss(lambda x: stepped, batch_of(), None, 0)
    assert after.metrics["entropy"] > result.metrics["entropy"]
    shares = LOGITS.softmax(-1).numpy()
    by_hand = -(shares * np.log(shares)).sum(axis=1).mean()
    assert result.metrics["entropy"].item() == pytest.approx(by_hand, rel=1e-5)
    assert result.metrics["entropy_normalized"].item() == pytest.approx(by_hand / math.log(4))
    assert result.loss.item() == pytest.approx(-0.1 * by_hand, rel=1e-5)


def test_supervised_part_sees_the_labelled_images_alone() -> None:
    """Rows 0 and 2 have labels: (ln 2 + ln 4) / 4 images, whatever the other two hold."""
    logits = torch.tensor([[1.0, 1.0], [1.0, 3.0], [1.0, 3.0], [9.0, 1.0]]).log()
    labels = torch.tensor([0, 0, 0, 1])
    policy = flat(n_classes=2, supervised_weight=2.0, labelled=lambda rows: rows % 2 == 0)
    result = policy.loss(lambda x: logits, batch_of(labels, logits), None, 0)
    expected = (math.log(2) + math.log(4)) / 4
    assert result.metrics["supervised_loss"].item() == pytest.approx(expected, rel=1e-6)
    assert result.loss.item() == pytest.approx(2 * expected, rel=1e-6)
    none = labelled_cross_entropy(logits, labels, torch.zeros(4, dtype=torch.bool))
    assert none.item() == 0.0


def test_reward_metrics_by_hand() -> None:
    """Policy (3/4, 1/4) on two images, truths 0 and 1, rewards hard × 1 and constant × 2."""
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()

    def constant(outputs: Tensor) -> Tensor:
        return torch.full(outputs.shape, 3.0)

    policy = grpo(
        rewards=["hard", constant], reward_weights=[1.0, 2.0], estimator="exact", n_classes=2
    )
    batch = batch_of(torch.tensor([0, 1]), logits)
    metrics = policy.loss(lambda x: logits, batch, None, 0).metrics
    assert metrics["rewards/hard/mean"].item() == pytest.approx(0.5)
    assert metrics["rewards/constant/mean"].item() == pytest.approx(3.0)
    assert metrics["reward"].item() == pytest.approx(6.5)
    assert metrics["reward_std"].item() == pytest.approx(math.sqrt(3) / 4)
    assert metrics["frac_reward_zero_std"].item() == 0.0
    assert metrics["accuracy"].item() == 0.5


def test_the_spread_of_drawn_rewards_is_that_of_a_sample() -> None:
    """As in TRL: divided by G - 1."""

    def by_class(outputs: Tensor) -> Tensor:
        return outputs.float()

    logits = torch.zeros(2, 3)
    policy = grpo(rewards=[by_class], n_classes=3, group_size=4)
    result = policy.loss(lambda x: logits, batch_of(torch.tensor([0, 1]), logits), None, 0)
    spread = result.groups.outputs_NG.float().std(dim=1).mean()
    assert spread > 0
    torch.testing.assert_close(result.metrics["reward_std"], spread)


def test_groups_that_teach_nothing_are_counted_and_have_no_gradient() -> None:
    """A policy sure of a right class and one sure of a wrong class draw equal rewards."""
    logits = torch.tensor([[50.0, 0.0], [50.0, 0.0]], requires_grad=True)
    result = grpo(n_classes=2).loss(
        lambda x: logits, batch_of(torch.tensor([0, 1]), logits.detach()), None, 0
    )
    result.loss.backward()
    assert result.metrics["frac_reward_zero_std"].item() == 1.0
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


def test_wrong_action_is_another_gradient() -> None:
    """Negative control: the argmax's reward on the true label's log-prob teaches the wrong way.

    Where the argmax is wrong its advantage is negative, and descending that loss makes the *true*
    label rarer; the policy gradient of the same rewards makes it more frequent.
    """
    wrong = torch.tensor([False, True, False, True])
    assert torch.equal(LOGITS.argmax(-1) != LABELS, wrong)
    logits = LOGITS.clone().requires_grad_()
    reward_N = (~wrong).double()
    advantage_N = (reward_N - reward_N.mean()) / reward_N.std()
    loss = -(advantage_N * F.log_softmax(logits, -1).gather(1, LABELS[:, None])[:, 0]).mean()
    (wrong_slope,) = torch.autograd.grad(loss, logits)

    policy = grpo(estimator="exact", objective=Objective(scale="none"))
    right = policy.loss(lambda x: logits, batch_of(), None, 0).loss
    (right_slope,) = torch.autograd.grad(right, logits)

    def change_of_truth(slope: Tensor) -> Tensor:
        with torch.no_grad():
            moved = (logits - 0.1 * slope).softmax(-1) - logits.softmax(-1)
        return moved.gather(1, LABELS[:, None])[:, 0]

    assert bool((change_of_truth(wrong_slope)[wrong] < 0).all())
    assert bool((change_of_truth(right_slope) > 0).all())
