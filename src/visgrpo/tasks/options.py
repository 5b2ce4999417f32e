"""Options of jobs on images, of policies over tokens, of pre-training and pages: no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from visgrpo.data.options import ImageData
from visgrpo.errors import UserError
from visgrpo.methods.options import Policy, SamplingOptions
from visgrpo.models.options import Adapt, Prompts, Sizes
from visgrpo.options import Options, like, option, override
from visgrpo.training.options import Loop, Tables


@dataclass(frozen=True)
class RunConfig(Loop, ImageData):
    """How a run on images is optimised."""

    heading = "Training"

    silent_steps = override(hidden=True)

    epochs: float = option(5.0, "Passes over the training images.", within="> 0")
    batch_size = override(64, "Images of a step, over all processes.")
    augment: tuple[Literal["crop", "flip", "color"], ...] = option(
        (), "Random changes to training images."
    )


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """What both ways of pre-training have in common."""

    heading = "Data"

    inner_passes = minibatches = refresh_every = weights = override(hidden=True)
    learning_rate = override(help="Of AdamW, at its highest; by default 1e-3.")
    more_data: tuple[str, ...] = option(
        (), "Further data sets to learn from; NAME@:2000 takes the first 2,000 training images."
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.accumulation != 1:
            yield (
                "--accumulation would change the contrastive loss, which compares a whole batch: "
                "take a smaller --batch-size."
            )

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default for training from scratch."""
        return self.learning_rate or 1e-3


@dataclass(frozen=True)
class PretrainClipConfig(Sizes, PretrainConfig):
    """Pre-train a small CLIP from random weights on captions, or on class names as captions."""

    example = "visgrpo pretrain clip --data photos/ --epochs 20 --output runs/start"
    common = (
        "data caption_column image_size width layers epochs batch_size learning_rate "
        "output seed resume dry_run"
    )

    caption_column: str = option(
        "caption", "Column of the captions; without it class names are put into the templates."
    )
    templates: tuple[str, ...] = like(
        Prompts,
        ("a photo of a {}.", "a picture of a {}.", "{}"),
        "Captions for class names: one is drawn for every image and step.",
    )
    features: int = option(64, "Length of the image and text features.", within="> 0")


@dataclass(frozen=True)
class PretrainBackboneConfig(Sizes, PretrainConfig):
    """Pre-train a small vision encoder from random weights on pairs of changed images."""

    example = "visgrpo pretrain backbone --data photos/ --family dinov2 --epochs 50"
    common = (
        "data family positives image_size epochs batch_size learning_rate output seed resume "
        "dry_run"
    )

    vocabulary = override(hidden=True)

    batch_size = override(
        256,
        "Images of a step, two views of each; what is not a view of the same image, or class, "
        "is a negative.",
    )
    weight_decay = override(0.05, "AdamW's, on matrices only.")
    augment = override(
        ("crop", "flip", "color"),
        "What makes two views of an image: features forget what it changes, so leave out "
        "color where colours tell classes apart.",
    )
    keep = override(
        "last",
        "Which weights the run ends with: the last, since more steps make better features "
        "than a noisy kNN accuracy can tell, or the best on validation data.",
    )
    positives: Literal["classes", "views"] = option(
        "classes",
        "What is pulled together: all views of a class (supervised contrastive learning), or "
        "the two views of an image alone (SimCLR, which uses no label).",
    )
    family: Literal["dinov2", "resnet"] = option(
        "resnet",
        "A ViT in the layout of DINOv2, or a ResNet of basic blocks, the faster one on a CPU.",
    )
    patch_size = override(
        None,
        "Pixels of a patch on a side, by default 4; of a ResNet its total stride, by default 16.",
    )
    width = override(None, "Of the features; by default 128, or 256 of a ResNet.")
    layers = override(
        None, "Blocks, by default 4; of a ResNet in each of its stages, by default 1."
    )
    heads = override(help="Attention heads; a ResNet has none.")
    projection: int = option(
        128,
        "Length of the vectors that are compared: of a small MLP, which is thrown away afterwards.",
        within="> 0",
    )
    temperature = like(
        SamplingOptions,
        0.2,
        "Similarities are divided by this: the smaller, the more the nearest negatives count.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if not self.augment:
            yield "--augment makes the two views of an image differ: give crop, flip or color."


Loss = Literal["ce", "gce", "weighted", "balanced", "smooth", "dice", "jaccard", "lovasz"]
OF_SETS = {"dice", "jaccard", "lovasz"}


@dataclass(frozen=True)
class Rivals(Policy, RunConfig):
    """What a run on labels is compared with."""

    heading = "Rivals"

    baseline: bool = option(
        False, "First train the supervised baseline of the same budget, into OUTPUT/baseline."
    )
    baseline_learning_rate: float | None = option(
        None, "Of the supervised baseline; by default the same as this run's.", within="> 0"
    )
    tune: int = option(
        1,
        "Try so many learning rates, three times apart, around the given one, each a run of its "
        "own in OUTPUT/tune; validation data choose. The baseline tries as many. 1 tries none.",
        within="> 0",
    )
    loss: tuple[Loss, ...] = option(
        ("ce",),
        "What --method supervised and the baseline minimise, several added up: cross-entropy, "
        "generalised (robust to wrong labels), with classes weighted or balanced, smoothed; dice, "
        "jaccard and lovasz of whole masks or batches.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.baseline and self.method == "supervised":
            yield "--baseline is beside rewards: this run is the baseline itself."
        if self.baseline_learning_rate and not self.baseline:
            yield "--baseline-learning-rate is of --baseline, which is not asked for."
        if self.loss != ("ce",) and not (self.baseline or self.method == "supervised"):
            yield "--loss is for --method supervised, or the --baseline."
        whole = OF_SETS & set(self.loss)
        if whole and (self.accumulation > 1 or self.minibatches > 1):
            yield (
                f"--loss {min(whole)} is of a whole batch: it does not go with --accumulation or "
                "--minibatches."
            )


LORA_RATE = 20.0  # adapters learn at a multiple of the rate of whole models
KL_IN_REWARD = ("ppo", "rloo")  # by default; in the loss of the other stages


class Budget(NamedTuple):
    """How long a stage trains, by default."""

    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class TokenPolicyConfig(SamplingOptions, Adapt, Policy, Loop):
    """How a policy over completions learns from rewards, in one or several stages."""

    heading = "Method and rewards"

    estimator = override(hidden=True)

    method = override("all", "What to run: one method, or all stages.")
    preset: str = option("", "Size of a new model, and how long it trains.")
    sft_steps: int | None = option(None, "all: SFT's steps; by default the preset's.", within="> 0")
    steps = override(help="Steps of one batch each; by default the preset's for the stage.")
    batch_size = override(help="Inputs of a step, over all processes; by default the preset's.")
    reward = override(help="What completions earn.")
    group_size = override(help="Completions drawn for each prompt.")
    redraws: int = option(
        0,
        "Draw a group again, up to so many times, while all of it earns the same (dynamic "
        "sampling).",
        within=">= 0",
    )
    token_budget: int | None = option(
        None, "Tokens to draw at most, instead of --steps: the same for every method.", within="> 0"
    )
    delta: float | None = option(
        None,
        "Where an advantage is negative, bound the ratio by this, which must be above 1 + "
        "--epsilon-high; by default nothing does.",
        within="> 0",
    )
    off_policy_mask: float | None = option(
        None,
        "Leave out completions of negative advantage that the policy has left by more than this: "
        "nats per token, log π_old - log π.",
        within=">= 0",
    )
    beta = override(help="Weight of KL(policy ‖ start).")
    kl_in: Literal["loss", "reward"] | None = option(
        None, "Where KL weighs; by default in the reward with ppo and rloo, else in the loss."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = option("k3", "Of KL in the loss.")
    kl_target: float | None = option(
        None, "Steer --beta so that KL stays near this many nats per completion.", within="> 0"
    )
    kl_horizon: float = option(
        10_000.0, "Completions over which --kl-target moves --beta.", within="> 0"
    )
    sync_reference: int | None = option(
        None,
        "Move what KL is to towards the policy every so many steps (TR-DPO); by default it stays "
        "the start.",
        within="> 0",
    )
    sync_mix: float = option(
        0.6, "How far --sync-reference moves it; 1 makes it the policy.", within="(0, 1]"
    )
    track_kl: bool = option(
        True, "Measure KL to the start also with --beta 0; costs a frozen copy and a pass a step."
    )
    entropy_weight = override(help="Weight of the entropy bonus, of the whole softmax.")
    mask_truncated: bool = option(
        False, "Leave completions that were cut off by --max-new-tokens out of the loss."
    )
    top_entropy: float = option(
        1.0,
        "Learn from this share of the tokens alone, those that were drawn with most entropy.",
        within="(0, 1]",
    )
    inner_passes = override(
        None, "Passes over each batch's completions; by default 2 with ppo, else 1."
    )
    refresh_every = override(
        help="Steps after which the old policy, which draws, is brought up to date."
    )
    gradient_checkpointing: bool = option(
        False,
        "Keep the inputs of a model's blocks alone, and run these again in the backward pass: "
        "slower, with less memory.",
    )
    compile: bool = option(
        False,
        "On a GPU, draw tokens by one recorded CUDA graph: more operations, fewer calls. For "
        "GPT-2, Llama, Mistral and Qwen.",
    )
    silent_steps = override(50)

    def changes(self) -> dict[str, Any]:
        """Return what these options change of a method's objective."""
        named = {"delta": self.delta, "off_policy_mask": self.off_policy_mask}
        return super().changes() | {key: value for key, value in named.items() if value is not None}

    def policy_rules(self) -> Iterator[str]:
        """Yield options of a policy that contradict each other, or leave one another idle."""
        if self.token_budget and self.steps:
            yield "--token-budget and --steps say the same thing: give one of them."
        if self.kl_target and not self.beta:
            yield "--kl-target steers --beta, which must not start at 0."
        in_reward = bool(self.beta) and self.kl_place() == "reward"
        if in_reward and self.combination == "normalize_then_sum":
            yield (
                "--combination normalize_then_sum would bring KL in the reward to the spread of a "
                "reward, however small it is: take --kl-in loss, or sum_then_normalize."
            )
        yield from self.idle(
            ("kl_horizon", not self.kl_target, "is for --kl-target"),
            ("sync_mix", not self.sync_reference, "is for --sync-reference"),
            (
                "kl_in kl_estimator sync_reference",
                not self.beta,
                "has no KL to weigh with --beta 0",
            ),
            ("kl_estimator", in_reward, "is for --kl-in loss: KL in the reward is always k1"),
            ("track_kl", bool(self.beta), f"is for --beta 0: --beta {self.beta:g} needs KL"),
        )

    def kl_place(self) -> Literal["loss", "reward"]:
        """Where KL weighs."""
        return self.kl_in or ("reward" if self.method in KL_IN_REWARD else "loss")

    def filled(self, budget: Budget, *, adapters_alone: bool, **found: Any) -> Self:
        """Return the options of one stage with every "by default" filled in.

        Args:
            adapters_alone: whether nothing but adapters trains.
            found: what holds by default beside the numbers of the budget.
        """
        found |= {
            "steps": budget.steps,
            "batch_size": budget.batch_size,
            "learning_rate": budget.learning_rate * (LORA_RATE if adapters_alone else 1.0),
            "kl_in": self.kl_place(),
        }
        missing = {name: value for name, value in found.items() if not getattr(self, name)}
        full = replace(self, **missing)
        return replace(full, steps=full._steps_of_budget()) if full.token_budget else full

    def _steps_of_budget(self) -> int:
        """Return the steps that --token-budget pays for; batch and length are known by then.

        Raises:
            UserError: where it does not pay for one.
        """
        assert self.token_budget is not None
        assert self.batch_size is not None
        assert self.max_new_tokens is not None
        draws = self.group_size * (1 + self.redraws)
        a_step = self.batch_size * draws * self.max_new_tokens
        if self.token_budget < a_step:
            raise UserError(
                f"--token-budget {self.token_budget} is less than the {a_step} tokens that one "
                "step may draw: take fewer prompts, smaller groups or shorter completions."
            )
        return self.token_budget // a_step


@dataclass(frozen=True)
class DemoConfig(Options):
    """The whole story on built-in data: a weak CLIP learns from people's noisy clicks."""

    example = "visgrpo demo --output runs/demo"

    output = like(Loop, help="Folder for the runs; by default a free name under runs/.")
    seed = like(Loop, help="Of everything random.")


@dataclass(frozen=True)
class ReportConfig(Options):
    """Write report.html and the plots of a run again."""

    example = "visgrpo report runs/tuned"

    run: str = option("", "Run directory.", required="the run: visgrpo report RUN")


@dataclass(frozen=True)
class CompareConfig(Tables):
    """Put several runs on one page; runs that differ only in their seed become one band."""

    example = "visgrpo compare runs/grpo runs/supervised --metric accuracy,kl"

    runs: tuple[str, ...] = option(
        (), "Run directories.", required="the runs: visgrpo compare RUN RUN"
    )
    metric: tuple[str, ...] = option(
        (), "Metrics to draw, such as reward, kl or eval/accuracy.", commas=True
    )
    output = like(Loop, "compare.html", "The page.")
