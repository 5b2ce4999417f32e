"""The questions of `visgrpo vlm` and of evaluations: loaded, cut, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from visgrpo.data.read import read, read_test
from visgrpo.data.roles import require_answers
from visgrpo.data.table import Splits, Table
from visgrpo.models.parts import model_folder, read_info
from visgrpo.models.vision_language import VisionProcessor
from visgrpo.tasks.images import columns_of
from visgrpo.tasks.session import Session, print_notes
from visgrpo.tasks.vlm.config import VlmConfig
from visgrpo.training.processes import Processes

LOOKED_AT = 32  # rows of a data set whose images are opened to say whether they are made smaller


def load_questions(config: VlmConfig, session: Session) -> Splits:
    """Load questions in three splits and out of distribution; say what was decided about them.

    What is held out is cut to ``eval_images``. Data that the start has learned from are divided as
    they were then: by another seed, most of what is held out would be rows that it knows.
    """
    before = learned_from(config.model, config.data)
    division = before or Learned(config.data, config.seed, config.validation_fraction)
    if before and (before.seed, before.validation_fraction) != (
        config.seed,
        config.validation_fraction,
    ):
        session.note(
            f"{config.data} is divided as when {config.model} learned from it: seed {before.seed}, "
            f"validation fraction {before.validation_fraction}."
        )
    splits = read(
        config.data,
        "questions",
        columns=columns_of(config),
        validation_fraction=division.validation_fraction,
        seed=division.seed,
        skip_bad_images=config.skip_bad_images,
    )
    shifts = dict(splits.shifts)
    if config.shifts is not None:
        elsewhere = read_test(
            config.shifts, "questions", seed=config.seed, skip_bad_images=config.skip_bad_images
        )
        require_answers(elsewhere)
        shifts = {"out": elsewhere}
    session.note(*splits.notes)
    for part in (splits.train, splits.validation, splits.test, *shifts.values()):
        say_left_out(part, session.processes)
    return replace(
        splits,
        validation=splits.validation.first(config.eval_images),
        test=splits.test.first(config.eval_images),
        shifts={name: rows.first(config.eval_images) for name, rows in shifts.items()},
    )


def say_left_out(dataset: Table, processes: Processes) -> None:
    """Say which rows were left out, and what was decided about a data set."""
    print_notes(dataset.notes, processes)
    if dataset.skipped:
        listed = "".join(f"\n  {reason}" for reason in dataset.skipped)
        count = len(dataset.skipped)
        print_notes([f"{dataset.name}: left out {count} unreadable image(s):{listed}"], processes)


def say_resized(
    datasets: Sequence[Table], processor: VisionProcessor, processes: Processes
) -> None:
    """Say once that images are larger than the model takes, where the first ones are."""
    for dataset in datasets:
        for row in range(min(len(dataset), LOOKED_AT)):
            large = [image for image in dataset.images[row] if processor.resizes(image)]
            if large:
                size = f"{large[0].width} × {large[0].height}"
                note = (
                    f"{dataset.where(row)}: an image of {size} pixels is made smaller for the "
                    "model, as others may be; see --max-pixels."
                )
                print_notes([note], processes)
                return


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
