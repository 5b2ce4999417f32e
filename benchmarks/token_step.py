"""What a GRPO step of a small language model costs here and in TRL, and what memory it takes.

    python benchmarks/token_step.py [--quick] [--json PATH] [--threads 2]

Both take the same weights, prompts and reward, draw completions of one length (no end token can be
drawn), and learn from them once with KL and dropout off. They take turns in one process. Before a
case is timed, both score the same completions: their losses and gradients must agree. Peak memory
is that of a fresh process that trains one of them alone, above what it held before its first step.

"rollout" draws the groups and makes advantages of their rewards: `TokenGRPO.rollout`, and TRL's
`_generate_and_score_completions`. "update" is the loss, its gradient and the optimiser's step:
`TokenGRPO.loss`, and TRL's `compute_loss`. Neither side's loader, gradient clipping or log is in.
"""

from __future__ import annotations

import copy
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from common import (
    Row,
    Timings,
    alternate,
    machine,
    parser,
    peak_memory_bytes,
    print_table,
    versions,
    write_json,
)
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.data.prompts import encode_prompts, prompts_from_text
from visgrpo.data.text_sources import load_text
from visgrpo.models.language import LanguageModel
from visgrpo.models.small_language import SIZES, Architecture, build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.objectives import preset
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.policies.rollout import Sampling
from visgrpo.policies.token_groups import TokenGroups, TokenMemory, TokenRollouts
from visgrpo.policies.tokens import TokenGRPO, TokenTerms
from visgrpo.rewards.text import TextRewards
from visgrpo.training.kl_controller import FixedKL
from visgrpo.training.optimizer import build_optimizer

PROMPTS, GROUP = 2, 8
LEARNING_RATE = 1e-6
MEMORY_STEPS = 3  # 2 at least: the optimiser's state is there from the second on
TOLERANCE = 1e-5  # of losses and, relative to their size, of gradients
GOALS = {(512, 32): (3.5, 0.4), (128, 128): (1.5, None)}  # times as fast, share of the memory

SideName = Literal["visgrpo", "trl"]


@dataclass(frozen=True)
class Case:
    """A nano model, and how many tokens its prompts and completions have."""

    architecture: Architecture
    prompt: int
    new: int

    @property
    def name(self) -> str:
        return f"{self.architecture}, prompt {self.prompt}, new {self.new}"

    @property
    def goals(self) -> tuple[float, float | None]:
        """How many times as fast as TRL, and with which share of its memory; None for any."""
        return GOALS.get((self.prompt, self.new), (1.0, None))


FULL = tuple(
    Case(architecture, prompt, new)
    for architecture in get_args(Architecture)
    for prompt in (128, 512)
    for new in (32, 128)
)
QUICK = (Case("gpt2", 32, 8), Case("qwen2", 32, 8))


@dataclass(frozen=True)
class Task:
    """What both sides are given: a model, its tokenizer, and N prompts of one length."""

    case: Case
    model: Any
    tokenizer: Any
    prompts: tuple[str, ...]
    prompts_NP: Tensor
    lengths_N: Tensor

    @property
    def never(self) -> tuple[int, ...]:
        """Tokens that must not be drawn, so that every completion gets its whole length."""
        return (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)


class Visgrpo:
    """Our step."""

    def __init__(self, task: Task) -> None:
        self.model = LanguageModel(copy.deepcopy(task.model)).to(_device()).train()
        rows = torch.arange(PROMPTS)
        self.batch = Batch(rows, task.prompts_NP, task.lengths_N, {}).to(_device())
        self.method = _method(task)
        self.optimizer, _ = build_optimizer(self.model, LEARNING_RATE, 0.0, lambda name: 1.0)
        self.groups: TokenGroups | None = None
        self._step = 0

    def rollout(self) -> None:
        self.groups = self.method.rollout(self.model, self.batch, self._step, chunk=PROMPTS)
        self._step += 1

    def update(self) -> None:
        assert self.groups is not None
        self.method.loss(self.model, self.batch, self.groups, self._step).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Trl:
    """TRL's step: the methods that its trainer calls, in the same order."""

    def __init__(self, task: Task) -> None:
        self.trainer = _trl_trainer(task)
        self.model = self.trainer.model.train()
        self.optimizer = self.trainer.create_optimizer()
        self.rows = [{"prompt": prompt} for prompt in task.prompts for _ in range(GROUP)]
        self.inputs: dict[str, Any] = {}

    def rollout(self) -> None:
        self.inputs = self.trainer._generate_and_score_completions(self.rows)

    def update(self) -> None:
        loss = self.trainer.compute_loss(self.model, self.inputs)
        self.trainer.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()


SIDES = {"visgrpo": Visgrpo, "trl": Trl}


def make_task(case: Case) -> Task:
    """Build the model and find the prompts of a case; the same in every process."""
    splits, tokenizer = _text()
    layers, width, heads = SIZES["nano"]
    model = build_language(
        tokenizer,
        architecture=case.architecture,
        layers=layers,
        width=width,
        heads=heads,
        context=case.prompt + case.new,
        seed=0,
    )
    dataset = prompts_from_text(splits, tokenizer, case.prompt).train.subset(torch.arange(PROMPTS))
    encoded = encode_prompts(dataset, tokenizer, max_tokens=case.prompt)
    prompts = tuple(str(prompt) for prompt in dataset.prompts)
    return Task(case, model, tokenizer, prompts, encoded.inputs_M, encoded.labels_M)


def count_letters(*, completions: list[str], **_: Any) -> list[float]:
    """A reward that costs next to nothing: the letters "e" of each completion."""
    return [float(text.count("e")) for text in completions]


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
    old_NGT = noise_NGT + ours.model.score(ours.batch.inputs, ours.batch.labels_N, drawn_NGT)
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
    loss = method.loss(ours.model, ours.batch, groups, 0).loss
    gap = abs(loss.item() - trl_loss.item())
    expected, found = _gradient(trl_loss, trl.model), _gradient(loss, ours.model)
    distance = ((found - expected).norm() / expected.norm()).item()
    said = f"losses {loss.item():.5f}, differing by {gap:.1e}; gradients by {distance:.1e}"
    if not (gap <= TOLERANCE and distance <= TOLERANCE):
        raise SystemExit(f"The two sides do not agree: {said}.")
    print(said, file=sys.stderr)


def compare(case: Case, rounds: int) -> Row:
    """Return the row of a case."""
    memory = {name: _memory_of(case, name) for name in SIDES}
    task = make_task(case)
    ours, trl = Visgrpo(task), Trl(task)
    check_agreement(ours, trl)
    parts = alternate(
        {
            "our rollout": ours.rollout,
            "our update": ours.update,
            "TRL rollout": trl.rollout,
            "TRL update": trl.update,
        },
        rounds,
    )
    steps = Timings({who: _steps_of(parts, who) for who in ("our", "TRL")})
    faster, spread = steps.ratio("TRL", "our")
    share = memory["visgrpo"] / memory["trl"]
    return {
        "name": case.name,
        **{f"{part} ms": 1000 * parts.median(part) for part in parts.seconds},
        "times as fast": faster,
        "spread": spread,
        "our memory MB": memory["visgrpo"] / 1e6,
        "TRL memory MB": memory["trl"] / 1e6,
        "memory share": share,
        **_verdict(case, faster, share),
    }


def main() -> None:
    """Measure, print and write."""
    options = parser((__doc__ or "").splitlines()[0])
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    rows: list[Row] = []
    for case in QUICK if chosen.quick else FULL:
        rows.append(compare(case, 2 if chosen.quick else 11))
        print(f"{case.name}: {rows[-1]['times as fast']:.3f}", file=sys.stderr, flush=True)
    print(machine())
    print(", ".join(f"{name} {number}" for name, number in versions("trl").items()))
    print_table(rows)
    if chosen.json:
        write_json(chosen.json, rows)


def _method(task: Task) -> TokenGRPO:
    sampling = Sampling(
        TokenDistribution(forbidden=task.never),
        max_new_tokens=task.case.new,
        stop=(task.tokenizer.eos_token_id,),
        pad=task.tokenizer.pad_token_id,
    )
    rollouts = TokenRollouts(
        rewards=TextRewards(("letters",), (count_letters,), (1.0,)),
        sampling=sampling,
        group_size=GROUP,
        prompts=task.prompts,
        decode=lambda ids: task.tokenizer.batch_decode(ids, skip_special_tokens=True),
        memory=TokenMemory(FixedKL(0.0)),
    )
    return TokenGRPO(rollouts, preset("grpo"), TokenTerms())


def _trl_trainer(task: Task) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:  # the trainer makes one and puts nothing there
        config = GRPOConfig(
            output_dir=folder,
            report_to="none",
            use_cpu=_device().type == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            learning_rate=LEARNING_RATE,
            loss_type="grpo",
            beta=0.0,
            num_generations=GROUP,
            per_device_train_batch_size=PROMPTS * GROUP,
            gradient_accumulation_steps=1,
            max_completion_length=task.case.new,
            generation_kwargs={"suppress_tokens": list(task.never)},
        )
        trainer = GRPOTrainer(
            model=copy.deepcopy(task.model),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": list(task.prompts)}),
            reward_funcs=count_letters,
            processing_class=copy.deepcopy(task.tokenizer),
        )
    trainer.current_gradient_accumulation_steps = 1  # as its training loop would set it
    return trainer


@lru_cache
def _text() -> tuple[Any, Any]:
    splits = load_text("topics")
    pages = {name: _pages(getattr(splits, name)) for name in ("train", "validation", "test")}
    return replace(splits, **pages), make_tokenizer("bpe", splits.train)


def _pages(paragraphs: Sequence[str]) -> tuple[str, ...]:
    """Join a hundred paragraphs at a time: one alone is too short to begin a long prompt."""
    starts = range(0, len(paragraphs), 100)
    return tuple("\n\n".join(paragraphs[start : start + 100]) for start in starts)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def _steps_of(parts: Timings, who: str) -> list[float]:
    """Return the seconds of each round's rollout and update together."""
    pairs = zip(parts.seconds[f"{who} rollout"], parts.seconds[f"{who} update"], strict=True)
    return [rollout + update for rollout, update in pairs]


def _verdict(case: Case, faster: float, share: float) -> Row:
    goal_faster, goal_share = case.goals
    goal, met = f"≥ {goal_faster:.1f} ×", faster >= goal_faster
    if goal_share is not None:
        goal += f", ≤ {goal_share:.1f} of the memory"
        met = met and share <= goal_share
    return {"goal": goal, "verdict": "met" if met else "missed"}


def _memory_of(case: Case, side: SideName) -> int:
    """Return the peak memory of a fresh process above what it held before its first step."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_memory, case, side, torch.get_num_threads()).result()


def _measure_memory(case: Case, side: SideName, threads: int) -> int:
    torch.set_num_threads(threads)
    stepper = SIDES[side](make_task(case))
    before = peak_memory_bytes()
    for _ in range(MEMORY_STEPS):
        stepper.rollout()
        stepper.update()
    return peak_memory_bytes() - before


if __name__ == "__main__":
    main()
