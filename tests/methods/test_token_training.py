"""The token policies in the trainer: pieces, older policies, and what a checkpoint remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from token_tools import LENGTHS, PROMPT_TEXTS, PROMPTS, STOP, language, rollouts, sampling
from torch import Tensor

from visgrpo.data.batches import BatchLoader, CachedInputs
from visgrpo.data.roles import prompt_table
from visgrpo.errors import UserError
from visgrpo.methods.ppo import TokenPPO
from visgrpo.methods.token_groups import AdaptiveKL
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.reference import reference_of
from visgrpo.objectives import preset
from visgrpo.training.checkpoints import newest_good
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import RunDirectory
from visgrpo.training.trainer import Trainer

TIMES = {"seconds", "step_time"}


class TokenRun:
    """A short run over four prompts, all of them in every step.

    Args:
        method: grpo and the other presets, or ppo with a head or a separate critic.
        rewards: of the rollouts, when not the usual one.
    """

    def __init__(
        self, folder: Path, method: str = "dapo", rewards: Any = None, **settings: Any
    ) -> None:
        critic = method.removeprefix("ppo-") if method.startswith("ppo") else None
        self.model, self.folder = language(critic=critic), folder
        options = TrainingOptions(**{
            "steps": 4, "batch_size": 4, "learning_rate": 3e-3, "log_every": 1, "keep": "last",
            "warmup": 0.0, "schedule": "constant", **settings,
        })  # fmt: skip
        source = rollouts(
            drawn=sampling(5, stop=(STOP, 6)),
            control=AdaptiveKL(0.2, target=0.05, horizon=100.0),
            reference=reference_of(self.model),
            **({} if rewards is None else {"rewards": rewards}),
        )
        terms = TokenTerms(on_policy=options.updates_per_rollout == 1)
        self.memory = source.memory
        run = RunDirectory(folder)
        run.create("language", {})
        dataset = prompt_table("toy/train", PROMPT_TEXTS, {"price": [1.0, 2.0, 3.0, 4.0]})
        inputs = CachedInputs(PROMPTS, lengths_M=LENGTHS)
        self.trainer = Trainer(
            self.model,
            TokenPPO(source, terms) if critic else TokenGRPO(source, preset(method), terms),
            BatchLoader(dataset, inputs, batch_size=4, seed=0, blocks=options.minibatches),
            options,
            processes=Processes("cpu"),
            run=run,
            evaluate=lambda: {"reward": 0.0},
            selection="reward",
            draws_sequences=True,
            memory=self.memory,
            inputs_are="prompts",
        )

    def lines(self) -> list[dict[str, Any]]:
        """What was logged, without the times."""
        text = (self.folder / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]

    def values(self, name: str) -> list[float]:
        return [line[name] for line in self.lines() if name in line]

    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self.model.parameters()]


METHODS = ["grpo", "dapo", "rloo", "ppo-head", "ppo-separate"]


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(tmp_path: Path, method: str) -> None:
    runs = [TokenRun(tmp_path / str(n), method, accumulation=n, steps=2) for n in (1, 4)]
    for run in runs:
        run.trainer.train()
    for name in ("loss", "grad_norm", "reward", "kl_coefficient", "sampled_tokens"):
        assert runs[1].values(name) == pytest.approx(runs[0].values(name), abs=1e-5), name
    # What the models say: Adam makes steps of the rounding of weights without effect (key biases).
    completions = torch.arange(2, 10).expand(4, 2, 8)
    ours, theirs = (run.model.score(PROMPTS, LENGTHS, completions) for run in runs)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, method: str) -> None:
    """The adapted weight of KL and the count of tokens go on where they were."""
    settings = {"minibatches": 2, "inner_passes": 2}
    whole = TokenRun(tmp_path / "whole", method, **settings)
    whole.trainer.train()
    calls = iter(range(99))

    def failing(*, completions: list[str], **columns: Any) -> list[float]:
        if next(calls) == 2:
            raise UserError("the reward raised")
        return [sum(int(w) > 6 for w in text.split()) / max(len(text.split()), 1)
                for text in completions]  # fmt: skip

    failing.__name__ = "large_tokens"
    cut = TokenRun(tmp_path / "cut", method, rewards=(failing,), **settings)
    with pytest.raises(UserError, match="the reward raised"):
        cut.trainer.train()
    checkpoint, _ = newest_good(tmp_path / "cut" / "checkpoints")
    assert checkpoint.state["step"] == 2
    resumed = TokenRun(tmp_path / "cut", method, **settings)
    resumed.trainer.train(checkpoint)
    assert resumed.memory.state() == whole.memory.state()
    assert resumed.memory.control.coefficient != 0.2
    assert resumed.lines() == whole.lines()
    for ours, theirs in zip(resumed.weights(), whole.weights(), strict=True):
        assert torch.equal(ours, theirs)


def test_ratios_leave_one_with_a_stale_policy(tmp_path: Path) -> None:
    """Three steps draw with the weights of the first: only there are the two policies one."""
    run = TokenRun(tmp_path, "grpo", refresh_every=3)
    run.trainer.train()
    off = [abs(ratio - 1) for ratio in run.values("ratio_mean")]
    assert off[0] == pytest.approx(0, abs=1e-5)
    assert off[3] == pytest.approx(0, abs=1e-5)
    assert min(off[1:3]) > 1e-5


def test_the_clip_acts_from_the_second_pass_on(tmp_path: Path) -> None:
    once = TokenRun(tmp_path / "once", "gspo", steps=2)
    twice = TokenRun(tmp_path / "twice", "gspo", steps=2, inner_passes=2)
    for run in (once, twice):
        run.trainer.train()
    assert set(once.values("clip_ratio/region_mean")) == {0.0}
    assert set(once.values("ratio_mean")) == {1.0}
    assert max(twice.values("clip_ratio/region_mean")) > 0


def test_sampled_tokens_are_those_of_all_steps(tmp_path: Path) -> None:
    run = TokenRun(tmp_path)
    run.trainer.train()
    tokens = run.values("sampled_tokens")
    steps = [16 * length for length in run.values("completions/mean_length")]
    assert tokens == pytest.approx([sum(steps[: n + 1]) for n in range(4)])
    assert tokens[-1] == run.memory.sampled_tokens


def test_a_run_whose_rewards_are_all_equal_is_stopped(tmp_path: Path) -> None:
    def equal(*, completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    run = TokenRun(tmp_path, rewards=(equal,), silent_steps=3)
    with pytest.raises(UserError, match="For 3 steps the outputs of every group earned the same"):
        run.trainer.train()
    assert run.values("frac_reward_zero_std") == [1.0] * 3


def test_samples_are_logged_with_their_rows(tmp_path: Path) -> None:
    run = TokenRun(tmp_path, steps=1)
    run.trainer.train()
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    for sample in samples:
        assert sample["prompt"] == PROMPT_TEXTS[sample["index"]]
        assert len(sample["outputs"]) == len(sample["rewards"]) == len(sample["ended"]) == 4
