"""The options of `visgrpo language` and `visgrpo generate`, and what they are by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from visgrpo.data.options import Columns, Data
from visgrpo.methods.options import SamplingOptions
from visgrpo.models.options import Adapt, Sizes
from visgrpo.options import like, option, override, users
from visgrpo.tasks.options import Budget, TokenPolicyConfig
from visgrpo.training.options import Loop, Printing

Stage = Literal[
    "all",
    "sft",
    "preferences",
    "reward",
    "grpo",
    "dr-grpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "rloo",
    "reinforce",
    "rejection",
    "ppo",
    "best-of-n",
]
POLICY_STAGES = (
    *("grpo", "dr-grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce", "rejection"),
    "ppo",
)
_DRAWING = (*POLICY_STAGES, "all", "preferences", "best-of-n")
_MEASURING = (*POLICY_STAGES, "all", "best-of-n")  # on held-out prompts
_REWARDED = (*POLICY_STAGES, "best-of-n")
_LEARNING = (*POLICY_STAGES, "all")
_CLIPPING = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "ppo")
_TWO_SIDED = tuple(stage for stage in _CLIPPING if stage != "cispo")
_WITH_GROUPS = tuple(stage for stage in POLICY_STAGES if stage not in ("ppo", "rejection"))
_COMPARING = tuple(stage for stage in POLICY_STAGES if stage not in ("ppo", "reinforce"))
_ONE_BY_ONE = ("sft", "reward", *POLICY_STAGES)  # stages that train a model, apart from "all"
# The story's options are those of the stages that it goes through, where one value suits them all.
OPTIONS = users(
    "method",
    get_args(Stage),
    (_ONE_BY_ONE, "steps learning_rate eval_every save_every accumulation push_to_hub"),
    ((*_ONE_BY_ONE, "preferences"), "batch_size"),
    ((*_ONE_BY_ONE, "all"), "weight_decay warmup schedule final_learning_rate max_grad_norm"),
    ((*_ONE_BY_ONE, "all"), "log_every keep report_to dry_run patience"),
    (("sft", *POLICY_STAGES), "train lora_rank lora_alpha lora_kind lora_targets"),
    (("sft", *POLICY_STAGES), "gradient_checkpointing"),
    (("sft", "all"), "preset architecture tokenizer vocabulary context"),
    (("sft", "preferences", "reward", *_REWARDED), "model"),
    (_DRAWING, "temperature top_k top_p max_new_tokens prompt_tokens"),
    (_MEASURING, "eval_prompts"),
    (_REWARDED, "reward reward_weights prompt_column gold"),
    (("preferences", "all"), "pairs noise"),
    (("all",), "sft_steps"),
    (("sft", "preferences", *_LEARNING), "train_slice"),
    (("best-of-n", "all"), "samples"),
    (_WITH_GROUPS, "combination scope advantage_baseline scale off_policy_mask"),
    (_CLIPPING, "epsilon_low epsilon_high"),
    (_TWO_SIDED, "delta"),
    (_COMPARING, "redraws"),
    (POLICY_STAGES, "kl_in kl_estimator mask_truncated top_entropy inner_passes minibatches"),
    (POLICY_STAGES, "refresh_every token_budget compile sync_reference sync_mix"),
    (_LEARNING, "group_size beta kl_target kl_horizon track_kl entropy_weight silent_steps"),
    (("ppo", "all"), "critic critic_rate critic_warmup gamma gae_lambda"),
    (("ppo", "all"), "value_clip value_weight whiten_advantages"),
)


class Defaults(NamedTuple):
    """What a preset stands for, beside the sizes of its model."""

    context: int
    max_new_tokens: int
    pairs: int
    samples: int
    sft: Budget
    reward: Budget
    policy: Budget


PRESETS: Mapping[str, Defaults] = {
    "tiny": Defaults(
        context=64,
        max_new_tokens=24,
        pairs=3000,
        samples=8,
        sft=Budget(1500, 16, 3e-3),
        reward=Budget(300, 16, 1e-3),
        policy=Budget(40, 8, 1e-3),
    ),
    "nano": Defaults(
        context=96,
        max_new_tokens=64,
        pairs=3000,
        samples=32,
        sft=Budget(700, 24, 4e-3),
        reward=Budget(150, 32, 1e-3),
        policy=Budget(60, 8, 2e-4),
    ),
    "small": Defaults(
        context=256,
        max_new_tokens=128,
        pairs=8000,
        samples=64,
        sft=Budget(3000, 64, 1e-3),
        reward=Budget(400, 64, 2e-4),
        policy=Budget(300, 32, 1e-4),
    ),
}
# Of models that were not made here, such as those of the Hub.
FOREIGN = Defaults(
    context=0,
    max_new_tokens=256,
    pairs=2000,
    samples=16,
    sft=Budget(500, 16, 2e-5),
    reward=Budget(200, 16, 1e-5),
    policy=Budget(200, 8, 1e-6),
)


Preset = Literal["tiny", "nano", "small"]


@dataclass(frozen=True)
class LanguageConfig(TokenPolicyConfig):
    """A small language model: SFT, a learned reward model, then GRPO, PPO and others beside."""

    example = "visgrpo language --data book.txt --preset nano --output runs/story"
    common = (
        "data method model preset reward steps batch_size learning_rate beta group_size "
        "output seed resume dry_run"
    )

    learning_rate = override(
        help="By default the preset's for the stage, 20 times as much with --train lora."
    )
    method: Stage = override(
        "all",
        "One stage, or all: sft, preferences, reward, then best-of-n, grpo and ppo, and a page.",
        was={"stage": None},
    )
    data: str = like(
        Data,
        "topics",
        'Text: "topics" (Python\'s own documentation), a .txt file or a folder of them; or a '
        "table (.jsonl, .parquet, Hub) of prompts, of preference pairs, or with --text-column "
        "of text.",
        required="the --data: topics, a file, a folder or a data set",
    )
    text_column = like(Columns)
    prompt_column: str | None = option(
        None, "Column of the prompts of a table, where its name is not a usual one."
    )
    train_slice = like(Data)
    validation_fraction = like(
        Data,
        0.05,
        "Share of undivided text set apart for each of validation and test; of a table's "
        "prompts, for validation (its test split is a fifth).",
        within="(0, 0.5)",
    )
    model: str | None = override(
        None,
        "What a stage starts from: a run, a model folder, a Hub name or a nanoGPT ckpt.pt.",
        was={"init": None},
    )
    preset: Preset = override(
        "nano",
        "Size of a new model: tiny 2 × 64, nano 4 × 128, small 6 × 384, and how long it trains.",
    )
    architecture: Literal["gpt2", "qwen2"] = option("gpt2", "Family of a new model.")
    tokenizer: Literal["char", "bpe"] = option(
        "char", "Tokens of a new model: characters of the text, or byte pairs."
    )
    vocabulary = like(Sizes, 512, "Tokens of --tokenizer bpe.")
    context: int | None = option(
        None,
        "Tokens that a new model can see, and of a block of text in SFT; by default 96 (tiny "
        "64, small 256), for a model from elsewhere all it can see, up to 1024.",
        within="> 0",
    )
    batch_size = override(
        help="Blocks of text, pairs or prompts of a step; by default the preset's."
    )
    prompt_tokens: int = option(
        16, "Prompts cut from text are the first tokens of its paragraphs.", within="> 0"
    )
    eval_prompts: int = option(64, "Held-out prompts of an evaluation, at most.", within="> 0")
    pairs: int | None = option(
        None,
        "Preference pairs that the gold judge makes; by default 3000 (small 8000).",
        within="> 0",
    )
    noise: float = option(
        0.05,
        "The judge prefers a to b with probability sigmoid((gold(a) - gold(b)) / noise).",
        within=">= 0",
    )
    gold: bool = option(
        True, "Measure the gold judge's score beside the rewards, where the data is text."
    )
    reward = override(
        help="model:RUN, gold, length:N, overlong:N:M, repetition:N, file.py:f or module:f; by "
        'default the model of the run "reward" beside --model.',
    )
    critic: Literal["separate", "head"] = option(
        "separate", "ppo: a critic with a transformer of its own, or a head on the policy's."
    )
    critic_rate: float = option(
        5.0,
        "ppo: the critic learns at this multiple of the learning rate; with --train lora of a "
        "twentieth of it, since the critic trains whole.",
        within="> 0",
    )
    gamma: float = option(1.0, "ppo: discount of a token.", within="[0, 1]")
    gae_lambda: float = option(0.95, "ppo: λ of the advantage estimate.", within="[0, 1]")
    value_clip: float = option(
        0.2, "ppo: how far a value may move in a step; 0 for any distance.", within=">= 0"
    )
    value_weight: float = option(0.5, "ppo: weight of the value loss.", within=">= 0")
    critic_warmup: int = option(
        5,
        "ppo: first steps in which the policy's loss is left out and the critic learns alone.",
        within=">= 0",
    )
    whiten_advantages: bool = option(
        True, "ppo: bring the advantages of a batch to mean 0 and variance 1."
    )
    samples: int | None = option(
        None,
        "best-of-n: completions of each prompt; by default 32 (tiny 8, small 64, models from "
        "elsewhere 16).",
        within="> 0",
    )
    train: tuple[Literal["all", "lora"], ...] = override(
        ("all",),
        "What trains: all weights, or low-rank adapters (lora) on every linear layer.",
        was={"lora": "lora"},
    )

    users = OPTIONS

    @property
    def lora(self) -> bool:
        """Whether adapters train."""
        return "lora" in self.train

    def rules(self) -> Iterator[str]:
        if self.model is None and self.method not in ("all", "sft"):
            yield f"--method {self.method} needs --model, the model to start from."
        its_own = f"is for new models: {self.model} has its own"
        yield from self.idle((" ".join(OF_NEW_MODELS), self.model is not None, its_own))
        yield from super().rules()
        yield from self.policy_rules()
        if self.architecture == "qwen2" and self.tokenizer == "char":
            yield (
                "--architecture qwen2 goes with --tokenizer bpe: transformers reads the tokenizer "
                "of such a model as byte pairs."
            )
        if self.method in ("ppo", "all") and self.critic_warmup and self.weight_decay:
            yield (
                "--weight-decay would move the policy while the critic learns alone: take "
                "--critic-warmup 0, or no weight decay."
            )
        yield from self.idle(
            ("lora_rank lora_alpha lora_kind lora_targets", not self.lora, "is for --train lora"),
            ("vocabulary", self.tokenizer == "char", "is for --tokenizer bpe"),
        )
        yield from self._data_rules()
        if self.method == "all":
            yield from self._story_rules()

    def _data_rules(self) -> Iterator[str]:
        """Yield options of tables where the data is text, and of text where it is a table."""
        from visgrpo.data.read import is_text
        from visgrpo.data.stored import is_hub_name

        text, column = is_text(self.data), self.text_column is not None
        there = Path(self.data).expanduser().exists()
        if self.method == "all" and there and not (text or column):
            yield (
                f"--method all starts from text: name the column of {self.data} that holds it with "
                "--text-column."
            )
        table = not (text or column) and (there or is_hub_name(self.data))
        yield from self.idle(
            ("text_column", text, f"is for a table, and {self.data} is text"),
            ("prompt_column", text, f"is for a table, and {self.data} is text"),
            ("prompt_column", column, "does not go with --text-column, which prompts are cut from"),
            ("prompt_tokens", table, f"is for text, and {self.data} is read as a table of prompts"),
        )

    def _story_rules(self) -> Iterator[str]:
        """Yield now what a late stage would refuse after the first ones have trained."""
        preset = PRESETS[self.preset]
        longest = self.max_new_tokens or preset.max_new_tokens
        context = self.context or preset.context
        if self.prompt_tokens + longest > context:
            yield (
                f"--prompt-tokens {self.prompt_tokens} and --max-new-tokens {longest} are more "
                f"than the model sees at once, --context {context}."
            )
        if self.group_size == 1:
            yield "--group-size 1 leaves grpo nothing to compare: take 2 or more."
        steps = preset.policy.steps
        if self.critic_warmup >= steps:
            yield (
                f"--critic-warmup {self.critic_warmup} leaves none of ppo's {steps} steps to the "
                "policy: take a shorter warm-up."
            )


@dataclass(frozen=True)
class GenerateConfig(Printing, SamplingOptions):
    """Complete a prompt with a language model: visgrpo generate MODEL PROMPT."""

    example = 'visgrpo generate runs/story/grpo "The list"'
    common = "samples temperature max_new_tokens seed"

    model = like(
        Adapt,
        "",
        "Run, model folder, Hub name or nanoGPT ckpt.pt.",
        required="the model: visgrpo generate MODEL PROMPT",
    )
    prompt: str = option(
        "",
        "What to complete; with --chat, a user's message.",
        required="the prompt: visgrpo generate MODEL PROMPT",
    )
    chat: bool = option(False, "Put the prompt through the model's chat template.")
    samples = like(LanguageConfig, 1, "How many completions.")
    seed = like(Loop, help="Of the draws.")
    device = like(Loop)


OF_NEW_MODELS = ("preset", "architecture", "tokenizer", "vocabulary")


def resolved(config: LanguageConfig, info: Mapping[str, Any]) -> LanguageConfig:
    """Return the options with every "by default" filled in.

    Args:
        info: what visgrpo knows of the model to start from; empty for a model from elsewhere.
    """
    preset = info.get("preset") if config.model else config.preset
    defaults = PRESETS[preset] if preset else FOREIGN
    kind = config.method if config.method in ("sft", "reward") else "policy"
    return config.filled(
        getattr(defaults, kind),
        adapters_alone=config.lora,
        max_new_tokens=defaults.max_new_tokens,
        pairs=defaults.pairs,
        samples=defaults.samples,
        inner_passes=2 if config.method == "ppo" else 1,
    )
