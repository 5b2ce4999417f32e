"""The options of `visgrpo language` and `visgrpo generate`, and what they are by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from visgrpo.errors import UserError
from visgrpo.tasks.checks import named, not_negative, positive, share
from visgrpo.tasks.language_defaults import FOREIGN, LORA_RATE, PRESETS, Budget
from visgrpo.tasks.language_stages import OPTIONS, Stage
from visgrpo.tasks.token_config import SamplingConfig, TokenPolicyConfig

Preset = Literal["tiny", "nano", "small"]


@dataclass(frozen=True)
class LanguageConfig(TokenPolicyConfig):
    """A small language model: SFT, a learned reward model, then GRPO, PPO and others beside."""

    learning_rate: float | None = None
    """By default the preset's for the stage, 20 times as much with --lora."""
    stage: Stage = "all"
    """One stage, or all: sft, preferences, reward, then best-of-n, grpo and ppo, and a page."""
    data: str = "topics"
    """Text: "topics" (Python's own documentation), a .txt file or a folder of them; or a table
    (.jsonl, .parquet, Hub) of prompts, of preference pairs, or with --text-column of text."""
    text_column: str | None = None
    """Column of the text of a table."""
    prompt_column: str | None = None
    """Column of the prompts of a table, where its name is not a usual one."""
    validation_fraction: float = 0.05
    """Share of undivided text set apart for each of validation and test; of a table's prompts, for
    validation (its test split is a fifth)."""
    init: str | None = None
    """What a stage starts from: a run, a model folder, a Hub name or a nanoGPT ckpt.pt."""
    preset: Preset = "nano"
    """Size of a new model: tiny 2 × 64, nano 4 × 128, small 6 × 384, and how long it trains."""
    architecture: Literal["gpt2", "qwen2"] = "gpt2"
    """Family of a new model."""
    tokenizer: Literal["char", "bpe"] = "char"
    """Tokens of a new model: characters of the text, or byte pairs."""
    vocabulary: int = 512
    """Tokens of --tokenizer bpe."""
    context: int | None = None
    """Tokens that a new model can see, and of a block of text in SFT; by default 96 (tiny 64,
    small 256), for a model from elsewhere all it can see, up to 1024."""
    batch_size: int | None = None
    """Blocks of text, pairs or prompts of a step; by default the preset's."""
    prompt_tokens: int = 16
    """Prompts cut from text are the first tokens of its paragraphs."""
    eval_prompts: int = 64
    """Held-out prompts of an evaluation, at most."""
    pairs: int | None = None
    """Preference pairs that the gold judge makes; by default 3000 (tiny 400, small 8000)."""
    noise: float = 0.05
    """The judge prefers a to b with probability sigmoid((gold(a) - gold(b)) / noise)."""
    gold: bool = True
    """Measure the gold judge's score beside the rewards, where the data is text."""
    reward: tuple[str, ...] = ()
    """model:RUN, gold, file.py:f or module:f; by default the model of the run "reward" beside
    --init."""
    critic: Literal["separate", "head"] = "separate"
    """ppo: a critic with a transformer of its own, or a head on the policy's."""
    critic_rate: float = 5.0
    """ppo: the critic learns at this multiple of the learning rate; with --lora of a twentieth of
    it, since the critic trains whole."""
    gamma: float = 1.0
    """ppo: discount of a token."""
    gae_lambda: float = 0.95
    """ppo: λ of the advantage estimate."""
    value_clip: float = 0.2
    """ppo: how far a value may move in a step; 0 for any distance."""
    value_weight: float = 0.5
    """ppo: weight of the value loss."""
    critic_warmup: int = 5
    """ppo: first steps in which the policy's loss is left out and the critic learns alone."""
    whiten_advantages: bool = True
    """ppo: bring the advantages of a batch to mean 0 and variance 1."""
    samples: int | None = None
    """best-of-n: completions of each prompt; by default 32 (tiny 8, small 64, models from
    elsewhere 16)."""
    lora: bool = False
    """Low-rank adapters on every linear layer, instead of training all weights."""

    def check(self) -> None:
        super().check()
        positive(self, "prompt_tokens", "eval_prompts", "vocabulary", "critic_rate")
        positive(self, "context", "pairs", "samples", optional=True)
        not_negative(self, "noise", "value_clip", "value_weight", "critic_warmup")
        share(self, "gamma", "gae_lambda")
        named(self.data, "the --data: topics, a file, a folder or a data set")
        if not 0 < self.validation_fraction < 0.5:
            raise UserError(
                f"--validation-fraction {self.validation_fraction} must lie between 0 and 0.5."
            )
        self._check_stage()
        self._check_together()
        self._check_data()
        if self.stage == "all":
            self._check_story()

    def _check_stage(self) -> None:
        """Refuse what the stage would not use, and ask for what it needs."""
        if self.init is None and self.stage not in ("all", "sft"):
            raise UserError(f"--stage {self.stage} needs --init, the model to start from.")
        for name in OF_NEW_MODELS:
            if self.init is not None and name in self.given():
                raise UserError(f"{self.flag(name)} is for new models: {self.init} has its own.")
        self.refuse_unused(OPTIONS)

    def _check_together(self) -> None:
        """Refuse options that contradict each other, or leave one another without use."""
        self.check_policy()
        if self.architecture == "qwen2" and self.tokenizer == "char":
            raise UserError(
                "--architecture qwen2 goes with --tokenizer bpe: transformers reads the tokenizer "
                "of such a model as byte pairs."
            )
        if self.stage in ("ppo", "all") and self.critic_warmup and self.weight_decay:
            raise UserError(
                "--weight-decay would move the policy while the critic learns alone: take "
                "--critic-warmup 0, or no weight decay."
            )
        self.refuse_idle(
            ("lora_rank", not self.lora, "is for --lora"),
            ("lora_alpha", not self.lora, "is for --lora"),
            ("vocabulary", self.tokenizer == "char", "is for --tokenizer bpe"),
        )

    def _check_data(self) -> None:
        """Refuse options of tables where the data is text, and of text where it is a table."""
        from visgrpo.data.tables import is_hub_name
        from visgrpo.data.text_sources import is_text

        text, column = is_text(self.data), self.text_column is not None
        there = Path(self.data).expanduser().exists()
        if self.stage == "all" and there and not (text or column):
            raise UserError(
                f"--stage all starts from text: name the column of {self.data} that holds it with "
                "--text-column."
            )
        table = not (text or column) and (there or is_hub_name(self.data))
        self.refuse_idle(
            ("text_column", text, f"is for a table, and {self.data} is text"),
            ("prompt_column", text, f"is for a table, and {self.data} is text"),
            ("prompt_column", column, "does not go with --text-column, which prompts are cut from"),
            ("prompt_tokens", table, f"is for text, and {self.data} is read as a table of prompts"),
        )

    def _check_story(self) -> None:
        """Refuse now what a late stage would refuse after the first ones have trained."""
        preset = PRESETS[self.preset]
        longest = self.max_new_tokens or preset.max_new_tokens
        context = self.context or preset.context
        if self.prompt_tokens + longest > context:
            raise UserError(
                f"--prompt-tokens {self.prompt_tokens} and --max-new-tokens {longest} are more "
                f"than the model sees at once, --context {context}."
            )
        if self.group_size == 1:
            raise UserError("--group-size 1 leaves grpo nothing to compare: take 2 or more.")
        steps = preset.policy.steps
        if self.critic_warmup >= steps:
            raise UserError(
                f"--critic-warmup {self.critic_warmup} leaves none of ppo's {steps} steps to the "
                "policy: take a shorter warm-up."
            )


@dataclass(frozen=True)
class GenerateConfig(SamplingConfig):
    """Complete a prompt with a language model: visgrpo generate MODEL PROMPT."""

    model: str = ""
    """Run, model folder, Hub name or nanoGPT ckpt.pt."""
    prompt: str = ""
    """What to complete; with --chat, a user's message."""
    chat: bool = False
    """Put the prompt through the model's chat template."""
    samples: int = 1
    """How many completions."""
    seed: int = 0
    """Of the draws."""
    json: bool = False
    """Print JSON, with the log-prob of every completion."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        super().check()
        named(self.model, "the model: visgrpo generate MODEL PROMPT")
        named(self.prompt, "the prompt: visgrpo generate MODEL PROMPT")
        positive(self, "samples")
        not_negative(self, "seed")


OF_NEW_MODELS = ("preset", "architecture", "tokenizer", "vocabulary")


def resolved(config: LanguageConfig, info: Mapping[str, Any]) -> LanguageConfig:
    """Return the options with every "by default" filled in.

    Args:
        info: what visgrpo knows of the model to start from; empty for a model from elsewhere.
    """
    preset = info.get("preset") if config.init else config.preset
    defaults = PRESETS[preset] if preset else FOREIGN
    kind = config.stage if config.stage in ("sft", "reward") else "policy"
    budget: Budget = getattr(defaults, kind)
    found = {
        "max_new_tokens": defaults.max_new_tokens,
        "pairs": defaults.pairs,
        "samples": defaults.samples,
        "steps": budget.steps,
        "batch_size": budget.batch_size,
        "learning_rate": budget.learning_rate * (LORA_RATE if config.lora else 1.0),
        "kl_in": config.kl_place(),
        "inner_passes": 2 if config.stage == "ppo" else 1,
    }
    missing = {name: value for name, value in found.items() if getattr(config, name) is None}
    full = replace(config, **missing)  # type: ignore[arg-type]
    return replace(full, steps=full.steps_of_budget()) if full.token_budget else full
