"""What a round of learning runs: `visgrpo clip`, on the judgements that there are by then."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from visgrpo.arguments import options_as_flags, parse
from visgrpo.collecting.judging import TABLES, Ask
from visgrpo.collecting.options import CollectConfig
from visgrpo.data.folders import holds_photos
from visgrpo.data.sources import load_splits
from visgrpo.data.splitting import TEST_FRACTION
from visgrpo.errors import UserError
from visgrpo.feedback.source.matching import image_keys
from visgrpo.tasks.configs import ClipConfig

_REWARDS: Mapping[Ask, str] = {"click": "clicks", "rank": "preferences", "grade": "grades"}
_MOST_IN_A_BATCH = 16  # the first round may have two dozen images
_EPOCHS, _LEAST_STEPS = 5, 50  # of which five epochs would be too few steps to learn anything


class Training:
    """The command lines of the rounds, which begin at the same model and learn from all judgements.

    Args:
        settings: what every round trains with, of `clip_config`.
        templates: the prompts of the model that collecting began with.
        judged_images: returns the names of the images that were judged so far.
    """

    def __init__(
        self,
        config: CollectConfig,
        settings: ClipConfig,
        templates: Sequence[str],
        judged_images: Callable[[], Sequence[str]],
    ) -> None:
        self._config, self._settings, self._templates = config, settings, templates
        self._judged_images = judged_images

    def words(self) -> list[str]:
        """Return the command line of the next round, but for --output.

        Raises:
            UserError: for data or a --learn-config that cannot be used any more.
        """
        judged = self._judged_images()
        if holds_photos(Path(self._config.data).expanduser()):
            images = photos_for_training(len(judged), self._settings.validation_fraction)
        else:
            images = len(self._training_names.intersection(judged))
        options = clip_words(self._config, self._templates, images)
        return [sys.executable, "-m", "visgrpo", "clip", *options]

    @cached_property
    def _training_names(self) -> frozenset[str]:
        """What the images that rounds train on may be called, judged or not."""
        config, settings = self._config, self._settings
        train = load_splits(
            config.data,
            image_column=config.image_column,
            label_column=config.label_column,
            train_slice=settings.train_slice,
            validation_fraction=settings.validation_fraction,
            seed=settings.seed,
        ).train
        keys = image_keys(train.columns, len(train), config.id_column)
        return frozenset(chain.from_iterable(keys))


def clip_words(config: CollectConfig, templates: Sequence[str], images: int) -> list[str]:
    """Return the options of visgrpo clip that learns from the store, but for --output.

    Args:
        images: judged ones that are for training.

    Raises:
        UserError: for a --learn-config that cannot be used.
    """
    feedback = f"sqlite:///{Path(config.store).resolve()}?table={TABLES[config.ask]}"
    words = ["--model", config.model, "--data", config.data, "--feedback", feedback]
    words += ["--templates", *templates]
    _, _, rows = config.split.partition("[")
    if rows:
        words += [f"--train-slice={rows.removesuffix(']')}"]
    for option in ("image_column", "label_column", "id_column"):
        if getattr(config, option) is not None:
            words += ["--" + option.replace("_", "-"), getattr(config, option)]
    given = set(config.learn_options())
    if "epochs" in given:
        given.add("steps")  # it would take precedence
    ours = {name: value for name, value in _defaults(config, images).items() if name not in given}
    words += options_as_flags(ours, ClipConfig, "--learn")
    if config.learn_config is not None:
        words += ["--config", config.learn_config]
    return words


def _defaults(config: CollectConfig, images: int) -> dict[str, Any]:
    """Return what --learn-config may say otherwise."""
    batch_size = max(1, min(_MOST_IN_A_BATCH, images))
    settings: dict[str, Any] = {
        "reward": [_REWARDS[config.ask]],
        "estimator": "exact",
        "lora": True,
        "batch_size": batch_size,
        "steps": max(_LEAST_STEPS, math.ceil(_EPOCHS * images / batch_size)),
        "select": "accuracy",  # hardly one of two dozen judged images is for validation
        "keep": "last",
        "skip_bad_images": True,  # as when collecting
        "report": False,
        "seed": config.seed,
        "device": config.device,
    }
    if config.ask == "click":
        # Labels are shuffled for each person: no label is favoured by where it stands, and one
        # person's look at an image could not tell how much positions matter.
        settings["position_bias"] = "none"
    return settings


def clip_config(config: CollectConfig) -> ClipConfig:
    """Return the options of a round, checked.

    Raises:
        UserError: they cannot be understood, or do not go together.
    """
    words = clip_words(config, config.templates or ("{}",), _MOST_IN_A_BATCH)
    try:
        found = parse(ClipConfig, "clip", words)
        found.check()
    except UserError as error:
        origin = "--learn" if config.learn_config is None else "--learn-config"
        raise UserError(f"{origin}: {error}") from None
    return found


def photos_for_training(judged: int, validation_fraction: float) -> int:
    """Return how many of so many judged photos training has at least, once a test and a validation
    split were set apart."""
    left = judged
    for fraction in (TEST_FRACTION, validation_fraction):
        left -= max(1, round(fraction * left))
    return left
