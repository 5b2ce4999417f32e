"""What every training recipe does around its own work: folder, processes, data, the ending."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visgrpo.arguments import from_file
from visgrpo.data.augment import check_augmentations
from visgrpo.data.batches import BatchLoader, InputFunction, Rows
from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.segmentation import SegmentationDataset, SegmentationSplits
from visgrpo.data.sources import load_splits
from visgrpo.errors import UserError, printable
from visgrpo.tasks.configs import LoopConfig, RunConfig
from visgrpo.training.checkpoints import Checkpoint, newest_good, step_folders
from visgrpo.training.metrics import reset_peak_memory
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import RunDirectory, check_free, free_name, read_config

# Settings that may differ between a run and its continuation: they do not change its numbers.
_FREE_TO_CHANGE = {"resume", "output", "device", "workers", "cache", "report", "report_to"}


@dataclass(frozen=True)
class Session:
    """One run under way: its processes, its folder and where it goes on from."""

    config: LoopConfig
    processes: Processes
    run: RunDirectory
    checkpoint: Checkpoint | None

    def start_trackers(self) -> None:
        """Open the trackers of this run."""
        self.processes.start_trackers(settings_of(self.config))

    def say(self, line: str) -> None:
        """Print a remark on stderr, once."""
        if self.processes.is_main:
            print(printable(line), file=sys.stderr, flush=True)

    def note(self, *decisions: str) -> None:
        """Print what was decided on the way."""
        print_notes(decisions, self.processes)


def print_notes(decisions: Iterable[str], processes: Processes) -> None:
    """Print what was decided on the way on stderr, once."""
    for decision in decisions:
        if processes.is_main:
            print(f"note: {printable(decision)}", file=sys.stderr, flush=True)


def open_session(
    config: LoopConfig, default_output: str, *, has_checkpoints: bool = True
) -> Session:
    """Check options, device and folder, and find the checkpoint of a resumed run.

    Args:
        has_checkpoints: False for what is made of runs, and goes on from theirs.

    Raises:
        UserError: for anything that would fail later; nothing heavy was loaded by then.
    """
    config.check()
    output = Path(config.output) if config.output else free_name(Path("runs") / default_output)
    if config.resume:
        _refuse_other_settings(config, read_config(output))
    else:
        check_free(output)
    processes = Processes(
        config.device, config.precision, report_to=config.report_to, folder=output
    )
    reset_peak_memory(processes.device)
    run = RunDirectory(output, writes=processes.is_main)
    checkpoint = _checkpoint(config, run) if has_checkpoints else None
    session = Session(config, processes, run, checkpoint)
    processes.wait()  # every process has seen the folder free before one fills it
    return session


def load_data(config: RunConfig, session: Session) -> Splits:
    """Load the three splits; say what was decided or left out on the way."""
    check_augmentations(config.augment)
    splits = load_splits(
        config.data,
        image_column=config.image_column,
        label_column=config.label_column,
        train_slice=config.train_slice,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        skip_bad_images=config.skip_bad_images,
    )
    say_notes(session, splits)
    return splits


def say_notes(session: Session, splits: Splits | SegmentationSplits) -> None:
    """Say what was decided about the data, and what was left out."""
    session.note(*splits.notes)
    masked = isinstance(splits, SegmentationSplits)  # a readable pair may not belong together
    bad = "unusable row(s)" if masked else "unreadable image(s)"
    for part in (splits.train, splits.validation, splits.test):
        if part.skipped:
            session.note(f"{part.name}: left out {len(part.skipped)} {bad}:")
            for reason in part.skipped:
                session.say(f"  {reason}")


def begin(session: Session, recipe: str) -> None:
    """Create the run directory; from here on the run exists."""
    settings = {**settings_of(session.config), "output": str(session.run.path), "resume": False}
    if not session.config.resume:
        session.run.create(recipe, settings)


def training_options(
    config: RunConfig, learning_rate: float, train: ImageDataset | SegmentationDataset, **more: Any
) -> TrainingOptions:
    """Turn epochs into steps, and "by default" into numbers."""
    per_epoch = len(train) // config.batch_size
    if per_epoch == 0:
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the {len(train)} training images."
        )
    steps = config.steps or max(1, math.ceil(config.epochs * per_epoch))
    return loop_options(config, steps, config.batch_size, learning_rate, **more)


def loop_options(
    config: LoopConfig, steps: int, batch_size: int, learning_rate: float, **more: Any
) -> TrainingOptions:
    """Return the trainer's options; by default a run is evaluated and saved ten times."""
    eval_every = config.eval_every or max(1, math.ceil(steps / 10))
    return TrainingOptions(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        schedule=config.schedule,
        final_learning_rate=config.final_learning_rate,
        max_grad_norm=config.max_grad_norm,
        accumulation=config.accumulation,
        log_every=config.log_every,
        eval_every=eval_every,
        save_every=config.save_every or eval_every,
        keep=config.keep,
        seed=config.seed,
        **more,
    )


def save_picture(session: Session, images: Sequence[Image.Image], index: int) -> str:
    """Keep the image of a sampled group; returns its path within the run."""
    path = session.run.path / "samples" / f"{index:06d}.png"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        image = images[index].copy()
        image.thumbnail((224, 224))
        image.save(path)
    return str(path.relative_to(session.run.path))


def run_stem(data: str) -> str:
    """Return what a data set is called in the default name of a run."""
    return data.rstrip("/").rsplit("/", 1)[-1].removesuffix(".parquet")


def batches_of(
    config: RunConfig, train: Rows, inputs: InputFunction, session: Session, minibatches: int = 1
) -> BatchLoader:
    """Return this process's training batches."""
    return BatchLoader(
        train,
        inputs,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=session.processes.rank,
        world_size=session.processes.world_size,
        blocks=minibatches,
        workers=config.workers,
    )


def data_info(config: RunConfig) -> dict[str, Any]:
    """Return what a saved model says of its data, so that it is divided alike when evaluated."""
    return {
        "data": config.data,
        "seed": config.seed,
        "validation_fraction": config.validation_fraction,
        "train_slice": config.train_slice,
    }


def settings_of(config: LoopConfig) -> dict[str, Any]:
    """Return a config as plain values for YAML."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def data_summary(config: RunConfig, splits: Splits | SegmentationSplits) -> dict[str, Any]:
    """Return what the summary says of the data."""
    return {
        "name": config.data,
        "train": len(splits.train),
        "validation": len(splits.validation),
        "test": len(splits.test),
        "classes": len(splits.train.classes),
    }


def _refuse_other_settings(config: LoopConfig, before: Mapping[str, Any]) -> None:
    now = settings_of(config)
    # A run of an earlier version does not record the options that came later, and has old words.
    before = settings_of(from_file(type(config), before, str(config.output)))
    differing = [
        f"{name} was {before[name]!r}, now {now[name]!r}"
        for name in now
        if name not in _FREE_TO_CHANGE and before[name] != now[name]
    ]
    if differing:
        raise UserError(
            f"--resume: {config.output} was run with other settings: {'; '.join(differing)}. "
            "Leave them as they were, or start a new run."
        )


def _checkpoint(config: LoopConfig, run: RunDirectory) -> Checkpoint | None:
    if not config.resume:
        return None
    if not step_folders(run.checkpoints):  # "best" is there from the start
        print("No checkpoint was written yet: starting from the beginning.", file=sys.stderr)
        run.rewind(-1)
        return None
    checkpoint, complaints = newest_good(run.checkpoints)
    for complaint in complaints:
        print(f"warning: {complaint}", file=sys.stderr)
    if complaints:
        print(f"warning: going on from {checkpoint.path.name} instead.", file=sys.stderr)
    return checkpoint
