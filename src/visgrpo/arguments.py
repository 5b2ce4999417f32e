"""From the words of a command line to a config: defaults, then --config FILE, then flags."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from visgrpo.errors import UserError, nearest

T = TypeVar("T")
# A run's config.yaml records these beside its options.
NOT_OPTIONS = ("recipe", "versions")
_FILE_HELP = "--config FILE takes options from YAML (option: value); flags override it."


def parse(
    config_class: type[T], command: str, words: Sequence[str], positional: Sequence[str] = ()
) -> T:
    """Return the config that the words ask for.

    Args:
        command: its name, for messages.
        positional: options that may be given first and without a flag; the last of several words
            may be a list.

    Raises:
        UserError: for whatever cannot be understood.
        SystemExit: with code 0, after --help.
    """
    import tyro

    file, words = _take_config_file(list(words), config_class, command)
    flags = _name_leading_words(words, positional)
    if file:
        # A file is turned into flags, so that one parser checks both.
        origin = f"--config {file}"
        flags = [*options_as_flags(read_options(file), config_class, origin, flags), *flags]
    flags = _with_whole_lists(flags, config_class)
    usage = " ".join(["visgrpo", command, *(name.upper() for name in positional)])
    file_help = "" if _reads_its_own_file(config_class) else _FILE_HELP
    about = f"{config_class.__doc__}\n\n{usage} [--option value …]. {file_help}".rstrip()
    asks_for_help = bool({"-h", "--help"} & set(flags))
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), _columns(None if asks_for_help else 2000):
            return tyro.cli(config_class, prog=usage, description=about, args=flags)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        problem = _unknown_option(flags, config_class) or _in_plain_words(
            _without_box(messages.getvalue())
        )
        raise UserError(f"{problem} See visgrpo {command} --help.") from None


def read_options(file: Path) -> dict[str, Any]:
    """Return the options in a YAML file, without what a run records beside them.

    Raises:
        UserError: for a file that cannot be read or holds no mapping.
    """
    return {key: value for key, value in _read_yaml(file).items() if key not in NOT_OPTIONS}


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {file} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file} must hold lines of the form option: value.")
    return values


def options_as_flags(
    options: Mapping[str, Any], config_class: type, origin: str, given: Sequence[str] = ()
) -> list[str]:
    """Return options as flags for ``parse``, without those that the given flags name themselves.

    Args:
        origin: where the options stand, for messages.

    Raises:
        UserError: for an option that the config does not have.
    """
    known = _options(config_class)
    given_options = {_option_of(word) for word in given if word.startswith("--")}
    flags: list[str] = []
    for key, value in options.items():
        option = str(key).replace("_", "-")
        if option not in known:
            raise UserError(f'{origin}: unknown option "{key}". {nearest(option, known)}')
        if option in given_options:
            continue
        if isinstance(value, bool):
            flags.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            flags += [f"--{option}", *map(str, value)]
        else:
            flags += [f"--{option}", str(value)]
    return flags


def _take_config_file(
    words: list[str], config_class: type, command: str
) -> tuple[Path | None, list[str]]:
    """Take --config FILE out of the words. A resumed run's own settings are its config."""
    for position, word in enumerate([] if _reads_its_own_file(config_class) else words):
        if word == "--config" or word.startswith("--config="):
            inline = word.partition("=")[2]
            if not inline and position + 1 == len(words):
                raise UserError("--config needs a file: --config settings.yaml")
            file = Path(inline or words[position + 1])
            return file, words[:position] + words[position + (1 if inline else 2) :]
    output = _last_value(words, "--output")
    if "--resume" in words and output:
        saved = Path(output) / "config.yaml"
        if saved.exists():
            _check_recipe(output, _read_yaml(saved).get("recipe"), command)
            return saved, words
    return None, words


def _check_recipe(run: str, recipe: str | None, command: str) -> None:
    """Raise UserError where a run to go on with is another command's."""
    if recipe and recipe != command:
        raise UserError(
            f"{run} is a run of visgrpo {recipe}: go on with visgrpo {recipe} --resume --output "
            f"{run}"
        )


def _last_value(words: Sequence[str], flag: str) -> str | None:
    """Return what the last "--flag VALUE" or "--flag=VALUE" says, None without one."""
    value = None
    for word, following in zip(words, [*words, None][1:], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _name_leading_words(words: list[str], positional: Sequence[str]) -> list[str]:
    """Give the leading words without a flag the names that the command has for them."""
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    leading, flags = words[:count], []
    for position, name in enumerate(positional):
        takes_several = name.endswith("s")
        taken = leading[position:] if takes_several else leading[position : position + 1]
        if taken:
            flags += [f"--{name}", *taken]
    takes_all = bool(positional) and positional[-1].endswith("s")
    if count > len(positional) and not takes_all:
        raise UserError(f'Unexpected "{leading[len(positional)]}": options start with "--".')
    return flags + words[count:]


def _unknown_option(flags: Sequence[str], config_class: type) -> str | None:
    """Name the first flag that is no option, with the nearest one."""
    known = _options(config_class)
    for flag in flags:
        option = flag.partition("=")[0].removeprefix("--").replace("_", "-")
        if flag.startswith("--") and _option_of(flag) not in known:
            close = nearest(option, known)
            hint = close.replace('"', "", 1).replace('"', "", 1) if "Did you" in close else ""
            hint = hint.replace("Did you mean ", "Did you mean --")
            return f"Unknown option --{option}. {hint}".rstrip()
    return None


def _options(config_class: Any) -> list[str]:
    return [field.name.replace("_", "-") for field in fields(config_class)]


def _reads_its_own_file(config_class: type) -> bool:
    """Whether --config is an option of the command itself: its file holds another one's options."""
    return "config" in _options(config_class)


def _with_whole_lists(flags: Sequence[str], config_class: type) -> list[str]:
    """Bring the values of an option that is a list together: "--metric a --metric b" is "a b"."""
    lists = _list_options(config_class)
    parts: list[list[str]] = []  # each an option and its values
    first: dict[str, list[str]] = {}
    for word in flags:
        option = _option_of(word) if word.startswith("--") else ""
        if option not in lists:
            if option or not parts:
                parts.append([])
            parts[-1].append(word)
            continue
        given = first.get(option)
        if given is None:
            given = first[option] = [f"--{option}"]
        parts.append(given)  # what follows are its values
        if "=" in word:
            given.append(word.partition("=")[2])
    unique = {id(part): part for part in parts}
    return [word for part in unique.values() for word in part]


def _list_options(config_class: Any) -> set[str]:
    """Options that take any number of values."""
    found = set()
    for name, hint in get_type_hints(config_class).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if any(get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis for kind in kinds):
            found.add(name.replace("_", "-"))
    return found


def _option_of(flag: str) -> str:
    """Return the option that "--flag", "--no-flag" or "--flag=value" is about."""
    name = flag.partition("=")[0].removeprefix("--").replace("_", "-")
    return name.removeprefix("no-")


def _without_box(text: str) -> str:
    """Return the first paragraph of the parser's boxed message as one line."""
    first = re.split(r"[│|]\s*[─-]{4,}", text.split("\n", 1)[-1], maxsplit=1)[0]
    line = " ".join(re.sub(r"[╭╮╰╯│─]|^\||\|$|[+|]?-{4,}[+|]?", " ", first, flags=re.M).split())
    return line if line.endswith((".", "?")) else f"{line}."


def _in_plain_words(problem: str) -> str:
    """Say what an option takes, where the parser says which Python types it tried."""
    choice = re.match(r"invalid choice '(.*?)' for argument '(--\S+?)'.*?\((.*)\)", problem)
    if choice:
        word, flag, choices = choice.groups()
        known = re.findall(r"[\w-]+", choices)
        return f'{flag} cannot be "{word}". {nearest(word, known, most=len(known))}'
    value = re.match(r"Error parsing (--\S+?): .*?(?:from \[|: )'(.*?)'", problem)
    if value:
        flag, word = value.groups()
        kind = "a whole number" if "INT" in problem or "int()" in problem else "a number"
        return f'{flag} takes {kind}, not "{word}".'
    return problem


@contextlib.contextmanager
def _columns(width: int | None) -> Iterator[None]:
    """Make the terminal as wide as a message, which the parser would wrap; None leaves it."""
    before = os.environ.get("COLUMNS")
    if width is not None:
        os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is not None:
            os.environ["COLUMNS"] = before
        elif width is not None:
            del os.environ["COLUMNS"]
