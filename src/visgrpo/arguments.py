"""From the words of a command line to a command's options: defaults, --config FILE, then flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from visgrpo.errors import UserError, nearest
from visgrpo.help import flag as _flag
from visgrpo.help import help_text
from visgrpo.options import Declared, Options, declared, options_of
from visgrpo.terminal import note, show

T = TypeVar("T", bound=Options)
Given = dict[str, list[str]]  # by option, the words that are its value
# A run's config.yaml records these beside its options.
NOT_OPTIONS = ("recipe", "changed", "versions", "by_default")
_NUMBERS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Taken:
    """What an option takes on a command line.

    Attributes:
        of: the type of a value, or the words that it may be.
        count: of values; None for any number.
        or_none: whether None is a value.
    """

    default: Any
    declared: Declared
    of: type | tuple[str, ...]
    count: int | None
    or_none: bool

    def read(self, flag: str, words: Sequence[str]) -> Any:
        """Return the value that some words are, or raise UserError."""
        if self.or_none and list(words) == ["None"]:
            return None
        if self.count == 1 and not words:
            raise UserError(f"{flag} needs a value.")
        if self.count not in (None, len(words)):
            raise UserError(f"{flag} takes {self.count} values, not {len(words)}.")
        if self.separable:
            words = [part for word in words for part in word.split(",") if part or word == ""]
        values = tuple(self._one(flag, word) for word in words)
        return values[0] if self.count == 1 and not isinstance(self.default, tuple) else values

    @property
    def separable(self) -> bool:
        """Whether commas stand between values: "kl,reward"."""
        return self.count is None and (self.of is not str or self.declared.commas)

    def _one(self, flag: str, word: str) -> Any:
        if isinstance(self.of, tuple):
            if word not in self.of:
                raise UserError(f'{flag} cannot be "{word}". {nearest(word, self.of, most=99)}')
            return word
        if self.of is bool:
            if word not in ("True", "False"):
                raise UserError(f'{flag} takes no value such as "{word}": write {flag} or not.')
            return word == "True"
        try:
            return self.of(word)
        except ValueError:
            raise UserError(f'{flag} takes {_NUMBERS[self.of]}, not "{word}".') from None

    def shown(self) -> str:
        """Return what --help shows in the place of a value."""
        if isinstance(self.of, tuple):
            one = "{" + ",".join(self.of) + "}"
        else:
            one = {int: "N", float: "X", str: "TEXT"}.get(self.of, "")
        return f"[{one} …]" if self.count is None else " ".join([one] * self.count)


def parse(
    config_class: type[T], command: str, words: Sequence[str], positional: Sequence[str] = ()
) -> T:
    """Return the options that the words ask for.

    Args:
        command: its name, for messages.
        positional: options that may be given first and without a flag; the last of several words
            may be a list.

    Raises:
        UserError: for whatever cannot be understood.
        SystemExit: with code 0, after --help.
    """
    taken = takes(config_class)
    asked = {"help"} if list(words) == ["help"] else {"-h", "--help", "--help-all"} & set(words)
    if asked:
        everything = "--help-all" in asked
        show(help_text(config_class, taken, command, positional, all_options=everything))
        raise SystemExit(0)
    given: Given = {}
    old: list[str] = []
    try:
        given = _sorted_words(words, taken, positional, old)
        file = given.pop("config", [""])[-1] if "config" not in taken else ""
        typed = {name: taken[name].read(_flag(name), values) for name, values in given.items()}
    except UserError as problem:
        hint = "" if str(problem).startswith("--config") else f" See visgrpo {command} --help."
        raise UserError(f"{problem}{hint}") from None
    saved = Path(given["output"][-1], "config.yaml") if given.get("output") else None
    if file:
        origin = f"--config {file}"
        typed = {**_values(read_options(Path(file)), config_class, origin, old), **typed}
    elif typed.get("resume") and saved is not None and saved.exists():
        # A resumed run's own settings are its config.
        content = _read_yaml(saved)
        _check_recipe(given["output"][-1], content.get("recipe"), command)
        typed = {**_values(content, config_class, f"--config {saved}", []), **typed}
    for remark in dict.fromkeys(old):
        note(remark)
    return config_class(**typed)


def read_options(file: Path) -> dict[str, Any]:
    """Return the options in a YAML file, without what a run records beside them.

    Raises:
        UserError: for a file that cannot be read or holds no mapping.
    """
    return {key: value for key, value in _read_yaml(file).items() if key not in NOT_OPTIONS}


def from_file(config_class: type[T], options: Mapping[str, Any], origin: str) -> T:
    """Return a config of options as a YAML file holds them, also by names of earlier versions.

    Raises:
        UserError: for an option that the config does not have, and for one that is no value of it.
    """
    return config_class(**_values(options, config_class, origin, []))


def options_as_flags(
    options: Mapping[str, Any],
    config_class: type[Options],
    origin: str,
    given: Sequence[str] = (),
) -> list[str]:
    """Return options as flags for ``parse``, without those that the given flags name themselves.

    Args:
        origin: where the options stand, for messages.

    Raises:
        UserError: for an option that the config does not have.
    """
    taken = takes(config_class)
    by_hand = _sorted_words(given, taken, (), []) if given else {}
    flags: list[str] = []
    for name, words in _words_of(options, taken, origin, []).items():
        if name in by_hand:
            continue
        if taken[name].of is bool:
            flags.append(_flag(name) if words == ["True"] else _flag(f"no_{name}"))
        else:
            flags += [_flag(name), *words]
    return flags


def takes(config_class: type[Options]) -> dict[str, Taken]:
    """Return what each option of a command takes, by its name."""
    hints = get_type_hints(config_class)
    return {
        each.name: _taken(hints[each.name], each.default, declared(each))
        for each in options_of(config_class)
    }


def _taken(hint: Any, default: Any, says: Declared) -> Taken:
    count: int | None = 1
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        count = None if inner[-1] is Ellipsis else len(inner)
        kind = inner[0]
    of = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else kind
    return Taken(default, says, says.choices or says.of or of, count, default is None)


def _sorted_words(
    words: Sequence[str], taken: Mapping[str, Taken], positional: Sequence[str], old: list[str]
) -> Given:
    """Say of every word which option it is a value of.

    A list may be given at once or piece by piece; of another option the last value counts.

    Args:
        old: remarks on words of earlier versions are added to it.
    """
    given: Given = {}
    words, given = _without_leading(list(words), taken, positional)
    current = ""
    for word in words:
        if not word.startswith("--"):
            known = taken.get(current)
            several = known is not None and known.count != 1
            if not current or (given[current] and not several) or _is_switch(known):
                raise UserError(f'Unexpected "{word}": options start with "--".')
            given[current].append(word)
            continue
        flag, has_value, value = word.removeprefix("--").partition("=")
        name = flag.replace("-", "_")
        if name == "config" and name not in taken:
            current, given["config"] = name, [value] if has_value else []
            continue
        positive = name.removeprefix("no_")
        switched_off = name not in taken and _is_switch(taken.get(positive))
        current, meant = _meant(positive if switched_off else name, taken)
        if not current:
            hint = _nearest_option(flag, taken).replace('"', "").replace("mean ", "mean --")
            hint = f" {hint}" if "Did you" in hint else ""
            raise UserError(f"Unknown option --{flag.replace('_', '-')}.{hint}")
        if current != (positive if switched_off else name):
            now = " ".join([_flag(current), *([meant] if meant else [])])
            old.append(f"--{flag} is {now} now; the old word will go.")
        known = taken[current]
        if known.count is not None or current not in given:
            given[current] = []
        if _is_switch(known):
            if has_value:
                raise UserError(f"{_flag(current)} takes no value.")
            given[current] = [str(not switched_off)]
        elif meant is not None or has_value:
            given[current].append(value if has_value else str(meant))
    if given.get("config") == [] and "config" not in taken:
        raise UserError("--config needs a file: --config settings.yaml")
    for name, words in given.items():
        bare = taken[name].declared.bare if name in taken else None
        if not words and bare is not None:
            words.append(bare)
            old.append(f"{_flag(name)} takes a value now: {_flag(name)} {bare} is what it was.")
    return given


def _without_leading(
    words: list[str], taken: Mapping[str, Taken], positional: Sequence[str]
) -> tuple[list[str], Given]:
    """Give the leading words without a flag to the options that the command has for them."""
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    leading, given = words[:count], {}
    for name in positional:
        wanted = len(leading) if taken[name].count is None else 1
        if leading:
            given[name], leading = leading[:wanted], leading[wanted:]
    if leading:
        raise UserError(f'Unexpected "{leading[0]}": options start with "--".')
    return words[count:], given


def _meant(name: str, taken: Mapping[str, Taken]) -> tuple[str, str | None]:
    """Return the option of a name, perhaps of an earlier version, and the value that it meant."""
    if name in taken:
        return name, None
    for now, known in taken.items():
        if name in known.declared.was:
            return now, known.declared.was[name]
    return "", None


def _nearest_option(written: str, taken: Mapping[str, Taken]) -> str:
    """Return a hint at what was meant: --lr has the first letters of --learning-rate."""
    initials = ["".join(word[0] for word in name.split("_")) for name in taken]
    meant = dict(zip(reversed(initials), reversed(list(taken)), strict=True)).get(written)
    if meant and len(written) > 1:
        return f'Did you mean "{_flag(meant)[2:]}"?'
    return nearest(written.replace("_", "-"), [_flag(name)[2:] for name in taken])


def _is_switch(known: Taken | None) -> bool:
    return known is not None and known.of is bool


def _values(
    options: Mapping[str, Any], config_class: type[Options], origin: str, old: list[str]
) -> dict[str, Any]:
    taken = takes(config_class)
    found = {}
    for name, words in _words_of(options, taken, origin, old).items():
        try:
            found[name] = taken[name].read(_flag(name), words)
        except UserError as problem:
            raise UserError(f"{origin}: {problem}") from None
    return found


def _words_of(
    options: Mapping[str, Any], taken: Mapping[str, Taken], origin: str, old: list[str]
) -> Given:
    """Return the options of a file as the words of a command line would be."""
    given: Given = {}
    for key, value in options.items():
        if key in NOT_OPTIONS:
            continue
        written = str(key).replace("-", "_")
        name, meant = _meant(written, taken)
        if not name:
            raise UserError(f'{origin}: unknown option "{key}". {_nearest_option(str(key), taken)}')
        if name != written:
            if meant is not None and not value:
                continue  # a switch of an earlier version that was off
            old.append(f"{origin}: {key} is {_flag(name)[2:]} now; the old word will go.")
            value = meant if meant is not None else value
            given.setdefault(name, []).extend(_texts(value))
        elif isinstance(value, bool) and taken[name].declared.bare is not None:
            given[name] = [taken[name].declared.bare if value else "None"]  # type: ignore[list-item]
        else:
            given[name] = [*_texts(value), *given.get(name, [])]
    return given


def _texts(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _check_recipe(run: str, recipe: str | None, command: str) -> None:
    """Raise UserError where a run to go on with is another command's."""
    if recipe and recipe != command:
        raise UserError(
            f"{run} is a run of visgrpo {recipe}: go on with visgrpo {recipe} --resume --output "
            f"{run}"
        )


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month
        reason = " ".join(str(error).split())
        raise UserError(f"--config {file} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file} must hold lines of the form option: value.")
    return values
