"""Checkpoints are whole or absent, and never believed unread."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.training import checkpoints
from visgrpo.training.checkpoints import (
    load_checkpoint,
    load_optimizer_tensors,
    newest_good,
    optimizer_tensors,
    prune,
    save_checkpoint,
    tidy,
)


def _tensors(value: float = 1.0) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"layer.weight": torch.full((2, 3), value), "scale": torch.tensor(value)},
        "optimizer": {"layer.weight/step": torch.tensor(4.0)},
        "old_policy": {},
    }


def _save(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:06d}"
    save_checkpoint(path, _tensors(float(step)), {"step": step})
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = _save(tmp_path, 7)
    loaded = load_checkpoint(path)
    assert loaded.state["step"] == 7
    assert loaded.tensors["old_policy"] == {}
    assert torch.equal(loaded.tensors["model"]["layer.weight"], torch.full((2, 3), 7.0))
    assert loaded.tensors["model"]["scale"].shape == ()


def test_views_and_parameters_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    parameter = torch.nn.Parameter(torch.ones(2))
    save_checkpoint(tmp_path / "best", {"model": {"a": whole.T, "b": parameter}}, {"step": 0})
    loaded = load_checkpoint(tmp_path / "best").tensors["model"]
    assert torch.equal(loaded["a"], whole.T)
    assert torch.equal(loaded["b"], torch.ones(2))


class PowerCut(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("files_before_it", [0, 1, 2])
def test_a_cut_between_files_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_before_it: int
) -> None:
    _save(tmp_path, 1)
    real, written = checkpoints.save_file, []

    def failing(tensors: Mapping[str, Tensor], file: Path) -> None:
        if len(written) == files_before_it:
            raise PowerCut
        written.append(file)
        real(dict(tensors), file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", failing)
        with pytest.raises(PowerCut):
            _save(tmp_path, 2)
    checkpoint, complaints = newest_good(tmp_path)
    assert (checkpoint.state["step"], complaints) == (1, [])
    _save(tmp_path, 2)  # what the cut left behind is no obstacle
    assert newest_good(tmp_path)[0].state["step"] == 2


@pytest.mark.parametrize("moves_before_it", [0, 1])
def test_a_cut_while_the_best_is_replaced_never_leaves_a_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves_before_it: int
) -> None:
    save_checkpoint(tmp_path / "best", _tensors(1.0), {"step": 1})
    real, moved = Path.rename, []

    def cut(self: Path, target: Path) -> Path:
        if len(moved) == moves_before_it:
            raise PowerCut
        moved.append(self)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(PowerCut):
            save_checkpoint(tmp_path / "best", _tensors(2.0), {"step": 2})
    if moves_before_it == 0:
        assert load_checkpoint(tmp_path / "best").state["step"] == 1
    else:
        assert not (tmp_path / "best").exists()
        tidy(tmp_path)
        assert load_checkpoint(tmp_path / "best").state["step"] == 1
    save_checkpoint(tmp_path / "best", _tensors(2.0), {"step": 2})
    assert load_checkpoint(tmp_path / "best").state["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def _flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [_flip_a_byte, _truncate, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, damage: Any, name: str
) -> None:
    _save(tmp_path, 9)
    newest = _save(tmp_path, 10)
    damage(newest / name)
    checkpoint, complaints = newest_good(tmp_path)
    assert checkpoint.state["step"] == 9
    assert len(complaints) == 1
    assert re.search(rf"{newest}.*{name}|{newest}/{name} is damaged", complaints[0])


def test_a_changed_number_in_the_state_is_noticed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    file = newest / "state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))
    assert newest_good(tmp_path)[0].state["step"] == 1


def test_no_whole_checkpoint(tmp_path: Path) -> None:
    _flip_a_byte(_save(tmp_path, 1) / "model.safetensors")
    with pytest.raises(UserError, match=r"is whole: .*step-000001 is damaged.*Start a new run"):
        newest_good(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        newest_good(tmp_path)


@pytest.mark.parametrize("place", ["step-000001.pt", "pytorch_model.bin", "step-000003/state.pt"])
def test_pickle_is_refused_unopened(tmp_path: Path, place: str) -> None:
    _save(tmp_path, 2)
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"not even a pickle: opening it would fail otherwise")
    with pytest.raises(UserError, match=f"{file.name} needs pickle, which could run code"):
        newest_good(tmp_path)


def test_steps_are_ordered_as_numbers_beyond_six_digits(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        _save(tmp_path, step)
    assert newest_good(tmp_path)[0].state["step"] == 1_000_000
    prune(tmp_path, 1)
    assert newest_good(tmp_path)[0].state["step"] == 1_000_000


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        _save(tmp_path, step)
    save_checkpoint(tmp_path / "best", _tensors(), {"step": 1})
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step-000002", "step-000010"]


def test_a_checkpoint_that_the_disk_does_not_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step-000001").mkdir()

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "state.json")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(UserError, match="step-000001 cannot be written: Read-only file system"):
        prune(tmp_path, 0)


def test_what_a_kill_left_goes(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    for left in (".step-000002.tmp", ".step-000001.old", ".best.tmp"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").write_bytes(b"half")
    tidy(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["step-000001"]
    tidy(tmp_path / "none")


def test_the_state_file_is_json_with_checksums(tmp_path: Path) -> None:
    state = json.loads((_save(tmp_path, 1) / "state.json").read_text())
    assert sorted(state["files"]) == [f"{name}.safetensors" for name in sorted(_tensors())]
    assert all(len(value) == 64 for value in state["files"].values())


def test_an_optimiser_goes_on_as_if_never_saved(tmp_path: Path) -> None:
    def parameters() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(()))]

    def step(optimizer: torch.optim.Optimizer, ours: list[torch.nn.Parameter], by: float) -> None:
        optimizer.zero_grad()
        (sum(p.square().sum() for p in ours) * by).backward()
        optimizer.step()

    names = ["weight", "blocks.0/scale"]
    first, second = parameters(), parameters()
    optimizer = torch.optim.AdamW(first, lr=0.1)
    other = torch.optim.AdamW(second, lr=0.1)
    step(optimizer, first, 1.0)
    save_checkpoint(tmp_path / "best", {"optimizer": optimizer_tensors(optimizer, names)}, {})
    with torch.no_grad():
        for new, old in zip(second, first, strict=True):
            new.copy_(old)
    load_optimizer_tensors(other, names, load_checkpoint(tmp_path / "best").tensors["optimizer"])
    step(optimizer, first, 3.0)
    step(other, second, 3.0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_full_disk_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"model": {"w": torch.ones(3)}}
    save_checkpoint(tmp_path / "best", tensors, {"step": 1})

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match=r"best cannot be written: the disk has .* are needed"):
        save_checkpoint(tmp_path / "best", tensors, {"step": 2})
    assert load_checkpoint(tmp_path / "best").state["step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["best"]
