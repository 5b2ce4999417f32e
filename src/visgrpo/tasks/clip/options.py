"""The options of `visgrpo clip`. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.models.options import Adapt, Prompts
from visgrpo.options import like, option, override
from visgrpo.tasks.extension import ExtraOptions
from visgrpo.tasks.options import Rivals

ClipMethod = Literal[
    "grpo", "dr-grpo", "dapo", "gspo", "cispo", "sapo", "rloo", "reinforce", "supervised"
]


@dataclass(frozen=True)
class ClipConfig(ExtraOptions, Adapt, Rivals):
    """Fine-tune a CLIP or SigLIP zero-shot classifier with rewards over class labels."""

    example = "visgrpo clip --model openai/clip-vit-base-patch32 --data photos/ --train lora"
    common = (
        "data model method reward train epochs batch_size learning_rate beta baseline "
        "output seed resume dry_run"
    )

    templates = like(Prompts)

    model: str = override(
        "openai/clip-vit-base-patch32",
        "Folder or Hub name of the start; an adapter folder is merged into its base first.",
    )
    method: ClipMethod = override("grpo", "The objective, or cross-entropy as the baseline.")
    reward = override(
        ("hard",),
        "hard, soft, abstain:R, any-of:K, top-k:K, cost:FILE, graded:FILE, hierarchy:FILE, "
        "module:f or file.py:f; without labels agreement, agreement:MODEL or certainty; "
        "with --feedback: clicks, dwell, votes, log-votes, preferences or grades.",
    )
    scale = override(
        help="What advantages are divided by; by default as the method has it, but with --feedback "
        "none where that is std."
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
    train: tuple[Literal["image", "text", "full", "projections", "lora"], ...] = override(
        ("image",),
        "Which side trains: a tower with its projection, both, or the projections alone; with "
        "lora, low-rank adapters on the chosen towers, alone on the image tower.",
        was={"lora": "lora"},
    )
    last_blocks: int = option(
        0,
        "Train only this many last blocks of the image tower in full; with lora, in addition.",
        within=">= 0",
    )
    logit_scale: Literal["frozen", "trainable", "clamped"] = option(
        "frozen", "Whether the similarity's scale trains; clamped keeps it at 100 or less."
    )
    reference: Literal["auto", "cached", "live"] = option(
        "auto",
        "Reference log-probs: computed once, or in every step; auto caches unless augmenting.",
    )
    select: Literal["accuracy", "reward", "objective", "nll"] | None = option(
        None,
        "What decides the best step on validation data: the expected reward, that with the "
        "entropy bonus and the KL term (objective), accuracy or NLL. By default accuracy where the "
        "reward is hard and in supervised runs, else the reward, and with an entropy bonus the "
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
        if len(self.sides) > 1:
            yield f"--train takes one of {', '.join(self.sides)}, and lora beside it."
        if self.last_blocks and self.side not in ("image", "full"):
            yield f"--last-blocks are the image tower's: they do not go with --train {self.side}."
        if self.lora and self.side == "projections":
            yield "--train lora adapts towers: choose image, text or full beside it."
        if self.supervised_schedule != "constant" and not self.supervised_weight:
            yield "--supervised-schedule is of --supervised-weight: give one above 0."
        yield from self.extra_rules(self.reward, self.estimator, self.method == "supervised")

    @property
    def lora(self) -> bool:
        """Whether adapters train."""
        return "lora" in self.train

    @property
    def sides(self) -> tuple[str, ...]:
        """Which towers or projections train: one, if the options are right."""
        return tuple(dict.fromkeys(word for word in self.train if word != "lora")) or ("image",)

    @property
    def side(self) -> str:
        """Which side trains."""
        return self.sides[0]

    def resolved_select(self) -> str:
        """What decides the best step."""
        labels_are_the_point = self.method == "supervised" or self.reward == ("hard",)
        if self.select or labels_are_the_point:
            return self.select or "accuracy"
        return "objective" if self.entropy_weight else "reward"

    def resolved_learning_rate(self) -> float:
        """The learning rate, or its default."""
        return self.learning_rate or (2e-4 if self.lora else 1e-5)
