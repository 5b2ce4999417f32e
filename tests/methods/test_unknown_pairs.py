"""Groups in which nobody knows some labels: closed forms, draws, and images without feedback."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from feedback_tools import gradient, learner, rows, table
from label_tools import FixedReference, OneOfTwo
from scipy import stats
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.methods.groups import LabelGroups
from visgrpo.methods.supervised import Supervised
from visgrpo.objectives import Objective, advantages, preset
from visgrpo.rewards.sets import RewardSet

LOGITS = torch.tensor(
    [
        [1.2, -0.3, 0.4, 0.0, -1.0],
        [0.1, 0.9, -1.0, 0.6, 0.3],
        [-0.5, 0.2, 1.5, 0.3, 0.0],
        [0.7, 0.1, 0.2, -1.1, 0.4],
    ],
    dtype=torch.float64,
)
WORTH = np.random.default_rng(3).random((4, 5))
# The third image has no feedback at all; of the fourth one label is known.
KNOWN = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=bool)
DECIDED = torch.tensor([True, True, False, True])
POLICY = LOGITS.softmax(-1).numpy()


def among(n: int, weights_K: np.ndarray = POLICY) -> np.ndarray:
    """The policy of an image, or other weights, conditioned on what is known of it."""
    kept_K = weights_K[n] * KNOWN[n]
    return kept_K / kept_K.sum()


def closed_form(weights_NK: np.ndarray, scale: str) -> np.ndarray:
    """w(k) (r_k - E_w r) / scale at known labels, exactly 0 elsewhere."""
    expected = np.zeros(LOGITS.shape)
    for n in (0, 1):  # the other two have no feedback, or nothing to compare
        w_K = among(n, weights_NK)
        centred_K = WORTH[n] - w_K @ WORTH[n]
        spread = math.sqrt(w_K @ centred_K**2) + 1e-4 if scale == "std" else 1.0
        expected[n] = w_K * centred_K / spread
    return expected


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("estimator", ["exact", "uniform"])
def test_the_gradient_stays_within_what_is_known(estimator: Any, scale: Any) -> None:
    policy = learner(table(WORTH, KNOWN), objective=Objective(scale=scale), estimator=estimator)
    weights_NK = POLICY if estimator == "exact" else np.ones_like(POLICY)
    slope = gradient(policy, LOGITS).numpy()
    np.testing.assert_allclose(slope, closed_form(weights_NK, scale), rtol=1e-12, atol=1e-15)
    assert np.abs(slope[~KNOWN]).max() < 1e-15
    assert np.abs(slope[0][KNOWN[0]]).min() > 1e-3


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize(
    "objective",
    [
        Objective(scope="batch"),
        Objective(scope="batch", scale="none"),
        Objective(baseline="none", scale="none"),
        preset("reinforce"),
    ],
)
def test_no_baseline_makes_a_gradient_outside_what_is_known(
    objective: Objective, estimator: Any
) -> None:
    """Advantages that do not sum to 0 over the known labels say nothing of the others either."""
    policy = learner(table(WORTH, KNOWN), objective=objective, estimator=estimator)
    first = gradient(policy, LOGITS).numpy()
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    at = (LOGITS + 0.05 * LOGITS.flip(1)).requires_grad_()
    later = torch.autograd.grad(policy.loss_of(at, groups)[0], at)[0].numpy()
    for slope in (first, later):
        assert np.abs(slope[~KNOWN]).max() < 1e-15
        assert np.abs(slope[0][KNOWN[0]]).max() > 1e-3


def test_a_subset_of_classes_needs_every_reward() -> None:
    with pytest.raises(UserError, match="subset"):
        learner(table(WORTH, KNOWN), estimator="uniform", class_subset=2)


def test_temperature() -> None:
    policy = learner(table(WORTH, KNOWN), estimator="exact", temperature=0.5)
    sharper = np.exp(LOGITS.numpy() / 0.5)
    expected = closed_form(sharper, "none") / 0.5
    np.testing.assert_allclose(gradient(policy, LOGITS).numpy(), expected, rtol=1e-12, atol=1e-15)


def test_finite_differences_of_the_loss_on_stale_groups() -> None:
    """Also past the first pass, where outputs nobody knows still take no part."""
    policy = learner(
        table(WORTH, KNOWN),
        objective=Objective(),
        estimator="exact",
        beta=0.3,
        entropy_weight=0.2,
        reference=FixedReference(LOGITS.flip(0)),
    )
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    shift = torch.tensor([0.05, -0.04, 0.1, 0.0, -0.07], dtype=torch.float64)
    at = (LOGITS + shift).requires_grad_()
    slope = torch.autograd.grad(policy.loss_of(at, groups)[0], at)[0]
    for place in np.ndindex(tuple(at.shape)):
        step = torch.zeros_like(at)
        step[place] = 1e-5
        ends = [policy.loss_of(at.detach() + way * step, groups)[0].item() for way in (1, -1)]
        assert slope[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-9)
    assert slope[2].abs().max() == 0  # neither KL nor entropy pulls an image without feedback


def test_draws_follow_the_policy_among_what_is_known() -> None:
    policy = learner(table(WORTH, KNOWN), group_size=4000)
    groups = policy.groups(LOGITS, rows(LOGITS), step=2)
    for n in (0, 1):
        counts = np.bincount(groups.outputs_NG[n].numpy(), minlength=5)
        assert counts[~KNOWN[n]].sum() == 0
        known = among(n)[KNOWN[n]]
        assert stats.chisquare(counts[KNOWN[n]], 4000 * known).pvalue > 1e-3
    assert (groups.outputs_NG[3] == 1).all()
    # Ratios are to the policy among what is known, as it is scored later.
    scored = np.log(among(0)[groups.outputs_NG[0].numpy()])
    np.testing.assert_allclose(groups.old_log_probs_NG[0].numpy(), scored, rtol=1e-12)


@pytest.mark.parametrize(("baseline", "unbiased"), [("leave_one_out", True), ("mean", False)])
def test_sampled_groups_have_the_exact_gradient_in_the_mean(baseline: Any, unbiased: bool) -> None:
    """The mean baseline's (G - 1)/G is the control: the same bound refuses it."""
    n = 30_000
    objective = Objective(baseline=baseline, scale="none")
    policy = learner(table(WORTH, KNOWN), objective=objective, group_size=4)
    logits = LOGITS[1].expand(n, -1)
    gradients = gradient(policy, logits, rows(logits, feedback=[1] * n)).numpy()
    inside = gradients[:, KNOWN[1]]
    error = inside.std(axis=0, ddof=1) / math.sqrt(n)
    expected = closed_form(POLICY, "none")[1]
    z = np.abs(inside.mean(axis=0) - expected[KNOWN[1]]) / error
    assert (z.max() < 4) == unbiased
    assert np.abs(gradients[:, ~KNOWN[1]]).max() < 1e-12


OBJECTIVES = {
    "group": Objective(),
    "batch deviation": Objective(scale="batch_std"),
    "batch": Objective(scope="batch"),
    "batch, unscaled": Objective(scope="batch", scale="none"),
}
ESTIMATORS = ("sampled", "exact", "uniform")


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_images_without_feedback_change_nothing(name: str, estimator: Any) -> None:
    """Neither the loss nor the gradient nor the statistics of the batch, whatever stands there."""
    other_worth, other_logits = WORTH.copy(), LOGITS.clone()
    other_worth[2] = [100.0, -50.0, 3.0, 7.0, 0.0]
    other_logits[2] = torch.tensor([5.0, -5.0, 0.0, 9.0, 1.0])
    reference = FixedReference(LOGITS.flip(0))
    found = []
    for worth, logits in ((WORTH, LOGITS), (other_worth, other_logits)):
        policy = learner(
            table(worth, KNOWN),
            objective=OBJECTIVES[name],
            estimator=estimator,
            beta=0.1,
            entropy_weight=0.1,
            reference=reference,
        )
        logits = logits.clone().requires_grad_()
        result = policy.loss(lambda inputs, logits=logits: logits, rows(logits), None, 0)
        result.loss.backward()
        found.append((result, logits.grad))
    (first, slope), (second, other_slope) = found
    assert first.loss.item() == second.loss.item()
    assert torch.equal(slope, other_slope)
    assert slope[2].abs().max() == 0
    assert slope[0].abs().max() > 1e-3
    of_all_images = {"feedback/coverage", "accuracy", "entropy", "entropy_normalized", "kl"}
    for metric in first.metrics:
        if metric not in of_all_images:
            assert first.metrics[metric].item() == second.metrics[metric].item(), metric


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "reinforce"])
def test_every_pass_counts_images_alike(name: str, estimator: Any) -> None:
    """Also where an objective averages over tokens: images without feedback are among them."""
    policy = learner(table(WORTH, KNOWN), objective=preset(name), estimator=estimator)
    first = gradient(policy, LOGITS)
    at = LOGITS.clone().requires_grad_()
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    loss, _ = policy.loss_of(at, groups)
    later = -torch.autograd.grad(loss, at)[0] * len(LOGITS)
    torch.testing.assert_close(later, first, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ["exact", "uniform"])
@pytest.mark.parametrize("name", ["batch deviation", "batch"])
def test_statistics_are_those_of_images_with_feedback(name: str, estimator: Any) -> None:
    policy = learner(table(WORTH, KNOWN), objective=OBJECTIVES[name], estimator=estimator)
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    source = POLICY if estimator == "exact" else np.ones_like(POLICY)
    w = np.stack([among(n, source) for n in (0, 1, 3)])
    r = WORTH[[0, 1, 3]]
    mean = (w * r).sum() / 3
    spread = math.sqrt((w * (r - mean) ** 2).sum() / 3) + 1e-4
    base = mean if name == "batch" else (w * r).sum(axis=1, keepdims=True)
    expected = (r - base) / spread
    if name == "batch deviation":
        expected[2] = 0  # one known label teaches nothing within its group
    found = groups.advantages_NG[DECIDED].numpy()
    np.testing.assert_allclose(found * (w > 0), expected * (w > 0), rtol=1e-12, atol=1e-15)


def test_statistics_of_draws_are_the_populations() -> None:
    policy = learner(table(WORTH, KNOWN), objective=OBJECTIVES["batch"], group_size=6)
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    drawn = np.take_along_axis(WORTH, groups.outputs_NG.numpy(), axis=1)[DECIDED.numpy()]
    expected = (drawn - drawn.mean()) / (drawn.std() + 1e-4)
    np.testing.assert_allclose(groups.advantages_NG[DECIDED].numpy(), expected, rtol=1e-12)


class Lookup:
    """The same rewards without any word of what is known."""

    scope = "any"

    def __call__(self, outputs_NG: Tensor, /, **columns: Any) -> Tensor:
        return torch.from_numpy(WORTH).gather(1, outputs_NG)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_with_every_pair_known_a_group_is_any_group(estimator: Any) -> None:
    """Filled tables to the bit; masked ones up to the rounding of conditioning on everything."""
    everything = np.ones_like(KNOWN)
    settings: dict[str, Any] = {"objective": Objective(), "estimator": estimator}
    plain = learner(table(WORTH, everything), **settings)
    plain = replace(plain, rewards=RewardSet.of([("lookup", Lookup())], None))
    filled = learner(table(WORTH, everything, masks=False), **settings)
    masked = learner(table(WORTH, everything), **settings)
    policies = (plain, filled, masked)
    results = [policy.loss(lambda inputs: LOGITS, rows(LOGITS), None, 1) for policy in policies]
    slopes = [gradient(policy, LOGITS, step=1) for policy in policies]
    ours, same, close = results
    assert torch.equal(ours.loss, same.loss)
    assert torch.equal(slopes[0], slopes[1])
    assert ours.groups is not None
    assert close.groups is not None
    assert torch.equal(ours.groups.outputs_NG, close.groups.outputs_NG)
    torch.testing.assert_close(slopes[2], slopes[0], rtol=1e-6, atol=1e-8)
    assert close.metrics["feedback/coverage"].item() == pytest.approx(1.0)
    for metric, value in ours.metrics.items():
        if not metric.startswith("rewards/"):
            assert torch.equal(value, same.metrics[metric]), metric
            assert close.metrics[metric].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-7)


def test_what_the_metrics_say() -> None:
    policy = learner(table(WORTH, KNOWN), weights=[2.0], estimator="exact")
    metrics = policy.loss(lambda inputs: LOGITS, rows(LOGITS), None, 0).metrics
    earned = [2 * among(n) @ WORTH[n] for n in (0, 1, 3)]
    # Means are over images with feedback; of what needs no feedback, over all.
    assert metrics["reward"].item() == pytest.approx(sum(earned) / 3)
    assert metrics["rewards/clicks/mean"].item() == pytest.approx(sum(earned) / 6)
    all_entropies = -(POLICY * np.log(POLICY)).sum() / 4
    assert metrics["entropy"].item() == pytest.approx(all_entropies)
    assert metrics["feedback/coverage"].item() == pytest.approx((POLICY * KNOWN).sum() / 4)
    assert metrics["frac_reward_zero_std"].item() == pytest.approx(1 / 3)  # one known label
    spread = [math.sqrt(among(n) @ (2 * WORTH[n] - 2 * among(n) @ WORTH[n]) ** 2) for n in (0, 1)]
    assert metrics["reward_std"].item() == pytest.approx(sum(spread) / 3)
    assert metrics["ratio_mean"].item() == pytest.approx(1.0)


def test_coverage_of_filled_tables_is_what_people_saw() -> None:
    policy = learner(table(WORTH, KNOWN, masks=False), estimator="exact")
    metrics = policy.loss(lambda inputs: LOGITS, rows(LOGITS), None, 0).metrics
    assert metrics["feedback/coverage"].item() == pytest.approx((POLICY * KNOWN).sum() / 4)
    assert metrics["reward"].item() == pytest.approx((POLICY * WORTH).sum() / 4)


def test_two_rewards_teach_where_both_are_known() -> None:
    other = KNOWN.copy()
    other[0] = [1, 0, 1, 1, 1]
    objective = Objective(scale="std")
    dwell = np.random.default_rng(4).random((4, 5)) * 50
    policy = learner(
        table(WORTH, KNOWN),
        table(dwell, other),
        weights=[1.0, 0.5],
        objective=objective,
        estimator="exact",
        combination="normalize_then_sum",
    )
    slope = gradient(policy, LOGITS).numpy()
    both_K = KNOWN[0] & other[0]
    w_K = POLICY[0] * both_K / (POLICY[0] @ both_K)
    total_K = np.zeros(5)
    for weight, r in ((1.0, WORTH[0]), (0.5, dwell[0])):
        total_K += weight * (r - w_K @ r) / (math.sqrt(w_K @ (r - w_K @ r) ** 2) + 1e-4)
    np.testing.assert_allclose(slope[0], w_K * total_K, rtol=1e-10, atol=1e-15)


def two_processes(**settings: Any) -> list[LabelGroups]:
    """The groups of both processes: a first pass to hear what they send, a second to answer."""
    sent: list[list[Tensor]] = [[], []]
    batches = [rows(LOGITS).select(half) for half in ([0, 1], [2, 3])]

    def groups(rank: int, join: Any) -> LabelGroups:
        policy = learner(table(WORTH, KNOWN), shards=OneOfTwo(rank, join), **settings)
        return policy.groups(batches[rank].inputs, batches[rank], 0)

    for rank in (0, 1):

        def listen(call: int, tensor: Tensor, rank: int = rank) -> Tensor:
            sent[rank].append(tensor)
            return torch.cat([tensor, tensor])

        groups(rank, listen)
    assert len(sent[0]) == len(sent[1])  # or they would wait for each other for ever
    return [groups(r, lambda c, t: torch.cat([sent[0][c], sent[1][c]])) for r in (0, 1)]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_make_the_groups_of_one(name: str, estimator: Any) -> None:
    settings: dict[str, Any] = {"objective": OBJECTIVES[name], "estimator": estimator}
    whole = learner(table(WORTH, KNOWN), **settings).groups(LOGITS, rows(LOGITS), 0)
    parts = two_processes(**settings)
    for field in ("outputs_NG", "advantages_NG", "input_weights_N", "coverage_N"):
        joined = torch.cat([getattr(part, field) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, field), rtol=1e-12, atol=1e-14)


def test_samples_show_known_labels_alone() -> None:
    policy = learner(table(WORTH, KNOWN), estimator="exact")
    groups = policy.groups(LOGITS, rows(LOGITS), 0)
    first, second = policy.samples(groups, rows=2)
    assert first["outputs"] == ["a", "d", "b"]  # the label, then by probability
    assert second["outputs"] == ["b", "d", "e", "c"]  # label a is not known
    assert first["rewards"] == pytest.approx(WORTH[0, [0, 3, 1]].tolist())


@pytest.mark.parametrize("objective", [Objective(scope="batch"), Objective(scale="batch_std")])
def test_leave_one_out_over_a_batch_needs_all_rewards(objective: Objective) -> None:
    objective = replace(objective, baseline="leave_one_out")
    with pytest.raises(UserError, match="--unknown prior"):
        learner(table(WORTH, KNOWN), objective=objective)
    learner(table(WORTH, KNOWN, masks=False), objective=objective)


def test_advantages_without_the_groups_that_weigh_nothing() -> None:
    rewards = torch.tensor([[1.0, 3.0], [50.0, -9.0], [2.0, 6.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    whole = advantages(rewards, scope="batch", scale="none", weights_NG=weights)
    # (0.5·1 + 0.5·3 + 0.75·2 + 0.25·6) / 2 = 2.5
    assert whole[[0, 2]].tolist() == [[-1.5, 0.5], [-0.5, 3.5]]
    # the variance about it: (0.5·2.25 + 0.5·0.25 + 0.75·0.25 + 0.25·12.25) / 2 = 2.25
    scaled = advantages(rewards, scope="batch", scale="std", weights_NG=weights, eps=0.0)
    assert scaled[[0, 2]].flatten().tolist() == pytest.approx([-1.0, 1 / 3, -1 / 3, 7 / 3])
    alone = advantages(rewards, scope="group", scale="batch_std", weights_NG=weights, eps=0.0)
    assert alone[0].tolist() == pytest.approx([-1 / 1.5, 1 / 1.5])
    assert alone[1].tolist() == [0.0, 0.0]
    nothing = advantages(rewards, scope="batch", weights_NG=torch.zeros_like(weights))
    assert nothing.tolist() == [[0.0, 0.0]] * 3


def test_the_supervised_part_falls_and_reaches_images_without_feedback() -> None:
    labels = torch.tensor([1, 2, 3, 4])
    policy = learner(
        table(WORTH, KNOWN),
        estimator="exact",
        supervised_weight=2.0,
        supervised_schedule=lambda step: {0: 1.0, 3: 0.25}[step],
        labelled=lambda rows: rows != 0,
    )
    batch = rows(LOGITS, labels)
    plain = closed_form(POLICY, "none")
    pull = np.eye(5)[labels] - POLICY
    pull[0] = 0  # its label is hidden
    for step, weight in ((0, 2.0), (3, 0.5)):
        slope = gradient(policy, LOGITS, batch, step).numpy()
        np.testing.assert_allclose(slope, plain + weight * pull, rtol=1e-6, atol=1e-7)
    metrics = policy.loss(lambda inputs: LOGITS, batch, None, 3).metrics
    each = -np.log(POLICY[np.arange(4), labels])
    assert metrics["supervised_loss"].item() == pytest.approx(0.25 * each[1:].sum() / 4)


def test_cross_entropy_reports_the_reward_of_what_is_known() -> None:
    rewards = learner(table(WORTH, KNOWN)).rewards
    method = Supervised(rewards, tuple("abcde"))
    metrics = method.loss(lambda inputs: LOGITS, rows(LOGITS), None, 0).metrics
    earned = [among(n) @ WORTH[n] for n in (0, 1, 3)]
    assert metrics["reward"].item() == pytest.approx(sum(earned) / 4, rel=1e-5)
