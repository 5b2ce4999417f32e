"""What a model has learned from, in all its stages, so that none of it is taken as held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from visgrpo.models.parts import model_folder, read_info
from visgrpo.tasks.run import Session

T = TypeVar("T")


class Learned(NamedTuple):
    """Data of one stage, and how its undivided rows were divided.

    Attributes:
        data: an absolute path, or the name of built-in or Hub data.
    """

    data: str
    seed: int
    validation_fraction: float
    train_slice: str | None = None

    @classmethod
    def of(cls, options: Any, data: str | None = None) -> Learned:
        """Return what a stage learns from by its options, or from other data in the same way."""
        rows = getattr(options, "train_slice", None)
        return cls(place_of(data or options.data), options.seed, options.validation_fraction, rows)


def lineage_of(info: Mapping[str, Any]) -> list[Learned]:
    """Return the data of all stages, from what visgrpo saved beside a model."""
    if "data" in info and "learned" not in info:  # by an earlier version, of the last stage alone
        rest = {name: info[name] for name in Learned._fields[3:] if name in info}
        fraction = info.get("validation_fraction", 0.1)
        return [Learned(info["data"], info.get("seed", 0), fraction, **rest)]
    return [
        Learned(**{name: stage[name] for name in Learned._fields if name in stage})
        for stage in info.get("learned", ())
    ]


def stages_of(model: str) -> list[Learned]:
    """Return the data of all stages of a model, by its folder or name."""
    return lineage_of(read_info(model_folder(model)))


def with_stages(info: Mapping[str, Any], *stages: Learned) -> list[dict[str, Any]]:
    """Return the stages of a start and those that follow, as they are saved."""
    before = lineage_of(info)
    return [each._asdict() for each in dict.fromkeys([*before, *stages])]


def learned_from(model: str | None, data: str) -> Learned | None:
    """Return the last stage in which a model learned from some data; None where it never did."""
    stages = stages_of(model) if model else []
    return next((each for each in reversed(stages) if each.data == place_of(data)), None)


def divided(options: T, model: str | None, session: Session | None = None) -> T:
    """Return options of data whose undivided rows are divided as when the start learned from them.

    By another seed or fraction, most of what is held out would be rows that it knows.

    Args:
        options: of data.
        model: the start.
        session: that it is said in.
    """
    given: Any = options
    before = learned_from(model, given.data)
    own = Learned.of(given)
    if before is None or before[1:3] == own[1:3]:
        return options
    if session is not None:
        session.note(
            f"{given.data} is divided as when {model} learned from it: seed {before.seed}, "
            f"validation fraction {before.validation_fraction}."
        )
    return replace(given, seed=before.seed, validation_fraction=before.validation_fraction)


def place_of(data: str) -> str:
    """Return the absolute path of what is there; other names as they are."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data
