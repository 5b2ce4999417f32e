"""Learning without labels: a label of an image earns what a frozen judge believes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import InputFunction, Made
from visgrpo.data.inputs import PixelInputs
from visgrpo.data.table import Splits
from visgrpo.errors import UserError
from visgrpo.measures.over import logits_of
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.models.parts import model_folder
from visgrpo.models.whole import check_model_name
from visgrpo.rewards.labels import BELIEVED
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.tasks.run import Session

ROW_COLUMN = "agreement_row"
VIEWS = 8
"""Changed views (crop and flip) of an image over which the start's own belief is averaged."""


@dataclass(eq=False)
class Agreement:
    """The judge's probability of a label, r_k = q_k, of image m in row m of a table.

    Under a policy π an image earns Σ_k π_k q_k: the probability that policy and judge, each drawing
    a label, agree. No true label is looked at.

    Attributes:
        judge: folder or Hub name of another CLIP; empty for the start itself, whose q is the mean
            over views of the image, each cropped and flipped at random.
        worth_MK: of the images of train, validation and test, one after the other.
    """

    judge: str
    worth_MK: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    def __call__(self, outputs_NG: Tensor, /, **columns: Any) -> Tensor:
        rows_N = torch.tensor(columns[ROW_COLUMN])
        return self.worth_MK[rows_N].to(outputs_NG.device).gather(1, outputs_NG)

    def ask(self, config: ClipConfig, splits: Splits, session: Session) -> None:
        """Ask the judge, once, about every image.

        Raises:
            UserError: the judge is no CLIP, or cannot be loaded.
        """
        parts = load_clip(model_folder(self.judge or config.model))
        classifier = ClipClassifier(
            parts.model, parts.tokenizer, splits.train.classes, config.templates
        ).to(session.processes.device)
        tables = []
        for rows in _parts(splits):
            plain = PixelInputs(rows, parts.preprocess)
            views: list[InputFunction] = [plain]
            if not self.judge:
                changed = replace(plain, augmentations=("crop", "flip"))
                views = [View(changed, config.seed, view) for view in range(VIEWS)]
            each = [logits_of(classifier, rows, view, session.processes) for view in views]
            tables.append(torch.stack([logits_MK.softmax(dim=1) for logits_MK in each]).mean(0))
        self.worth_MK = torch.cat(tables)
        judge = self.judge or f"the start, on {VIEWS} views of each image"
        session.say(
            f"Reward {BELIEVED}: believed by {judge}; its likeliest label has a probability of "
            f"{self.worth_MK[: len(splits.train)].max(dim=1).values.mean():.3f} in the mean."
        )


@dataclass(frozen=True)
class View:
    """One of the changed views of an image: always the same one. Picklable."""

    inputs: InputFunction
    seed: int
    view: int

    def __call__(self, index: int, rng: np.random.Generator) -> Made:
        return self.inputs(index, np.random.default_rng([self.seed, self.view, index]))


def agreements(rewards: Sequence[Any]) -> dict[str, Agreement]:
    """Return the rewards among these, by what was written, that are a judge's belief.

    Raises:
        UserError: there are two, or the judge's name is none.
    """
    found = {}
    for spec in rewards:
        name, colon, judge = spec.strip().partition(":") if isinstance(spec, str) else ("", "", "")
        if name == BELIEVED:
            if colon and not judge:
                raise UserError(f'Reward "{spec}": name a CLIP after the colon, or write "{name}".')
            if judge:
                check_model_name(judge)
            found[spec.strip()] = Agreement(judge)
    if len(found) > 1:
        raise UserError(f'Two rewards are called "{BELIEVED}": name one judge.')
    return found


def with_rows(splits: Splits) -> Splits:
    """Say of every image which row of the judge's table it is."""
    ends = np.cumsum([len(rows) for rows in _parts(splits)])
    train, validation, test = (
        replace(rows, columns={**rows.columns, ROW_COLUMN: np.arange(end - len(rows), end)})
        for rows, end in zip(_parts(splits), ends, strict=True)
    )
    return replace(splits, train=train, validation=validation, test=test)


def _parts(splits: Splits) -> tuple[Any, Any, Any]:
    return splits.train, splits.validation, splits.test
