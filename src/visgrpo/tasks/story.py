"""Several stages as one run: `--stage all` of a command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visgrpo.errors import Interrupted, UserError
from visgrpo.reporting import compare_runs
from visgrpo.tasks.configs import LoopConfig
from visgrpo.tasks.session import begin, open_session

Summaries = Mapping[str, Mapping[str, Any]]  # by the folder of the stage


def tell_story(
    config: LoopConfig,
    default_output: str,
    *,
    recipe: str,
    stages: Mapping[str, str],
    train: Callable[[str, Path], dict[str, Any]],
    show: Callable[[Summaries], None],
    compared: Sequence[str],
) -> dict[str, Any]:
    """Run each stage in a folder of its own; return the summary of all of them.

    A stage that has finished is not run again, so that an interrupted story can be resumed.

    Args:
        default_output: the run's name where the config names none.
        recipe: the command.
        stages: in their order, the name of each one's folder and the stage.
        train: runs a stage in a folder, or goes on with it there.
        show: prints the outcome of all stages.
        compared: folders that are put on one page.

    Raises:
        UserError: in several processes, and whatever a stage raises.
        Interrupted: when asked to stop; what goes on then is the whole story.
    """
    session = open_session(config, default_output, has_checkpoints=False)
    if session.processes.world_size > 1:
        raise UserError("--stage all runs in one process: run its stages one by one in several.")
    output = session.run.path
    begin(session, recipe)
    summaries: dict[str, dict[str, Any]] = {}
    for number, (folder, stage) in enumerate(stages.items(), start=1):
        session.say(f"[{number}/{len(stages)}] {stage}")
        try:
            summaries[folder] = _finished(output / folder) or train(stage, output / folder)
        except Interrupted as stopped:
            raise Interrupted(stopped.step, output) from None
    summary = {
        "recipe": recipe,
        "method": "all",
        "seconds": round(sum(each["seconds"] for each in summaries.values()), 3),
        "stages": {
            name: {key: each[key] for key in ("seconds", "after") if key in each}
            for name, each in summaries.items()
        },
    }
    session.run.write_summary(summary)
    show(summaries)
    if config.report:
        page = compare_runs([output / name for name in compared], None, output / "compare.html")
        session.say(f"Page: {page}")
    return summary


def _finished(run: Path) -> dict[str, Any] | None:
    """Return what a stage came to before, None where it has not finished."""
    summary = run / "summary.json"
    return json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None
