"""Whole steps against TRL's GRPOTrainer: from completions and rewards to gradients.

`TokenGRPO` draws; TRL is given the same tokens and does the rest itself: rewards, advantages,
masks, the log-probs of the old policy and the reference, the loss and its gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visgrpo.data.batches import Batch
from visgrpo.methods.generate import Sampling
from visgrpo.methods.token_groups import FixedKL, TokenGroups, TokenMemory, TokenRollouts
from visgrpo.methods.tokens import TokenGRPO, TokenTerms
from visgrpo.models.language import LanguageModel
from visgrpo.models.reference import reference_of
from visgrpo.models.small import build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.objectives import preset
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.texts import TextRewards

# TRL and what it imports warn about experimental parts and deprecations that are theirs to mend.
pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
    pytest.mark.filterwarnings("ignore"),
]

N, G, T, UPDATES = 3, 4, 7, 3
PROMPT_LENGTHS = torch.tensor([6, 2, 4])
PAD, STOP = 0, tuple(range(60))  # a fourth of the tokens end a completion
WEIGHTS = (1.0, 0.5)
NO_CLIP = 1e9
# TRL's knobs for each of our presets, and how much KL weighs.
PRESETS: dict[str, tuple[dict[str, Any], float]] = {
    "grpo": ({"loss_type": "grpo"}, 0.1),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, 0.1),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, 0.1),
    # TRL weights KL by the surrogate's ratio, here the sequence's; ours by the token's own.
    "gspo": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
        0.0,
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, 0.1),
    "sapo": ({"loss_type": "sapo"}, 0.1),
    # Leaving one out of G is the mean's advantage times G/(G - 1).
    "rloo": (
        {
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "epsilon": NO_CLIP,
            "reward_weights": [G / (G - 1) * weight for weight in WEIGHTS],
        },
        0.1,
    ),
    # The batch's mean is that of one group of all.
    "reinforce": (
        {
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "epsilon": NO_CLIP,
            "num_generations": N * G,
        },
        0.1,
    ),
}
# TRL's knob for an option of ours, and the option: of the terms, or of the objective.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "delta": ({"delta": 1.3}, {}, {"delta": 1.3}),
    "off-policy mask": ({"off_policy_mask_threshold": 0.02}, {}, {"off_policy_mask": 0.02}),
    "top entropy": ({"top_entropy_quantile": 0.3}, {"top_entropy": 0.3}, {}),
}


def large(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [sum(token > 150 for token in ids) / len(ids) for ids in completion_ids]


def long(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of two layers whose logits differ, with its tokenizer."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = make_tokenizer("bpe", ["2 + 2"], vocabulary=258)
    model = build_language(
        tokenizer, architecture="qwen2", layers=2, width=16, heads=2, context=32, seed=0
    )
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(index)
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def moved(model: nn.Module) -> nn.Module:
    """The policy, which is not where the reference is."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    return model.train()


def trainer_of(start: Path, output: Path, *, beta: float, truncated: bool, **knobs: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    settings = {
        "num_generations": G, "per_device_train_batch_size": N * G, "max_completion_length": T,
        "gradient_accumulation_steps": 1, "num_iterations": UPDATES, "reward_weights": [*WEIGHTS],
        "mask_truncated_completions": truncated, "beta": beta, "use_bias_correction_kl": True,
        "use_cpu": True, "bf16": False, "fp16": False, "gradient_checkpointing": False,
        "report_to": "none", "output_dir": str(output), "seed": 0,
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(start),
        args=GRPOConfig(**(settings | knobs)),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b", "c"]}),
        reward_funcs=[large, long],
        processing_class=AutoTokenizer.from_pretrained(start),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.eos_token_ids = list(STOP)
    moved(trainer.model)
    return trainer


def method_of(
    name: str,
    model: LanguageModel,
    *,
    beta: float,
    truncated: bool,
    terms: dict[str, Any],
    changes: dict[str, Any],
) -> TokenGRPO:
    rollouts = TokenRollouts(
        rewards=TextRewards.of([("large", large), ("long", long)], WEIGHTS),
        sampling=Sampling(TokenDistribution(), T, STOP, PAD),
        group_size=G,
        prompts=("a", "b", "c"),
        decode=lambda groups: [" ".join(map(str, ids)) for ids in groups],
        memory=TokenMemory(FixedKL(beta)),
        reference=reference_of(model) if beta else None,
        seed=2,
    )
    all_terms = TokenTerms(mask_truncated=truncated, on_policy=False, **terms)
    return TokenGRPO(rollouts, preset(name, **changes), all_terms)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    prompts_NP = torch.randint(60, 258, (N, 6), generator=generator)
    real_NP = torch.arange(6) >= 6 - PROMPT_LENGTHS[:, None]
    return Batch(torch.arange(N), prompts_NP * real_NP, lengths_N=PROMPT_LENGTHS)


def inputs_of(trainer: Any, groups: TokenGroups) -> dict[str, Any]:
    """What TRL makes of our tokens, as if it had drawn them."""
    lengths = groups.mask_NGT.sum(dim=-1).flatten().tolist()
    rows = groups.tokens_NGT.flatten(0, 1).tolist()
    drawn = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    texts = [text for _, group in groups.texts for text in group]
    asked = [
        prompt[-length:]
        for prompt, length in zip(
            groups.prompts_NP.tolist(), groups.lengths_N.tolist(), strict=True
        )
        for _ in range(G)
    ]
    trainer._generate = lambda prompts: (asked, drawn, None, texts, None, {}, None, None)
    return trainer._generate_and_score_completions([{"prompt": "a"}] * (N * G))


def gradients_of(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """How far our gradient is from theirs, by the length of theirs."""
    here, there = (torch.cat([g.flatten() for g in gradient]) for gradient in (ours, theirs))
    assert there.norm() > 1e-3
    return float((here - there).norm() / there.norm())


def descend(model: nn.Module, gradients: Sequence[Tensor], far: float) -> None:
    length = torch.cat([gradient.flatten() for gradient in gradients]).norm().clamp(min=1e-9)
    with torch.no_grad():
        for weight, gradient in zip(model.parameters(), gradients, strict=True):
            weight.sub_(gradient, alpha=far / float(length))


@pytest.fixture
def sides(start: Path, tmp_path: Path) -> Callable[..., Any]:
    from transformers import Qwen2ForCausalLM

    def build(name: str, truncated: bool, option: str = "") -> tuple[TokenGRPO, LanguageModel, Any]:
        knobs, beta = PRESETS[name]
        more, terms, changes = OPTIONS[option] if option else ({}, {}, {})
        both: dict[str, Any] = {"beta": beta, "truncated": truncated}
        lm = Qwen2ForCausalLM.from_pretrained(start)
        first = LanguageModel(copy.deepcopy(lm))
        method = method_of(name, first, **both, terms=terms, changes=changes)
        trainer = trainer_of(start, tmp_path, **both, **knobs, **more)
        return method, LanguageModel(moved(lm)), trainer

    return build


@pytest.mark.parametrize("truncated", [False, True], ids=["all", "truncated masked"])
@pytest.mark.parametrize("name", PRESETS)
def test_from_rewards_to_gradients(name: str, truncated: bool, sides: Callable[..., Any]) -> None:
    """Float32, three updates by one rollout: 1e-5 of the gradient's length."""
    method, model, trainer = sides(name, truncated)
    groups = method.rollout(model, batch(), 0, chunk=2)
    inputs = inputs_of(trainer, groups)
    assert 0 < groups.ended_NG.float().mean() < 1
    if "reward_weights" not in PRESETS[name][0]:
        torch.testing.assert_close(groups.advantages.flatten(), inputs["advantages"])
    clipped = []
    for update in range(UPDATES):
        result = method.loss(model, batch(), groups, update)
        gradients = gradients_of(result.loss, model.lm)
        theirs = trainer._compute_loss(trainer.model, inputs)
        assert distance(gradients, gradients_of(theirs, trainer.model)) < 1e-5
        torch.testing.assert_close(result.loss, theirs, rtol=1e-5, atol=1e-5)
        descend(model.lm, gradients, 0.3)
        descend(trainer.model, gradients, 0.3)
        clipped.append(float(result.metrics["clip_ratio/region_mean"]))
    assert clipped[0] == 0
    assert name in ("rloo", "reinforce", "cispo", "sapo") or clipped[-1] > 0


@pytest.mark.parametrize("name", ["grpo", "dapo"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options(name: str, option: str, sides: Callable[..., Any]) -> None:
    """Float32, 1e-5 of the gradient's length; and the option does something."""
    method, model, trainer = sides(name, True, option)
    plain, _, _ = sides(name, True)
    groups = method.rollout(model, batch(), 0, chunk=2)
    inputs, acted = inputs_of(trainer, groups), False
    # Our tokens of most entropy are those of the draw, TRL's those of every update.
    for update in range(1 if option == "top entropy" else UPDATES):
        gradients = gradients_of(method.loss(model, batch(), groups, update).loss, model.lm)
        theirs = gradients_of(trainer._compute_loss(trainer.model, inputs), trainer.model)
        assert distance(gradients, theirs) < 1e-5
        without = replace(groups, uncertain_NGT=None)
        others = gradients_of(plain.loss(model, batch(), without, update).loss, model.lm)
        acted |= distance(gradients, others) > 1e-3
        descend(model.lm, gradients, 1.0)
        descend(trainer.model, gradients, 1.0)
    assert acted


@pytest.mark.parametrize("name", PRESETS)
def test_under_bf16(name: str, sides: Callable[..., Any]) -> None:
    """bf16 has 8 bits: 2 % of the gradient's length, and 5 % after updates.

    At equal weights no ratio is other than 1, however narrow the clip. Later a ratio that rounding
    takes over the clip's edge is a token more or less: only what has no edge is compared there.
    """
    method, model, trainer = sides(name, True)
    with torch.autocast("cpu", torch.bfloat16):
        groups = method.rollout(model, batch(), 0, chunk=2)
        inputs = inputs_of(trainer, groups)
        for update in range(UPDATES):
            result = method.loss(model, batch(), groups, update)
            gradients = gradients_of(result.loss, model.lm)
            theirs = gradients_of(trainer._compute_loss(trainer.model, inputs), trainer.model)
            if update == 0:
                assert result.metrics["clip_ratio/region_mean"] == 0
                assert result.metrics["ratio_mean"].item() == pytest.approx(1, abs=1e-6)
            if update == 0 or name in ("cispo", "sapo", "rloo", "reinforce"):
                assert distance(gradients, theirs) < (0.05 if update else 0.02)
            descend(model.lm, gradients, 0.05)
            descend(trainer.model, gradients, 0.05)
