"""What a job on class labels can learn from besides its labels: people's feedback.

The one place of the core that names feedback. It mixes the options into those of the job, and loads
what they ask for when they are used. Light to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from visgrpo.feedback.options import FeedbackOptions as ExtraOptions

if TYPE_CHECKING:
    from torch import Tensor

    from visgrpo.data.batches import InputFunction
    from visgrpo.data.table import Splits, Table
    from visgrpo.methods.labels import LabelGRPO
    from visgrpo.models.clip import ClipClassifier
    from visgrpo.objectives import Objective
    from visgrpo.rewards.labels import LabelReward
    from visgrpo.rewards.sets import RewardSet
    from visgrpo.tasks.clip.options import ClipConfig
    from visgrpo.tasks.options import RunConfig
    from visgrpo.tasks.run import Session
    from visgrpo.training.processes import Processes

__all__ = ["WITHOUT_GROUPS", "Extension", "ExtraOptions", "extension_of", "votes_on"]
WITHOUT_GROUPS: Mapping[str, Any] = {"off_policy": "none"}
"""Extra options at rest, for a job that makes no groups."""


class Extension:
    """A job that learns from its labels alone; a subclass says what is different.

    Attributes:
        splits: the data of the job.
        rewards: by name, those that a job may ask for beside the built-in ones.
        facts: what the summary says of them.
        few_images: whether there may be fewer images than a usual batch has.
    """

    few_images = False

    def __init__(self, splits: Splits) -> None:
        self.splits = splits
        self.rewards: Mapping[str, LabelReward] = {}
        self.facts: dict[str, Any] = {}

    def start(
        self,
        classifier: ClipClassifier,
        inputs: Mapping[str, InputFunction],
        rewards: RewardSet,
        objective: Objective,
    ) -> tuple[RewardSet, Callable[..., LabelGRPO]]:
        """Return the rewards as they are once there is a model, and what makes groups.

        Args:
            classifier: the start.
            inputs: of the three splits, by name.
            rewards: those of the job.
            objective: what they are to be advantages for.

        Raises:
            UserError: there is too little to learn from.
        """
        from visgrpo.methods.labels import LabelGRPO

        return rewards, LabelGRPO

    def votes(self, split: str) -> Tensor | None:
        """Return people's votes on the images of a split, (rows, K), to measure agreement with."""
        return None

    def begin(self) -> None:
        """Note down what the run begins with, or check that it goes on with it.

        Raises:
            UserError: a run is resumed, and what it learns from has changed.
        """


def extension_of(config: ClipConfig, images: RunConfig, session: Session) -> Extension:
    """Load the data of a job, with what else it learns from.

    Args:
        images: the options that say where the data are.

    Raises:
        UserError: for data and options that cannot be used together.
    """
    if config.feedback is None:
        from visgrpo.tasks.images import load_data

        return Extension(load_data(images, session))
    from visgrpo.feedback.images import load_images
    from visgrpo.feedback.learn import FeedbackLearning

    return FeedbackLearning(config, load_images(config, images, session), session)


def votes_on(dataset: Table, spec: str, processes: Processes) -> Tensor:
    """Return people's votes on the images of a data set, (M, K); other votes are left out.

    Raises:
        UserError: for a table that holds no votes on these images.
    """
    from visgrpo.feedback.images import read_votes

    return read_votes(spec, dataset, processes)
