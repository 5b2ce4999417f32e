"""The run directory: settings, metrics, samples, summary, each whole at every moment."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from visgrpo.errors import UserError
from visgrpo.files import dead_link, parse_json, read_yaml, sync, write_whole, writing
from visgrpo.terminal import say

CONFIG_FILE = "config.yaml"
METRICS, SAMPLES = _LOGS = ("metrics.jsonl", "samples.jsonl")
# Recorded in config.yaml, left out when it is read back.
NOT_OPTIONS = ("recipe", "changed", "versions", "by_default")
_NONE: Mapping[str, Any] = MappingProxyType({})
_LIBRARIES = ("visgrpo", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


class RunDirectory:
    """One run on disk; see the contract in docs/architecture.md.

    Only the main process writes; on the others every method that writes does nothing.
    """

    def __init__(self, path: Path | str, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.lines = dict.fromkeys(_LOGS, 0)
        self.checkpoints = self.path / "checkpoints"

    def ensure(self, settings: Mapping[str, Any]) -> None:
        """Create the run of a script, of which nothing but the trainer's settings is known."""
        if not (self.path / CONFIG_FILE).exists():
            self.create(None, settings)

    def create(
        self, recipe: str | None, config: Mapping[str, Any], by_default: Mapping[str, Any] = _NONE
    ) -> None:
        """Make the folder and write config.yaml with the recipe and the versions in use.

        Args:
            by_default: what options became that nobody set.
        """
        if not self.writes:
            return
        found = {"by_default": dict(by_default)} if by_default else {}
        content = {"recipe": recipe, **config, **found, "versions": versions()}
        write_whole(self.path / CONFIG_FILE, yaml.safe_dump(content, sort_keys=False))

    def log_metrics(self, entry: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append(METRICS, entry)

    def log_sample(self, entry: Mapping[str, Any]) -> None:
        """Append one group to samples.jsonl."""
        self._append(SAMPLES, entry)

    def sync(self) -> None:
        """Bring the logs to the disk, before something is written that counts on them."""
        for name, count in self.lines.items():
            if count:
                with writing(self.path / name):
                    sync(self.path / name)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        if self.writes:
            self.sync()
            text = json.dumps(summary, indent=1, allow_nan=False)
            write_whole(self.path / "summary.json", text)

    def rewind(self, step: int, expected: Mapping[str, int] = {}) -> None:
        """Forget lines of metrics and samples after a step, before a run goes on from there.

        Args:
            expected: how many lines each log had at that step; fewer are said.
        """
        if not self.writes:
            return
        for name in _LOGS:
            path = self.path / name
            lines = []
            if path.exists():
                # A kill may cut the last line off anywhere, even within a letter.
                text = path.read_text(encoding="utf-8", errors="replace")
                lines = [line for line in text.split("\n") if _step_of(line) <= step]
                write_whole(path, "".join(line + "\n" for line in lines))
            self.lines[name] = len(lines)
            lost = expected.get(name, 0) - len(lines)
            if lost > 0:
                say(
                    f"warning: {path} has lost {lost} of its {expected[name]} lines up to step "
                    f"{step}: the run goes on without them."
                )

    def _append(self, name: str, entry: Mapping[str, Any]) -> None:
        if self.writes:
            line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
            path = self.path / name
            with writing(path, len(line)), path.open("a", encoding="utf-8") as file:
                file.write(line)
            self.lines[name] += 1


def check_free(path: Path) -> None:
    """Raise UserError when a folder cannot take a new run."""
    check_place(path)
    if path.exists() and not all(map(_is_leftover, path.iterdir())):
        what = "already holds a run" if (path / CONFIG_FILE).exists() else "is not empty"
        mend = "--resume to go on with it, or " if (path / CONFIG_FILE).exists() else ""
        raise UserError(f"--output {path} {what}: {mend}name another folder.")


def _is_leftover(file: Path) -> bool:
    """Whether a kill left a file that had no name of its own yet."""
    return file.name.startswith(".") and file.suffix == ".tmp"


def check_place(path: Path) -> None:
    """Raise UserError where no folder can be made, or none can be written."""
    dead = dead_link(path)
    if dead:
        raise UserError(f"--output {path} cannot be made: {dead} is a link that leads nowhere.")
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path} is a file; name a folder.")
    parent = next(p for p in (path, *path.parents) if p.exists())
    if not parent.is_dir():
        raise UserError(f"--output {path} cannot be made: {parent} is a file.")
    if not os.access(parent, os.W_OK):
        raise UserError(f"--output {path} cannot be written: no permission in {parent}.")


def free_name(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3, … that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a run. Raises UserError if it is no run."""
    config = _read_config(path)
    return {name: value for name, value in config.items() if name not in NOT_OPTIONS}


def read_by_default(path: Path) -> dict[str, Any]:
    """Return what options of a run became that nobody set. Raises UserError if it is no run."""
    return _read_config(path).get("by_default") or {}


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE
    if not file.exists():
        raise UserError(f"{path} holds no run to resume: {CONFIG_FILE} is missing.")
    return read_yaml(file)


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    found = {name: version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **found}


def _step_of(line: str) -> int:
    """The step of a line; a last line cut off by a kill belongs to no step."""
    try:
        return int(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62
