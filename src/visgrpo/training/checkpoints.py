"""Checkpoints without pickle: written whole or not at all, and checked before they are trusted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from visgrpo.errors import UserError
from visgrpo.files import read_json, sync, sync_folder, writing

STATE_FILE = "state.json"


class State(TypedDict):
    """What every state.json has beside the values of a run."""

    files: dict[str, str]
    checksum: str


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on: tensors by file, and plain values."""

    path: Path
    tensors: Mapping[str, dict[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(
    path: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Write a folder of safetensors files and state.json, under a temporary name until complete.

    Checksums of the tensor files, and of the state itself, go into state.json, which is written
    last. Where there is no room the checkpoints of before stay as they are.

    Raises:
        UserError: it cannot be written, with the space that it needs.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    needed = sum(value.nbytes for group in tensors.values() for value in group.values())
    with writing(path, needed):
        try:
            _write(path, temporary, tensors, state)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write(
    path: Path,
    temporary: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    sums = {}
    for name, group in tensors.items():
        file = temporary / f"{name}.safetensors"
        save_file({key: value.detach().contiguous().cpu() for key, value in group.items()}, file)
        sums[file.name] = _sha256(file)
    content = {**state, "files": sums}
    content["checksum"] = _checksum(content)
    (temporary / STATE_FILE).write_text(json.dumps(content, indent=1))
    sync(temporary)
    # A folder cannot be replaced in one move: the old one steps aside whole, then is deleted.
    aside = path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        path.rename(aside)
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError when a file is missing, changed or of another format."""
    state_file = path / STATE_FILE
    if not state_file.exists():
        raise UserError(f"Checkpoint {path} is damaged: {STATE_FILE} is missing.")
    state = read_json(state_file, State, f"Checkpoint {path} is left out.")
    if state.pop("checksum") != _checksum(state):
        raise UserError(f"Checkpoint {path} is damaged: {STATE_FILE} has changed.")
    sums = state["files"]
    tensors = {}
    for name, expected in sums.items():
        file = path / name
        if not file.exists() or _sha256(file) != expected:
            raise UserError(f"Checkpoint {path} is damaged: {name} is missing or has changed.")
        tensors[file.stem] = load_file(file)
    return Checkpoint(path, tensors, state)


def step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first."""
    return sorted(folder.glob("step-*"), key=_step_number, reverse=True)


def newest_good(folder: Path) -> tuple[Checkpoint, list[str]]:
    """Return the newest checkpoint that is whole, and what was wrong with the newer ones.

    Raises:
        UserError: when there is none, or one that needs pickle.
    """
    pickled = [*folder.glob("*.pt"), *folder.glob("*.bin"), *folder.glob("*/*.pt")]
    if pickled:
        raise UserError(
            f"{pickled[0]} needs pickle, which could run code: it is not opened. "
            "Remove it, or start a new run."
        )
    complaints: list[str] = []
    for path in step_folders(folder):
        try:
            return load_checkpoint(path), complaints
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError(f"No checkpoint in {folder} is whole: {complaints[0]} Start a new run.")
    raise UserError(f"{folder} holds no checkpoint to resume from: start without --resume.")


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints."""
    for path in step_folders(folder)[keep:]:
        remove(path)


def tidy(folder: Path) -> None:
    """Put right what a kill left half done: the old one takes its place again, or goes."""
    for aside in folder.glob(".*.old"):
        path = folder / aside.name[1 : -len(".old")]
        if path.exists():
            remove(aside)
        else:
            with writing(path):
                aside.rename(path)
    for half in folder.glob(".*.tmp"):
        remove(half)


def remove(path: Path) -> None:
    """Delete a checkpoint. Raises UserError where the disk does not let it go."""
    with writing(path):
        shutil.rmtree(path)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return an optimiser's state as tensors named ``parameter/key``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    index_of = {name: index for index, name in enumerate(names)}
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        state.setdefault(index_of[name], {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _step_number(path: Path) -> int:
    """The number in step-…; names without one come last."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def _checksum(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
