"""The options of every command. Light to import: help and typos answer without loading torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visgrpo.errors import UserError
from visgrpo.tasks.checks import named, not_negative, positive, share
from visgrpo.tasks.extension import ExtraOptions

ClipMethod = Literal["grpo", "dr-grpo", "dapo", "gspo", "cispo", "rloo", "reinforce", "supervised"]


class Config:
    """What all commands' options have in common."""

    def check(self) -> None:
        """Raise UserError for combinations that cannot work. Nothing is loaded."""


@dataclass(frozen=True)
class DataConfig(Config):
    """Where images and labels come from."""

    data: str = "digits"
    """Built-in (digits, shapes), a folder, a parquet file, or the name of a Hub data set."""
    image_column: str | None = None
    """Column of the images, where its name is not a usual one."""
    label_column: str | None = None
    """Column of the labels, where its name is not a usual one."""
    train_slice: str | None = None
    """Rows of the training split to use, such as "2000:" or ":500"."""
    validation_fraction: float = 0.1
    """Share of the training rows set apart where the data has no validation split."""
    skip_bad_images: bool = False
    """Leave out images that cannot be read, count and list them; otherwise they stop the run."""


@dataclass(frozen=True)
class LoopConfig(Config):
    """How any run is optimised and what it writes."""

    output: str | None = None
    """Run directory; by default a free name under runs/."""
    steps: int | None = None
    """Steps of one batch each, instead of epochs."""
    accumulation: int = 1
    """Forward and backward passes that a batch is split into, to save memory."""
    learning_rate: float | None = None
    """By default 1e-5, or 2e-4 with LoRA; small models from scratch want 3e-4 or more."""
    weight_decay: float = 0.0
    """AdamW's, on matrices only."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls."""
    final_learning_rate: float = 0.0
    """Share of the learning rate that it falls to."""
    max_grad_norm: float = 5.0
    """Gradients are scaled down to this norm; 0 leaves them alone."""
    seed: int = 0
    """Of everything random: the same seed repeats a run bit for bit on one machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast on a GPU; the weights stay float32."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    eval_every: int | None = None
    """Steps between two evaluations on validation data; by default ten in a run."""
    save_every: int | None = None
    """Steps between two checkpoints; by default with every evaluation."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with: the best on validation data, or the last."""
    report: bool = True
    """Write report.html and plots/ at the end; "visgrpo report RUN" writes them later."""
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    """Trackers beside metrics.jsonl."""
    resume: bool = False
    """Go on with the run in --output from its last good checkpoint."""

    def check(self) -> None:
        positive(self, "accumulation", "log_every")
        positive(self, "steps", "eval_every", "save_every", "learning_rate", optional=True)
        not_negative(self, "weight_decay", "max_grad_norm", "seed")
        share(self, "warmup", "final_learning_rate")
        if self.resume and self.output is None:
            raise UserError("--resume needs --output, the run to go on with.")


@dataclass(frozen=True)
class RunConfig(LoopConfig, DataConfig):
    """How a run on images is optimised."""

    epochs: float = 5.0
    """Passes over the training images."""
    batch_size: int = 64
    """Images of a step, over all processes."""
    augment: tuple[Literal["crop", "flip", "color"], ...] = ()
    """Random changes to training images."""
    workers: int = 0
    """Processes that prepare images ahead of time."""

    def check(self) -> None:
        super().check()
        positive(self, "epochs", "batch_size")
        not_negative(self, "workers")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"--validation-fraction {self.validation_fraction} must lie between 0 and 1."
            )


@dataclass(frozen=True)
class ClipConfig(ExtraOptions, RunConfig):
    """Fine-tune a CLIP or SigLIP zero-shot classifier with rewards over class labels."""

    model: str = "openai/clip-vit-base-patch32"
    """Folder or Hub name of the start; an adapter folder is merged into its base first."""
    method: ClipMethod = "grpo"
    """The objective, or cross-entropy as the baseline."""
    baseline: bool = False
    """First train the supervised baseline of the same budget, into OUTPUT/baseline."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Prompts with {} for the class name; several are averaged. "a {}" turns into "an apple"."""
    reward: tuple[str, ...] = ("hard",)
    """hard, soft, top-k:K, cost:FILE, graded:FILE, hierarchy:FILE, module:f or file.py:f; with
    --feedback: clicks, dwell, votes, log-votes, preferences or grades."""
    reward_weights: tuple[float, ...] | None = None
    """One number for each reward; by default 1."""
    combination: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """How several rewards become one advantage."""
    estimator: Literal["sampled", "exact", "uniform"] = "sampled"
    """Groups are --group-size drawn labels, or every class weighted by the policy or equally."""
    group_size: int = 8
    """Labels drawn for each image by the sampled estimator."""
    temperature: float = 1.0
    """The policy is softmax(logits / temperature)."""
    scope: Literal["group", "batch"] | None = None
    """What advantages are taken over; by default as the method has it."""
    advantage_baseline: Literal["mean", "leave_one_out", "none"] | None = None
    """What a reward is compared with; by default as the method has it."""
    scale: Literal["std", "batch_std", "mean", "none"] | None = None
    """What advantages are divided by; by default as the method has it, but with --feedback none
    where that is std."""
    epsilon_low: float | None = None
    """The ratio is clipped below 1 - this; by default as the method has it."""
    epsilon_high: float | None = None
    """The ratio is clipped above 1 + this; by default as the method has it."""
    beta: float = 0.02
    """Weight of KL(policy ‖ start); 0 needs no reference."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus."""
    inner_passes: int = 1
    """Passes over each batch's groups; from 2 on the clip acts."""
    minibatches: int = 1
    """Updates that each pass is split into."""
    refresh_every: int = 1
    """Steps after which the old policy, which makes the groups, is brought up to date."""
    warm_start: int = 0
    """First steps trained by cross-entropy."""
    supervised_weight: float = 0.0
    """Weight of cross-entropy added to the GRPO loss, on the labelled images."""
    supervised_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How that weight falls to 0 over the run."""
    labelled_fraction: float = 1.0
    """Share of training images whose labels cross-entropy may see (drawn by the seed)."""
    train: Literal["image", "text", "full", "projections"] = "image"
    """Which side trains: a tower with its projection, both, or the projections alone."""
    last_blocks: int = 0
    """Train only this many last blocks of the image tower in full; with --lora, in addition."""
    lora: bool = False
    """Low-rank adapters on the chosen towers."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """Adapters are scaled by this over their rank."""
    lora_dropout: float = 0.0
    """Dropout before the adapters."""
    logit_scale: Literal["frozen", "trainable", "clamped"] = "frozen"
    """Whether the similarity's scale trains; clamped keeps it at 100 or less."""
    reference: Literal["auto", "cached", "live"] = "auto"
    """Reference log-probs: computed once, or in every step; auto caches unless augmenting."""
    select: Literal["accuracy", "reward", "objective"] | None = None
    """What decides the best step on validation data: the expected reward, or that with the entropy
    bonus and the KL term (objective). By default accuracy where the reward is hard and in
    supervised runs, else the reward, and with an entropy bonus the objective."""
    retention: tuple[str, ...] = ()
    """Data sets that are not tuned on: their accuracy is reported before and after."""

    def check(self) -> None:
        super().check()
        positive(self, "group_size", "temperature", "inner_passes", "minibatches")
        positive(self, "refresh_every", "lora_rank", "lora_alpha")
        not_negative(self, "beta", "entropy_weight", "supervised_weight", "warm_start")
        not_negative(self, "epsilon_low", "epsilon_high", optional=True)
        not_negative(self, "last_blocks")
        share(self, "lora_dropout")
        if not 0 < self.labelled_fraction <= 1:
            raise UserError(f"--labelled-fraction {self.labelled_fraction} must lie in (0, 1].")
        if self.reference == "cached" and self.augment:
            raise UserError(
                "--reference cached needs images that do not change: drop --augment, or take live."
            )
        if self.warm_start and self.method == "supervised":
            raise UserError("--warm-start is for GRPO methods: supervised training needs none.")
        if self.baseline and self.method == "supervised":
            raise UserError("--baseline is for GRPO methods: this run is the baseline itself.")
        if self.last_blocks and self.train not in ("image", "full"):
            raise UserError(
                f"--last-blocks are the image tower's: they do not go with --train {self.train}."
            )
        if self.lora and self.train == "projections":
            raise UserError("--lora adapts towers: choose --train image, text or full.")
        if self.supervised_schedule != "constant" and not self.supervised_weight:
            raise UserError("--supervised-schedule is of --supervised-weight: give one above 0.")
        self.check_extras(self.reward, self.estimator, self.method == "supervised")

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
class DemoConfig(Config):
    """The whole story on built-in data: a weak CLIP, tuned with GRPO and, beside it, supervised."""

    output: str | None = None
    """Folder for the runs; by default a free name under runs/."""
    seed: int = 0
    """Of everything random."""

    def check(self) -> None:
        not_negative(self, "seed")


@dataclass(frozen=True)
class ReportConfig(Config):
    """Write report.html and the plots of a run again."""

    run: str = ""
    """Run directory."""

    def check(self) -> None:
        named(self.run, "the run: visgrpo report RUN")


@dataclass(frozen=True)
class CompareConfig(Config):
    """Put several runs on one page; runs that differ only in their seed become one band."""

    runs: tuple[str, ...] = ()
    """Run directories."""
    metric: tuple[str, ...] = ()
    """Metric to draw, such as reward, kl or eval/accuracy."""
    output: str = "compare.html"
    """The page."""

    def check(self) -> None:
        named(self.runs, "the runs: visgrpo compare RUN RUN")
