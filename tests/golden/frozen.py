"""The options of every command and the public names, as text that is kept in the repository."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from visgrpo.arguments import Taken, takes

HERE = Path(__file__).parent
OPTIONS, NAMES = HERE / "options.txt", HERE / "names.txt"
_KINDS = {str: "text", int: "whole number", float: "number", bool: "yes or no"}


def options_text() -> str:
    """Return every command with its options: flag, what it takes, default, old words and help."""
    from visgrpo.cli import COMMANDS

    blocks = []
    for name, command in COMMANDS.items():
        module, _, attribute = command.config.partition(":")
        config = getattr(import_module(module), attribute)
        before = "".join(f" {word.upper()}" for word in command.positional)
        lines = sorted(_line(option, taken) for option, taken in takes(config).items())
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


def _line(name: str, takes: Taken) -> str:
    says = takes.declared
    within = f" {says.within}" if says.within else ""
    was = f" (was {' '.join(says.was)})" if says.was else ""
    flag = name.replace("_", "-")
    help_ = " ".join(says.help.split())
    return f"  --{flag} ({_kind(takes)}{within}) {takes.default!r}{was}: {help_}"


def _kind(takes: Taken) -> str:
    one = " ".join(takes.of) if isinstance(takes.of, tuple) else _KINDS[takes.of]
    several = f"list of: {one}" if takes.count is None else ", ".join([one] * takes.count)
    return f"{several}, or nothing" if takes.or_none else several
