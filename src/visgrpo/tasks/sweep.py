"""Train with many settings and seeds and put the results into one table: `visgrpo sweep`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from visgrpo.errors import Interrupted, UserError, nearest
from visgrpo.files import write_whole
from visgrpo.locks import FolderLock
from visgrpo.metrics import added, duration, number
from visgrpo.reporting import compare_runs, ended
from visgrpo.reporting.console import markdown, write_table
from visgrpo.reporting.run import flatten
from visgrpo.tasks.run import settings_of
from visgrpo.tasks.sweep_plan import (
    PAGE,
    PLAN,
    ROWS,
    TABLE,
    Combination,
    SweepConfig,
    read_combinations,
    value_text,
)
from visgrpo.tasks.task import TASKS, Task, task_named
from visgrpo.terminal import note, say, show, show_table
from visgrpo.training.options import Loop
from visgrpo.training.run_directory import (
    CONFIG_FILE,
    RunDirectory,
    check_free,
    check_place,
    free_name,
    read_config,
)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    combination: Combination
    config: Loop
    finished: bool

    @property
    def key(self) -> tuple[str, int]:
        return self.combination.name, self.config.seed

    @property
    def title(self) -> str:
        return f"{self.combination.name} seed {self.config.seed}"

    @property
    def folder(self) -> Path:
        return Path(str(self.config.output))


def sweep(config: SweepConfig) -> list[dict[str, Any]]:
    """Run every combination with every seed and return the rows of OUTPUT/sweep.json.

    The runs come one after the other in this process: each takes the whole machine, and its
    speed in summary.json would mean nothing beside others. Their own tables go to stderr.

    Raises:
        UserError: before anything runs, for settings of any run that cannot work; later, for a
            run that fails. The runs that are done stay, and --resume goes on after them.
        Interrupted: when asked to stop; the sweep can be resumed.
    """
    config.check()
    _refuse_several_processes()
    command = " ".join(config.command_words)
    if command not in TASKS:
        raise UserError(f'There is no recipe "{command}" to sweep. {nearest(command, TASKS)}')
    name = f"sweep-{command.replace(' ', '-')}"
    output = Path(config.output) if config.output else free_name(Path("runs") / name)
    if config.resume:
        read_config(output)  # a folder that holds no run is none to be made
    check_place(output)
    with FolderLock(output):
        return _sweep(config, task_named(command), command, output)


def _sweep(config: SweepConfig, task: Task, command: str, output: Path) -> list[dict[str, Any]]:
    _check_output(config, command, output)
    file = Path(config.config) if config.config else output / PLAN
    if not config.config and not file.exists():  # killed before it was copied
        raise UserError(f"--resume: {file} is missing: give the file again with --config.")
    combinations = read_combinations(file, task.options, command)
    # Seed by seed: a sweep that is stopped early can already compare all combinations.
    jobs = [_job(each, seed, output) for seed in range(config.seeds) for each in combinations]
    if len(jobs) < 2:
        raise UserError(
            f'A sweep of one run is "visgrpo {command}": give --seeds 2 or more, or several values.'
        )
    _begin(config, output, file)
    repeat = _command_line(config, file, output)
    summaries: dict[tuple[str, int], Summary] = {}
    began, ran, waiting = time.perf_counter(), 0, sum(not job.finished for job in jobs)
    for place, job in enumerate(jobs, start=1):
        state = ": finished before" if job.finished else ": going on" if job.config.resume else ""
        left = (time.perf_counter() - began) / max(ran, 1) * (waiting - ran)
        about = f", about {duration(left)} left" if ran and ran < waiting else ""
        say(f"run {place} of {len(jobs)}{about}: {job.title}{state}")
        summaries[job.key] = _summary(job, task, output)
        ran += not job.finished
        # Without probes, say, no run has their measures: no columns of dashes by default.
        shown = [*added("sweep"), *task.shown]
        measures = config.measure or measured(summaries.values(), shown)
        rows = sweep_rows(combinations, summaries, measures)
        write_rows(output, repeat, rows)
        if place == 1:  # perhaps a later run has it, but a typo is best seen now
            for complaint in complaints(summaries.values(), config.measure):
                note(complaint)
    page = _page(jobs, output)
    for complaint in complaints(summaries.values(), config.measure):
        raise UserError(f"{complaint} The runs are done: --resume with another --measure.")
    write_rows(output, repeat, rows)  # now with the page's name
    print_rows(command, rows)
    if page is not None:
        show(str(page))
    return rows


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("visgrpo sweep runs in one process: start it without torchrun.")


def _check_output(config: SweepConfig, command: str, output: Path) -> None:
    """Raise UserError unless the folder is free, or with --resume holds a sweep of this command."""
    if not config.resume:
        check_free(output)
        return
    before = " ".join(read_config(output).get("command_words", ()))
    if before != command:
        raise UserError(f"--resume: {output} holds no sweep of {command}; name another folder.")


def _job(combination: Combination, seed: int, output: Path) -> Job:
    """One run: from the start, from where it was stopped, or nothing where it is finished."""
    folder = output / combination.name / f"seed-{seed}"
    config = replace(combination.config, seed=seed, output=str(folder))
    if not (folder / CONFIG_FILE).exists():
        check_free(folder)
        return Job(combination, config, finished=False)
    # The folder may have been moved since.
    now, before = settings_of(config), {**read_config(folder), "output": config.output}
    differing = [name for name in now.keys() | before if now.get(name) != before.get(name)]
    if differing:
        raise UserError(
            f"--resume: {folder} was run with other settings ({', '.join(sorted(differing))}): "
            "leave them as they were, or move that folder away."
        )
    finished = (folder / "summary.json").exists()
    return Job(combination, replace(config, resume=not finished), finished)


def _begin(config: SweepConfig, output: Path, file: Path) -> None:
    """Keep what --resume needs: the settings, and the file as it is now."""
    # Without "config": what goes on is the copy, wherever the folder is by then.
    settings = {**asdict(config), "config": None, "output": str(output), "resume": False}
    RunDirectory(output).create("sweep", settings)
    if file.resolve() != (output / PLAN).resolve():
        shutil.copyfile(file, output / PLAN)


def _summary(job: Job, task: Task, output: Path) -> Summary:
    """Run a job, unless it is finished, and return its summary."""
    if job.finished:
        summary = ended(job.folder, report=job.config.report)
        assert summary is not None
        return summary
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the sweep's own table
            return task.train(job.config)
    except Interrupted as stopped:  # what goes on is the whole sweep
        raise Interrupted(stopped.step, output) from None
    except UserError as error:
        # The same error, which may carry the traceback of the user's own reward.
        error.args = (f"{job.title}: {error} What is done stays: go on with --resume.",)
        raise


def _page(jobs: Sequence[Job], output: Path) -> Path | None:
    """Draw the curves of the runs that have any: making pairs, for one, has none."""
    drawn = [job.folder for job in jobs if (job.folder / "metrics.jsonl").exists()]
    return compare_runs(drawn, None, output / PAGE) if len(drawn) > 1 else None


def _command_line(config: SweepConfig, file: Path, output: Path) -> str:
    """The command that repeats the whole sweep."""
    measures = [word for measure in config.measure for word in ("--measure", measure)]
    paths = ["--config", str(file), "--seeds", str(config.seeds), "--output", str(output)]
    return shlex.join(["visgrpo", "sweep", *config.command_words, *paths, *measures])


SPREAD = "standard deviation over seeds (n - 1)"
Summary = dict[str, Any]


def sweep_rows(
    combinations: Iterable[Combination],
    summaries: Mapping[tuple[str, int], Summary],
    measures: Sequence[str],
) -> list[dict[str, Any]]:
    """Return a row of plain values for each combination.

    Args:
        summaries: of the runs that are done, by combination and seed.

    A measure has one value a seed; mean and spread are None where a finished run has no such
    value, and the spread also where only one run is finished.
    """
    rows = []
    for combination in combinations:
        done = {seed: s for (name, seed), s in summaries.items() if name == combination.name}
        rows.append(
            {
                "name": combination.name,
                "variant": combination.variant,
                "options": dict(combination.swept),
                "seeds": list(done),
                "measures": {
                    measure: _over_seeds([measure_of(s, measure) for s in done.values()])
                    for measure in measures
                },
            }
        )
    return rows


def measure_of(summary: Summary, measure: str) -> float | None:
    """Return a number of the summary's "after", else of the summary: "accuracy", "knn.20".

    None where there is no such number.
    """
    for values in (summary.get("after", {}), summary):
        found = _at(values, measure)
        if isinstance(found, int | float):
            return float(found)
    return None


def measured(summaries: Collection[Summary], measures: Iterable[str]) -> list[str]:
    """Return the measures that at least one of these runs has."""
    return [
        measure
        for measure in measures
        if any(measure_of(summary, measure) is not None for summary in summaries)
    ]


def complaints(summaries: Collection[Summary], measures: Sequence[str]) -> list[str]:
    """Return a line for every measure that none of these runs has."""
    known = dict.fromkeys(key for s in summaries for key in flatten(s.get("after", s)))
    return [
        f'No run measured "{measure}". {nearest(measure, known)}'
        for measure in measures
        if measure not in measured(summaries, measures)
    ]


def write_rows(folder: Path, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write sweep.json, and the table: table.md with the command that repeats it, .csv and .tex."""
    content = {"command": command, "spread": SPREAD, "rows": rows}
    write_whole(folder / ROWS, json.dumps(content, indent=1, allow_nan=False))
    header, *body = _cells(rows)
    for other in (".csv", ".tex"):
        write_table((folder / TABLE).with_suffix(other), header, body)
    curves = f"; their curves: {PAGE}" if (folder / PAGE).exists() else ""
    notes = f"Mean ± {SPREAD}. Options of the runs: {PLAN}{curves}."
    text = f"    {command}\n\n{markdown(header, body)}\n{notes}\n"
    write_whole(folder / TABLE, text)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table on stdout."""
    header, *body = _cells(rows)
    show_table(header, body, title=f"{title}: mean ± {SPREAD}")


def _over_seeds(values: list[float | None]) -> dict[str, Any]:
    numbers = [value for value in values if value is not None]
    whole = bool(numbers) and len(numbers) == len(values)
    return {
        "values": values,
        "mean": fmean(numbers) if whole else None,
        "spread": stdev(numbers) if whole and len(numbers) > 1 else None,
    }


def _at(values: Mapping[str, Any], path: str) -> object:
    """The value at a dotted path; names may hold dots themselves."""
    if path in values:
        return values[path]
    for name, inner in values.items():
        if isinstance(inner, Mapping) and path.startswith(f"{name}."):
            return _at(inner, path.removeprefix(f"{name}."))
    return None


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table as text, header first. All rows have the same options and measures."""
    first = rows[0]
    variant = [] if first["variant"] is None else ["variant"]
    lines = [[*variant, *first["options"], "seeds", *first["measures"]]]
    for row in rows:
        lines.append(
            [
                *([row["variant"]] if variant else []),
                *map(value_text, row["options"].values()),
                str(len(row["seeds"])),
                *map(_mean_and_spread, row["measures"].values()),
            ]
        )
    return lines


def _mean_and_spread(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return "–"
    mean = number(cell["mean"])
    return mean if cell["spread"] is None else f"{mean} ± {number(cell['spread'])}"
