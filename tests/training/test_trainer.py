"""The trainer on a linear classifier: what a step does, what a run leaves, what stops it."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import (
    FEATURES,
    Stub,
    grpo,
    metric_lines,
    read_lines,
    supervised,
    toy_dataset,
    toy_inputs,
    toy_model,
    toy_trainer,
    training_values,
    weights_of,
)

from visgrpo.data.batches import BatchLoader
from visgrpo.errors import Interrupted, UserError
from visgrpo.methods.class_set import ClassSetGRPO
from visgrpo.methods.method import LossResult
from visgrpo.training.checkpoints import load_checkpoint, newest_good


class PowerCut(BaseException):
    """What no handler catches."""


# What a step does


@pytest.mark.parametrize("method", [supervised, grpo, lambda: grpo("reinforce")])
def test_one_pass_of_eight_equals_eight_passes_of_one(tmp_path: Path, method: Any) -> None:
    models = {accumulation: toy_model() for accumulation in (1, 8)}
    for accumulation, model in models.items():
        folder = tmp_path / str(accumulation)
        toy_trainer(folder, method(), model=model, accumulation=accumulation).train()
    for name in ("loss", "grad_norm", "accuracy", "reward"):
        whole, parts = (training_values(tmp_path / run, name) for run in ("1", "8"))
        assert len(whole) == 6
        assert parts == pytest.approx(whole, abs=1e-6)
    for ours, theirs in zip(*(weights_of(m).values() for m in models.values()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_inner_passes_and_minibatches_multiply_the_updates(tmp_path: Path) -> None:
    toy_trainer(tmp_path, grpo(), inner_passes=3, minibatches=2, accumulation=2).train()
    tensors = newest_good(tmp_path / "checkpoints")[0].tensors["optimizer"]
    assert tensors["1.weight/step"].item() == 6 * 3 * 2


def test_every_row_is_in_one_minibatch(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        seen.append(batch.indices_N.tolist())
        return model(batch.inputs).square().mean()

    toy_trainer(tmp_path, Stub(loss_of), steps=2, minibatches=4, inner_passes=2).train()
    passes = [sorted(chain(*seen[i : i + 4])) for i in range(0, 16, 4)]
    assert all(len(rows) == 2 for rows in seen)
    assert passes[0] == passes[1] != passes[2] == passes[3]
    # The same blocks in every pass: they are dealt out to the processes before the first one.
    assert seen[0:4] == seen[4:8]


def test_the_clip_acts_from_the_second_inner_pass_on(tmp_path: Path) -> None:
    toy_trainer(tmp_path / "once", grpo(), learning_rate=0.5).train()
    toy_trainer(tmp_path / "twice", grpo(), learning_rate=0.5, inner_passes=2).train()
    assert set(training_values(tmp_path / "once", "clip_ratio/region_mean")) == {0.0}
    assert set(training_values(tmp_path / "once", "ratio_mean")) == {1.0}
    assert max(training_values(tmp_path / "twice", "clip_ratio/region_mean")) > 0


class Watched:
    """GRPO that notes, in every step, what the old and the present policy say of one input."""

    def __init__(self) -> None:
        self.inner = grpo()
        self.old: list[Tensor] = []
        self.now: list[Tensor] = []

    def rollout(self, old_model: Any, batch: Any, step: int, *, chunk: int) -> Any:
        self.old.append(old_model(toy_inputs()[:1]))
        return self.inner.rollout(old_model, batch, step, chunk=chunk)

    def loss(self, model: Any, *arguments: Any) -> LossResult:
        with torch.no_grad():
            self.now.append(model(toy_inputs()[:1]))
        return self.inner.loss(model, *arguments)

    def samples(self, groups: Any, rows: int) -> list[dict[str, Any]]:
        return self.inner.samples(groups, rows)


def test_a_stale_old_policy_stays_until_it_is_refreshed(tmp_path: Path) -> None:
    model = toy_model()
    watched = Watched()
    toy_trainer(tmp_path, watched, model=model, refresh_every=3, learning_rate=0.5).train()
    old, now = watched.old, watched.now
    assert torch.equal(old[0], old[1])
    assert torch.equal(old[0], old[2])
    assert torch.equal(old[3], old[5])
    assert torch.equal(old[0], now[0])
    assert torch.equal(old[3], now[3])
    assert not torch.equal(now[1], old[1])
    clipped = training_values(tmp_path, "clip_ratio/region_mean")
    assert clipped[0] == clipped[3] == 0
    assert max(clipped) > 0


@pytest.mark.parametrize(("limit", "norm"), [(0.5, 0.5), (0, 300 * 2**0.5)])
def test_gradients_are_scaled_down_to_the_limit(tmp_path: Path, limit: float, norm: float) -> None:
    model = toy_model()

    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        return 300 * (model[1].bias[0] + model[1].weight[0, 0])

    toy_trainer(tmp_path, Stub(loss_of), model=model, steps=1, max_grad_norm=limit).train()
    tensors = newest_good(tmp_path / "checkpoints")[0].tensors["optimizer"]
    averages = [value for name, value in tensors.items() if name.endswith("/exp_avg")]
    seen = torch.cat([value.flatten() for value in averages]).norm().item() / 0.1  # 1 - β1
    assert seen == pytest.approx(norm, rel=1e-4)
    logged = training_values(tmp_path, "grad_norm")
    assert logged == (pytest.approx([300 * 2**0.5]) if limit else [])


def test_only_matrices_decay(tmp_path: Path) -> None:
    model = toy_model()
    start = weights_of(model)
    still = Stub(lambda model, batch, step: 0 * model(batch.inputs).sum())
    toy_trainer(
        tmp_path,
        still,
        model=model,
        steps=2,
        schedule="constant",
        warmup=0.0,
        learning_rate=0.1,
        weight_decay=0.5,
    ).train()
    end = weights_of(model)
    torch.testing.assert_close(end["1.weight"], start["1.weight"] * (1 - 0.1 * 0.5) ** 2)
    assert torch.equal(end["1.bias"], start["1.bias"])


def test_only_what_trains_is_moved_and_saved(tmp_path: Path) -> None:
    model = toy_model()
    model[1].weight.requires_grad_(False)
    start = weights_of(model)
    toy_trainer(tmp_path, supervised(), model=model).train()
    assert torch.equal(weights_of(model)["1.weight"], start["1.weight"])
    saved = newest_good(tmp_path / "checkpoints")[0].tensors
    assert list(saved["model"]) == ["1.bias"]


def test_nothing_to_train(tmp_path: Path) -> None:
    model = toy_model().requires_grad_(False)
    with pytest.raises(UserError, match="Nothing trains: choose another --train, such as lora"):
        toy_trainer(tmp_path, supervised(), model=model)


# What a run leaves


def test_a_training_line_holds_the_mean_since_the_last_one(tmp_path: Path) -> None:
    toy_trainer(tmp_path / "each", supervised(), log_every=1).train()
    toy_trainer(tmp_path / "some", supervised(), log_every=4).train()
    each, some = (training_values(tmp_path / run, "loss") for run in ("each", "some"))
    assert some == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 2])
    steps = [line["step"] for line in read_lines(tmp_path / "some" / "metrics.jsonl")]
    assert steps == [0, 4, 6, 6]  # the start, two training lines, the last evaluation


def test_batches_know_whether_their_step_is_logged(tmp_path: Path) -> None:
    seen: list[bool] = []

    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        seen.append(batch.logged)
        return model(batch.inputs).square().mean()

    toy_trainer(tmp_path, Stub(loss_of), steps=6, log_every=4, accumulation=2).train()
    assert seen == [False] * 6 + [True] * 2 + [False] * 2 + [True] * 2


def test_what_only_the_log_needs_is_of_the_logged_steps(tmp_path: Path) -> None:
    """Of class sets entropy and accuracy; the loss is a mean over all steps."""
    every, some = tmp_path / "each", tmp_path / "some"
    policy = grpo(estimator="uniform", entropy_weight=0.1)
    for folder, log_every in ((every, 1), (some, 4)):
        toy_trainer(folder, ClassSetGRPO(policy), steps=8, log_every=log_every).train()
    accuracy, accuracy_of_some = (training_values(at, "accuracy") for at in (every, some))
    assert accuracy_of_some == [accuracy[3], accuracy[7]]
    loss, loss_of_some = (training_values(at, "loss") for at in (every, some))
    expected = [sum(loss[:4]) / 4, sum(loss[4:]) / 4]
    assert loss_of_some == pytest.approx(expected, abs=1e-7)


def test_every_line_says_step_epoch_and_seconds(tmp_path: Path) -> None:
    toy_trainer(tmp_path, supervised()).train()
    for line in read_lines(tmp_path / "metrics.jsonl"):
        assert line["epoch"] == round(line["step"] / 6, 4)
        assert line["seconds"] >= 0


def test_training_learns(tmp_path: Path) -> None:
    for name, method in (("grpo", grpo()), ("supervised", supervised())):
        toy_trainer(tmp_path / name, method, steps=40).train()
        accuracies = training_values(tmp_path / name, "accuracy")
        assert accuracies[0] < 0.6
        assert sum(accuracies[-5:]) / 5 > 0.9


def _scripted(values: list[float], model: nn.Module, seen: list[dict[str, Tensor]]) -> Any:
    left: Iterator[float] = iter(values)

    def evaluate() -> dict[str, float]:
        seen.append(weights_of(model))
        return {"accuracy": next(left)}

    return evaluate


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 3)])
def test_the_run_ends_with_the_best_on_validation_or_the_last(
    tmp_path: Path, keep: str, kept: int
) -> None:
    model, seen = toy_model(), []
    evaluate = _scripted([0.1, 0.9, 0.9, 0.3], model, seen)  # of equals the later is the best
    trainer = toy_trainer(
        tmp_path, supervised(), model=model, evaluate=evaluate, eval_every=2, keep=keep
    )
    result = trainer.train()
    assert result.best_step == 4
    assert all(torch.equal(seen[kept][name], now) for name, now in weights_of(model).items())
    best = load_checkpoint(tmp_path / "checkpoints" / "best")
    assert best.state["step"] == 4


def test_the_start_can_be_the_best(tmp_path: Path) -> None:
    model, seen = toy_model(), []
    start = weights_of(model)
    evaluate = _scripted([0.5, 0.2, 0.1], model, seen)
    toy_trainer(
        tmp_path, supervised(), model=model, evaluate=evaluate, eval_every=3, keep="best"
    ).train()
    assert all(torch.equal(start[name], now) for name, now in weights_of(model).items())


# What stops it


def test_a_loss_that_is_not_a_number_names_step_images_and_causes(tmp_path: Path) -> None:
    rows: list[int] = []

    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        rows[:] = batch.indices_N.tolist()
        loss = model(batch.inputs).square().mean()
        return loss * float("nan") if step == 3 else loss

    with pytest.raises(UserError) as caught:
        toy_trainer(tmp_path, Stub(loss_of)).train()
    message = str(caught.value)
    assert "The loss is nan at step 4" in message
    assert ", ".join(map(str, rows)) in message
    assert "learning rate that is too high" in message
    assert "\n" not in message
    kept = newest_good(tmp_path / "checkpoints")[0]
    assert kept.state["step"] == 3
    assert all(tensor.isfinite().all() for tensor in kept.tensors["model"].values())


def test_an_infinite_loss_in_an_accumulation_pass(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        return model(batch.inputs).mean() * (float("inf") if 5 in batch.indices_N else 1.0)

    with pytest.raises(UserError, match=r"The loss is -?inf at step \d, on training images"):
        toy_trainer(tmp_path, Stub(loss_of), accumulation=4).train()


@pytest.mark.parametrize("cut", [1, 4])
def test_a_mistake_in_the_middle_saves_the_last_whole_step(tmp_path: Path, cut: int) -> None:
    toy_trainer(tmp_path / "whole", supervised(), model=(whole := toy_model())).train()

    class Failing(Stub):
        def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
            if step == cut:
                raise UserError("the image is broken")
            return supervised().loss(model, batch, groups, step)

    with pytest.raises(UserError, match="the image is broken"):
        toy_trainer(tmp_path / "cut", Failing(None)).train()
    checkpoint = newest_good(tmp_path / "cut" / "checkpoints")[0]
    assert checkpoint.state["step"] == cut
    model = toy_model()
    toy_trainer(tmp_path / "cut", supervised(), model=model).train(checkpoint)
    for ours, theirs in zip(weights_of(model).values(), weights_of(whole).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_mistake_within_a_step_of_several_updates_keeps_the_run_repeatable(
    tmp_path: Path,
) -> None:
    """Half a step's updates are in the weights by then: they must not be saved as a whole step."""
    settings: dict[str, Any] = {"minibatches": 2, "inner_passes": 2}
    toy_trainer(tmp_path / "whole", supervised(), model=(whole := toy_model()), **settings).train()
    calls: list[int] = []

    class Failing(Stub):
        def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
            calls.append(step)
            if len(calls) == 4 * 3 + 3:  # the third update of step 3
                raise UserError("the reward raised")
            return supervised().loss(model, batch, groups, step)

    with pytest.raises(UserError, match="the reward raised"):
        toy_trainer(tmp_path / "cut", Failing(None), save_every=2, **settings).train()
    checkpoint = newest_good(tmp_path / "cut" / "checkpoints")[0]
    model = toy_model()
    trainer = toy_trainer(tmp_path / "cut", supervised(), model=model, save_every=2, **settings)
    trainer.train(checkpoint)
    for ours, theirs in zip(weights_of(model).values(), weights_of(whole).values(), strict=True):
        assert torch.equal(ours, theirs)


def _finite_loss_without_finite_gradient(model: nn.Module, batch: Any, step: int) -> Tensor:
    loss = model(batch.inputs).square().mean()
    return loss + (0 * model[1].bias).sqrt().sum() if step == 3 else loss


@pytest.mark.parametrize(
    ("limit", "message"),
    [(5.0, "The gradient's norm is nan at step 4"), (0.0, "The loss is nan at step 5")],
)
def test_weights_that_are_not_numbers_are_not_saved(
    tmp_path: Path, limit: float, message: str
) -> None:
    method = Stub(_finite_loss_without_finite_gradient)
    with pytest.raises(UserError, match=message):
        toy_trainer(tmp_path, method, save_every=3, max_grad_norm=limit).train()
    kept = newest_good(tmp_path / "checkpoints")[0]
    assert kept.state["step"] == 3
    assert all(tensor.isfinite().all() for tensor in kept.tensors["model"].values())


def test_metrics_of_an_unfinished_step_are_not_kept(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulation": 4, "log_every": 6}
    toy_trainer(tmp_path / "whole", supervised(), **settings).train()
    calls: list[int] = []

    class Failing(Stub):
        def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
            calls.append(step)
            if len(calls) == 4 * 3 + 3:
                raise UserError("the reward raised")
            return supervised().loss(model, batch, groups, step)

    with pytest.raises(UserError, match="the reward raised"):
        toy_trainer(tmp_path / "cut", Failing(None), **settings).train()
    checkpoint = newest_good(tmp_path / "cut" / "checkpoints")[0]
    assert checkpoint.state["step"] == 3
    toy_trainer(tmp_path / "cut", supervised(), **settings).train(checkpoint)
    assert metric_lines(tmp_path / "cut") == metric_lines(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_the_step_under_way(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda descriptor: False)  # the terminal of the tests is there

    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        if step == 2:
            signal.raise_signal(number)
        return model(batch.inputs).square().mean()

    handler = signal.signal(number, signal.SIG_DFL)  # it may be ignored, as under nohup
    signal.signal(number, handler if handler is not signal.SIG_IGN else signal.SIG_DFL)
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 3") as caught:
        toy_trainer(tmp_path, Stub(loss_of)).train()
    assert caught.value.run == tmp_path
    assert newest_good(tmp_path / "checkpoints")[0].state["step"] == 3
    assert signal.getsignal(number) is handler


def test_a_hangup_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """Under nohup a run outlives its terminal."""

    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        signal.raise_signal(signal.SIGHUP)
        return model(batch.inputs).square().mean()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        toy_trainer(tmp_path, Stub(loss_of)).train()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def loss_of(model: nn.Module, batch: Any, step: int) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return model(batch.inputs).square().mean()

    with pytest.raises(KeyboardInterrupt):
        toy_trainer(tmp_path, Stub(loss_of)).train()


# Resume


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "logged between saves": {"log_every": 3, "save_every": 2, "eval_every": 4},
    "stale": {"minibatches": 2, "inner_passes": 2, "refresh_every": 4, "save_every": 3},
    "class sets": {
        "method": ClassSetGRPO(grpo(estimator="uniform")),
        "log_every": 3,
        "save_every": 2,
    },
    "best kept": {"keep": "best", "weight_decay": 0.1, "accumulation": 2},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("cut", [3, 5, 9])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cut: int
) -> None:
    settings = {"steps": 10, "save_every": 2, "eval_every": 2, **RESUMED[name]}

    settings = {"method": grpo(), **settings}

    def run(folder: Path, power_cut_in: int | None = None) -> nn.Module:
        model = toy_model(dropout=0.3)

        def evaluate() -> dict[str, float]:
            with torch.no_grad():
                return {"accuracy": -float(model(toy_inputs()).square().mean())}

        trainer = toy_trainer(folder, model=model, evaluate=evaluate, **settings)
        checkpoint = None
        if power_cut_in is None and any(folder.glob("checkpoints/step-*")):
            checkpoint = newest_good(folder / "checkpoints")[0]
        with monkeypatch.context() as patch:
            if power_cut_in is not None:
                updates = trainer._update

                def failing(*arguments: Any) -> Any:
                    if trainer._step == power_cut_in:
                        raise PowerCut
                    return updates(*arguments)

                patch.setattr(trainer, "_update", failing)
            trainer.train(checkpoint)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(PowerCut):
        run(tmp_path / "cut", cut)
    resumed = run(tmp_path / "cut")
    for ours, theirs in zip(weights_of(resumed).values(), weights_of(whole).values(), strict=True):
        assert torch.equal(ours, theirs)
    assert metric_lines(tmp_path / "cut") == metric_lines(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = toy_model()
    result = toy_trainer(tmp_path, supervised(), model=first).train()
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = toy_model()
    checkpoint = newest_good(tmp_path / "checkpoints")[0]
    repeated = toy_trainer(tmp_path, supervised(), model=again).train(checkpoint)
    assert dataclasses.asdict(repeated) == dataclasses.asdict(result)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    for ours, theirs in zip(weights_of(again).values(), weights_of(first).values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_takes_as_long_as_its_data(tmp_path: Path) -> None:
    """Waiting for images is part of a step, or the examples per second would flatter."""

    class SlowInputs:
        def __call__(self, index: int, rng: Any) -> Tensor:
            time.sleep(0.005)
            return toy_inputs()[index]

    trainer = toy_trainer(tmp_path, supervised(), steps=3)
    trainer._loader = BatchLoader(toy_dataset(), SlowInputs(), batch_size=8, seed=0)
    result = trainer.train()
    assert result.seconds >= 3 * 8 * 0.005


def test_running_statistics_go_on_after_a_resume(tmp_path: Path) -> None:
    """Buffers such as those of batch normalisation are part of what training changes."""

    def model() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(FEATURES), toy_model())

    whole, first, second = model(), model(), model()
    toy_trainer(tmp_path / "whole", supervised(), model=whole).train()
    stopping = toy_trainer(tmp_path / "cut", supervised(), model=first, save_every=3)
    stopping._stop.asked = True
    with pytest.raises(Interrupted):
        stopping.train()
    checkpoint, _ = newest_good(tmp_path / "cut" / "checkpoints")
    toy_trainer(tmp_path / "cut", supervised(), model=second).train(checkpoint)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_rewards_that_teach_nothing_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a KL or entropy term would move the model alone, and nobody would notice."""

    class Equal(Stub):
        def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
            one = torch.tensor(1.0)
            return LossResult(model(batch.inputs).mean(), {"frac_reward_zero_std": one})

    toy_trainer(tmp_path, Equal(None), steps=4).train()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "the outputs of every group earned the same" in warnings[0]
