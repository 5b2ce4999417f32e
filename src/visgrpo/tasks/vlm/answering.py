"""The tasks of `visgrpo vlm`: how answers are asked for, rewarded and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from visgrpo.data.boxed import Units
from visgrpo.data.prompts import QUESTION, Style
from visgrpo.measures.answers import Measure, answer_measures, plain_measures
from visgrpo.measures.boxes import box_measures, point_measures
from visgrpo.rewards.answers import ANSWER_REWARDS
from visgrpo.rewards.boxes import BOX_REWARDS

REWARDS = {**ANSWER_REWARDS, **BOX_REWARDS}
"""All built-in rewards of answers, as `parse_text_rewards` takes them."""


@dataclass(frozen=True)
class Answering:
    """What answers to a kind of question are.

    Attributes:
        asks: what to answer with; "{units}" stands for the words of `Units`.
        measure: of held-out answers; sampled names the measures that drawn ones have too.
    """

    asks: str
    measure: Measure
    sampled: tuple[str, ...]

    def template(self, style: Style, units: str = "") -> str:
        """Return the words of a prompt around its question, by default."""
        what = self.asks.replace("{units}", units)
        if style == "direct":
            return f"{QUESTION} Answer {what}in <answer> </answer>."
        return f"{QUESTION} Think in <think> </think>, then answer {what}in <answer> </answer>."


@dataclass(frozen=True)
class Asking:
    """How questions are put to a model, and how true answers are written.

    Attributes:
        style: whether reasoning comes before the answer; template has all words of a prompt.
        answering: what answers are.
        units: of answers that are places; None of others.
        alone: the words of a prompt for rows without reasoning, where SFT takes such rows; else "".
    """

    style: Style
    template: str
    answering: Answering
    units: Units | None = None
    alone: str = ""

    @classmethod
    def of(
        cls,
        task: str,
        style: Style,
        units: Units | None,
        *,
        prompt: str | None = None,
        learned: Mapping[str, Any],
        alone: bool = False,
    ) -> Asking:
        """Return how a task asks: in the user's words, as the model learned it, or as usual.

        Args:
            prompt: the user's words.
            learned: what visgrpo knows of the model; empty for one from elsewhere.
            alone: whether rows without reasoning are asked for their answer alone.
        """
        answering, words = ANSWERING[task], units.words() if units else ""
        usual = answering.template(style, words)
        # Words that were learned in another style, or of other units, ask for something else.
        now = (task, style, units and units.name)
        before = tuple(learned.get(name) for name in ("answers", "style", "coordinates"))
        own = learned.get("prompt") if now == before else None
        bare = (prompt or answering.template("direct", words)) if alone else ""
        return cls(style, prompt or own or usual, answering, units, bare)

    @property
    def direct(self) -> bool:
        return self.style == "direct"

    @property
    def write(self) -> Callable[[str], str]:
        """What makes the words of an answer of a true one."""
        return str if self.units is None else self.units.answer


_FORM = ("unparsed", "format")
ANSWERING: Mapping[str, Answering] = {
    "counting": Answering("with a number ", plain_measures, ("accuracy", *_FORM)),
    "text": Answering("", answer_measures, ("accuracy", *_FORM)),
    "boxes": Answering("with {units} ", box_measures, ("mean_iou", "found_75", *_FORM)),
    "points": Answering("with {units} ", point_measures, ("hit", "distance", *_FORM)),
}
