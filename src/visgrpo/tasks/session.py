"""One run under way: its processes, its folder, and the checkpoint that it goes on from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgrpo.arguments import from_file
from visgrpo.errors import UserError, printable
from visgrpo.options import options_of
from visgrpo.training.checkpoints import Checkpoint, newest_good, step_folders
from visgrpo.training.metrics import reset_peak_memory
from visgrpo.training.options import Loop
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import (
    FolderLock,
    RunDirectory,
    check_free,
    check_place,
    free_name,
    read_config,
)

# Settings that may differ between a run and its continuation: they do not change its numbers.
_FREE_TO_CHANGE = {"resume", "output", "device", "workers", "cache", "report", "report_to"}


@dataclass(frozen=True)
class Session:
    """One run under way: its processes, its folder and where it goes on from.

    It holds its folder against other processes until it is closed, or the process ends.
    """

    config: Loop
    processes: Processes
    run: RunDirectory
    checkpoint: Checkpoint | None
    lock: FolderLock

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

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


def open_session(config: Loop, default_output: str, *, has_checkpoints: bool = True) -> Session:
    """Check options, device and folder, and find the checkpoint of a resumed run.

    Args:
        has_checkpoints: False for what is made of runs, and goes on from theirs.

    Raises:
        UserError: for anything that would fail later; nothing heavy was loaded by then.
    """
    config.check()
    output = Path(config.output) if config.output else free_name(Path("runs") / default_output)
    if config.resume:
        read_config(output)  # a folder that holds no run is none to be made
    check_place(output)
    lock = FolderLock(output)  # before its contents are looked at
    try:
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
        processes.wait()  # every process has seen the folder free before one fills it
    except BaseException:
        lock.release()
        raise
    return Session(config, processes, run, checkpoint, lock)


def begin(session: Session, recipe: str) -> None:
    """Create the run directory; from here on the run exists."""
    settings = {**settings_of(session.config), "output": str(session.run.path), "resume": False}
    if not session.config.resume:
        session.run.create(recipe, settings)


def settings_of(config: Loop) -> dict[str, Any]:
    """Return a config as plain values for YAML."""
    listed = {each.name: getattr(config, each.name) for each in options_of(config)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in listed.items()}


def _refuse_other_settings(config: Loop, before: Mapping[str, Any]) -> None:
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


def _checkpoint(config: Loop, run: RunDirectory) -> Checkpoint | None:
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
