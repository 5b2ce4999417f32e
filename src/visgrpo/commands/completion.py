"""Completion of commands, options and their words: `visgrpo completion bash|zsh|fish`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.arguments import takes
from visgrpo.commands.table import commands, options_of_command
from visgrpo.help import flag
from visgrpo.options import Options, option
from visgrpo.terminal import show

Shell = Literal["bash", "zsh", "fish"]
Flags = dict[str, tuple[str, ...]]  # by flag, the words that it takes; none for anything

_BASH = """\
_visgrpo() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words i
  local command=${{COMP_WORDS[1]}}
  case "$command ${{COMP_WORDS[2]}}" in {two}) command="$command ${{COMP_WORDS[2]}}";; esac
  for ((i = COMP_CWORD - 1; i > 1; i--)); do
    [[ ${{COMP_WORDS[i]}} == --* ]] && prev=${{COMP_WORDS[i]}} && break
  done
  if ((COMP_CWORD == 1)); then words="{commands}"
  elif [[ $cur == --* ]]; then case $command in
{flags}
  esac
  else case "$command $prev" in
{choices}
  esac
  case $COMP_CWORD-${{COMP_WORDS[1]}} in
{second}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _visgrpo visgrpo"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class CompletionConfig(Options):
    """Print a script that completes commands, options and their words in a shell.

    bash: put  source <(visgrpo completion bash)  into ~/.bashrc; zsh: the same into ~/.zshrc.
    fish: visgrpo completion fish > ~/.config/fish/completions/visgrpo.fish
    """

    example = "source <(visgrpo completion bash)"

    shell: Shell | None = option(None, "The shell.", required="the shell: bash, zsh or fish")


def completion(config: CompletionConfig) -> str:
    """Print the script of a shell and return it."""
    config.check()
    known = {name: _flags(name) for name in commands()}
    text = "\n".join(_fish(known)) if config.shell == "fish" else _bash(known)
    text = _ZSH + text if config.shell == "zsh" else text
    show(text)
    return text


def _flags(name: str) -> Flags:
    flags: Flags = {"--help": (), "--help-all": (), "--config": ()}
    for each, known in takes(options_of_command(name)).items():
        flags[flag(each)] = known.of if isinstance(known.of, tuple) else ()
        if known.default is True:
            flags[flag(f"no_{each}")] = ()
    return flags


def _bash(known: dict[str, Flags]) -> str:
    return _BASH.format(
        two="|".join(f'"{name}"' for name in known if " " in name),
        commands=" ".join(_firsts(known)),
        flags="\n".join(
            f'    "{name}") words="{" ".join(flags)}";;' for name, flags in known.items()
        ),
        choices="\n".join(
            f'    "{name} {each}") words="{" ".join(words)}";;'
            for name, flags in known.items()
            for each, words in flags.items()
            if words
        ),
        second="\n".join(
            f'    2-{first}) words="{" ".join(seconds)}";;'
            for first, seconds in _firsts(known).items()
            if seconds
        ),
    )


def _fish(known: dict[str, Flags]) -> Iterator[str]:
    for first, seconds in _firsts(known).items():
        about = commands()[first].about if first in known else ""
        yield f"complete -c visgrpo -n __fish_use_subcommand -f -a {first} -d {_quoted(about)}"
        for second in seconds:
            chosen = _quoted(f"__fish_seen_subcommand_from {first}")
            yield f"complete -c visgrpo -n {chosen} -f -a {second}"
    for name, flags in known.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        for each, words in flags.items():
            takes_words = f" -x -a {_quoted(' '.join(words))}" if words else ""
            yield f"complete -c visgrpo -n {_quoted(seen)} -l {each[2:]}{takes_words}"


def _firsts(known: dict[str, Flags]) -> dict[str, list[str]]:
    """The first words of commands, with the second words where there are any."""
    found: dict[str, list[str]] = {}
    for first, _, second in (name.partition(" ") for name in known):
        found.setdefault(first, []).extend([second] if second else [])
    return found


def _quoted(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"
