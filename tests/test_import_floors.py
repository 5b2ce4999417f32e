"""The house plan: every room imports only from the floors below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import visgrpo

SOURCE = Path(visgrpo.__file__).parent
_LOWEST = "errors boxes files texts options metrics locks signals terminal progress help"
CORE = set(_LOWEST.split())
TABLES = CORE | {"objectives", "rewards", "data"}
METHODS = TABLES | {"models", "methods"}
TASKS = METHODS | {"training", "measures", "reporting", "arguments"}
MAY_IMPORT = {
    "errors": set[str](),
    "boxes": {"errors"},
    "files": {"errors"},
    "texts": {"errors"},
    "options": {"errors"},
    "metrics": set[str](),
    "locks": {"errors", "files"},
    "signals": set(),
    "terminal": {"errors"},
    "progress": {"errors", "metrics", "terminal"},
    "help": {"arguments", "options"},
    "objectives": CORE,
    "rewards": CORE,
    "data": CORE,
    "models": TABLES,
    "methods": TABLES | {"models"},
    "training": METHODS,
    "measures": METHODS,
    "reporting": CORE,
    "tasks": TASKS,
    "arguments": CORE,
    "feedback/source": CORE,
    "feedback/worth": CORE | {"feedback/source"},
    "feedback": TASKS | {"tasks", "feedback/source", "feedback/worth"},
    "collecting": TASKS | {"tasks", "feedback", "feedback/source"},
    "commands": TASKS | {"tasks", "feedback"},
    "cli": CORE | {"arguments", "commands", "training"},
    "__main__": {"cli"},
}
EXTENSION = "tasks/extension.py"
"""The one file of the core that knows feedback: its options, and what does the work if asked to."""
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return room_in([part.removesuffix(".py") for part in path.relative_to(SOURCE).parts])


def room_in(parts: Sequence[str]) -> str:
    """Return the room of a module, which may be a folder of a room's own."""
    inner = "/".join(parts[:2])
    return inner if inner in MAY_IMPORT else parts[0]


def imported_modules(path: Path) -> Iterator[str]:
    """Every module named by an import anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            # "from visgrpo import x" and "from visgrpo.data import x" may name a room or a file.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    parts = [module.split(".") for module in imported_modules(path)]
    return {room_in(part[1:]) for part in parts if part[0] == "visgrpo" and len(part) > 1}


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert rooms_imported(path) == set()  # names load when they are first used
        return
    allowed = MAY_IMPORT[room] | {room}
    if path == SOURCE / EXTENSION:
        allowed |= {"feedback"}
    upward = rooms_imported(path) - allowed
    assert not upward, f"{room} must not import {', '.join(sorted(upward))}"


@pytest.mark.parametrize(
    "path", [path for path in FILES if room_of(path) == "objectives"], ids=lambda path: path.stem
)
def test_objectives_are_tensor_maths_alone(path: Path) -> None:
    tops = {module.split(".")[0] for module in imported_modules(path)}
    standard = {"__future__", "collections", "dataclasses", "math", "types", "typing"}
    assert tops <= standard | {"torch", "visgrpo"}


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from visgrpo.tasks.clip.train import ClipTask", {"tasks"}),
        ("from visgrpo import tasks", {"tasks"}),
        ("import visgrpo.training.trainer as t", {"training"}),
        ("def f():\n    from visgrpo.models import clip", {"models"}),
        ("import torch", set()),
    ],
)
def test_the_parser_sees_every_form(tmp_path: Path, source: str, rooms: set[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert rooms_imported(path) == rooms
