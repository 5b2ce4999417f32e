"""A table of the runs that lie in a folder: `visgrpo runs`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgrpo.errors import UserError
from visgrpo.files import read_json, read_yaml
from visgrpo.metrics import duration, main_keys, metric, scalars
from visgrpo.options import Options, option
from visgrpo.terminal import show, show_table

CONFIG, SUMMARY, METRICS = "config.yaml", "summary.json", "metrics.jsonl"


@dataclass(frozen=True)
class RunsConfig(Options):
    """Print a table of the runs below a folder: what each was, how far it came, what came out."""

    example = "visgrpo runs runs/"

    folder: str = option("runs", "Folder to look in; runs may lie deeper.")


def runs(config: RunsConfig) -> list[dict[str, str]]:
    """Print a row for every run below a folder, the newest last; return them.

    Raises:
        UserError: there is no such folder.
    """
    config.check()
    folder = Path(config.folder)
    if not folder.is_dir():
        raise UserError(f'There is no folder "{folder}": name the one that runs lie in.')
    found = sorted(folder.rglob(CONFIG), key=lambda file: file.stat().st_mtime)
    rows = [_row(file.parent, folder) for file in found if _is_run(file)]
    if not rows:
        show(f"No runs lie in {folder}.")
        return rows
    show_table(list(rows[0]), [list(row.values()) for row in rows], width=140)
    return rows


def _is_run(file: Path) -> bool:
    return not {"model", "adapter", "checkpoints"} & set(file.parent.parts[-2:])


def _row(run: Path, folder: Path) -> dict[str, str]:
    name = str(run.relative_to(folder)) if run != folder else run.name
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime((run / CONFIG).stat().st_mtime))
    try:
        config = read_yaml(run / CONFIG)
        summary = read_json(run / SUMMARY) if (run / SUMMARY).exists() else {}
    except UserError:
        return {"run": name, "command": "", "data": "", "state": "damaged", "outcome": "",
                "began": started}  # fmt: skip
    command = " ".join(filter(None, [config.get("recipe"), config.get("method")]))
    return {
        "run": name,
        "command": command,
        "data": str(config.get("data", "")),
        "state": duration(summary["seconds"]) if "seconds" in summary else _how_far(run, config),
        "outcome": "; ".join(_outcome(summary)),
        "began": started,
    }


def _how_far(run: Path, config: dict[str, Any]) -> str:
    """The last step that was saved; a run that goes on cannot be told from one that was killed."""
    saved = sorted(folder.name for folder in run.glob("checkpoints/step-*"))
    steps = config.get("steps") or config.get("by_default", {}).get("steps")
    step = int(saved[-1].removeprefix("step-")) if saved else 0
    return f"unfinished, step {step}" + (f" of {steps}" if steps else "")


def _outcome(summary: dict[str, Any]) -> Iterator[str]:
    """The first two measures that runs are judged by, before and after."""
    before, after = (scalars(summary.get(when) or {}) for when in ("before", "after"))
    shown = [key for key in main_keys() if key in after][:2]
    for key in shown:
        row = metric(key, "any")
        start = f"{row.text(before[key])} → " if key in before else ""
        yield f"{row.in_a_line} {start}{row.text(after[key])}"
