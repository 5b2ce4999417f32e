"""How a run is optimised: numbers only, the same for every job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visgrpo.errors import UserError
from visgrpo.files import writing
from visgrpo.models.options import Weights
from visgrpo.options import Options, check_within, option, override
from visgrpo.terminal import json_text, show_json

Schedule = Literal["cosine", "linear", "constant"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class TrainingOptions(Options):
    """One *step* takes one global batch of inputs through rollout, inner passes and updates.

    A step makes ``inner_passes × minibatches`` optimiser updates; ``accumulation`` splits each
    update into that many forward and backward passes without changing its result.
    """

    heading = "Training"

    steps: int = option(help="Steps of one batch each, instead of epochs.", within="> 0")
    batch_size: int = option(help="Inputs of a step, over all processes.", within="> 0")
    learning_rate: float = option(help="Of AdamW, at its highest.", within="> 0")
    weight_decay: float = option(0.0, "AdamW's, on matrices only.", within=">= 0")
    warmup: float = option(
        0.05, "Share of the steps in which the learning rate rises.", within="[0, 1]"
    )
    schedule: Schedule = option("cosine", "How the learning rate falls.")
    final_learning_rate: float = option(
        0.0, "Share of the learning rate that it falls to.", within="[0, 1]"
    )
    max_grad_norm: float = option(
        5.0, "Gradients are scaled down to this norm; 0 leaves them alone.", within=">= 0"
    )
    accumulation: int = option(
        1,
        "Forward and backward passes that a batch is split into, to save memory.",
        within="> 0",
    )
    inner_passes: int = option(
        1, "Passes over each batch's groups; from 2 on the clip acts.", within="> 0"
    )
    minibatches: int = option(1, "Updates that each pass is split into.", within="> 0")
    refresh_every: int = option(
        1,
        "Steps after which the old policy, which makes the groups, is brought up to date.",
        within="> 0",
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
    keep: Keep = option(
        "best", "Which weights the run ends with: the best on validation data, or the last."
    )
    patience: int = option(
        0,
        "Stop after so many evaluations in a row that were no better than the best; 0 never stops.",
        within=">= 0",
    )
    seed: int = option(
        0,
        "Of everything random: the same seed repeats a run bit for bit on one machine.",
        within=">= 0",
    )
    silent_steps: int = option(
        0,
        "Stop when no group's rewards have differed for so many steps, looked at with every line "
        "of the log; 0 never stops.",
        within=">= 0",
    )

    def check_batches(self, world_size: int) -> None:
        """Raise UserError where a batch cannot be split as asked."""
        for name in ("steps", "batch_size", "inner_passes", "minibatches", "accumulation"):
            check_within(self.flag(name), getattr(self, name), "> 0")
        parts = world_size * self.minibatches * self.accumulation
        if self.batch_size % parts:
            raise UserError(
                f"--batch-size {self.batch_size} cannot be split evenly into {world_size} "
                f"process(es) × {self.minibatches} minibatch(es) × {self.accumulation} "
                f"accumulation pass(es): take a multiple of {parts}."
            )

    @property
    def one_forward_is_enough(self) -> bool:
        """Whether the first training pass also serves as the rollout: the policy is π_old then."""
        return self.minibatches == self.accumulation == self.refresh_every == 1

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser updates that the outputs of one rollout serve, before they are drawn anew."""
        return self.inner_passes * self.minibatches * self.refresh_every

    def logs_after(self, step: int) -> bool:
        """Return whether a line of the log follows ``step`` steps."""
        return step == self.steps or step % self.log_every == 0

    def steps_since_log(self, step: int) -> int:
        """Return how many steps the log line after ``step`` steps is the mean of."""
        return step % self.log_every or self.log_every

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of step 0 … steps - 1: warm-up, then decay."""
        warmup_steps = math.ceil(self.warmup * self.steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(self.steps - warmup_steps, 1)
        if self.schedule == "constant":
            return self.learning_rate
        share = falling(self.schedule, progress)
        end = self.final_learning_rate
        return self.learning_rate * (end + (1 - end) * share)


@dataclass(frozen=True)
class Loop(TrainingOptions):
    """How any run is optimised and what it writes.

    Numbers that follow from data and model are None by default; whoever knows them makes the
    trainer's options with `resolved`.
    """

    heading = "The run"

    output: str | None = option(None, "Run directory; by default a free name under runs/.")
    steps = override(None)
    batch_size = override(None)
    learning_rate = override(
        None,
        "By default 1e-5, or 2e-4 with LoRA; small models from scratch want 3e-4 or more.",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to compute.")
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "Autocast on a GPU; the weights stay float32."
    )
    weights: Weights = option(
        "float32",
        "What weights are kept in: bfloat16 halves the matrices that are frozen, a reference's "
        "too, and all-bfloat16 those that train as well, beside float32 masters of them. Both "
        "compute as --precision bf16 does.",
    )
    report: bool = option(
        True, 'Write report.html and plots/ at the end; "visgrpo report RUN" writes them later.'
    )
    report_to: tuple[Literal["tensorboard", "trackio", "mlflow", "wandb"], ...] = option(
        (), "Trackers beside metrics.jsonl."
    )
    push_to_hub: str | None = option(
        None,
        "At the end, upload model/ to this name on the Hub, OWNER/MODEL; a new one is private.",
    )
    resume: bool = option(False, "Go on with the run in --output from its last good checkpoint.")

    dry_run: bool = option(
        False,
        "Do everything up to step 0 and say what would train: counts of the data, parameters, one "
        "example as the model gets it. Nothing is written.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.resume and self.dry_run:
            yield "--dry-run is for a new run: leave --resume out."
        if self.resume and self.output is None:
            yield "--resume needs --output, the run to go on with."
        if self.weights != "float32" and self.precision == "fp16":
            yield f"--weights {self.weights} computes in bf16: leave --precision fp16 out."

    @property
    def computes_in(self) -> Literal["fp32", "bf16", "fp16"]:
        """The precision of products of matrices."""
        return self.precision if self.weights == "float32" else "bf16"

    def resolved(self, steps: int, learning_rate: float, **more: Any) -> TrainingOptions:
        """Return options for the trainer; by default a run is evaluated and saved ten times."""
        eval_every = self.eval_every or max(1, math.ceil(steps / 10))
        return self.part(
            TrainingOptions,
            steps=steps,
            learning_rate=learning_rate,
            eval_every=eval_every,
            save_every=self.save_every or eval_every,
            **more,
        )


@dataclass(frozen=True)
class Tables(Options):
    """What a command that prints a table says, and where."""

    heading = "Output"

    table: str | None = option(
        None, "Write the table to this file, too: .csv, .tex (LaTeX) or .md (Markdown)."
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        endings = (".csv", ".tex", ".md")
        if self.table and Path(self.table).suffix not in endings:
            yield f"--table {self.table}: name a file that ends in {', '.join(endings)}."


@dataclass(frozen=True)
class Printing(Options):
    """What a command that measures says, and where."""

    heading = "Output"

    json: str | None = option(
        None,
        'Write the numbers to this file as well; "-" prints JSON instead of the table.',
        bare="-",
    )

    def printed(self, results: Any) -> bool:
        """Write results to the JSON file that was asked for; whether they were printed instead.

        Raises:
            UserError: for a file that cannot be written.
        """
        if self.json == "-":
            show_json(results)
        elif self.json:
            text = json_text(results)
            with writing(Path(self.json), len(text)):  # it may be a device, which has no other name
                Path(self.json).write_text(text, encoding="utf-8")
        return self.json == "-"


def falling(schedule: Schedule, progress: float) -> float:
    """Return what a schedule leaves of a number that falls to 0 as progress goes from 0 to 1."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2
