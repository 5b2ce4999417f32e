"""Start runs and kill them at a given moment, from within: `python killed_runs.py runs.json`.

Not a test: every run is a forked child of this one process, which has loaded the libraries once.
runs.json lists {"words": […], "step": 5, "file": null}; the kill comes within the update of a step
(counted from 0), or, with a file, before that file of the step's checkpoint is written. Where a
command trains several times, "title" says in which training.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import peft  # noqa: F401
import torch
from transformers import CLIPModel  # noqa: F401

import visgrpo.tasks.clip.train
import visgrpo.tasks.language.train  # noqa: F401
from visgrpo.cli import main
from visgrpo.training import checkpoints
from visgrpo.training.trainer import Trainer


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_update(step: int, title: str | None) -> None:
    real = Trainer._update

    def update(self: Trainer, *arguments: Any) -> Any:
        if self._step == step and title in (None, self._title):
            kill()
        return real(self, *arguments)

    Trainer._update = update  # type: ignore[method-assign]


def killed_while_saving(step: int, name: str) -> None:
    real = checkpoints.save_file

    def save_file(tensors: Any, file: Path) -> None:
        if file.stem == name and f"step-{step:06d}" in file.parent.name:
            kill()
        real(tensors, file)

    checkpoints.save_file = save_file


def start(run: dict[str, Any]) -> None:
    child = os.fork()
    if child == 0:
        if run["file"]:
            killed_while_saving(run["step"], run["file"])
        else:
            killed_in_update(run["step"], run.get("title"))
        main(run["words"])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"not killed: {run['words']}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        start(entry)
