"""The options of every command and the public names, as text that is kept in the repository."""

from __future__ import annotations

from dataclasses import MISSING, Field
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

HERE = Path(__file__).parent
OPTIONS, NAMES = HERE / "options.txt", HERE / "names.txt"
_KINDS = {str: "text", int: "whole number", float: "number", bool: "yes or no"}


def options_text() -> str:
    """Return every command with its options: flag, what it takes, default, old words and help."""
    from visgrpo.cli import COMMANDS
    from visgrpo.options import options_of

    blocks = []
    for name, command in COMMANDS.items():
        module, _, attribute = command.config.partition(":")
        config = getattr(import_module(module), attribute)
        before = "".join(f" {word.upper()}" for word in command.positional)
        lines = sorted(_line(field, config) for field in options_of(config))
        blocks.append("\n".join([f"{name}{before}: {command.about}", *lines]))
    return "\n\n".join(blocks) + "\n"


def names_text() -> str:
    """Return the names of `from visgrpo import …`."""
    import visgrpo

    return "".join(f"{name}\n" for name in sorted(visgrpo.__all__))


def write_lists() -> None:
    """Write both files again."""
    OPTIONS.write_text(options_text(), encoding="utf-8")
    NAMES.write_text(names_text(), encoding="utf-8")


def _line(field: Field[Any], config: type) -> str:
    from visgrpo.options import declared

    says = declared(field)
    kind = _kind(get_type_hints(config)[field.name])
    default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
    within = f" {says.within}" if says.within else ""
    was = f" (was {' '.join(says.was)})" if says.was else ""
    flag = field.name.replace("_", "-")
    return f"  --{flag} ({kind}{within}) {default!r}{was}: {' '.join(says.help.split())}"


def _kind(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (each for each in arguments if each is not NoneType)
        return f"{_kind(inner)}, or nothing"
    if get_origin(hint) is Literal:
        return " ".join(map(str, arguments))
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of: {_kind(arguments[0])}"
        return ", ".join(map(_kind, arguments))
    return _KINDS[hint]
