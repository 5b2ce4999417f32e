"""The command line: parses, calls a recipe, turns mistakes into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visgrpo.errors import UserError, nearest

USER_ERROR, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Command:
    """A command: its options, the function that does the work, and what comes without a flag."""

    about: str
    config: str
    function: str
    positional: tuple[str, ...] = ()  # settings given without a flag; the last may take several


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "the whole story on built-in data, in minutes",
        "visgrpo.recipes.configs:DemoConfig",
        "visgrpo.recipes.demo:demo",
    ),
    "clip": Command(
        "fine-tune a CLIP classifier with rewards",
        "visgrpo.recipes.configs:ClipConfig",
        "visgrpo.recipes.clip:train_clip",
    ),
    "pretrain clip": Command(
        "pre-train a small CLIP from random weights",
        "visgrpo.recipes.configs:PretrainClipConfig",
        "visgrpo.recipes.pretrain_clip:pretrain_clip",
    ),
    "evaluate": Command(
        "evaluate a saved MODEL on any data set",
        "visgrpo.recipes.configs:EvaluateConfig",
        "visgrpo.recipes.evaluate:evaluate",
        positional=("model",),
    ),
    "predict": Command(
        "classify image files: predict MODEL IMAGE…",
        "visgrpo.recipes.configs:PredictConfig",
        "visgrpo.recipes.predict:predict",
        positional=("model", "images"),
    ),
    "report": Command(
        "write the page and plots of a RUN again",
        "visgrpo.recipes.configs:ReportConfig",
        "visgrpo.recipes.pages:report",
        positional=("run",),
    ),
    "compare": Command(
        "put several RUNs on one page",
        "visgrpo.recipes.configs:CompareConfig",
        "visgrpo.recipes.pages:compare",
        positional=("runs",),
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 2 for the user's mistakes, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if words[0] == "--version":
        print(f"visgrpo {version('visgrpo')}")
        return
    try:
        name, rest = _split_command(words)
        config = parse(name, rest)
        _quiet_libraries()
        _load(COMMANDS[name].function)(config)
    except UserError as error:
        print(f"visgrpo: {error}", file=sys.stderr)
        details = getattr(error, "details", "")
        if details:
            print(details, file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("visgrpo: stopped at once; nothing since the last checkpoint is kept.")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if type(error).__name__ != "Interrupted":  # its class lives behind heavy imports
            raise
        print(
            f"visgrpo: {error}; go on with: visgrpo {name} --config "
            f"{error.run}/config.yaml --resume",  # type: ignore[attr-defined]
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def parse(name: str, words: Sequence[str]) -> Any:
    """Return the config of a command from its words: defaults, then --config FILE, then flags.

    Raises:
        UserError: for whatever cannot be understood.
        SystemExit: with code 0, after --help.
    """
    import tyro

    command = COMMANDS[name]
    config_class: Any = _load(command.config)
    file, words = _take_config_file(list(words))
    flags = _with_flags(command, words)
    # A file is turned into flags, so that one parser checks both and the later flags win.
    flags = [*_flags_of_file(file, config_class), *flags] if file else flags
    problems = io.StringIO()
    try:
        with contextlib.redirect_stderr(problems), _wide_terminal(flags):
            return tyro.cli(config_class, prog=f"visgrpo {name}", args=flags)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(problems.getvalue(), name, flags, config_class)) from None


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
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
        if name in COMMANDS:
            return name, words[length:]
    wanted = words[0]
    if wanted == "pretrain":
        raise UserError('Say what to pre-train: "visgrpo pretrain clip".')
    raise UserError(f'Unknown command "{wanted}". {nearest(wanted, COMMANDS)}')


def _take_config_file(words: list[str]) -> tuple[Path | None, list[str]]:
    """Take --config FILE out of the words. A resumed run's own settings are its config."""
    for position, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            inline = word.partition("=")[2]
            if not inline and position + 1 == len(words):
                raise UserError("--config needs a file: --config settings.yaml")
            file = Path(inline or words[position + 1])
            return file, words[:position] + words[position + (1 if inline else 2) :]
    if "--resume" in words and "--output" in words[:-1]:
        saved = Path(words[words.index("--output") + 1]) / "config.yaml"
        if saved.exists():
            return saved, words
    return None, words


def _flags_of_file(file: Path, config_class: type) -> list[str]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise UserError(f"--config {file} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file} must hold lines of the form option: value.")
    for name in ("recipe", "versions"):  # a run's config.yaml records them; they are no options
        values.pop(name, None)
    known = {field.name for field in fields(config_class)}
    flags: list[str] = []
    for key, value in values.items():
        option = str(key).replace("-", "_")
        if option not in known:
            raise UserError(f'--config {file}: unknown option "{key}". {nearest(option, known)}')
        flags += _flag(option, value)
    return flags


def _flag(option: str, value: Any) -> list[str]:
    name = "--" + option.replace("_", "-")
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [name, *map(str, value)]
    return [name, str(value)]


def _with_flags(command: Command, words: list[str]) -> list[str]:
    """Give the leading words without a flag the names that the command has for them."""
    bare = 0
    while bare < len(words) and not words[bare].startswith("-"):
        bare += 1
    if not command.positional:
        if bare:
            raise UserError(f'Unexpected "{words[0]}": options start with "--".')
        return words
    flags: list[str] = []
    leading = words[:bare]
    for position, name in enumerate(command.positional):
        last = position == len(command.positional) - 1
        taken = leading[position:] if last and name.endswith("s") else leading[position:][:1]
        if taken:
            flags += [f"--{name}", *taken]
    if bare > len(command.positional) and not command.positional[-1].endswith("s"):
        raise UserError(f'Unexpected "{leading[len(command.positional)]}".')
    return flags + words[bare:]


def _one_line(text: str, name: str, flags: list[str], config_class: type) -> str:
    """Turn the parser's boxed message into one line; for an unknown option name the nearest."""
    known = {field.name.replace("_", "-") for field in fields(config_class)}
    known |= {f"no-{option}" for option in known}
    for flag in flags:
        option = flag.partition("=")[0].removeprefix("--").replace("_", "-")
        if flag.startswith("--") and option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"Did you mean --{close[0]}?" if close else f"See visgrpo {name} --help."
            return f"unknown option {flag.partition('=')[0]}. {hint}"
    body = text.split("────", 2)
    words = re.sub(r"[╭╮╰╯│─]", " ", "".join(body[1:2] or body))
    words = re.sub(r"^\s*(Parsing error|Invalid choice|Missing value|\S+ error)\s", "", words)
    lines = [line.strip() for line in text.splitlines() if line.startswith("│")]
    kept = []
    for line in lines:
        inside = line.strip("│ ").strip()
        if set(inside) <= {"─"}:
            break
        kept.append(inside)
    return f"{' '.join(kept) or words.strip()} See visgrpo {name} --help."


@contextlib.contextmanager
def _wide_terminal(flags: Sequence[str]) -> Any:
    """Keep the parser from wrapping its messages, which become one line; help stays as it is."""
    if "--help" in flags or "-h" in flags:
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _quiet_libraries() -> None:
    """Say nothing that does not concern the user; never send anything anywhere."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
