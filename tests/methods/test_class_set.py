"""GRPO over the class set: subsets of it, old policies, and what a run writes down."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from label_tools import OneOfTwo, batch_of, grpo, names
from torch import Tensor, nn

from visgrpo.data.batches import Batch
from visgrpo.errors import UserError
from visgrpo.methods.class_set import ClassSetGRPO, ClassSetSupervised, OldPolicy, PixelView
from visgrpo.methods.groups import subset_offsets
from visgrpo.objectives import Objective
from visgrpo.objectives.losses import gaussian_potential

RM = ("hard", "uniformity")


def subset(size: int, *, n_classes: int = 7, **settings: Any) -> ClassSetGRPO:
    settings = {"estimator": "uniform", "rewards": RM, **settings}
    return ClassSetGRPO(grpo(n_classes=n_classes, class_subset=size, **settings))


def batch_with(n_classes: int, n_inputs: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(n_inputs, n_classes, generator=generator)
    return batch_of(torch.arange(n_inputs) % n_classes, logits)


def outputs(method: ClassSetGRPO, batch: Batch, step: int) -> Tensor:
    return method.policy.groups(batch.inputs, batch, step).outputs_NG


def gradient(method: Any, batch: Batch, step: int = 0, old: OldPolicy | None = None) -> Tensor:
    leaf = batch.inputs.clone().requires_grad_()
    loss = method.loss(lambda inputs: leaf, batch, old, step).loss
    return torch.autograd.grad(loss, leaf)[0]


# Subsets of the classes


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_a_subset_is_the_true_class_and_different_others(size: int) -> None:
    batch = batch_with(7)
    for step in range(20):
        outputs_NG = outputs(subset(size), batch, step)
        assert outputs_NG.shape == (6, size)
        assert torch.equal(outputs_NG[:, 0], batch.labels_N)
        assert all(len(set(row)) == size for row in outputs_NG.tolist())
        assert 0 <= outputs_NG.min() <= outputs_NG.max() < 7


def test_every_wrong_class_is_equally_likely() -> None:
    """6,000 steps of 2 among 6: χ² of 5 degrees of freedom, below its 99.9 % point of 20.5."""
    steps = 6000
    counts_K = torch.zeros(7)
    pairs: dict[frozenset[int], int] = {}
    for step in range(steps):
        others = subset_offsets(11, step, 7, 3)[1:].tolist()
        counts_K[others] += 1
        pairs[frozenset(others)] = pairs.get(frozenset(others), 0) + 1
    expected = steps * 2 / 6
    assert counts_K[0] == 0
    # Counts within a step exclude each other: variance n·p·(1 - p) × 6/5 of theirs is n·p·4/5.
    chi_square = ((counts_K[1:] - expected) ** 2).sum().item() / (expected * 0.8)
    assert chi_square < 20.5
    assert set(map(tuple, map(sorted, pairs))) == set(itertools.combinations(range(1, 7), 2))
    among_pairs = sum((count - steps / 15) ** 2 for count in pairs.values()) / (steps / 15)
    assert among_pairs < 36.1  # 14 degrees of freedom


def test_steps_and_seeds_draw_other_subsets_and_a_repeated_step_the_same() -> None:
    batch = batch_with(26)
    drawn = [outputs(subset(5, n_classes=26), batch, step) for step in (0, 1, 2, 0)]
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], outputs(subset(5, n_classes=26, seed=1), batch, 0))
    torch.rand(3)  # the global generator has no say
    assert torch.equal(drawn[0], outputs(subset(5, n_classes=26), batch, 0))


def test_any_number_of_processes_draws_the_same_subsets() -> None:
    batch = batch_with(26, n_inputs=8)
    whole = outputs(subset(5, n_classes=26), batch, 4)
    for rank in (0, 1):
        rows = torch.arange(8)[rank * 4 :][:4]
        shards = OneOfTwo(rank, lambda call, tensor: tensor)
        part = outputs(subset(5, n_classes=26, shards=shards), batch.select(rows), 4)
        assert torch.equal(part, whole[rows])


def test_all_classes_as_a_subset_are_all_classes() -> None:
    batch = batch_with(7)
    old = OldPolicy(replace(batch, inputs=batch.inputs + 0.5 * batch.inputs.roll(1, 0)), 0)
    every = ClassSetGRPO(grpo(n_classes=7, rewards=RM, estimator="uniform"))
    for reference in (None, old):
        torch.testing.assert_close(
            gradient(subset(7), batch, 3, reference), gradient(every, batch, 3, reference)
        )


def test_a_subset_by_hand() -> None:
    """p = (.5, .2, .2, .1) and the group {0, k}: r = (.5, -p_k), A = ±1 up to ε."""
    batch = batch_of(torch.tensor([0]), torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log())
    method = subset(2, n_classes=4, objective=Objective(scale="none"))
    seen = set()
    for step in range(12):
        k = int(outputs(method, batch, step)[0, 1])
        seen.add(k)
        half = (0.5 + [0.5, 0.2, 0.2, 0.1][k]) / 2
        expected = torch.zeros(1, 4)
        expected[0, 0], expected[0, k] = -half / 2, half / 2
        torch.testing.assert_close(gradient(method, batch, step), expected)
    assert seen == {1, 2, 3}


def test_subsets_without_scale_are_the_whole_set_on_average() -> None:
    """Averaged over all subsets the pull on the true class and the others is that of cross-entropy.

    Of K classes and a subset S: E[-A_j / |S|] is in proportion to p - 1[y].
    """
    batch = batch_with(4, n_inputs=2)
    method = subset(2, n_classes=4, objective=Objective(scale="none"))
    by_offset: dict[int, Tensor] = {}
    for step in range(40):
        by_offset.setdefault(int(subset_offsets(0, step, 4, 2)[1]), gradient(method, batch, step))
    mean = sum(by_offset.values()) / 3
    assert len(by_offset) == 3
    p_NK = batch.inputs.softmax(-1)
    for n, y in enumerate(batch.labels_N.tolist()):
        for j in set(range(4)) - {y}:
            expected = (1 - p_NK[n, y] + p_NK[n, j]) / 2 / 2 / 3 / 2  # A, 1/|S|, chance, N
            assert mean[n, j].item() == pytest.approx(expected.item(), rel=1e-4)
        assert mean[n].sum().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [-1, 0, 1, 8])
def test_a_subset_has_two_classes_at_least_and_all_at_most(size: int) -> None:
    with pytest.raises(UserError, match=rf"subset of {size} cannot be: give 2 to 7, the number"):
        subset(size)


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_a_subset_goes_with_equal_weights(estimator: str) -> None:
    with pytest.raises(
        UserError, match=f'goes with the "uniform" estimator, not with "{estimator}"'
    ):
        subset(3, estimator=estimator)


# Old policies


def test_the_first_pass_needs_no_rollout() -> None:
    batch = batch_with(5)
    method = ClassSetGRPO(grpo(n_classes=5, rewards=RM, estimator="uniform"))
    old = method.rollout(lambda inputs: inputs, batch, 0, chunk=4)
    torch.testing.assert_close(gradient(method, batch, 0, old), gradient(method, batch))
    result = method.loss(lambda inputs: inputs, batch, None, 0)
    assert result.groups is not None
    assert torch.equal(result.groups.logits, batch.inputs)
    assert not result.groups.logits.requires_grad


class Scaled(nn.Module):
    """Logits that are its inputs times one number, so that every old policy can be told."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


def test_the_rollout_asks_the_old_model_a_chunk_at_a_time() -> None:
    batch, sizes = batch_with(5, n_inputs=7), []
    model = Scaled()

    def old_model(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return model(inputs)

    method = ClassSetGRPO(grpo(n_classes=5, rewards=RM, estimator="uniform"))
    old = method.rollout(old_model, batch, 0, chunk=3)
    assert sizes == [3, 3, 1]
    assert torch.equal(old.logits, batch.inputs)
    assert not old.logits.requires_grad


def test_advantages_come_from_the_old_policy() -> None:
    """By hand at K = 2 and scale none: A = ±(c - p_y + p_w)/2 of the old, times the ratio."""
    old_p, new_p = torch.tensor([0.6, 0.4]), torch.tensor([0.65, 0.35])
    batch = batch_of(torch.tensor([0]), new_p.log()[None])
    method = ClassSetGRPO(
        grpo(n_classes=2, rewards=RM, estimator="uniform", objective=Objective(scale="none"))
    )
    a = (1 - 0.6 + 0.4) / 2
    slope = -(a * 0.65 / 0.6 * (1 - 0.65) + a * 0.35 / 0.4 * 0.65) / 2
    result = gradient(method, batch, 0, OldPolicy(replace(batch, inputs=old_p.log()[None]), 0))
    torch.testing.assert_close(result, torch.tensor([[slope, -slope]]))


# Features


class WithFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 3), nn.Linear(3, 5)

    def forward(self, inputs: Tensor, with_features: bool = False) -> Any:
        hidden = self.first(inputs)
        return (self.last(hidden), hidden) if with_features else self.last(hidden)


def test_feature_uniformity_is_added_once_for_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = batch_with(5), WithFeatures()
    policy = grpo(n_classes=5, rewards=RM, estimator="uniform")
    plain = ClassSetGRPO(policy).loss(model, batch, None, 0)
    potential = gaussian_potential(model.first(batch.inputs))
    expected = torch.autograd.grad(plain.loss + 0.3 * potential, list(model.parameters()))
    for numbers in (2**20, 1):
        monkeypatch.setattr("visgrpo.methods.class_set.NUMBERS_AT_ONCE", numbers)
        result = ClassSetGRPO(policy, feature_uniformity=0.3).loss(model, batch, None, 0)
        assert result.loss.item() == pytest.approx((plain.loss + 0.3 * potential).item(), rel=1e-5)
        assert result.metrics["feature_uniformity"].item() == pytest.approx(potential.item())
        ours = torch.autograd.grad(result.loss, list(model.parameters()))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)


def test_feature_uniformity_compares_images() -> None:
    method = ClassSetGRPO(
        grpo(n_classes=5, rewards=RM, estimator="uniform"), feature_uniformity=0.3
    )
    with pytest.raises(UserError, match="needs two images or more"):
        method.loss(WithFeatures(), batch_with(5, n_inputs=1), None, 0)


# Groups that do not stand alone


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "sampled", "group_size": 6},
        {"estimator": "uniform", "objective": Objective(scope="batch")},
        {"estimator": "exact", "objective": Objective(scale="batch_std")},
    ],
)
def test_groups_that_look_at_the_batch_are_refused(settings: dict[str, Any]) -> None:
    """Pieces of a batch would draw other outputs, or compare with other rewards, than the whole."""
    with pytest.raises(UserError, match="uniform or the exact estimator"):
        ClassSetGRPO(grpo(rewards=RM, **settings))


# Samples for the page


def test_samples_show_the_first_groups() -> None:
    batch = batch_with(5)
    method = ClassSetGRPO(grpo(n_classes=5, rewards=RM, estimator="uniform"))
    shown = method.samples(OldPolicy(replace(batch, inputs=batch.inputs), 0), 2)
    assert [sample["label"] for sample in shown] == ["a", "b"]
    p_K = batch.inputs[1].softmax(-1).tolist()
    expected = {name: (k == 1) - p_K[k] for k, name in enumerate(names(5))}
    earned = dict(zip(shown[1]["outputs"], shown[1]["rewards"], strict=True))
    assert earned == pytest.approx(expected, abs=1e-6)
    assert len(method.samples(OldPolicy(replace(batch, inputs=batch.inputs), 0), 99)) == 6


def test_pixels_and_cross_entropy_have_no_samples() -> None:
    mask = torch.zeros(2, 2, 2, dtype=torch.long)
    batch = Batch(torch.arange(2), torch.zeros(2, 2, 2, 4), mask, {})
    view = PixelView(1, 255, lambda logits, size: logits)
    old = OldPolicy(replace(batch, inputs=batch.inputs), 0)
    assert ClassSetGRPO(grpo(rewards=RM, estimator="uniform"), view).samples(old, 2) == []
    assert ClassSetSupervised(view).samples(old, 2) == []
    assert ClassSetSupervised(view).rollout(lambda inputs: inputs, batch, 0, chunk=1) is None


def test_samples_are_the_groups_of_their_step() -> None:
    batch = batch_with(7)
    method = subset(2)
    trained = [outputs(method, batch, step)[:, 1] for step in range(8)]
    step = next(s for s in range(8) if not torch.equal(trained[s], trained[0]))
    groups = method.loss(lambda inputs: inputs, batch, None, step).groups
    assert groups is not None
    chosen = [
        next(name for name in sample["outputs"] if name != sample["label"])
        for sample in method.samples(groups, 6)
    ]
    assert chosen == [names(7)[k] for k in trained[step].tolist()]


def test_metrics_of_a_subset_that_the_policy_rules_out() -> None:
    """The probabilities of all its classes are 0 in float32: they are compared all the same."""
    batch = batch_with(7)
    logits = torch.full((len(batch), 7), -500.0)
    logits[torch.arange(len(batch)), (batch.labels_N + 3) % 7] = 500.0
    method = subset(2)
    for step in range(8):
        metrics = method.loss(lambda inputs: logits, batch, None, step).metrics
        assert all(bool(value.isfinite()) for value in metrics.values()), metrics
