"""What the page's server does, without the server: offers, judgements, the model behind them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from PIL import Image

from visgrpo.collecting.anytime import Tally, difference
from visgrpo.collecting.design import HIGHEST_GRADE, Answer, Ask, draw_group
from visgrpo.collecting.store import Past, Progress, Store
from visgrpo.collecting.tables import Drawn, Offer
from visgrpo.errors import UserError, printable
from visgrpo.terminal import say

LONGEST_SIDE = 1024
MOST_PAST = 12  # judgements that the page shows again
_KEPT = 64
# Up to this size PNG is as small as JPEG, and shows every pixel as it is.
_PNG_SIDE = 128


@dataclass(frozen=True)
class Picture:
    """An encoded image and its media type."""

    content: bytes
    kind: str


def encode(image: Image.Image) -> Picture:
    """Return an RGB image as a file for the page, of at most 1024 pixels on a side."""
    shrunk = image.copy()
    shrunk.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    kind = "png" if max(shrunk.size) <= _PNG_SIDE else "jpeg"
    buffer = io.BytesIO()
    shrunk.save(buffer, kind, quality=90)
    return Picture(buffer.getvalue(), f"image/{kind}")


@dataclass(frozen=True)
class Answers:
    """What one model says of every image.

    Attributes:
        model: its name, which offers carry.
        probability_MK: rows sum to 1.
    """

    model: str
    probability_MK: np.ndarray


@dataclass(frozen=True)
class Design:
    """What is asked, and how the labels are drawn (see `visgrpo.collecting.design`)."""

    ask: Ask = "click"
    group_size: int = 4
    exploration: float = 0.1
    temperature: float = 1.0
    seed: int = 0
    question: str = ""


@dataclass(frozen=True)
class LearningState:
    """What the page says of the learner.

    Attributes:
        state: idle, learning or failed.
        rounds: models learned and swapped in since the start.
        detail: why the last round failed.
    """

    state: str = "idle"
    rounds: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """How far people agree more with what was learned than with the model of the start.

    Attributes:
        judgements: of offers of the models that were learned.
        change: of the mean agreement; shares, or grades.
        low, high: its interval of 95 %, which holds at all times at once (see `difference`).
        graded: whether agreement is in grades.
    """

    judgements: int
    change: float
    low: float
    high: float
    graded: bool

    def __str__(self) -> str:
        """Return it as a sentence, with what may be concluded."""
        of = "{:+.1f}".format if self.graded else lambda value: f"{100 * value:+.0f}"
        sure = "too early to tell"
        if self.low > 0 or self.high < 0:
            sure = f"the new model is {'better' if self.low > 0 else 'worse'}"
        said = (
            f"Since it learned {of(self.change)} {'grades' if self.graded else 'points'}, after "
            f"{self.judgements} judgements (95 %, whenever you look: {of(self.low)} to "
            f"{of(self.high)}): {sure}."
        )
        return said.replace("-", "−")


class Learner(Protocol):
    """Learns from the store in the background; takes note of how many judgements there are."""

    @property
    def state(self) -> LearningState: ...

    def judged(self, judgements: int) -> None: ...


class Collector:
    """Offers images to people and keeps what they answer. Safe between threads.

    Args:
        store: opened on `names`.
        names: of the images, as the log calls them.
        images: M images, decoded on access.
        classes: class names.
        answers: of the model that labels are first drawn from.

    Raises:
        UserError: for a group size that the classes do not allow.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        images: Sequence[Image.Image],
        classes: Sequence[str],
        answers: Answers,
        design: Design,
    ) -> None:
        self._store, self._classes, self.design = store, tuple(classes), design
        self._rows = {name: row for row, name in enumerate(names)}
        # Of damaged images, which raise UserError, nothing is kept.
        self._picture = lru_cache(_KEPT)(lambda row: encode(images[row]))
        self._answers = answers
        self._first, self._learned = answers.model, set[str]()
        self.learner: Learner | None = None
        self.skipped: list[str] = []
        self._draw(names[0], 0)  # settings that cannot work are refused before anyone is asked

    @property
    def model(self) -> str:
        """The name of the model that labels are drawn from now."""
        return self._answers.model

    def swap(self, answers: Answers) -> None:
        """Draw from another model; offers that were made stay as they are."""
        self._learned.add(answers.model)
        self._answers = answers

    def next_offer(self, user: str) -> Offer | None:
        """Return what a person is to judge now, None where they have judged everything.

        An image that cannot be read is left out, counted and said.
        """
        while (offer := self._store.next_offer(user, self.design.ask, self._draw)) is not None:
            try:
                self._picture(self._rows[offer.image])
                return offer
            except UserError as error:
                self._store.skip(offer.image)
                self.skipped.append(str(error))
                say(f"skipped: {printable(str(error))}")
        return None

    def picture(self, key: str, user: str) -> Picture:
        """Return the picture of a person's offer.

        Raises:
            UserError: there is no such offer, or its image cannot be read.
        """
        return self._picture(self._rows[self._store.offer(key, user).image])

    def judge(self, key: str, user: str, answer: Answer) -> None:
        """Store an answer, as `Store.judge`, and tell the learner."""
        self._store.judge(key, user, answer)
        if self.learner is not None:
            self.learner.judged(self.progress(user).judgements)

    def pass_over(self, key: str, user: str) -> None:
        """Close an offer without a judgement, as `Store.pass_over`."""
        self._store.pass_over(key, user)

    def last(self, user: str) -> list[Past]:
        """Return a person's last judgements, the newest first."""
        return self._store.last(user, self.design.ask, MOST_PAST)

    def people_agree(self) -> tuple[int, float | None]:
        """Return comparable pairs of judgements, and the share that agrees."""
        return self._store.people_agree(self.design.ask)

    def verdict(self) -> Verdict | None:
        """Compare what was learned since the start with the model of the start, each on its own
        offers, which were judged before it could learn from them; None where either has none."""
        found = self._store.agreements(self.design.ask)
        rounds = [Tally(*found[name]) for name in self._learned & found.keys()]
        if self._first not in found or not rounds:
            return None
        count = sum(each.size for each in rounds)
        learned = Tally(count, sum(each.size * each.mean for each in rounds) / count)
        graded = self.design.ask == "grade"
        span = HIGHEST_GRADE - 1.0 if graded else 1.0
        before = Tally(*found[self._first])
        return Verdict(count, *difference(before, learned, span=span), graded=graded)

    def undo(self, user: str) -> None:
        """Take back a person's last judgement, as `Store.undo`."""
        self._store.undo(user, self.design.ask)

    def progress(self, user: str) -> Progress:
        """Return how far judging has come, and how far people agree with the model."""
        return self._store.progress(user, self.design.ask, self.model)

    def _draw(self, image: str, number: int) -> Drawn:
        answers, design, row = self._answers, self.design, self._rows[image]
        probability_K = answers.probability_MK[row]
        group = draw_group(
            probability_K,
            design.group_size,
            np.random.default_rng((design.seed, row, number)),
            exploration=design.exploration,
            temperature=design.temperature,
        )
        return Drawn(
            labels=tuple(self._classes[k] for k in group.label_G),
            propensities=tuple(group.propensity_G.tolist()),
            best=self._classes[int(probability_K.argmax())],
            model=answers.model,
        )
