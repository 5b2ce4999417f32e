"""The two sides of token_step.py, ours and TRL's, and the proof that they do the same work.

"rollout" makes tokens and pixels of the prompts, draws the groups and makes advantages of their
rewards: `TokenGRPO.rollout`, and TRL's `_generate_and_score_completions`. "update" is the loss, its
gradient and the optimiser's step: `TokenGRPO.loss`, and TRL's `compute_loss`. Neither side's
gradient clipping or log is in.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.data.text import Prompt
from visgrpo.methods.generate import Sampling
from visgrpo.methods.token_groups import TokenGroups, TokenMemory, TokenRollouts
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import LanguageModel
from visgrpo.objectives import preset
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.texts import TextRewards
from visgrpo.training.optimizer import build_optimizer

PROMPTS, GROUP = 2, 8
LEARNING_RATE = 1e-6
TOLERANCE = 1e-5  # of losses and, relative to their size, of gradients

SideName = Literal["visgrpo", "trl"]


@dataclass(frozen=True)
class Task:
    """What both sides are given: a model, and N prompts of one length.

    Attributes:
        policy: makes of a copy of the model what our methods train.
        batch: makes tokens and pixels of the prompts, as our loader does.
        prompts: as reward functions are given them.
        rows: the prompts as rows of TRL's data set.
        processing: what makes tokens and pixels of them there.
        never: tokens that must not be drawn, so that every completion gets its whole length.
        group: completions of a prompt, of ``new`` tokens each.
    """

    model: Any
    tokenizer: Any
    policy: Callable[[Any], LanguageModel]
    batch: Callable[[], Batch]
    prompts: Sequence[Prompt]
    rows: Sequence[Mapping[str, Any]]
    processing: Any
    never: tuple[int, ...]
    group: int
    new: int


class Goal(NamedTuple):
    """How many times as fast as TRL, and with which share of its memory; None for any."""

    faster: float
    share: float | None = None


class Cell(Protocol):
    """One line of the table; goes to other processes by pickle."""

    @property
    def name(self) -> str: ...

    def goal(self, threads: int) -> Goal:
        """Return what is aimed at with so many threads."""

    def bounds(self, task: Task) -> dict[str, float]:
        """Return how many times as fast counting says that we can be; empty where nobody counts."""

    def task(self) -> Task:
        """Make the task; the same in every process."""


class Visgrpo:
    """Our step."""

    def __init__(self, task: Task) -> None:
        self.task, self.method = task, _method(task)
        self.model = task.policy(copy.deepcopy(task.model)).to(_device()).train()
        self.batch = task.batch().to(_device())
        self.optimizer, *_ = build_optimizer(self.model, LEARNING_RATE, 0.0, lambda name: 1.0)
        self.groups: TokenGroups | None = None
        self._step = 0

    def rollout(self) -> None:
        self.batch = self.task.batch().to(_device())
        self.groups = self.method.rollout(self.model, self.batch, self._step, chunk=PROMPTS)
        self._step += 1

    def update(self) -> None:
        assert self.groups is not None
        self.method.loss(self.model, self.batch, self.groups, self._step).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Trl:
    """TRL's step: the methods that its trainer calls, in the same order."""

    def __init__(self, task: Task, adapters: Any = None, **settings: Any) -> None:
        self.trainer = _trl_trainer(task, adapters, settings)
        self.model = self.trainer.model.train()
        self.optimizer = self.trainer.create_optimizer()
        self.rows = [dict(row) for row in task.rows for _ in range(task.group)]
        self.inputs: dict[str, Any] = {}

    def rollout(self) -> None:
        self.inputs = self.trainer._generate_and_score_completions(self.rows)

    def update(self) -> None:
        loss = self.trainer.compute_loss(self.model, self.inputs)
        self.trainer.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


SIDES: Mapping[SideName, type[Visgrpo] | type[Trl]] = {"visgrpo": Visgrpo, "trl": Trl}


def count_letters(*, completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs next to nothing: the letters "e" of each completion."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [float(text.count("e")) for text in texts]


def check_agreement(ours: Visgrpo, trl: Trl) -> None:
    """Stop unless both give the same loss and gradient, on completions that TRL drew.

    Advantages and old log-probs have noise, so that both losses depend on the weights and clip.
    TRL scores tokens by the whole softmax, so ours forbids none here.
    """
    trl.rollout()
    ours.rollout()
    assert ours.groups is not None
    shape = ours.groups.tokens_NGT.shape
    drawn_NGT = trl.inputs["completion_ids"].view(shape)  # raises where TRL's are shorter
    if not (ours.groups.mask_NGT.all() and trl.inputs["completion_mask"].all()):
        raise SystemExit("A completion ended early: the two sides do not do the same work.")
    generator = torch.Generator().manual_seed(0)
    advantages_NG = torch.randn(shape[:2], generator=generator).to(drawn_NGT.device)
    noise_NGT = 0.2 * torch.randn(shape, generator=generator).to(drawn_NGT.device)
    batch = ours.batch
    old_NGT = noise_NGT + ours.model.score(
        batch.prompts_NP, batch.lengths_N, drawn_NGT, pictures=batch.pictures
    )
    more = {"advantages": advantages_NG.flatten(), "old_per_token_logps": old_NGT.flatten(0, 1)}
    trl_loss = trl.trainer.compute_loss(trl.model, {**trl.inputs, **more})
    rollouts = ours.method.rollouts
    sampling = replace(rollouts.sampling, distribution=TokenDistribution())
    rollouts, terms = replace(rollouts, sampling=sampling), TokenTerms(on_policy=False)
    groups = replace(
        ours.groups,
        tokens_NGT=drawn_NGT,
        advantages=advantages_NG,
        old_log_probs_NGT=old_NGT,
    )
    method = replace(ours.method, rollouts=rollouts, terms=terms)
    loss = method.loss(ours.model, batch, groups, 0).loss
    gap = abs(loss.item() - trl_loss.item())
    expected, found = _gradient(trl_loss, trl.model), _gradient(loss, ours.model)
    distance = ((found - expected).norm() / expected.norm()).item()
    said = f"losses {loss.item():.5f}, differing by {gap:.1e}; gradients by {distance:.1e}"
    if not (gap <= TOLERANCE and distance <= TOLERANCE):
        raise SystemExit(f"The two sides do not agree: {said}.")
    print(said, file=sys.stderr)


def _method(task: Task) -> TokenGRPO:
    sampling = Sampling(
        TokenDistribution(forbidden=task.never),
        max_new_tokens=task.new,
        stop=(task.tokenizer.eos_token_id,),
        pad=task.tokenizer.pad_token_id,
    )
    rollouts = TokenRollouts(
        rewards=TextRewards(("letters",), (count_letters,), (1.0,)),
        sampling=sampling,
        group_size=task.group,
        prompts=task.prompts,
        decode=lambda ids: task.tokenizer.batch_decode(ids, skip_special_tokens=True),
        memory=TokenMemory(),
    )
    return TokenGRPO(rollouts, preset("grpo"), TokenTerms(), read_once=True)


def _trl_trainer(task: Task, adapters: Any, settings: Mapping[str, Any]) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:  # the trainer makes one and puts nothing there
        config = GRPOConfig(
            output_dir=folder,
            report_to="none",
            use_cpu=_device().type == "cpu",
            **{"bf16": False, "gradient_checkpointing": False, **settings},
            learning_rate=LEARNING_RATE,
            loss_type="grpo",
            beta=0.0,
            num_generations=task.group,
            per_device_train_batch_size=PROMPTS * task.group,
            gradient_accumulation_steps=1,
            max_completion_length=task.new,
            generation_kwargs={"suppress_tokens": list(task.never)},
        )
        trainer = GRPOTrainer(
            model=copy.deepcopy(task.model),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in task.rows]),
            reward_funcs=count_letters,
            processing_class=copy.deepcopy(task.processing),
            peft_config=adapters,
        )
    trainer.current_gradient_accumulation_steps = 1  # as its training loop would set it
    return trainer


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    return torch.cat([gradient.flatten() for gradient in gradients])
