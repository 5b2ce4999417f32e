"""Rollouts: which outputs, which rewards, and the same ones on any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from label_tools import LABELS, LOGITS, FixedReference, OneOfTwo, batch_of, graded, grpo
from scipy import stats
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.methods.groups import LabelGroups, uniforms_for
from visgrpo.objectives import Objective, preset


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_sampled_outputs_follow_the_policy_at_its_temperature(temperature: float) -> None:
    policy = grpo(group_size=4000, temperature=temperature)
    groups = policy.groups(LOGITS, batch_of(), step=3)
    scaled = np.exp(LOGITS.numpy() / temperature)
    policy_NK = scaled / scaled.sum(axis=1, keepdims=True)
    for outputs_G, probabilities_K in zip(groups.outputs_NG.numpy(), policy_NK, strict=True):
        counts = np.bincount(outputs_G, minlength=4)
        assert stats.chisquare(counts, 4000 * probabilities_K).pvalue > 1e-3
    scored_NG = np.take_along_axis(np.log(policy_NK), groups.outputs_NG.numpy(), axis=1)
    np.testing.assert_allclose(groups.old_log_probs_NG.numpy(), scored_NG, atol=1e-5)
    assert groups.weights_NG is None


def test_groups_are_drawn_independently() -> None:
    """Neither the images of a step nor the steps of an image share their draws."""
    logits = torch.zeros(2, 4)
    policy = grpo(group_size=4000)
    batch = batch_of(torch.tensor([0, 1]), logits)
    first, second = (policy.groups(logits, batch, step).outputs_NG for step in (0, 1))
    for one, other in ((first[0], first[1]), (first[0], second[0])):
        table = np.zeros((4, 4))
        np.add.at(table, (one.numpy(), other.numpy()), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3
    assert torch.equal(policy.groups(logits, batch, 0).outputs_NG, first)
    again = grpo(group_size=4000, seed=1).groups(logits, batch, 0).outputs_NG
    assert not torch.equal(again, first)


@pytest.mark.parametrize("estimator", ["exact", "uniform"])
def test_enumerated_groups_are_the_classes(estimator: Any) -> None:
    groups = grpo(estimator=estimator, group_size=3).groups(LOGITS, batch_of(), step=0)
    assert groups.outputs_NG.tolist() == [[0, 1, 2, 3]] * 4
    expected = LOGITS.softmax(-1) if estimator == "exact" else torch.full((4, 4), 0.25)
    assert groups.weights_NG is not None
    torch.testing.assert_close(groups.weights_NG.double(), expected.double(), atol=1e-6, rtol=0)


def test_columns_reach_the_reward_by_name() -> None:
    seen: dict[str, Any] = {}

    def paid(outputs_NG: Tensor, price: list[float], label: Tensor, classes: Any) -> Tensor:
        seen.update(price=price, label=label, classes=classes)
        return torch.tensor(price)[:, None] * (outputs_NG == 2)

    groups = grpo(rewards=[paid], estimator="exact").groups(LOGITS, batch_of(), step=0)
    assert seen["price"] == [1.0, 2.0, 3.0, 4.0]
    assert seen["label"].tolist() == LABELS.tolist()
    assert seen["classes"] == ("a", "b", "c", "d")
    expected = [[0, 0, 1, 0], [0, 0, 2, 0], [0, 0, 3, 0], [0, 0, 4, 0]]
    assert groups.rewards_NGR[..., 0].tolist() == expected


def test_a_column_that_is_missing_is_named() -> None:
    def paid(outputs_NG: Tensor, prize: list[float]) -> Tensor:
        return outputs_NG.float()

    with pytest.raises(UserError, match=r'needs "prize".*Did you mean "price"'):
        grpo(rewards=[paid]).groups(LOGITS, batch_of(), step=0)


def test_rewards_see_the_policy_at_its_temperature() -> None:
    policy = grpo(rewards=["soft"], objective=preset("reinforce"), temperature=2.0)
    groups = policy.groups(LOGITS, batch_of(), step=0)
    confidence_N = (LOGITS / 2).softmax(-1).gather(1, LABELS[:, None])
    expected = confidence_N.expand(4, 8).float()
    torch.testing.assert_close(groups.rewards_NGR[..., 0], expected)


def test_nothing_in_a_group_has_a_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    policy = grpo(estimator="exact", reference=FixedReference(LOGITS), beta=0.1)
    groups = policy.groups(logits, batch_of(), step=0)
    assert not any(t.requires_grad for t in vars(groups).values() if t is not None)


def test_rollout_in_chunks_is_the_rollout_of_all() -> None:
    policy = grpo(group_size=16)
    sizes: list[int] = []

    def model(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return inputs

    chunked = policy.rollout(model, batch_of(), 5, chunk=3)
    whole = policy.groups(LOGITS, batch_of(), 5)
    assert sizes == [3, 1]
    assert torch.equal(chunked.outputs_NG, whole.outputs_NG)
    assert torch.equal(chunked.advantages_NG, whole.advantages_NG)


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_select_takes_the_rows_of_everything(estimator: Any) -> None:
    reference = FixedReference(LOGITS.flip(0))
    policy = grpo(
        estimator=estimator, beta=0.1, reference=reference, labelled=lambda rows: rows % 2 == 0
    )
    groups = policy.groups(LOGITS, batch_of(), step=0)
    picked = groups.select(torch.tensor([2, 0]))
    for name, value in vars(groups).items():
        chosen = getattr(picked, name)
        if value is None:
            assert chosen is None
        else:
            assert torch.equal(chosen, value[[2, 0]])
    assert picked.labels_N.tolist() == [2, 0]
    assert picked.labelled_N.tolist() == [True, True]


def two_processes(step: int, **settings: Any) -> list[LabelGroups]:
    """The groups of both processes: a first pass to hear what they send, a second to answer."""
    halves = [slice(0, 2), slice(2, 4)]
    sent: list[dict[int, Tensor]] = [{}, {}]

    def run(rank: int, join: Any) -> LabelGroups:
        rows = halves[rank]
        batch = batch_of().select(torch.arange(4)[rows])
        policy = grpo(shards=OneOfTwo(rank, join), **settings)
        return policy.groups(LOGITS[rows], batch, step)

    def listen(rank: int) -> Any:
        def join(call: int, tensor: Tensor) -> Tensor:
            sent[rank][call] = tensor
            return torch.cat([tensor, tensor])

        return join

    for rank in (0, 1):
        run(rank, listen(rank))
    answer = lambda call, tensor: torch.cat([sent[0][call], sent[1][call]])  # noqa: E731
    return [run(rank, answer) for rank in (0, 1)]


OBJECTIVES = [
    Objective(),
    Objective(scale="batch_std"),
    Objective(scope="batch"),
    preset("reinforce"),
]
# The leave-one-out baseline is for sampled outputs.
WAYS = [(o, estimator) for o in OBJECTIVES for estimator in ("sampled", "exact", "uniform")]
WAYS += [(Objective(scope="batch", baseline="leave_one_out", scale="none"), "sampled")]


@pytest.mark.parametrize("combination", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize(("objective", "estimator"), WAYS, ids=str)
def test_two_processes_make_the_groups_of_one(
    objective: Objective, estimator: Any, combination: Any
) -> None:
    settings: dict[str, Any] = {
        "rewards": ["hard", graded],
        "reward_weights": [1.0, 0.5],
        "objective": objective,
        "estimator": estimator,
        "combination": combination,
        "group_size": 5,
    }
    whole = grpo(**settings).groups(LOGITS, batch_of(), step=7)
    parts = two_processes(7, **settings)
    for name, value in vars(whole).items():
        if value is not None and name != "advantages_NG":
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)
    joined = torch.cat([part.advantages_NG for part in parts])
    torch.testing.assert_close(joined, whole.advantages_NG)


def test_batch_statistics_are_not_those_of_one_process() -> None:
    """The negative control of the test above: halves normalised on their own differ."""
    objective = Objective(scope="batch")
    whole = grpo(rewards=[graded], objective=objective).groups(LOGITS, batch_of(), step=0)
    alone = grpo(rewards=[graded], objective=objective).groups(
        LOGITS[:2], batch_of().select([0, 1]), step=0
    )
    assert not torch.allclose(alone.advantages_NG, whole.advantages_NG[:2], atol=1e-2)


def test_uniforms_do_not_depend_on_the_number_of_processes() -> None:
    whole = uniforms_for(3, 11, torch.arange(12), 12, 5)
    assert whole.shape == (12, 5)
    assert float(whole.min()) >= 0.0
    assert float(whole.max()) < 1.0
    for world in (2, 3, 4):
        share = 12 // world
        parts = [uniforms_for(3, 11, r * share + torch.arange(share), 12, 5) for r in range(world)]
        assert torch.equal(torch.cat(parts), whole)


def test_uniforms_differ_by_seed_and_step_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    rows = torch.arange(4)
    drawn = [uniforms_for(seed, step, rows, 4, 3) for seed in range(4) for step in range(4)]
    assert len({tuple(u.flatten().tolist()) for u in drawn}) == 16
    assert torch.equal(torch.get_rng_state(), state)


def test_soft_reward_inside_a_group_is_refused() -> None:
    with pytest.raises(UserError, match=r'"soft".*"batch"'):
        grpo(rewards=["soft"])
    grpo(rewards=["soft"], objective=Objective(scope="batch"))


def test_beta_needs_a_reference() -> None:
    with pytest.raises(UserError, match="needs a reference"):
        grpo(beta=0.1)


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_samples_are_plain_data(estimator: Any) -> None:
    policy = grpo(
        rewards=["hard", graded], reward_weights=[1.0, 2.0], estimator=estimator, group_size=3
    )
    groups = policy.groups(LOGITS, batch_of(), step=0)
    samples = policy.samples(groups, rows=2)
    assert [sample["label"] for sample in samples] == ["a", "d"]
    for row, sample in enumerate(samples):
        outputs = ["abcd".index(name) for name in sample["outputs"]]
        truth = int(LABELS[row])
        assert len(outputs) == (3 if estimator == "sampled" else 4)
        rewards = [(k == truth) + 2.0 / (1 + abs(k - truth)) for k in outputs]
        assert sample["rewards"] == pytest.approx(rewards)
        probabilities = LOGITS[row].softmax(-1)[outputs].tolist()
        assert sample["probabilities"] == pytest.approx(probabilities, rel=1e-5)
        assert len(sample["advantages"]) == len(outputs)
    if estimator == "exact":
        assert samples[1]["outputs"] == ["d", "b", "a", "c"]  # the truth, then by probability


def test_samples_of_many_classes_show_the_truth_and_nine_others() -> None:
    logits = torch.linspace(3, -3, 20).expand(1, 20)
    policy = grpo(estimator="exact", n_classes=20)
    groups = policy.groups(logits, batch_of(torch.tensor([15]), logits), step=0)
    (sample,) = policy.samples(groups, rows=4)
    assert "".join(sample["outputs"]) == "pabcdefghi"
    assert sample["rewards"] == [1.0] + [0.0] * 9
