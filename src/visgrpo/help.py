"""What --help says of a command: its options in groups, most used first, and an example."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from visgrpo.options import Options

if TYPE_CHECKING:
    from visgrpo.arguments import Taken

_FILE_HELP = "--config FILE takes options from YAML (option: value); flags override it."
MOST_USED, OTHERS = "Most used", "Options"
_ORDER = (MOST_USED, OTHERS, "Data", "Model", "Method and rewards", "Training")  # others follow


def help_text(
    config_class: type[Options],
    taken: Mapping[str, Taken],
    command: str,
    positional: Sequence[str],
    *,
    all_options: bool,
) -> str:
    """Return the text of --help, or of --help-all, which explains the less used options too."""
    width = min(shutil.get_terminal_size().columns, 100) - 2
    usage = " ".join(["visgrpo", command, *(name.upper() for name in positional)])
    parts = [f"usage: {usage} [--option value …]", inspect.getdoc(config_class) or ""]
    if config_class.example:
        parts.append(f"Example:\n  {config_class.example}")
    if "config" not in taken:
        parts.append(_FILE_HELP)
    groups = grouped(config_class, taken)
    for heading, names in groups.items():
        if all_options or MOST_USED not in groups or heading == MOST_USED:
            lines = [line for name in names for line in _explained(name, taken[name], width)]
            parts.append("\n".join([f"{heading}:", *lines]))
    if not all_options and MOST_USED in groups:
        lines = [f"More options; visgrpo {command} --help-all explains them:"]
        for heading, names in groups.items():
            if heading != MOST_USED:
                flags = " ".join(map(flag, names))
                lines.append(_wrapped(f"{heading}: {flags}", width, "  ", "      "))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def grouped(config_class: type[Options], taken: Mapping[str, Taken]) -> dict[str, list[str]]:
    """Return the names of options by their heading, in the order that they are shown in."""
    common = [name for name in config_class.common.split() if name in taken]
    own = (config_class.__doc__ or "").partition("\n")[0].rstrip(".")
    groups: dict[str, list[str]] = {**{heading: [] for heading in _ORDER}, MOST_USED: common}
    for name, known in taken.items():
        if name not in common:
            heading = known.declared.group
            groups.setdefault(OTHERS if heading in ("", own) else heading, []).append(name)
    return {heading: names for heading, names in groups.items() if names}


def flag(name: str) -> str:
    """Return the flag of an option."""
    return "--" + name.replace("_", "-")


def default_text(known: Taken) -> str:
    """Return an option's default as it is written; empty where there is none to show."""
    default = known.default
    if isinstance(default, bool) or default in (None, "", ()):
        return ""
    return " ".join(map(str, default if isinstance(default, tuple) else [default]))


def _explained(name: str, known: Taken, width: int) -> Iterator[str]:
    off = f", {flag(f'no_{name}')}" if known.default is True else ""
    line, text = f"  {flag(name)}{off} {known.shown()}", known.declared.help
    if isinstance(known.of, tuple) and len(line) > width:
        line, text = f"  {flag(name)} WORD", f"{text} One of {', '.join(known.of)}."
    yield line.rstrip()
    default = default_text(known)
    text += f" (default: {default})" if default else ""
    yield _wrapped(" ".join(text.split()), width, " " * 6, " " * 6)


def _wrapped(text: str, width: int, first: str, later: str) -> str:
    # A flag must not be torn at its hyphens.
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
    )
