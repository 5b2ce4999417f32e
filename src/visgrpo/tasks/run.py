"""The one training recipe: open, set up, train, measure, finish. Every task's run is this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from torch import nn

from visgrpo.arguments import from_file
from visgrpo.data.batches import BatchLoader, Collating, InputFunction
from visgrpo.data.table import Table
from visgrpo.errors import Interrupted, UserError, printable
from visgrpo.locks import FolderLock
from visgrpo.measures.classification import one_for_all
from visgrpo.methods.method import Memory, Method
from visgrpo.models import hub
from visgrpo.options import options_of
from visgrpo.reporting import print_measures, write_report
from visgrpo.rewards.functions import check_functions
from visgrpo.tasks.plan import print_plan
from visgrpo.tasks.task import Task
from visgrpo.terminal import note, say, show
from visgrpo.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    newest_good,
    step_folders,
    tidy,
)
from visgrpo.training.metrics import peak_memory_bytes, reset_peak_memory
from visgrpo.training.optimizer import RateOf
from visgrpo.training.options import Loop, TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import (
    RunDirectory,
    check_free,
    check_place,
    free_name,
    read_by_default,
    read_config,
)
from visgrpo.training.trainer import Trainer, TrainResult

# Settings that may differ between a run and its continuation: they do not change its numbers.
_FREE_TO_CHANGE = {
    *("resume", "dry_run", "output", "keep", "device", "workers", "cache", "report", "report_to"),
    "push_to_hub",
}

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
        training: how long and how fast, as `Loop.resolved` has it.
        validate: numbers on validation data; the one called `selection` chooses the best step, the
            higher the better, or with a minus before its name the lower.
        look: measures what is held out, asked twice; it may remember the first answer.
        save: writes the model that the run ends with, given the summary.
        data: what the summary says of the data: its name, and how much each split holds of what
            it is measured in ("unit", by default images).
        start: what the summary calls the model at the start.
        chosen_method: what the summary calls the method; title is the progress bar's, by default
            the same.
        by_default: what options became that nobody set, beside those of `training`.
        begun: called when the run's folder is there, before anything trains.
        more: what else the summary says.
        inputs_are: what an input is called in messages.
        tokenizer: of inputs that are tokens.
        image_of, rate_of, draws_sequences, memory: as the trainer takes them.
    """

    model: nn.Module
    method: Method
    rows: Table
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
    by_default: Mapping[str, Any] = field(default_factory=dict)
    begun: Callable[[], Any] = nothing
    more: Callable[[TrainResult], Mapping[str, Any]] = nothing
    inputs_are: str = "images"
    tokenizer: Any = None
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
    with (
        open_session(options, task.run_name(options)) as session,
        session.processes.together(session.run.path),
    ):
        return _train(task, options, session)


def _train(task: Task, options: Any, session: Session) -> dict[str, Any]:
    job = task.set_up(options, session)
    loader = BatchLoader(
        job.rows,
        job.inputs,
        batch_size=job.training.batch_size,
        seed=job.training.seed,
        rank=session.processes.rank,
        world_size=session.processes.world_size,
        blocks=job.training.minibatches,
        workers=getattr(options, "workers", 0),
    )
    trainer = _trainer(job, loader, session)
    if options.dry_run:
        if session.processes.is_main:
            print_plan(task, job, options, session.run.path, loader)
        return {}
    if options.push_to_hub and session.processes.is_main:
        hub.claim(options.push_to_hub)
    before = job.look("before")
    # Only now: whatever was wrong has left no folder behind.
    begin(session, options, task.name, became(options, job))
    job.begun()
    baseline = supervised_baseline(task, options, session)
    if task.baseline is not None and options.tune > 1:
        job = tuned(task, options, session, job)
        trainer = _trainer(job, loader, session)
    session.processes.start_trackers(settings_of(options))
    result = trainer.train(session.checkpoint)
    job.model.eval()
    after = job.look("after")
    loop = options.part(Loop)
    return finish(task, job, loop, session, result, before, after, baseline)


def _trainer(job: Job, loader: BatchLoader, session: Session) -> Trainer:
    return Trainer(
        job.model,
        job.method,
        loader,
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


def tuned(task: Task, options: Any, session: Session, job: Job) -> Job:
    """Return the job at the learning rate that is best on validation data, of some around its own.

    Each rate is a run of its own, in OUTPUT/tune; a baseline tunes itself in the same way.
    """
    sign = -1 if job.selection.startswith("-") else 1
    tried: dict[float, float] = {}
    for power in range(options.tune):
        rate = job.training.learning_rate * 3.0 ** (power - (options.tune - 1) // 2)
        folder = session.run.path / "tune" / f"{rate:.3g}"
        changes = {"tune": 1, "baseline": False, "baseline_learning_rate": None, "report": False}
        summary = _inner(task, options, session, folder, learning_rate=rate, **changes)
        tried[rate] = summary["validation"]
    best = max(tried, key=lambda rate: sign * tried[rate])
    session.note(
        f"learning rate {best:.3g} is the best of "
        + ", ".join(f"{rate:.3g} ({value:.4g})" for rate, value in tried.items())
        + f" by {job.selection.removeprefix('-')} on validation data."
    )
    found = {"tuned": {"learning_rate": best, "tried": {f"{r:.3g}": v for r, v in tried.items()}}}
    more = job.more
    return replace(
        job,
        training=replace(job.training, learning_rate=best),
        more=lambda result: {**more(result), **found},
    )


def _inner(
    task: Task, options: Any, session: Session, folder: Path, **changes: Any
) -> dict[str, Any]:
    """Train a run that belongs to another one; being stopped, it is that one that goes on."""
    changes |= {
        "output": str(folder),
        "push_to_hub": None,
        "resume": options.resume and (folder / "config.yaml").exists(),
    }
    try:
        return train(task, replace(options, **changes))
    except Interrupted as stopped:
        raise Interrupted(stopped.step, session.run.path) from None


def supervised_baseline(task: Task, options: Any, session: Session) -> dict[str, Any] | None:
    """Train the same budget by cross-entropy in OUTPUT/baseline; None if it was not asked for."""
    if task.baseline is None or not options.baseline or options.method == "supervised":
        return None
    rate = options.baseline_learning_rate or options.learning_rate
    changes = {"method": "supervised", "baseline": False, "baseline_learning_rate": None}
    changes |= {"learning_rate": rate, **task.baseline}
    summary = _inner(task, options, session, session.run.path / "baseline", **changes)
    return {"name": "supervised", "after": summary["after"]}


def finish(
    task: Task,
    job: Job,
    loop: Loop,
    session: Session,
    result: TrainResult,
    before: Seen,
    after: Seen,
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write everything that a finished run leaves behind; returns the summary."""
    keeps_best = loop.keep == "best"
    retention = _side_by_side(before.retention, after.retention)
    shifts = _side_by_side(before.shifts, after.shifts)
    summary: dict[str, Any] = {
        "recipe": task.name,
        "method": job.chosen_method,
        "model": job.start,
        "data": dict(job.data),
        "steps": result.steps,
        "best_step": result.best_step,
        "kept_step": result.best_step if keeps_best else result.steps,
        "validation": result.validation,
        "seconds": round(result.seconds, 3),
        "examples_per_second": round(result.examples / max(result.seconds, 1e-9), 2),
        "peak_memory_bytes": peak_memory_bytes(session.processes.device),
        "before": dict(before.measures),
        "after": dict(after.measures),
        **({"baseline": dict(baseline)} if baseline is not None else {}),
        **({"retention": retention} if retention else {}),
        **({"shifts": shifts} if shifts else {}),
        **job.more(result),
        **after.more,
    }
    if session.processes.is_main:
        job.save(summary)
        session.run.write_summary(summary)
        if loop.report:
            write_report(session.run.path)
        print_outcome(summary, shifts_in_table=task.shifts_in_table)
        warning = one_for_all(summary["after"])
        if warning:
            session.say(f"warning: {warning}")
        if not result.best_step and keeps_best:
            session.say(
                "note: no evaluation was as good as the start's, so the run ends with the start's "
                "weights; --keep last keeps the last ones."
            )
        if loop.report:
            session.say(f"Page: {session.run.path / 'report.html'}")
        session.say(f"Model: {session.run.path / 'model'}")
        if loop.push_to_hub:
            session.say(f"Hub: {hub.push(session.run.path / 'model', loop.push_to_hub)}")
    session.processes.finish_trackers()
    session.processes.wait()
    return summary


def print_outcome(summary: Mapping[str, Any], *, shifts_in_table: bool) -> None:
    """Print start, baseline and result side by side on stdout."""
    rows = {"start": summary["before"]}
    if "baseline" in summary:
        rows[summary["baseline"]["name"]] = summary["baseline"]["after"]
    rows[summary["method"]] = summary["after"]
    shifts = summary.get("shifts", {})
    if shifts_in_table:
        for name, value in shifts.items():
            rows[f"start, {name}"] = value["before"]
            rows[f"{summary['method']}, {name}"] = value["after"]
        shifts = {}
    data = summary["data"]
    print_measures(f"{data['name']}, {data['test']} held-out {data.get('unit', 'images')}", rows)
    for name, value in summary.get("retention", {}).items():
        show(f"retention, {name}: {value['before']:.3f} before, {value['after']:.3f} after")
    for name, value in shifts.items():
        accuracies = (value[when]["accuracy"] for when in ("before", "after"))
        show("accuracy, {}: {:.3f} before, {:.3f} after".format(name, *accuracies))


def _side_by_side(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"before": value, "after": after[name]} for name, value in before.items()}


@dataclass(frozen=True)
class Session:
    """One run under way: its processes, its folder and where it goes on from.

    It holds its folder against other processes until it is closed, or the process ends.
    """

    resumed: bool
    processes: Processes
    run: RunDirectory
    checkpoint: Checkpoint | None
    lock: FolderLock

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def say(self, line: str) -> None:
        """Print a remark on stderr, once."""
        if self.processes.is_main:
            say(printable(line))

    def note(self, *decisions: str) -> None:
        """Print what was decided on the way."""
        print_notes(decisions, self.processes)


def print_notes(decisions: Iterable[str], processes: Processes) -> None:
    """Print what was decided on the way on stderr, once."""
    for decision in decisions:
        if processes.is_main:
            note(decision)


def open_session(config: Loop, default_output: str, *, has_checkpoints: bool = True) -> Session:
    """Check options, device and folder, and find the checkpoint of a resumed run.

    Args:
        has_checkpoints: False for what is made of runs, and goes on from theirs.

    Raises:
        UserError: for anything that would fail later; nothing heavy was loaded by then.
    """
    config.check()
    check_functions(getattr(config, "reward", ()))
    output = Path(config.output) if config.output else free_name(Path("runs") / default_output)
    if config.resume:
        read_config(output)  # a folder that holds no run is none to be made
    check_place(output)
    lock = FolderLock(output)  # before its contents are looked at
    try:
        if config.resume:
            _refuse_other_settings(config, output)
        else:
            check_free(output)
        processes = Processes(
            config.device,
            config.precision,
            computes_in=config.computes_in,
            report_to=config.report_to,
            folder=output,
        )
        reset_peak_memory(processes.device)
        run = RunDirectory(output, writes=processes.is_main)
        if run.writes:
            tidy(run.checkpoints)
        with processes.together(output):
            processes.wait()  # every process has seen the folder free before one fills it
        checkpoint = _checkpoint(config, run) if has_checkpoints else None
    except BaseException:
        lock.release()
        raise
    return Session(config.resume, processes, run, checkpoint, lock)


def became(options: Loop, job: Job) -> dict[str, Any]:
    """Return what options became that nobody set, or that could not stay as they were."""
    found = {**vars(job.training), **job.by_default}
    names = [each.name for each in options_of(options)]
    values = {name: found[name] for name in names if found.get(name) is not None}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    before = settings_of(options)
    return {name: value for name, value in values.items() if value != before[name]}


def begin(
    session: Session,
    config: Loop,
    recipe: str,
    by_default: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Create the run directory; from here on the run exists."""
    settings = {**settings_of(config), "output": str(session.run.path), "resume": False}
    if not session.resumed:
        changed = [name for name in config.given() if name not in ("output", "resume")]
        session.run.create(recipe, {**settings, "changed": changed}, by_default)


def settings_of(config: Loop) -> dict[str, Any]:
    """Return a config as plain values for YAML."""
    listed = {each.name: getattr(config, each.name) for each in options_of(config)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in listed.items()}


def _refuse_other_settings(config: Loop, run: Path) -> None:
    now = settings_of(config)
    # A run of an earlier version does not record the options that came later, and has old words.
    before = settings_of(from_file(type(config), read_config(run), str(run)))
    # What nobody set may be said now, as what it became.
    unset = [name for name, value in before.items() if value is None]
    became = {name: value for name, value in read_by_default(run).items() if name in unset}
    # A story's stages name each other, and move with its folder.
    old, new = Path(str(before["output"])).parent, run.parent
    differing = [
        f"{name} was {became.get(name, value)!r}, now {now[name]!r}"
        for name, value in before.items()
        if name not in _FREE_TO_CHANGE
        and now[name] not in (value, became.get(name, value), _moved(value, old, new))
    ]
    if differing:
        raise UserError(
            f"--resume: {run} was run with other settings: {'; '.join(differing)}. "
            "Leave them as they were, or start a new run."
        )


def _moved(value: Any, old: Path, new: Path) -> Any:
    """Return a setting with one folder's name in the place of another's in its texts."""
    if isinstance(value, list):
        return [_moved(each, old, new) for each in value]
    return value.replace(f"{old}/", f"{new}/") if isinstance(value, str) else value


def _checkpoint(config: Loop, run: RunDirectory) -> Checkpoint | None:
    if not config.resume:
        return None
    if not step_folders(run.checkpoints):  # "best" is there from the start
        say("No checkpoint was written yet: starting from the beginning.")
        run.rewind(-1)
        return None
    checkpoint, complaints = newest_good(run.checkpoints)
    for complaint in complaints:
        say(f"warning: {complaint}")
    if complaints:
        say(f"warning: going on from {checkpoint.path.name} instead.")
    if config.keep == "best" and checkpoint.state.get("best"):
        try:
            load_checkpoint(run.checkpoints / "best")
        except UserError as error:
            raise UserError(f"{error} --keep last goes on without it.") from error
    return checkpoint
