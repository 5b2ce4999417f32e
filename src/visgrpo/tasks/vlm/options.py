"""The options of `visgrpo vlm`, and what they are by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from visgrpo.data.options import Boxes, Columns, Data, Questions
from visgrpo.options import Options, like, option, override, users
from visgrpo.tasks.backbone.options import RepresentationConfig
from visgrpo.tasks.options import Budget, TokenPolicyConfig
from visgrpo.training.options import Loop

QUESTION = "{question}"  # its place in a prompt
Style = Literal["reasoning", "direct"]
Stage = Literal[
    "all",
    "sft",
    "grpo",
    "dr-grpo",
    "dapo",
    "gspo",
    "cispo",
    "sapo",
    "rloo",
    "reinforce",
    "rejection",
]
_WITH_GROUPS = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce")
POLICY_STAGES = (*_WITH_GROUPS, "rejection")
_LEARNING = (*POLICY_STAGES, "all")
_COMPARING = tuple(stage for stage in _LEARNING if stage != "reinforce")
_CLIPPING = ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "all")
_TWO_SIDED = tuple(stage for stage in _CLIPPING if stage != "cispo")
OPTIONS = users(
    "method",
    get_args(Stage),
    (_LEARNING, "reward reward_weights group_size token_budget"),
    ((*_WITH_GROUPS, "all"), "combination scope advantage_baseline scale off_policy_mask"),
    (_CLIPPING, "epsilon_low epsilon_high"),
    (_TWO_SIDED, "delta"),
    (_COMPARING, "redraws insert_truth"),
    (_LEARNING, "beta kl_in kl_estimator kl_target kl_horizon track_kl entropy_weight"),
    (_LEARNING, "sync_reference sync_mix"),
    (
        _LEARNING,
        "mask_truncated top_entropy inner_passes minibatches refresh_every silent_steps engine "
        "compile",
    ),
    (("sft", "all"), "answer_weight sft_rows"),
    (("sft", *POLICY_STAGES), "push_to_hub"),
    (("all",), "sft_data sft_steps sft_batch_size sft_learning_rate"),
)


class Defaults(NamedTuple):
    """What a preset stands for, beside the sizes of its model."""

    max_new_tokens: int
    sft: Budget
    policy: Budget


PRESETS: Mapping[str, Defaults] = {
    "tiny": Defaults(max_new_tokens=64, sft=Budget(1300, 16, 4e-3), policy=Budget(200, 16, 2e-4)),
    "small": Defaults(max_new_tokens=96, sft=Budget(1500, 32, 5e-4), policy=Budget(200, 16, 1e-5)),
}
PLACING = ("boxes", "points")  # tasks that are answered by places in an image
PLACING_PRESETS: Mapping[str, Defaults] = {
    "tiny": Defaults(max_new_tokens=32, sft=Budget(1500, 16, 3e-3), policy=Budget(200, 16, 2e-4)),
    "small": Defaults(max_new_tokens=96, sft=Budget(3000, 32, 5e-4), policy=Budget(200, 16, 1e-5)),
}
REWARDED: Mapping[str, str] = {"boxes": "iou", "points": "inside"}  # by default; exact of others
NEW_COORDINATES, COORDINATES = "bins:56", "pixels"  # of a new model, and of one from elsewhere
# Of models that were not made here, such as those of the Hub.
FOREIGN = Defaults(max_new_tokens=256, sft=Budget(500, 16, 2e-5), policy=Budget(200, 8, 1e-6))


@dataclass(frozen=True)
class VlmConfig(TokenPolicyConfig):
    """A vision-language model: SFT on answers, then GRPO on what its own answers earn."""

    example = "visgrpo vlm --method grpo --model runs/seer/sft --data questions.jsonl"
    common = (
        "data method model train reward style steps batch_size learning_rate beta "
        "group_size output seed resume dry_run"
    )

    method: Stage = override(
        "all",
        "One stage, or all: sft, then grpo from it, in RUN/sft and RUN/grpo, and one page.",
        was={"stage": None},
    )
    model: str | None = override(
        None,
        "What to start from: a run, a folder (of visgrpo join, for one) or a Hub name, "
        "Qwen2.5-VL or SmolVLM; by default a new small model.",
    )
    preset: Literal["tiny", "small"] = override("tiny")
    data = like(
        Data,
        "shapes",
        "Built-in (shapes: count what is in a picture; boxes, detection: find it), a .parquet or "
        ".jsonl file or a folder of them, or the name of a Hub data set.",
        required="the --data: shapes, a file, a folder or a data set",
    )
    image_column = like(
        Columns,
        help="Column of the images, or of lists of them, where its name is not a usual one.",
    )
    question_column = like(
        Columns, help="Column of the questions, where its name is not a usual one."
    )
    answer_column = like(
        Columns, help="Column of the true answers, where its name is not a usual one."
    )
    trace_column: str | None = option(
        None, "Column of the reasoning that SFT imitates, where its name is not a usual one."
    )
    task: Literal["counting", "boxes", "points", "text"] = option(
        "counting",
        "What answers are: numbers, boxes in the image, a point in it, or any words.",
    )
    coordinates: str | None = like(Boxes)
    box_format = like(Boxes)
    box_noise: float = option(
        0.0,
        "Boxes: move every edge of the boxes to learn from by up to this share of its side, as "
        "if people had drawn them; test boxes stay.",
        within="[0, 0.5]",
    )
    prompt: str | None = option(
        None,
        "The prompt, with {question} where the question goes; by default the task's words after "
        "the question.",
    )
    shifts: str | None = like(
        RepresentationConfig,
        None,
        "Data from elsewhere, with usual column names, that is measured on too, before and "
        "after; by default the built-in data's own.",
        was={"ood": None},
    )
    train_slice = like(Data)
    validation_fraction = like(
        Data,
        0.05,
        "Share of the training rows set apart where the data has no validation split.",
        within="(0, 0.5)",
    )
    skip_bad_images = like(Data)
    style: Style | None = like(
        Questions,
        None,
        "Ask for reasoning before the answer, or for the answer alone; by default as the model "
        "learned it, else reasoning for counting and where the rows have some.",
    )
    max_pixels = like(Questions)
    min_pixels = like(Questions)
    train: tuple[str, ...] = override(
        ("all",),
        "What trains: all; parts (vision, merger, merger-last, language, embeddings, "
        'layers:0-4, head), patterns of parameter names such as "*.mlp.*", and lora, adapters '
        "on the language model.",
        required="what trains: --train all, or parts of the model",
    )
    insert_truth: bool = option(
        False,
        "Where all completions of a group are wrong, put the true answer, written as for SFT, in "
        "the place of one (ViSurf).",
    )
    engine: Literal["shared", "plain"] = option(
        "shared",
        "GRPO runs image and prompt once for all completions of a group, or with each of them.",
    )
    vision_cache: float = option(
        1.0,
        "GiB of memory for what a frozen vision tower makes of images, once for all steps.",
        within=">= 0",
    )
    eval_images: int = option(256, "Held-out rows of an evaluation, at most.", within="> 0")
    batch_size = override(help="Rows of a step, over all processes; by default the preset's.")
    workers = like(Data, help="Processes that decode and prepare images ahead of time.")
    learning_rate = override(
        help="By default the preset's for the stage, 20 times as much where lora alone trains."
    )
    max_new_tokens = override(
        help="Longest completion; by default 256 (new models: tiny 64, small 96)."
    )
    reward = override(
        help="format, exact, ordinal:K, iou, iou:T, boxes, inside, near:R, length:N, "
        "overlong:N:M, repetition:N, random, file.py:f or module:f; by default format and exact, "
        "of boxes iou, of points inside.",
    )
    max_grad_norm = override(1.0, "Gradients are scaled down to this norm; 0 leaves them alone.")
    kl_in = override(help="Where KL weighs; by default in the reward with rloo, else in the loss.")
    inner_passes = override(help="Passes over each batch's completions; by default 1.")
    sft_data: str | None = option(None, "all: what SFT learns from; by default --data.")
    sft_rows: int | None = option(
        None,
        "all: the training rows that SFT learns from, the first ones; GRPO learns from the "
        "answers of the others.",
        within="> 0",
    )
    answer_weight: float | None = option(
        None,
        "Let SFT in reasoning style learn from rows without reasoning, too, by their answers: what "
        "a token of theirs counts. With --sft-rows the rows after the first ones have none.",
        within="> 0",
    )
    sft_steps = override(
        help="all: SFT's steps, where --steps are GRPO's; by default the preset's."
    )
    sft_batch_size: int | None = option(
        None, "all: SFT's rows of a step; by default the preset's.", within="> 0"
    )
    sft_learning_rate: float | None = option(
        None, "all: SFT's learning rate; by default the preset's.", within="> 0"
    )

    users = OPTIONS

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        yield from self.policy_rules()
        yield from self.idle(
            ("preset", self.model is not None, f"is for new models: {self.model} has its own"),
            ("compile", self.engine == "plain", "is for --engine shared"),
            (
                "lora_rank lora_alpha lora_kind lora_targets",
                "lora" not in self.train,
                "is for --train lora",
            ),
            (
                "coordinates box_format box_noise",
                self.task not in PLACING,
                "is for --task boxes and points",
            ),
        )
        if self.prompt is not None and QUESTION not in str(self.prompt):
            yield f'--prompt "{self.prompt}": write {QUESTION} where the question goes.'
        if self.method == "all" and self.sft_rows and (self.train_slice or self.sft_data):
            yield (
                "--sft-rows divides the rows of --data between SFT and GRPO: leave --sft-data and "
                "--train-slice out."
            )
        if self.method == "sft" and self.sft_rows and not self.answer_weight:
            yield "--sft-rows is for --method all, or --answer-weight: take --train-slice :N."
        if self.answer_weight and self.style == "direct":
            yield "--answer-weight is of rows without reasoning beside others: drop --style direct."
        if self.method == "all" and self.group_size == 1:
            yield "--group-size 1 leaves grpo nothing to compare: take 2 or more."


def defaults_of(info: Mapping[str, Any], task: str | None = None) -> Defaults:
    """Return what holds by default for a model, by what visgrpo knows of it.

    Args:
        task: of a new stage; by default what the model has learned.
    """
    preset = info.get("preset")
    if not preset:
        return FOREIGN
    return (PLACING_PRESETS if (task or info.get("answers")) in PLACING else PRESETS)[preset]


def coordinates_of(
    task: str, given: str | None, info: Mapping[str, Any], *, new: bool = False
) -> str | None:
    """Return the units of answers that are places; None of others.

    Args:
        given: by the user.
        info: what visgrpo knows of the model; empty for one from elsewhere.
        new: the model is still to be made.
    """
    if task not in PLACING:
        return None
    return given or info.get("coordinates") or (NEW_COORDINATES if new else COORDINATES)


def resolved(config: VlmConfig, info: Mapping[str, Any]) -> VlmConfig:
    """Return the options of one stage with every "by default" filled in.

    Args:
        info: what visgrpo knows of the model to start from; empty for a model from elsewhere.
    """
    defaults = defaults_of(info, config.task)
    return config.filled(
        defaults.sft if config.method == "sft" else defaults.policy,
        adapters_alone=config.train == ("lora",),
        max_new_tokens=defaults.max_new_tokens,
        inner_passes=1,
        reward=(
            "format:direct" if config.style == "direct" else "format",
            REWARDED.get(config.task, "exact"),
        ),
    )


@dataclass(frozen=True)
class JoinConfig(Options):
    """Join a vision tower and a language model to one model that sees."""

    example = "visgrpo join Qwen/Qwen2.5-VL-3B-Instruct Qwen/Qwen2.5-0.5B-Instruct --output joined"

    vision: str = option(
        "",
        "Folder or Hub name of a Qwen2.5-VL, whose vision tower is taken.",
        required="the model whose vision tower to take: --vision NAME.",
    )
    language: str = option(
        "",
        "Run, folder or Hub name of a Qwen2 or Qwen2.5 language model.",
        required="the language model: --language NAME.",
    )
    output = like(
        Loop,
        "",
        "Folder to save the joined model in.",
        required="the folder to save in: --output FOLDER.",
    )
    merger: Literal["slice", "new"] = option(
        "slice",
        "The merger's last layer: the tower's own rows, as many as the language model is "
        "wide, or a new one from random weights.",
    )
    max_pixels = like(
        Questions,
        help="Images with more are made smaller; by default as the vision tower's settings say.",
    )
    seed = like(
        Loop, help="Of a new layer, and of embeddings of special tokens that have to be added."
    )
