"""A learning rate for each part of a model, and GRPO over the class set through the trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import (
    CLASSES,
    FEATURES,
    metric_lines,
    toy_dataset,
    toy_inputs,
    training_values,
    weights_of,
)

from visgrpo.data.batches import Batch, BatchLoader, CachedInputs
from visgrpo.errors import UserError
from visgrpo.methods.class_set import ClassSetGRPO, OldPolicy
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.method import LossResult
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import parse_rewards
from visgrpo.training.checkpoints import newest_good
from visgrpo.training.optimizer import build_optimizer, set_learning_rate
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import RunDirectory
from visgrpo.training.trainer import Trainer


def tenth_of_the_backbone(name: str) -> float:
    return 1.0 if name.startswith("head.") else 0.1


class Tuned(nn.Module):
    """A backbone and a head, in either order of its layers."""

    def __init__(self, *, head_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        backbone, head = nn.Linear(FEATURES, 6), nn.Linear(6, len(CLASSES))
        for name in ("head", "backbone") if head_first else ("backbone", "head"):
            setattr(self, name, {"backbone": backbone, "head": head}[name])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs).tanh())


def grpo_rm(**settings: Any) -> ClassSetGRPO:
    settings = {"estimator": "uniform", "objective": Objective(), **settings}
    rewards = parse_rewards(["hard", "uniformity"], None, CLASSES)
    return ClassSetGRPO(LabelGRPO(rewards=rewards, classes=CLASSES, **settings))


def trainer_of(
    folder: Path,
    model: nn.Module,
    method: Any,
    *,
    rate_of: Callable[[str], float] = tenth_of_the_backbone,
    **settings: Any,
) -> Trainer:
    options = TrainingOptions(
        **{
            "steps": 6,
            "batch_size": 8,
            "learning_rate": 0.05,
            "log_every": 1,
            "keep": "last",
            **settings,
        }
    )
    run = RunDirectory(folder)
    run.create("toy", {})
    inputs = CachedInputs(toy_inputs())
    return Trainer(
        model,
        method,
        BatchLoader(
            toy_dataset(), inputs, batch_size=8, seed=options.seed, blocks=options.minibatches
        ),
        options,
        processes=Processes("cpu"),
        run=run,
        evaluate=lambda: {"accuracy": 0.5},
        rate_of=rate_of,
    )


def equal_weights(ours: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(weights_of(ours).values(), weights_of(theirs).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# Groups of parameters


def test_parameters_are_grouped_by_rate_and_decay() -> None:
    model = Tuned()
    optimizer, parameters, _ = build_optimizer(model, 0.5, 0.01, tenth_of_the_backbone)
    groups = [
        (group["rate"], group["weight_decay"], [p.ndim for p in group["params"]])
        for group in optimizer.param_groups
    ]
    assert groups == [(0.1, 0.01, [2]), (0.1, 0.0, [1]), (1.0, 0.01, [2]), (1.0, 0.0, [1])]
    assert list(parameters) == ["backbone.weight", "backbone.bias", "head.weight", "head.bias"]
    in_order = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(in_order, parameters.values(), strict=True))


def test_the_order_of_groups_is_not_that_of_the_layers() -> None:
    orders = [
        list(build_optimizer(Tuned(head_first=first), 0.5, 0.0, tenth_of_the_backbone)[1])
        for first in (False, True)
    ]
    assert orders[0] == orders[1]


def test_what_is_frozen_is_in_no_group() -> None:
    model = Tuned()
    model.backbone.requires_grad_(False)
    optimizer, parameters, _ = build_optimizer(model, 0.5, 0.01, tenth_of_the_backbone)
    assert list(parameters) == ["head.weight", "head.bias"]
    assert len(optimizer.param_groups) == 2
    with pytest.raises(UserError, match="Nothing trains"):
        build_optimizer(model.requires_grad_(False), 0.5, 0.01, tenth_of_the_backbone)


def test_a_new_learning_rate_is_shared_out() -> None:
    optimizer, *_ = build_optimizer(Tuned(), 0.5, 0.0, tenth_of_the_backbone)
    for rate in (0.3, 0.02):
        set_learning_rate(optimizer, rate)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([rate / 10, rate / 10, rate, rate])


# Through the trainer


def test_the_first_step_is_the_rate_times_the_sign_of_the_gradient(tmp_path: Path) -> None:
    """Adam's moments cancel in its first step; matrices have decayed by rate × decay before."""
    model = Tuned()
    start = weights_of(model)
    signs: dict[str, Tensor] = {}

    class Watched(ClassSetGRPO):
        def loss(self, model: Any, batch: Batch, groups: Any, step: int) -> LossResult:
            parameters = dict(model.named_parameters())
            loss = super().loss(model, batch, groups, step).loss
            slopes = torch.autograd.grad(loss, list(parameters.values()))
            signs.update(zip(parameters, (slope.sign() for slope in slopes), strict=True))
            return super().loss(model, batch, groups, step)

    trainer_of(
        tmp_path,
        model,
        Watched(grpo_rm().policy),
        steps=1,
        learning_rate=0.01,
        weight_decay=0.5,
        warmup=0.0,
        schedule="constant",
    ).train()
    for name, now in weights_of(model).items():
        rate = 0.01 * tenth_of_the_backbone(name)
        decayed = start[name] * (1 - rate * 0.5) if now.ndim == 2 else start[name]
        torch.testing.assert_close(now, decayed - rate * signs[name], atol=2e-6, rtol=0)
    assert training_values(tmp_path, "learning_rate") == [0.01]  # the whole one is logged


def test_a_share_of_nothing_leaves_a_part_as_it_is(tmp_path: Path) -> None:
    model = Tuned()
    start = weights_of(model)
    trainer_of(
        tmp_path, model, grpo_rm(), rate_of=lambda name: float(name.startswith("head."))
    ).train()
    end = weights_of(model)
    assert torch.equal(end["backbone.weight"], start["backbone.weight"])
    assert not torch.equal(end["head.weight"], start["head.weight"])


SETTINGS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "passes": {"inner_passes": 2, "minibatches": 2, "accumulation": 2},
    "stale": {"refresh_every": 4},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("class_subset", [None, 2])
@pytest.mark.parametrize("head_first", [False, True])
def test_a_resumed_run_is_the_run(
    tmp_path: Path, setting: str, class_subset: int | None, head_first: bool
) -> None:
    """Bit for bit, with four groups of parameters; the checkpoint is from within a refresh."""
    method = grpo_rm(class_subset=class_subset)
    settings = {"save_every": 2, "weight_decay": 0.1, **SETTINGS[setting]}
    whole = Tuned(head_first=head_first)
    trainer_of(tmp_path / "whole", whole, method, **settings).train()

    class PowerCut(BaseException):
        pass

    class Failing(ClassSetGRPO):
        def loss(self, model: Any, batch: Batch, groups: Any, step: int) -> LossResult:
            if step == 3:
                raise PowerCut
            return super().loss(model, batch, groups, step)

    with pytest.raises(PowerCut):
        trainer_of(
            tmp_path / "cut", Tuned(head_first=head_first), Failing(method.policy), **settings
        ).train()
    checkpoint = newest_good(tmp_path / "cut" / "checkpoints")[0]
    assert checkpoint.state["step"] == 2
    resumed = Tuned(head_first=not head_first)  # tensors go by their names
    trainer_of(tmp_path / "cut", resumed, method, **settings).train(checkpoint)
    named = weights_of(whole)
    assert all(torch.equal(p, named[name]) for name, p in weights_of(resumed).items())
    assert metric_lines(tmp_path / "cut") == metric_lines(tmp_path / "whole")


@pytest.mark.parametrize("class_subset", [None, 2])
def test_accumulation_changes_nothing(tmp_path: Path, class_subset: int | None) -> None:
    models = {parts: Tuned() for parts in (1, 4)}
    for parts, model in models.items():
        method = grpo_rm(class_subset=class_subset)
        trainer_of(tmp_path / str(parts), model, method, accumulation=parts).train()
    for a, b in zip(*(weights_of(m).values() for m in models.values()), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for name in ("loss", "accuracy", "reward", "reward_std", "advantage_abs", "entropy"):
        whole, pieces = (training_values(tmp_path / run, name) for run in ("1", "4"))
        assert pieces == pytest.approx(whole, abs=1e-5)


def test_an_old_model_lasts_until_it_is_refreshed(tmp_path: Path) -> None:
    """The old policy of a step is the model as it was at the last multiple of three."""
    model = Tuned()
    at_step: list[nn.Module] = []
    old_logits: list[Tensor] = []
    inputs: list[Tensor] = []

    class Watched(ClassSetGRPO):
        def loss(self, model: Any, batch: Batch, groups: Any, step: int) -> LossResult:
            assert isinstance(groups, OldPolicy)
            copied = Tuned()
            copied.load_state_dict(model.state_dict())
            at_step.append(copied)
            old_logits.append(groups.logits)
            inputs.append(batch.inputs)
            return super().loss(model, batch, groups, step)

    trainer_of(
        tmp_path, model, Watched(grpo_rm().policy), refresh_every=3, learning_rate=0.5
    ).train()
    with torch.no_grad():
        for step in range(6):
            refreshed = at_step[step // 3 * 3](inputs[step])
            torch.testing.assert_close(old_logits[step], refreshed)
            assert (step % 3 == 0) == torch.allclose(at_step[step](inputs[step]), refreshed)
    clipped = training_values(tmp_path, "clip_ratio/region_mean")
    assert clipped[0] == clipped[3] == 0
    assert min(clipped[1], clipped[2]) > 0
    assert not equal_weights(at_step[0], at_step[5])


def test_the_clip_acts_from_the_second_inner_pass_on(tmp_path: Path) -> None:
    for passes in (1, 3):
        trainer_of(
            tmp_path / str(passes), Tuned(), grpo_rm(), learning_rate=0.5, inner_passes=passes
        ).train()
    assert set(training_values(tmp_path / "1", "clip_ratio/region_mean")) == {0.0}
    assert max(training_values(tmp_path / "3", "clip_ratio/region_mean")) > 0
