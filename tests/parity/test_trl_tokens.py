"""The loss of ragged prompts and completions, scored by our shared prefix, against TRL's.

`test_trl.py` gives both sides one model's log-probs over prompts of one length. Here each scores
the tokens itself: TRL every row in full, ours each prompt once for its group. Qwen2, because TRL
numbers the positions of a padded prompt from its padding: rotary attention does not mind.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Qwen2ForCausalLM

from visgrpo.models.language import LanguageModel
from visgrpo.models.small import build_language
from visgrpo.models.tokenizers import make_tokenizer
from visgrpo.objectives import aggregate, surrogate, token_kl

# TRL and what it imports warn about experimental parts and deprecations that are theirs to mend.
pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed"),
    pytest.mark.filterwarnings("ignore"),
]

N, G, T, P = 3, 4, 7, 6
PROMPT_LENGTHS = [6, 2, 4]
LENGTHS = [7, 1, 4, 3, 2, 7, 5, 1, 6, 3, 7, 2]
CUT_OFF = 5  # a completion that was cut off, and is masked as a whole


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., Any]:
    from trl import GRPOConfig, GRPOTrainer

    def build(**knobs: object) -> Any:
        tokenizer = make_tokenizer("bpe", ["2 + 2"], vocabulary=258)
        model = build_language(
            tokenizer, architecture="qwen2", layers=2, width=16, heads=2, context=32, seed=0
        )
        with torch.no_grad():
            for index, weight in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(index)
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
        # TRL reads the reference model from the path that the policy came from.
        model.save_pretrained(tmp_path / "model")
        config = GRPOConfig(
            output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, fp16=False,
            gradient_checkpointing=False, num_generations=G, per_device_train_batch_size=N * G,
            max_completion_length=T, gradient_accumulation_steps=1, seed=0, **knobs,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=Qwen2ForCausalLM.from_pretrained(tmp_path / "model"),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["2 + 2", "blue?", "count"]}),
            reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        return trainer

    return build


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, as TRL takes them: N·G rows."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    prompts = torch.randint(2, 258, (N, P), generator=generator)
    prompt_mask = (torch.arange(P) >= P - torch.tensor(PROMPT_LENGTHS)[:, None]).long()
    mask = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).long()
    mask[CUT_OFF] = 0
    return {
        "prompt_ids": (prompts * prompt_mask).repeat_interleave(G, dim=0),
        "prompt_mask": prompt_mask.repeat_interleave(G, dim=0),
        "completion_ids": torch.randint(2, 258, (N * G, T), generator=generator),
        "completion_mask": mask,
        "advantages": normal(N * G, scale=1.0),
        "old_offset": normal(N * G, T, scale=0.4),
        "reference_offset": normal(N * G, T, scale=0.5),
        "num_items_in_batch": mask.sum(),
    }


def gradients_of(loss: Tensor, model: torch.nn.Module) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


# TRL's knobs and ours. Its bnpo divides by this batch's tokens, dapo by those of all processes.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {}),
    "bnpo": ({"loss_type": "bnpo"}, {"aggregation": "token_mean"}),
    "dapo": ({"loss_type": "dapo"}, {"aggregation": "token_mean"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"aggregation": "constant", "constant": float(T)}),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
        {"ratio_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.02},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradients_and_metrics(
    variant: str, trainer_of: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    theirs, ours = VARIANTS[variant]
    beta = 0.1
    trainer = trainer_of(beta=beta, use_bias_correction_kl=False, **theirs)
    model = trainer.model.double().train()

    shape = (N, G, T)
    lengths = torch.tensor(PROMPT_LENGTHS)
    scores = LanguageModel(model)(
        batch["prompt_ids"][::G], lengths, batch["completion_ids"].view(shape)
    )
    log_probs, entropy = scores.log_probs, scores.entropy
    old = log_probs.detach() + batch["old_offset"].view(shape)
    reference = log_probs.detach() + batch["reference_offset"].view(shape)
    inputs = {
        **batch,
        "old_per_token_logps": old.view(N * G, T),
        "ref_per_token_logps": reference.view(N * G, T),
    }
    trl_loss = trainer._compute_loss(model, inputs)
    trl_gradients = gradients_of(trl_loss, model)

    mask = batch["completion_mask"].view(shape)
    result = surrogate(log_probs, old, batch["advantages"].view(N, G), mask_NGT=mask, **ours)
    how, constant = ours.get("aggregation", "sequence_mean"), ours.get("constant", 1.0)
    kl = token_kl(log_probs, reference, mask=mask)
    loss = result.loss + beta * aggregate(kl, mask, how=how, constant=constant)
    gradients = gradients_of(loss, model)

    # TRL's fused head works in float32.
    torch.testing.assert_close(loss.double(), trl_loss.double(), rtol=1e-5, atol=1e-6)
    assert gradients.norm() > 1e-2
    assert (gradients - trl_gradients).norm() < 1e-5 * gradients.norm()
    metrics = trainer._metrics["train"]
    mean_kl, mean_entropy = ((x * mask).sum() / mask.sum() for x in (kl, entropy))
    assert mean_kl.item() == pytest.approx(metrics["kl"][0], rel=1e-5)
    assert mean_entropy.item() == pytest.approx(metrics["entropy"][0], rel=1e-5)
    assert result.clip_low + result.clip_high > 0.05
    if variant != "gspo":  # there TRL counts sequences
        assert result.clip_low.item() == pytest.approx(metrics["clip_ratio/low_mean"][0])
        assert result.clip_high.item() == pytest.approx(metrics["clip_ratio/high_mean"][0])
