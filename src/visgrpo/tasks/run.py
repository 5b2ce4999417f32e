"""The one training recipe: open, set up, train, measure, finish. Every task's run is this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from visgrpo.data.batches import BatchLoader, Collating, InputFunction, Rows
from visgrpo.errors import Interrupted
from visgrpo.methods.method import Memory, Method
from visgrpo.tasks.ending import finish
from visgrpo.tasks.session import Session, begin, open_session
from visgrpo.tasks.task import Task
from visgrpo.training.optimizer import RateOf
from visgrpo.training.options import TrainingOptions
from visgrpo.training.trainer import Trainer, TrainResult

Moment = Literal["before", "after"]


@dataclass(frozen=True)
class Seen:
    """What was measured at one moment of a run on data that it neither learns nor chooses by.

    Attributes:
        measures: on the test split.
        shifts: measures by the name of a shifted test set.
        retention: one number by the name of a data set that is not tuned on.
        more: what else the summary says of this moment; of the last one it is kept.
    """

    measures: Mapping[str, Any]
    shifts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    retention: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def nothing(*_: Any) -> Mapping[str, Any]:
    """Do nothing, say nothing: where a job has nothing of its own to do."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a task hands to its run: what trains, by what, on what, and how it is measured.

    Attributes:
        model: the module whose parameters train.
        method: makes a loss of batches.
        rows: of the training split; inputs makes what the model takes of each.
        training: how long and how fast, as `loop_options` has it of the options.
        validate: numbers on validation data; the one called `selection` chooses the best step, the
            higher the better, or with a minus before its name the lower.
        look: measures what is held out, asked twice; it may remember the first answer.
        save: writes the model that the run ends with, given the summary.
        data: what the summary says of the data: its name, and how much each split holds of what
            it is measured in ("unit", by default images).
        start: what the summary calls the model at the start.
        chosen_method: what the summary calls the method; title is the progress bar's, by default
            the same.
        begun: called when the run's folder is there, before anything trains.
        more: what else the summary says.
        inputs_are: what an input is called in messages.
        image_of, rate_of, draws_sequences, memory: as the trainer takes them.
    """

    model: nn.Module
    method: Method
    rows: Rows
    inputs: InputFunction | Collating
    training: TrainingOptions
    validate: Callable[[], Mapping[str, float]]
    look: Callable[[Moment], Seen]
    save: Callable[[Mapping[str, Any]], None]
    data: Mapping[str, Any]
    start: str
    chosen_method: str
    title: str | None = None
    selection: str = "accuracy"
    begun: Callable[[], Any] = nothing
    more: Callable[[TrainResult], Mapping[str, Any]] = nothing
    inputs_are: str = "images"
    image_of: Callable[[int], str] | None = None
    rate_of: RateOf = lambda name: 1.0
    draws_sequences: bool = False
    memory: Memory | None = None


def train(task: Task, options: Any) -> dict[str, Any]:
    """Run a task and return the summary, which is also in OUTPUT/summary.json.

    Raises:
        UserError: for settings, data, models or rewards that cannot work.
        Interrupted: when asked to stop; the run can be resumed.
    """
    session = open_session(options, task.run_name(options))
    job = task.set_up(options, session)
    trainer = Trainer(
        job.model,
        job.method,
        loader_of(job, session, workers=getattr(options, "workers", 0)),
        job.training,
        processes=session.processes,
        run=session.run,
        evaluate=job.validate,
        selection=job.selection,
        title=job.title or job.chosen_method,
        image_of=job.image_of,
        rate_of=job.rate_of,
        draws_sequences=job.draws_sequences,
        memory=job.memory,
        inputs_are=job.inputs_are,
    )
    before = job.look("before")
    begin(session, task.name)  # only now: whatever was wrong has left no folder behind
    job.begun()
    baseline = supervised_baseline(task, options, session)
    session.start_trackers()
    result = trainer.train(session.checkpoint)
    job.model.eval()
    after = job.look("after")
    return finish(
        session,
        result,
        recipe=task.name,
        method=job.chosen_method,
        model=job.start,
        data=job.data,
        before=before.measures,
        after=after.measures,
        baseline=baseline,
        retention=_side_by_side(before.retention, after.retention),
        shifts=_side_by_side(before.shifts, after.shifts),
        save=job.save,
        more={**job.more(result), **after.more},
    )


def loader_of(job: Job, session: Session, workers: int) -> BatchLoader:
    """Return this process's training batches."""
    return BatchLoader(
        job.rows,
        job.inputs,
        batch_size=job.training.batch_size,
        seed=job.training.seed,
        rank=session.processes.rank,
        world_size=session.processes.world_size,
        blocks=job.training.minibatches,
        workers=workers,
    )


def supervised_baseline(task: Task, options: Any, session: Session) -> dict[str, Any] | None:
    """Train the same budget by cross-entropy in OUTPUT/baseline; None if it was not asked for."""
    if task.baseline is None or not options.baseline or options.method == "supervised":
        return None
    folder = session.run.path / "baseline"
    changes = {
        "method": "supervised",
        "baseline": False,
        "output": str(folder),
        "resume": options.resume and (folder / "config.yaml").exists(),
        **task.baseline,
    }
    try:
        summary = train(task, replace(options, **changes))
    except Interrupted as stopped:  # what goes on is the whole run
        raise Interrupted(stopped.step, session.run.path) from None
    return {"name": "supervised", "after": summary["after"]}


def _side_by_side(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"before": value, "after": after[name]} for name, value in before.items()}
