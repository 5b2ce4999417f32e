"""Hook of mkdocs: writes the references, and sends links out of docs/ to the files' names."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made: every option of every command, every public name."""
    for name, text in (("options", options_page()), ("api", api_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn links to files that are not part of the site, such as ../examples/x.py, to names."""
    link = r"\[([^\]]+)\]\((?:\.\./)+(?!algorithms|results)([^)#]+)[^)]*\)"
    return re.sub(link, _outside, markdown)


def _outside(found: re.Match[str]) -> str:
    text, target = found.groups()
    inside = target.endswith(".md") and "/" not in target and not target[0].isupper()
    return found.group() if inside else f"{text} (`{target}`)"


def options_page() -> str:
    from visgrpo.arguments import takes
    from visgrpo.cli import COMMANDS

    parts = ["# Every option of every command\n"]
    for name, command in COMMANDS.items():
        module, _, attribute = str(command.config).partition(":")
        options = takes(getattr(import_module(module), attribute))
        parts += [f"## visgrpo {name}\n", f"{command.about}\n"]
        parts += ["| option | default | |", "|---|---|---|"]
        for key, option in options.items():
            default = "" if option.default in (None, ()) else f"`{option.default}`"
            words = " ".join(option.declared.help.split()).replace("|", "\\|")
            if isinstance(option.of, tuple):
                words += " One of " + ", ".join(f"`{word}`" for word in option.of) + "."
            parts.append(f"| `--{key.replace('_', '-')}` | {default} | {words} |")
        parts.append("")
    return "\n".join(parts)


def api_page() -> str:
    import visgrpo

    found = sorted(visgrpo.__all__)
    named = [getattr(visgrpo, name) for name in found]
    places = [
        f"::: {value.__module__}.{name}"
        for name, value in zip(found, named, strict=True)
        if getattr(value, "__module__", "").startswith("visgrpo")
    ]
    return "\n\n".join(["# Every public name\n\n`from visgrpo import …`", *places]) + "\n"
