"""The commands: what each is for, its options, and what does its work. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from visgrpo import feedback
from visgrpo.tasks.task import TASKS, Place, train


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


# In the order of a first day: look, train, learn from people, use, keep house.
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
        positional=("vision", "language"),
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
    "features": Command(
        "write what a backbone MODEL makes of images into a file",
        "visgrpo.tasks.use_options:FeaturesConfig",
        "visgrpo.tasks.backbone.features:write_features",
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
    "runs": Command(
        "a table of the runs that lie in a FOLDER",
        "visgrpo.commands.runs:RunsConfig",
        "visgrpo.commands.runs:runs",
        positional=("folder",),
    ),
    "init": Command(
        "print a template of all options of a COMMAND, for --config",
        "visgrpo.commands.init:InitConfig",
        "visgrpo.commands.init:init",
        positional=("command_words",),
    ),
    "info": Command(
        "versions, devices, extras and caches on this machine",
        "visgrpo.commands.info:InfoConfig",
        "visgrpo.commands.info:info",
    ),
    "completion": Command(
        "print what completes commands and options in a SHELL",
        "visgrpo.commands.completion:CompletionConfig",
        "visgrpo.commands.completion:completion",
        positional=("shell",),
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


def options_of_command(name: str) -> Any:
    """Return the class of a command's options."""
    config = commands()[name].config
    return resolve_name(config) if isinstance(config, str) else config
