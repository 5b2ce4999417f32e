"""Print the options of a command as a file for --config: `visgrpo init clip > clip.yaml`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from visgrpo.arguments import Taken, takes
from visgrpo.commands.table import commands, options_of_command
from visgrpo.errors import UserError, nearest
from visgrpo.help import MOST_USED, grouped
from visgrpo.options import Options, option
from visgrpo.terminal import show


@dataclass(frozen=True)
class InitConfig(Options):
    """Print a commented template of a command's options, to be changed and given to --config."""

    example = "visgrpo init clip > clip.yaml"

    command_words: tuple[str, ...] = option(
        (), "The command: clip, pretrain clip and so on.", required="the command: visgrpo init clip"
    )


def init(config: InitConfig) -> str:
    """Print the template of a command and return it.

    Raises:
        UserError: for a command that there is not, or that takes no --config.
    """
    config.check()
    name = " ".join(config.command_words)
    if name not in commands():
        raise UserError(f'There is no command "{name}". {nearest(name, commands())}')
    options = options_of_command(name)
    if "config" in takes(options):
        raise UserError(f"visgrpo {name} has a file of its own kind: see visgrpo {name} --help.")
    text = template(name, options)
    show(text)
    return text


def template(name: str, options: type[Options]) -> str:
    """Return YAML in which the most used options stand as they are by default, others as comments.

    Whatever is taken out of a comment is a valid line.
    """
    taken = takes(options)
    lines = [f"# visgrpo {name} --config THIS_FILE; flags override it.", f"# {options.example}"]
    for heading, names in grouped(options, taken).items():
        lines += ["", f"# ---- {heading}"]
        for each in names:
            lines += _lines(each, taken[each], live=heading == MOST_USED)
    return "\n".join(lines)


def _lines(name: str, known: Taken, *, live: bool) -> Iterator[str]:
    help_ = " ".join(known.declared.help.split())
    choices = f" ({', '.join(known.of)})" if isinstance(known.of, tuple) else ""
    yield ""
    yield from textwrap.wrap(f"{help_}{choices}", 98, initial_indent="# ", subsequent_indent="# ")
    mark = "" if live and known.default not in (None, "", ()) else "#"  # without a space
    yield f"{mark}{name}: {_yaml(known.default)}"


def _yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("...").strip()
