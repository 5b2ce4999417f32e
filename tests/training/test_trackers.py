"""Trackers get the run under its folder's name; what they lack is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visgrpo.errors import UserError
from visgrpo.training.processes import Processes


def test_a_run_is_called_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes, asked = Processes("cpu", folder=tmp_path / "mine"), []
    monkeypatch.setattr(processes.accelerator, "init_trackers", lambda *words: asked.append(words))
    processes.start_trackers({"steps": 3, "reward": ("hard",)})
    named = {"name": str(tmp_path / "mine")}
    plain = {"steps": 3, "reward": "('hard',)"}
    assert asked == [("visgrpo", plain, {"trackio": named, "wandb": named})]


def test_a_tracker_without_its_packages_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'httpx'")

    processes = Processes("cpu")
    monkeypatch.setattr(processes.accelerator, "init_trackers", lacks)
    monkeypatch.setattr(processes.accelerator, "log_with", ["trackio"])
    with pytest.raises(UserError, match="--report-to trackio cannot be loaded: No module named"):
        processes.start_trackers({})
