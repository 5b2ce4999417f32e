"""The options of every command. Light to import: help and typos answer without loading torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.options import Options, option
from visgrpo.tasks.extension import ExtraOptions

ClipMethod = Literal["grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo", "reinforce", "supervised"]


@dataclass(frozen=True)
class DataConfig(Options):
    """Where images and labels come from."""

    data: str = option(
        "digits",
        "Built-in (digits, shapes), a folder, a parquet file, or the name of a Hub data set.",
    )
    image_column: str | None = option(
        None, "Column of the images, where its name is not a usual one."
    )
    label_column: str | None = option(
        None, "Column of the labels, where its name is not a usual one."
    )
    train_slice: str | None = option(
        None, 'Rows of the training split to use, such as "2000:" or ":500".'
    )
    validation_fraction: float = option(
        0.1,
        "Share of the training rows set apart where the data has no validation split.",
        within="(0, 1)",
    )
    skip_bad_images: bool = option(
        False,
        "Leave out images that cannot be read, count and list them; otherwise they stop the run.",
    )


@dataclass(frozen=True)
class LoopConfig(Options):
    """How any run is optimised and what it writes."""

    output: str | None = option(None, "Run directory; by default a free name under runs/.")
    steps: int | None = option(None, "Steps of one batch each, instead of epochs.", within="> 0")
    accumulation: int = option(
        1, "Forward and backward passes that a batch is split into, to save memory.", within="> 0"
    )
    learning_rate: float | None = option(
        None,
        "By default 1e-5, or 2e-4 with LoRA; small models from scratch want 3e-4 or more.",
        within="> 0",
    )
    weight_decay: float = option(0.0, "AdamW's, on matrices only.", within=">= 0")
    warmup: float = option(
        0.05, "Share of the steps in which the learning rate rises.", within="[0, 1]"
    )
    schedule: Literal["cosine", "linear", "constant"] = option(
        "cosine", "How the learning rate falls."
    )
    final_learning_rate: float = option(
        0.0, "Share of the learning rate that it falls to.", within="[0, 1]"
    )
    max_grad_norm: float = option(
        5.0, "Gradients are scaled down to this norm; 0 leaves them alone.", within=">= 0"
    )
    seed: int = option(
        0,
        "Of everything random: the same seed repeats a run bit for bit on one machine.",
        within=">= 0",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to compute.")
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "Autocast on a GPU; the weights stay float32."
    )
    log_every: int = option(10, "Steps between two lines of metrics.", within="> 0")
    eval_every: int | None = option(
        None,
        "Steps between two evaluations on validation data; by default ten in a run.",
        within="> 0",
    )
    save_every: int | None = option(
        None, "Steps between two checkpoints; by default with every evaluation.", within="> 0"
    )
    keep: Literal["best", "last"] = option(
        "best", "Which weights the run ends with: the best on validation data, or the last."
    )
    report: bool = option(
        True, 'Write report.html and plots/ at the end; "visgrpo report RUN" writes them later.'
    )
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = option(
        (), "Trackers beside metrics.jsonl."
    )
    resume: bool = option(False, "Go on with the run in --output from its last good checkpoint.")

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.resume and self.output is None:
            yield "--resume needs --output, the run to go on with."


@dataclass(frozen=True)
class RunConfig(LoopConfig, DataConfig):
    """How a run on images is optimised."""

    epochs: float = option(5.0, "Passes over the training images.", within="> 0")
    batch_size: int = option(64, "Images of a step, over all processes.", within="> 0")
    augment: tuple[Literal["crop", "flip", "color"], ...] = option(
        (), "Random changes to training images."
    )
    workers: int = option(0, "Processes that prepare images ahead of time.", within=">= 0")

    def rules(self) -> Iterator[str]:
        yield from super().rules()


@dataclass(frozen=True)
class ClipConfig(ExtraOptions, RunConfig):
    """Fine-tune a CLIP or SigLIP zero-shot classifier with rewards over class labels."""

    model: str = option(
        "openai/clip-vit-base-patch32",
        "Folder or Hub name of the start; an adapter folder is merged into its base first.",
    )
    method: ClipMethod = option("grpo", "The objective, or cross-entropy as the baseline.")
    baseline: bool = option(
        False, "First train the supervised baseline of the same budget, into OUTPUT/baseline."
    )
    templates: tuple[str, ...] = option(
        ("a photo of a {}.",),
        'Prompts with {} for the class name; several are averaged. "a {}" turns into "an apple".',
    )
    reward: tuple[str, ...] = option(
        ("hard",),
        "hard, soft, top-k:K, cost:FILE, graded:FILE, hierarchy:FILE, module:f or file.py:f; "
        "with --feedback: clicks, dwell, votes, log-votes, preferences or grades.",
    )
    reward_weights: tuple[float, ...] | None = option(
        None, "One number for each reward; by default 1."
    )
    combination: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        "sum_then_normalize", "How several rewards become one advantage."
    )
    estimator: Literal["sampled", "exact", "uniform"] = option(
        "sampled",
        "Groups are --group-size drawn labels, or every class weighted by the policy or equally.",
    )
    group_size: int = option(
        8, "Labels drawn for each image by the sampled estimator.", within="> 0"
    )
    temperature: float = option(1.0, "The policy is softmax(logits / temperature).", within="> 0")
    scope: Literal["group", "batch"] | None = option(
        None, "What advantages are taken over; by default as the method has it."
    )
    advantage_baseline: Literal["mean", "leave_one_out", "none"] | None = option(
        None, "What a reward is compared with; by default as the method has it."
    )
    scale: Literal["std", "batch_std", "mean", "none"] | None = option(
        None,
        "What advantages are divided by; by default as the method has it, but with --feedback "
        "none where that is std.",
    )
    epsilon_low: float | None = option(
        None, "The ratio is clipped below 1 - this; by default as the method has it.", within=">= 0"
    )
    epsilon_high: float | None = option(
        None, "The ratio is clipped above 1 + this; by default as the method has it.", within=">= 0"
    )
    beta: float = option(0.02, "Weight of KL(policy ‖ start); 0 needs no reference.", within=">= 0")
    entropy_weight: float = option(0.0, "Weight of the entropy bonus.", within=">= 0")
    inner_passes: int = option(
        1, "Passes over each batch's groups; from 2 on the clip acts.", within="> 0"
    )
    minibatches: int = option(1, "Updates that each pass is split into.", within="> 0")
    refresh_every: int = option(
        1,
        "Steps after which the old policy, which makes the groups, is brought up to date.",
        within="> 0",
    )
    warm_start: int = option(0, "First steps trained by cross-entropy.", within=">= 0")
    supervised_weight: float = option(
        0.0,
        "Weight of cross-entropy added to the GRPO loss, on the labelled images.",
        within=">= 0",
    )
    supervised_schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "How that weight falls to 0 over the run."
    )
    labelled_fraction: float = option(
        1.0,
        "Share of training images whose labels cross-entropy may see (drawn by the seed).",
        within="(0, 1]",
    )
    train: Literal["image", "text", "full", "projections"] = option(
        "image", "Which side trains: a tower with its projection, both, or the projections alone."
    )
    last_blocks: int = option(
        0,
        "Train only this many last blocks of the image tower in full; with --lora, in addition.",
        within=">= 0",
    )
    lora: bool = option(False, "Low-rank adapters on the chosen towers.")
    lora_rank: int = option(8, "Rank of the adapters.", within="> 0")
    lora_alpha: float = option(16.0, "Adapters are scaled by this over their rank.", within="> 0")
    lora_dropout: float = option(0.0, "Dropout before the adapters.", within="[0, 1]")
    logit_scale: Literal["frozen", "trainable", "clamped"] = option(
        "frozen", "Whether the similarity's scale trains; clamped keeps it at 100 or less."
    )
    reference: Literal["auto", "cached", "live"] = option(
        "auto",
        "Reference log-probs: computed once, or in every step; auto caches unless augmenting.",
    )
    select: Literal["accuracy", "reward", "objective"] | None = option(
        None,
        "What decides the best step on validation data: the expected reward, or that with the "
        "entropy bonus and the KL term (objective). By default accuracy where the reward is "
        "hard and in supervised runs, else the reward, and with an entropy bonus the "
        "objective.",
    )
    retention: tuple[str, ...] = option(
        (), "Data sets that are not tuned on: their accuracy is reported before and after."
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.reference == "cached" and self.augment:
            yield (
                "--reference cached needs images that do not change: drop --augment, or take live."
            )
        if self.warm_start and self.method == "supervised":
            yield "--warm-start is for GRPO methods: supervised training needs none."
        if self.baseline and self.method == "supervised":
            yield "--baseline is for GRPO methods: this run is the baseline itself."
        if self.last_blocks and self.train not in ("image", "full"):
            yield f"--last-blocks are the image tower's: they do not go with --train {self.train}."
        if self.lora and self.train == "projections":
            yield "--lora adapts towers: choose --train image, text or full."
        if self.supervised_schedule != "constant" and not self.supervised_weight:
            yield "--supervised-schedule is of --supervised-weight: give one above 0."
        yield from self.extra_rules(self.reward, self.estimator, self.method == "supervised")

    def resolved_select(self) -> str:
        """What decides the best step."""
        labels_are_the_point = self.method == "supervised" or self.reward == ("hard",)
        if self.select or labels_are_the_point:
            return self.select or "accuracy"
        return "objective" if self.entropy_weight else "reward"

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default."""
        return self.learning_rate or (2e-4 if self.lora else 1e-5)


@dataclass(frozen=True)
class DemoConfig(Options):
    """The whole story on built-in data: a weak CLIP, tuned with GRPO and, beside it, supervised."""

    output: str | None = option(None, "Folder for the runs; by default a free name under runs/.")
    seed: int = option(0, "Of everything random.", within=">= 0")


@dataclass(frozen=True)
class ReportConfig(Options):
    """Write report.html and the plots of a run again."""

    run: str = option("", "Run directory.", required="the run: visgrpo report RUN")


@dataclass(frozen=True)
class CompareConfig(Options):
    """Put several runs on one page; runs that differ only in their seed become one band."""

    runs: tuple[str, ...] = option(
        (), "Run directories.", required="the runs: visgrpo compare RUN RUN"
    )
    metric: tuple[str, ...] = option((), "Metric to draw, such as reward, kl or eval/accuracy.")
    output: str = option("compare.html", "The page.")
