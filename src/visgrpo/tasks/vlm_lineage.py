"""What a vision-language model has learned from, stage by stage: rows that must not measure it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from visgrpo.models.loading import model_folder, read_info
from visgrpo.tasks.vlm_config import VlmConfig


class Learned(NamedTuple):
    """Data of one stage, and how its undivided rows were divided.

    Attributes:
        data: an absolute path, or the name of built-in or Hub data.
    """

    data: str
    seed: int
    validation_fraction: float


def lineage_of(info: Mapping[str, Any]) -> list[Learned]:
    """Return the data of all stages, from what visgrpo saved beside a model."""
    return [Learned(**stage) for stage in info.get("learned", ())]


def with_stage(info: Mapping[str, Any], config: VlmConfig) -> list[dict[str, Any]]:
    """Return the stages of a start and one more, as they are saved."""
    own = Learned(place_of(config.data), config.seed, config.validation_fraction)
    before = lineage_of(info)
    return [stage._asdict() for stage in (before if own in before else [*before, own])]


def learned_from(model: str | None, data: str) -> Learned | None:
    """Return the first stage in which a model learned from some data; None where it never did."""
    if model is None:
        return None
    stages = lineage_of(read_info(model_folder(model)))
    return next((stage for stage in stages if stage.data == place_of(data)), None)


def place_of(data: str) -> str:
    """Return the absolute path of what is there; other names as they are."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data
