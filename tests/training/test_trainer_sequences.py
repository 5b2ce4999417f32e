"""The trainer with methods that generate and remember, silent rewards, and what selects."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import (
    Stub,
    metric_lines,
    supervised,
    toy_model,
    toy_trainer,
    training_values,
    weights_of,
)

from visgrpo.errors import Interrupted, UserError
from visgrpo.methods.method import LossResult
from visgrpo.training.checkpoints import newest_good


class Drawing(Stub):
    """A method that draws: notes the weights it draws with, and hands its groups to the loss."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__(None)
        self.drawn: list[Tensor] = []
        self.chunks: list[int] = []
        self.learned: list[Any] = []
        self._fails_at = fails_at

    def rollout(self, old_model: Any, batch: Any, step: int, *, chunk: int) -> Any:
        if step == self._fails_at:
            raise UserError("the reward raised")
        self.drawn.append(old_model[1].weight.detach().clone())
        self.chunks.append(chunk)
        assert not torch.is_grad_enabled()
        return SimpleNamespace(select=lambda rows: ("part", step), step=step)

    def loss(self, model: Any, batch: Any, groups: Any, step: int) -> Any:
        self.learned.append(groups)
        loss = model(batch.inputs).square().mean()
        return SimpleNamespace(loss=loss, metrics={}, groups=groups, weights={})


SEQUENCES = {"draws_sequences": True}


def test_sequences_are_drawn_before_the_first_pass(tmp_path: Path) -> None:
    """For classes the first pass is the rollout too; sequences have to be there before it."""
    classes, sequences = Drawing(), Drawing()
    toy_trainer(tmp_path / "classes", classes, steps=2).train()
    toy_trainer(tmp_path / "sequences", sequences, steps=2, more=SEQUENCES).train()
    assert classes.drawn == []
    assert classes.learned == [None, None]
    assert [groups.step for groups in sequences.learned] == [0, 1]
    assert sequences.chunks == [8, 8]


def test_sequences_are_drawn_in_pieces_of_an_accumulation_pass(tmp_path: Path) -> None:
    method = Drawing()
    settings = {"minibatches": 2, "accumulation": 2, "inner_passes": 2}
    toy_trainer(tmp_path, method, steps=1, more=SEQUENCES, **settings).train()
    assert method.chunks == [2]
    assert method.learned == [("part", 0)] * 8


def test_the_old_weights_draw_and_the_present_ones_learn(tmp_path: Path) -> None:
    model, method = toy_model(), Drawing()
    present: list[Tensor] = []
    place = model[1].weight

    def noting(m: Any, batch: Any, groups: Any, step: int) -> Any:
        present.append(m[1].weight.detach().clone())
        assert m[1].weight is place
        return Drawing.loss(method, m, batch, groups, step)

    method.loss = noting  # type: ignore[method-assign]
    toy_trainer(tmp_path, method, model=model, refresh_every=3, more=SEQUENCES).train()
    for step in range(6):
        assert torch.equal(method.drawn[step], present[step - step % 3])
    assert not torch.equal(present[1], present[0])
    assert len({weights.data_ptr() for weights in present}) == 6


def test_the_present_weights_come_back_when_drawing_fails(tmp_path: Path) -> None:
    whole, cut = toy_model(), toy_model()
    toy_trainer(tmp_path / "two", Drawing(), model=whole, steps=2, schedule="constant",
                warmup=0.0, refresh_every=4, more=SEQUENCES).train()  # fmt: skip
    with pytest.raises(UserError, match="the reward raised"):
        toy_trainer(tmp_path / "cut", Drawing(2), model=cut, schedule="constant",
                    warmup=0.0, refresh_every=4, more=SEQUENCES).train()  # fmt: skip
    for name, weights in weights_of(whole).items():
        assert torch.equal(weights_of(cut)[name], weights)


class Counter:
    """A memory that counts the steps, whose loss it weighs."""

    def __init__(self) -> None:
        self.count, self.weights = 0, {}

    def state(self) -> dict[str, float]:
        return {"count": self.count}

    def restore(self, state: Any) -> None:
        self.count = int(state["count"])

    def metrics(self) -> dict[str, float]:
        return {"counted": self.count}


class Remembering(Drawing):
    def __init__(self, memory: Counter, fails_at: int | None = None) -> None:
        super().__init__()
        self._memory, self._after = memory, fails_at

    def rollout(self, old_model: Any, batch: Any, step: int, *, chunk: int) -> Any:
        self._memory.count += 1
        if step == self._after:
            raise UserError("the reward raised")
        return super().rollout(old_model, batch, step, chunk=chunk)

    def loss(self, model: Any, batch: Any, groups: Any, step: int) -> Any:
        result = super().loss(model, batch, groups, step)
        return SimpleNamespace(
            loss=result.loss * self._memory.count, metrics={}, groups=groups, weights={}
        )


def remembering(folder: Path, fails_at: int | None = None, **settings: Any) -> Any:
    memory, model = Counter(), toy_model()
    method = Remembering(memory, fails_at)
    more = {**SEQUENCES, "memory": memory}
    return toy_trainer(folder, method, model=model, more=more, **settings), memory, model


@pytest.mark.parametrize("save_every", [0, 2])
def test_what_a_method_remembers_goes_on_after_a_resume(tmp_path: Path, save_every: int) -> None:
    """A step that failed in its middle is forgotten: it will be counted when it is done again."""
    trainer, memory, whole = remembering(tmp_path / "whole", save_every=save_every)
    trainer.train()
    assert memory.count == 6
    assert training_values(tmp_path / "whole", "counted") == [1, 2, 3, 4, 5, 6]
    trainer, _, _ = remembering(tmp_path / "cut", 3, save_every=save_every)
    with pytest.raises(UserError, match="the reward raised"):
        trainer.train()
    checkpoint, _ = newest_good(tmp_path / "cut" / "checkpoints")
    assert checkpoint.state["step"] == checkpoint.state["memory"]["count"] == 3
    trainer, memory, resumed = remembering(tmp_path / "cut", save_every=save_every)
    trainer.train(checkpoint)
    assert memory.count == 6
    assert metric_lines(tmp_path / "cut") == metric_lines(tmp_path / "whole")
    for name, weights in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], weights)


class Silent(Stub):
    """Rewards that differ in some steps only."""

    def __init__(self, differ: tuple[int, ...] = ()) -> None:
        super().__init__(None)
        self._differ = differ

    def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
        share = torch.tensor(0.5 if step in self._differ else 1.0)
        return LossResult(model(batch.inputs).square().mean(), {"frac_reward_zero_std": share})


@pytest.mark.parametrize(
    ("differ", "log_every", "stopped_at"),
    [((), 1, 3), ((1,), 1, 5), ((), 2, 4), ((2, 5, 8), 1, None), ((3,), 2, 8)],
)
def test_a_run_that_learns_nothing_from_rewards_is_stopped(
    tmp_path: Path, differ: tuple[int, ...], log_every: int, stopped_at: int | None
) -> None:
    """After three such steps in a row, where a line is logged; what was learned is kept."""
    settings = {"steps": 9, "log_every": log_every, "silent_steps": 3}
    trainer = toy_trainer(tmp_path, Silent(differ), **settings)
    if stopped_at is None:
        trainer.train()
        return
    with pytest.raises(UserError, match=r"every group earned the same.*reward that differs"):
        trainer.train()
    assert newest_good(tmp_path / "checkpoints")[0].state["step"] == stopped_at


def test_silent_steps_are_counted_over_a_resume(tmp_path: Path) -> None:
    class Stopping(Silent):
        def loss(self, model: Any, batch: Any, groups: None, step: int) -> LossResult:
            if step == 1:
                signal.raise_signal(signal.SIGINT)
            return super().loss(model, batch, groups, step)

    with pytest.raises(Interrupted):
        toy_trainer(tmp_path, Stopping(), silent_steps=4).train()
    checkpoint, _ = newest_good(tmp_path / "checkpoints")
    assert checkpoint.state["silent_steps"] == 2
    with pytest.raises(UserError, match="For 4 steps"):
        toy_trainer(tmp_path, Silent(), silent_steps=4).train(checkpoint)


def test_a_metric_with_a_minus_is_better_when_lower(tmp_path: Path) -> None:
    model, seen = toy_model(), []
    left = iter([2.0, 0.5, 0.7, 0.9])

    def evaluate() -> dict[str, float]:
        seen.append(weights_of(model))
        return {"nll": next(left)}

    result = toy_trainer(
        tmp_path, supervised(), model=model, evaluate=evaluate, more={"selection": "-nll"},
        eval_every=2, keep="best",
    ).train()  # fmt: skip
    assert (result.best_step, result.validation) == (2, 0.5)
    assert all(torch.equal(seen[1][name], now) for name, now in weights_of(model).items())
    assert training_values(tmp_path, "eval/nll") == [2.0, 0.5, 0.7, 0.9]


def test_the_last_validation_of_a_metric_with_a_minus_keeps_its_sign(tmp_path: Path) -> None:
    left = iter([2.0, 0.5])
    result = toy_trainer(
        tmp_path, supervised(), evaluate=lambda: {"nll": next(left)}, more={"selection": "-nll"}
    ).train()
    assert result.validation == 0.5


def test_messages_call_inputs_what_they_are(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: Any, step: int) -> Tensor:
        return model(batch.inputs).sum() * torch.nan

    with pytest.raises(UserError, match=r"on training prompts .* or a broken prompt or weight"):
        toy_trainer(tmp_path, Stub(broken), more={"inputs_are": "prompts"}).train()
