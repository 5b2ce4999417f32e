"""Our losses and advantages against TRL's GRPOTrainer, on equal tensors and a tiny GPT-2.

TRL runs its own forward pass, loss and backward pass; ours starts from the plain model's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from visgrpo.objectives import advantages, aggregate, combine_rewards, surrogate, token_kl

# TRL and what it imports warn about experimental parts and deprecations that are theirs to mend.
pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
    pytest.mark.filterwarnings("ignore"),
]

N, G, T, PROMPT = 3, 4, 7, 5
LENGTHS = [7, 1, 4, 3, 2, 7, 5, 1, 6, 3, 7, 2]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens: a complete tokenizer without a download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<pad>", "<eos>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


@pytest.fixture
def trainer_of(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    from trl import GRPOConfig, GRPOTrainer

    def build(reward_funcs: list[Callable] | None = None, **knobs: object) -> Any:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
            )
        )  # fmt: skip
        # TRL reads the reference model from the path that the policy came from.
        model.save_pretrained(tmp_path / "model")
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
        config = GRPOConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, fp16=False,
            gradient_checkpointing=False, num_generations=G, per_device_train_batch_size=N * G,
            max_completion_length=T, gradient_accumulation_steps=1, seed=0, **knobs,
        )  # fmt: skip
        return GRPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["2 + 2", "blue?", "count"]}),
            reward_funcs=reward_funcs or [reward_of([0.0] * N * G)],
            processing_class=tokenizer,
        )

    return build


@pytest.fixture(scope="module")
def batch() -> Iterator[dict[str, Tensor]]:
    """Ragged completions; old and reference log-probs are offsets added to the model's own."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    return {
        "prompt_ids": torch.randint(0, 256, (N * G, PROMPT), generator=generator),
        "prompt_mask": torch.ones(N * G, PROMPT, dtype=torch.long),
        "completion_ids": torch.randint(0, 256, (N * G, T), generator=generator),
        "completion_mask": mask,
        "advantages": normal(N * G, scale=1.0),
        "old_offset": normal(N * G, T, scale=0.4),
        "reference_offset": normal(N * G, T, scale=0.5),
        "num_items_in_batch": mask.sum(),
    }


def log_probs_of(model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Log-probs (N·G, T) of the completion tokens, from the logits of the position before each."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, PROMPT - 1 : -1]
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None]).squeeze(-1)


def gradients_of(loss: Tensor, model: torch.nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


# TRL's knobs and ours for the same published objective.
VARIANTS = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"aggregation": "constant", "constant": float(T)}),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"aggregation": "token_mean", "epsilon_high": 0.28},
    ),
    "delta": ({"loss_type": "grpo", "delta": 1.4}, {"delta": 1.4}),
    "cispo": (
        # TRL caps the weight at epsilon_high itself; ours at 1 + ε_high.
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"aggregation": "token_mean", "clip": "detached", "epsilon_low": 1.0, "epsilon_high": 0.3},
    ),
    "sapo": ({"loss_type": "sapo"}, {"clip": "soft"}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
        {"ratio_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.02},
    ),
}


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients(
    variant: str, beta: float, trainer_of: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    theirs, ours = VARIANTS[variant]
    # TRL weights the KL by the policy loss's ratio, which at sequence level is the sequence's.
    weighted_kl = variant != "gspo"
    trainer = trainer_of(beta=beta, use_bias_correction_kl=weighted_kl, **theirs)
    model = trainer.model.double().train()
    trainer.current_gradient_accumulation_steps = 1

    log_probs = log_probs_of(model, batch)
    old = log_probs.detach() + batch["old_offset"]
    reference = log_probs.detach() + batch["reference_offset"]
    inputs = {**batch, "old_per_token_logps": old, "ref_per_token_logps": reference}
    trl_loss = trainer._compute_loss(model, inputs)
    trl_gradients = gradients_of(trl_loss, model)

    shape = (N, G, T)
    mask = batch["completion_mask"].reshape(shape)
    result = surrogate(
        log_probs.reshape(shape),
        old.reshape(shape),
        batch["advantages"].reshape(N, G),
        mask_NGT=mask,
        **ours,
    )
    kl = token_kl(log_probs, reference, old_log_probs=old if weighted_kl else None)
    how = ours.get("aggregation", "sequence_mean")
    penalty = aggregate(kl.reshape(shape), mask, how=how, constant=ours.get("constant", 1.0))
    loss = result.loss + beta * penalty

    # TRL's fused head works in float32; CISPO's sum of log-probs near -10 almost cancels.
    torch.testing.assert_close(loss, trl_loss, rtol=1e-6, atol=1e-6)
    gradients = gradients_of(loss, model)
    assert gradients.norm() > 1e-2
    assert (gradients - trl_gradients).norm() < 1e-6 * gradients.norm()
    assert (result.clip_low + result.clip_high) > 0.05 or variant == "sapo"
    if variant in ("grpo", "dr_grpo", "dapo"):
        metrics = trainer._metrics["train"]
        assert result.clip_low.item() == pytest.approx(metrics["clip_ratio/low_mean"][0])
        assert result.clip_high.item() == pytest.approx(metrics["clip_ratio/high_mean"][0])


# Two rewards of twelve completions; the second group's are all equal.
REWARDS = torch.tensor(
    [
        [0.0, 1.0, 1.0, 0.0, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 1.0],
        [30.0, 10.0, 20.0, 25.0, 7.0, 7.0, 7.0, 7.0, 1.0, 2.0, 4.0, 8.0],
    ]
)


def reward_of(values: list[float]) -> Callable[..., list[float]]:
    return lambda completions, **_: values[: len(completions)]


def advantages_of_trl(
    trainer_of: Callable[..., Any], columns: list[int], **knobs: object
) -> Tensor:
    """Generate with the tiny model, let TRL score and normalise the rewards given."""
    rewards = [reward_of(REWARDS[i].tolist()) for i in columns]
    trainer = trainer_of(rewards, **knobs)
    trainer.model.train()
    prompts = [{"prompt": text} for text in ("2 + 2", "blue?", "count") for _ in range(G)]
    return trainer._generate_and_score_completions(prompts)["advantages"].reshape(N, G)


@pytest.mark.parametrize(
    ("scale_rewards", "scale"), [("group", "std"), ("batch", "batch_std"), ("none", "none")]
)
def test_group_advantages(scale_rewards: str, scale: str, trainer_of: Callable[..., Any]) -> None:
    theirs = advantages_of_trl(trainer_of, [0], scale_rewards=scale_rewards)
    ours = advantages(REWARDS[0].reshape(N, G), scale=scale)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_sum_then_normalize(trainer_of: Callable[..., Any]) -> None:
    theirs = advantages_of_trl(trainer_of, [0, 1], reward_weights=[1.0, 0.05])
    ours = combine_rewards(REWARDS.T.reshape(N, G, 2), torch.tensor([1.0, 0.05]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_normalize_then_sum(trainer_of: Callable[..., Any]) -> None:
    """TRL brings the sums to the batch's scale once more: ours followed by batch advantages."""
    theirs = advantages_of_trl(
        trainer_of,
        [0, 1],
        reward_weights=[1.0, 0.05],
        multi_objective_aggregation="normalize_then_sum",
    )
    sums = combine_rewards(
        REWARDS.T.reshape(N, G, 2), torch.tensor([1.0, 0.05]), combination="normalize_then_sum"
    )
    ours = advantages(sums, scope="batch")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
