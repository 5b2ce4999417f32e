"""Every option of `visgrpo vlm` in every stage: used, or refused; what is given by default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import visgrpo as vg
from visgrpo.errors import UserError
from visgrpo.options import options_of
from visgrpo.tasks.vlm import train as vlm
from visgrpo.tasks.vlm.options import POLICY_STAGES, VlmConfig, resolved

REWARDED = [
    *("reward", "reward_weights", "combination", "group_size", "token_budget", "scope"),
    *("advantage_baseline", "scale", "beta", "kl_in", "kl_estimator", "kl_target", "kl_horizon"),
    *("top_entropy", "off_policy_mask", "redraws", "insert_truth"),
    *("sync_reference", "sync_mix"),
    *("track_kl", "entropy_weight", "mask_truncated", "inner_passes", "minibatches"),
    *("refresh_every", "silent_steps", "engine", "compile"),
]
CLIP = ["epsilon_low", "epsilon_high", "delta"]
OF_SFT_IN_ALL = ["sft_data", "sft_steps", "sft_batch_size", "sft_learning_rate"]
OF_SFT = [*OF_SFT_IN_ALL, "sft_rows", "answer_weight"]
OF_GROUPS = ["combination", "scope", "advantage_baseline", "scale", "off_policy_mask"]
UNUSED = {
    "all": ["push_to_hub"],
    "sft": [*REWARDED, *CLIP, *OF_SFT_IN_ALL],
    **dict.fromkeys(POLICY_STAGES, OF_SFT),
    **{stage: [*OF_SFT, *CLIP] for stage in ("sapo", "rloo")},
    "reinforce": [*OF_SFT, *CLIP, "redraws", "insert_truth"],
    "cispo": [*OF_SFT, "delta"],
    "rejection": [*OF_SFT, *CLIP, *OF_GROUPS],
}


def _another(default: Any) -> Any:
    """A value that is not the default and in every range."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return 0.25
    return ("x",) if isinstance(default, tuple) else 1 if default is None else "plain"


@pytest.mark.parametrize("stage", UNUSED)
def test_a_stage_refuses_what_it_does_not_use(stage: str) -> None:
    plain = VlmConfig(method=stage)  # type: ignore[arg-type]
    for field in options_of(VlmConfig):
        if field.name == "method":
            continue
        problem = ""
        try:
            replace(plain, **{field.name: _another(field.default)}).check()
        except UserError as error:
            problem = str(error)
        refused = f"does not go with --method {stage}; it is for" in problem
        assert refused == (field.name in UNUSED[stage]), (field.name, problem)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"preset": "small", "model": "m"}, "--preset is for new models: m has its own"),
        ({"lora_rank": 4}, "--lora-rank is for --train lora"),
        ({"lora_kind": "dora"}, "--lora-kind is for --train lora"),
        ({"lora_alpha": 4.0, "train": ("merger",)}, "--lora-alpha is for --train lora"),
        ({"group_size": 1}, "--group-size 1 leaves grpo nothing to compare"),
        ({"validation_fraction": 0.5}, "--validation-fraction 0.5 must lie between 0 and 0.5"),
        ({"train": ()}, "Name what trains"),
        ({"data": ""}, "Name the --data"),
        ({"steps": 2, "token_budget": 9}, "say the same thing"),
        ({"eval_images": 0}, "--eval-images must be above 0"),
        ({"vision_cache": -1.0}, "--vision-cache must not be negative"),
        ({"max_pixels": 0}, "--max-pixels must be above 0"),
    ],
)
def test_what_cannot_work_is_refused_in_words(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        VlmConfig(**options).check()


def test_defaults_are_those_of_the_model() -> None:
    hub = resolved(VlmConfig(method="grpo", model="m"), {})
    assert (hub.max_new_tokens, hub.batch_size, hub.learning_rate) == (256, 8, 1e-6)
    assert hub.reward == ("format", "exact")
    assert (hub.inner_passes, hub.kl_in) == (1, "loss")
    adapters = resolved(VlmConfig(method="sft", model="m", train=("lora",)), {})
    assert adapters.learning_rate == pytest.approx(4e-4)  # 20 times 2e-5
    direct = resolved(VlmConfig(method="rloo", model="m", style="direct"), {"preset": "tiny"})
    assert direct.reward == ("format:direct", "exact")
    assert direct.kl_in == "reward"
    assert direct.max_new_tokens != hub.max_new_tokens
    given = resolved(VlmConfig(method="grpo", steps=3, learning_rate=0.5, reward=("exact",)), {})
    assert (given.steps, given.learning_rate, given.reward) == (3, 0.5, ("exact",))


def test_a_token_budget_becomes_steps() -> None:
    config = VlmConfig(
        method="grpo", token_budget=1000, batch_size=4, group_size=8, max_new_tokens=10
    )
    assert resolved(config, {}).steps == 3  # 4 × 8 × 10 = 320 tokens a step
    with pytest.raises(UserError, match="less than the 320 tokens that one step may draw"):
        resolved(replace(config, token_budget=319), {})


def test_the_story_gives_each_stage_what_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, VlmConfig] = {}

    def train(task: Any, config: VlmConfig) -> dict[str, Any]:
        config.check()
        seen[config.method] = config
        return {"seconds": 1.0, "before": {}, "after": {}, "data": {"test": 1}}

    monkeypatch.setattr(vlm.VlmTask, "train_stage", train)
    monkeypatch.setattr("visgrpo.tasks.story.print_measures", lambda title, rows: None)
    config = VlmConfig(
        **{"data": "rewarded", "sft_data": "imitated", "steps": 7, "sft_steps": 5},
        **{"batch_size": 3, "learning_rate": 0.1, "group_size": 4, "beta": 0.5},
        **{"train": ("merger-last", "layers:0-4"), "preset": "small", "log_every": 2},
        **{"output": str(tmp_path / "run"), "report": False, "device": "cpu"},
    )
    vg.train(config)
    sft, grpo = seen["sft"], seen["grpo"]
    assert list(seen) == ["sft", "grpo"]
    assert (sft.data, sft.steps, sft.batch_size, sft.learning_rate) == ("imitated", 5, None, None)
    assert (grpo.data, grpo.steps, grpo.batch_size, grpo.learning_rate) == ("rewarded", 7, 3, 0.1)
    assert (sft.beta, grpo.beta, grpo.group_size) == (VlmConfig.beta, 0.5, 4)
    assert (sft.model, sft.preset) == (None, "small")
    assert grpo.model == str(tmp_path / "run" / "sft")
    for stage in (sft, grpo):
        assert (stage.train, stage.log_every) == (config.train, 2)
        assert stage.output == str(tmp_path / "run" / stage.method)


def test_rows_of_sft_and_rows_of_grpo_are_apart() -> None:
    config = VlmConfig(sft_rows=30)
    task = vlm.VlmTask()
    sft, grpo = (task.stage_options(config, stage, Path("r") / stage) for stage in ("sft", "grpo"))
    assert (sft.train_slice, grpo.train_slice) == (":30", "30:")
    mixed = replace(config, answer_weight=0.5)
    sft, grpo = (task.stage_options(mixed, stage, Path("r") / stage) for stage in ("sft", "grpo"))
    assert (sft.train_slice, sft.sft_rows, sft.answer_weight) == (None, 30, 0.5)
    assert (grpo.train_slice, grpo.sft_rows, grpo.answer_weight) == ("30:", None, None)
    with pytest.raises(UserError, match="--sft-rows divides the rows of --data"):
        replace(config, train_slice=":9").check()


def test_compile_is_for_a_gpu() -> None:
    from visgrpo.models.language import LanguageModel
    from visgrpo.models.small import build_language
    from visgrpo.models.tokenizers import make_tokenizer
    from visgrpo.tasks.tokens import compiled

    tokenizer = make_tokenizer("char", ["a few words"])
    lm = build_language(
        tokenizer, architecture="gpt2", layers=1, width=8, heads=2, context=8, seed=0
    )
    model = LanguageModel(lm)
    assert not compiled(VlmConfig(), model)
    with pytest.raises(UserError, match="--compile records a CUDA graph, and this is cpu"):
        compiled(VlmConfig(compile=True), model)
