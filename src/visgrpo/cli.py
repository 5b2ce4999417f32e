"""The command line: finds the command, calls its recipe, turns mistakes into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Any

from visgrpo.arguments import parse
from visgrpo.commands.table import COMMANDS as COMMANDS
from visgrpo.commands.table import commands
from visgrpo.errors import Interrupted, UserError, nearest, printable
from visgrpo.signals import like_ctrl_c
from visgrpo.terminal import forget_notes, say, show

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 2 for the user's mistakes, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        show(_overview())
        return
    if words[0] == "--version":
        show(f"visgrpo {version('visgrpo')}")
        return
    forget_notes()
    try:
        name, rest = _split_command(words)
        command = commands()[name]
        config = parse(_load(command.config), name, rest, command.positional)
        _quiet_libraries()
        with like_ctrl_c():
            _load(command.function)(config)
    except UserError as error:
        if _is_said_elsewhere(str(error)):
            sys.exit(USER_ERROR)
        say(f"visgrpo: {printable(str(error))}")
        details = getattr(error, "details", "")
        if details:
            say(details)
        sys.exit(USER_ERROR)
    except Interrupted as stop:
        flag = " --resume" if hasattr(config, "resume") else ""  # a demo goes on by itself
        mend = f"Go on with: visgrpo {name} --output {stop.run}{flag}"
        say(f"visgrpo: {stop}. {mend}")
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        say("visgrpo: stopped at once.")
        sys.exit(INTERRUPTED)


def _overview() -> str:
    width = max(map(len, commands()))
    lines = [f"  {name:<{width}}  {command.about}" for name, command in commands().items()]
    return "\n".join(
        [
            "usage: visgrpo COMMAND [--config FILE] [--option value …]",
            "",
            "Fine-tune models that see with GRPO (group relative policy optimization).",
            "",
            *lines,
            "",
            "visgrpo COMMAND --help lists the options of a command; --help-all explains them all.",
            "Start with: visgrpo demo",
        ]
    )


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in commands():
            return name, words[length:]
    if words[0] == "pretrain":
        raise UserError('Say what to pre-train: "visgrpo pretrain clip" or "pretrain backbone".')
    if words[0] == "feedback":
        raise UserError(
            'Say what to do: "visgrpo feedback summarize", "feedback collect" or "feedback replay".'
        )
    # "replay" is nearer to "report" than to "feedback replay", which it is.
    meant = [name for name in commands() if name.split()[-1] == words[0]] or commands()
    raise UserError(f'Unknown command "{words[0]}". {nearest(words[0], meant)}')


def _is_said_elsewhere(message: str) -> bool:
    if "torch" not in sys.modules:  # no process has met another yet: the words are the same
        return os.environ.get("RANK", "0") != "0"
    from visgrpo.training.processes import is_said_elsewhere

    return is_said_elsewhere(message)


def _quiet_libraries() -> None:
    """Say nothing that does not concern the user; never send anything anywhere."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _load(place: Any) -> Any:
    return resolve_name(place) if isinstance(place, str) else place
