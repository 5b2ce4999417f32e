"""The command line: finds the command, calls its recipe, turns mistakes into one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Any

from visgrpo import feedback
from visgrpo.arguments import parse
from visgrpo.errors import Interrupted, UserError, nearest, printable
from visgrpo.tasks.task import TASKS, Place, train
from visgrpo.terminal import say, show

USER_ERROR, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Command:
    """A command: its options, the function that does the work, and what comes without a flag.

    Options and function may be named as "module:attribute", which is loaded when it is used.
    """

    about: str
    config: str | type
    function: str | Callable[[Any], Any]
    positional: tuple[str, ...] = ()


def task_command(name: str) -> Command:
    """Return the command that trains by a task."""
    task = TASKS[name]
    options = task.options_at if isinstance(task, Place) else task.options
    return Command(task.about, options, train)


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "the whole story on built-in data, in minutes",
        "visgrpo.tasks.options:DemoConfig",
        "visgrpo.tasks.demo:demo",
    ),
    "clip": task_command("clip"),
    "representation": task_command("representation"),
    "segmentation": task_command("segmentation"),
    "language": task_command("language"),
    "generate": Command(
        "complete a PROMPT with a language MODEL",
        "visgrpo.tasks.language.options:GenerateConfig",
        "visgrpo.tasks.language.use:generate_text",
        positional=("model", "prompt"),
    ),
    "join": Command(
        "join a vision tower and a language model to one that sees",
        "visgrpo.tasks.vlm.options:JoinConfig",
        "visgrpo.tasks.vlm.use:join_models",
    ),
    "vlm": task_command("vlm"),
    "pretrain clip": task_command("pretrain clip"),
    "pretrain backbone": task_command("pretrain backbone"),
    **{name: Command(*row) for name, row in feedback.COMMANDS.items()},
    "sweep": Command(
        "train with many settings and seeds: one table, mean ± spread",
        "visgrpo.tasks.sweep_plan:SweepConfig",
        "visgrpo.tasks.sweep:sweep",
        positional=("command_words",),
    ),
    "evaluate": Command(
        "evaluate a saved MODEL on any data set",
        "visgrpo.tasks.use_options:EvaluateConfig",
        "visgrpo.tasks.use:evaluate",
        positional=("model",),
    ),
    "predict": Command(
        "classify, segment or ask about image files: predict MODEL IMAGE…",
        "visgrpo.tasks.use_options:PredictConfig",
        "visgrpo.tasks.use:predict",
        positional=("model", "images"),
    ),
    "report": Command(
        "write the page and plots of a RUN again",
        "visgrpo.tasks.options:ReportConfig",
        "visgrpo.tasks.pages:report",
        positional=("run",),
    ),
    "compare": Command(
        "put several RUNs on one page",
        "visgrpo.tasks.options:CompareConfig",
        "visgrpo.tasks.pages:compare",
        positional=("runs",),
    ),
}


def commands() -> dict[str, Command]:
    """Return all commands: those above, and tasks that were registered elsewhere."""
    return {**COMMANDS, **{name: task_command(name) for name in TASKS if name not in COMMANDS}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 2 for the user's mistakes, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        show(_overview())
        return
    if words[0] == "--version":
        show(f"visgrpo {version('visgrpo')}")
        return
    try:
        name, rest = _split_command(words)
        command = commands()[name]
        config = parse(_load(command.config), name, rest, command.positional)
        _quiet_libraries()
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
            "visgrpo COMMAND --help lists the options of a command.",
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
    raise UserError(f'Unknown command "{words[0]}". {nearest(words[0], commands())}')


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
