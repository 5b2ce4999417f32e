"""The options of every command and the public names, as text that is kept in the repository."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

HERE = Path(__file__).parent
OPTIONS, NAMES = HERE / "options.txt", HERE / "names.txt"
_KINDS = {str: "text", int: "whole number", float: "number", bool: "yes or no"}


def options_text() -> str:
    """Return every command with its options: flag, what it takes, default and help."""
    from visgrpo.cli import COMMANDS

    blocks = []
    for name, command in COMMANDS.items():
        module, _, attribute = command.config.partition(":")
        config = getattr(import_module(module), attribute)
        before = "".join(f" {word.upper()}" for word in command.positional)
        lines = [_line(field, config) for field in fields(config)]
        blocks.append("\n".join([f"{name}{before}: {command.about}", *lines]))
    return "\n\n".join(blocks) + "\n"


def _line(field: Field[Any], config: type) -> str:
    kind = _kind(get_type_hints(config)[field.name], field.metadata.get("choices"))
    default = field.default if field.default is not MISSING else field.default_factory()
    flag = field.name.replace("_", "-")
    return f"  --{flag} ({kind}) {default!r}: {_help(field, config)}"


def _kind(hint: Any, choices: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (each for each in arguments if each is not NoneType)
        return f"{_kind(inner, choices)}, or nothing"
    if get_origin(hint) is Literal:
        return " ".join(map(str, arguments))
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of: {_kind(arguments[0], choices)}"
        return ", ".join(_kind(each, choices) for each in arguments)
    return " ".join(map(str, choices)) if choices else _KINDS[hint]


def _help(field: Field[Any], config: type) -> str:
    told = field.metadata.get("help")
    if told is None:
        found = (_docs(each).get(field.name) for each in config.__mro__[:-1])
        told = next((text for text in found if text is not None), "")
    return " ".join(told.split())


@cache
def _docs(config: type) -> dict[str, str]:
    """The texts below the fields that a class declares itself."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, following in zip(body.body, [*body.body, None][1:], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            found[node.target.id] = str(following.value.value) if told else None  # type: ignore[union-attr]
    return found


def names_text() -> str:
    import visgrpo

    return "".join(f"{name}\n" for name in sorted(visgrpo.__all__))


def write_lists() -> None:
    """Write both files again."""
    OPTIONS.write_text(options_text(), encoding="utf-8")
    NAMES.write_text(names_text(), encoding="utf-8")
