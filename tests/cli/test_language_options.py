"""Every option of `visgrpo language` in every stage: used, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import visgrpo as vg
from visgrpo.errors import UserError
from visgrpo.options import options_of
from visgrpo.tasks.language import train as language
from visgrpo.tasks.language.options import LanguageConfig

EVERYWHERE = (
    "method output seed device precision weights report resume data text_column "
    "validation_fraction "
)
OPTIMISER = (
    "weight_decay warmup schedule final_learning_rate max_grad_norm log_every keep report_to "
    "dry_run patience "
)
TRAINED = (
    f"{OPTIMISER} push_to_hub steps learning_rate eval_every save_every accumulation batch_size "
)
NEW = "preset architecture tokenizer vocabulary context "
ADAPTED = "gradient_checkpointing train lora_rank lora_alpha lora_kind lora_targets "
DRAWN = "temperature top_k top_p max_new_tokens prompt_tokens "
REWARDED = f"{DRAWN} model eval_prompts reward reward_weights prompt_column gold "
LEARNING = "group_size beta kl_target kl_horizon track_kl entropy_weight silent_steps "
UPDATES = (
    "kl_in kl_estimator mask_truncated top_entropy inner_passes minibatches refresh_every "
    "token_budget compile sync_reference sync_mix "
)
POLICY = TRAINED + ADAPTED + REWARDED + LEARNING + UPDATES + "train_slice "
GROUPS = "combination scope advantage_baseline scale off_policy_mask "
CLIP = "epsilon_low epsilon_high "
TWO_SIDED = CLIP + "delta "
REDRAWN = "redraws "
CRITIC = (
    "critic critic_rate critic_warmup gamma gae_lambda value_clip value_weight whiten_advantages "
)
USED = {
    "all": OPTIMISER + NEW + DRAWN + LEARNING + CRITIC + "eval_prompts pairs noise samples "
    "train_slice sft_steps",
    "sft": TRAINED + NEW + ADAPTED + "model train_slice",
    "preferences": DRAWN + "model batch_size pairs noise train_slice",
    "reward": TRAINED + "model",
    "grpo": POLICY + REDRAWN + GROUPS + TWO_SIDED,
    "dr-grpo": POLICY + REDRAWN + GROUPS + TWO_SIDED,
    "dapo": POLICY + REDRAWN + GROUPS + TWO_SIDED,
    "gspo": POLICY + REDRAWN + GROUPS + TWO_SIDED,
    "cispo": POLICY + REDRAWN + GROUPS + CLIP,
    "sapo": POLICY + REDRAWN + GROUPS,
    "rloo": POLICY + REDRAWN + GROUPS,
    "reinforce": POLICY + GROUPS,
    "rejection": POLICY + REDRAWN,
    "ppo": POLICY + TWO_SIDED + CRITIC,
    "best-of-n": REWARDED + "samples",
}


def _another(default: Any) -> Any:
    """A value that is not the default and in every range."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return 0.25
    if default == ("all",):
        return ("lora",)
    return ("x",) if isinstance(default, tuple) else 1 if default is None else "tiny"


@pytest.mark.parametrize("stage", USED)
def test_a_stage_refuses_what_it_does_not_use(stage: str) -> None:
    used = set((EVERYWHERE + USED[stage]).split())
    plain = LanguageConfig(method=stage, model=None if stage in ("all", "sft") else "m")  # type: ignore[arg-type]
    for field in options_of(LanguageConfig):
        if field.name == "method":
            continue
        problem = ""
        try:
            replace(plain, **{field.name: _another(field.default)}).check()
        except UserError as error:
            problem = str(error)
        refused = f"does not go with --method {stage}; it is for" in problem
        # A new model's options are refused for the start that has its own.
        refused |= "is for new models" in problem
        assert refused == (field.name not in used), (field.name, problem)


def test_the_story_gives_each_stage_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, LanguageConfig] = {}

    def train(self: Any, config: LanguageConfig) -> dict[str, Any]:
        config.check()
        seen[config.method] = config
        measures = {"before": {}, "after": {}, "data": {"test": 1}}
        return {"seconds": 1.0, "samples": 4, **measures}

    monkeypatch.setattr(language.LanguageTask, "train_stage", train)
    monkeypatch.setattr("visgrpo.tasks.story.print_measures", lambda title, rows: None)
    values = {
        **{"tokenizer": "bpe", "architecture": "qwen2", "vocabulary": 300, "preset": "tiny"},
        **{
            "context": 32,
            "sft_steps": 7,
            "kl_target": 1.0,
            "kl_horizon": 99.0,
            "gamma": 0.9,
            "eval_prompts": 3,
        },
        **{"gamma": 0.9, "eval_prompts": 3},
        **{"prompt_tokens": 4, "samples": 2, "pairs": 9, "top_k": 5, "log_every": 3},
    }
    output = str(tmp_path / "run")
    vg.train(LanguageConfig(**values, output=output, report=False, device="cpu"))
    assert list(seen) == ["sft", "preferences", "reward", "best-of-n", "grpo", "ppo"]
    assert seen["sft"].steps == 7
    for stage, config in seen.items():
        plain = LanguageConfig()
        used = set((EVERYWHERE + USED[stage]).split()) - {"output", "method", "model"}
        used -= {"steps"} if stage == "sft" else set(NEW.split())
        for name in used:
            wanted = {**values, "report": False, "device": "cpu"}.get(name, getattr(plain, name))
            assert getattr(config, name) == wanted, (stage, name)
