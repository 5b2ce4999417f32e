"""How an option is declared, once: a field with its help, its range and its old words; one check.

Options stand in frozen dataclasses beside the part that takes them. A command's options are those
groups mixed into one class, with `override` where a command has another default or other words for
an option that it shares. Light to import: help and typos are answered without loading torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from visgrpo.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Declared:
    """What is declared of an option beside its type and default.

    Attributes:
        help: for --help.
        within: the numbers that it takes: "> 0", ">= 0", or an interval such as "(0, 1]", perhaps
            with a reason, as in "(0, 1]: no label may be left out".
        required: what to name where nothing was given.
        choices: the words that it may be, where they are fewer than its type says.
        of: the type of a value, where a command takes more than the field's type says.
        was: words of earlier versions that mean the same, with the value that one without a value
            stood for, or None.
        bare: the value that the option has where it is given without one.
        commas: whether several texts may stand in one word, with commas between.
        hidden: whether it is a setting of the part, but no option of this command.
        group: the heading of --help that it stands under.
    """

    help: str
    within: str = ""
    required: str = ""
    choices: tuple[str, ...] = ()
    of: type | None = None
    was: Mapping[str, str | None] = field(default_factory=dict)
    bare: str | None = None
    commas: bool = False
    hidden: bool = False
    group: str = ""


@dataclass(frozen=True)
class Override:
    """What a command says differently of an option that is declared elsewhere.

    Attributes:
        group: that declares it; None for a group that is mixed into the command's options.
    """

    group: type[Options] | None
    default: Any
    changes: Mapping[str, Any]


def option(default: Any = MISSING, help: str = "", **more: Any) -> Any:
    """Declare an option: the default of a dataclass's field. See `Declared` for the rest."""
    return field(default=default, metadata={"option": Declared(help, **more)})


def override(default: Any = MISSING, help: str | None = None, **more: Any) -> Any:
    """Declare another default, or other words, for an option that a mixed-in group declares.

    The field's annotation may give it another type.
    """
    return Override(None, default, more if help is None else {"help": help, **more})


def like(group: type[Options], default: Any = MISSING, help: str | None = None, **more: Any) -> Any:
    """Take a single option from a group that is not mixed in, in the same way."""
    return dataclasses.replace(override(default, help, **more), group=group)


class Options:
    """Options of a part or of a command, and the one check of them.

    Attributes:
        users: options that only some values of another option make use of: the other option, all
            of its values and, by option, those that do. See `users`.
        heading: that --help has over the options that a class declares; by default the first line
            of its docstring.
        common: of a command, the options that are most used, with spaces between, in the order
            of --help.
        example: of a command, a line to try.
    """

    users: ClassVar[Users | None] = None
    heading: ClassVar[str] = ""
    common: ClassVar[str] = ""
    example: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Turn every `override` into a field of its own, before dataclass collects them."""
        super().__init_subclass__()
        annotations = inspect.get_annotations(cls)
        first_line = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
        heading = {"group": vars(cls).get("heading", first_line)}
        for name, own in list(vars(cls).items()):
            if isinstance(own, Override):
                group: Any = own.group or _declaring(cls, name)
                before = group.__dataclass_fields__[name]
                annotations.setdefault(name, get_type_hints(group)[name])
                default = before.default if own.default is MISSING else own.default
                changes = {**(heading if own.group else {}), **own.changes}
            elif isinstance(own, dataclasses.Field) and "option" in own.metadata:
                before, default, changes = own, own.default, heading
            else:
                continue
            says = dataclasses.replace(before.metadata["option"], **changes)
            setattr(cls, name, field(default=default, metadata={"option": says}))
        # Fields stand in the order of the class's body, those that were taken from elsewhere too.
        body = [name for name in vars(cls) if name in annotations]
        rest = [name for name in annotations if name not in body]
        cls.__annotations__ = {name: annotations[name] for name in [*rest, *body]}

    def check(self) -> None:
        """Raise UserError for a value out of its range and for options that do not go together.

        Nothing is loaded.
        """
        listed = [(each, declared(each)) for each in options_of(type(self))]
        for each, says in listed:
            if says.required and not getattr(self, each.name):
                raise UserError(f"Name {says.required}")
        for each, says in listed:
            value = getattr(self, each.name)
            several = value if isinstance(value, tuple) else (value,)
            if says.within or any(isinstance(one, float) for one in several):
                check_within(self.flag(each.name), value, says.within or "(-inf, inf)")
        for problem in self.rules():
            raise UserError(problem)

    def rules(self) -> Iterator[str]:
        """Yield what is wrong with options together, the first to be said first."""
        yield from self.users.problems(self) if self.users else ()

    def idle(self, *rows: tuple[str, bool, str]) -> Iterator[str]:
        """Yield a problem for every option that is given although it is of no use.

        Args:
            rows: options with spaces between, whether they are of no use, and why.
        """
        given = self.given()
        for names, useless, reason in rows:
            yield from (
                f"{self.flag(name)} {reason}."
                for name in names.split()
                if useless and name in given
            )

    def given(self) -> list[str]:
        """Return the names of the options that are not at their default."""
        listed = options_of(type(self))
        return [each.name for each in listed if getattr(self, each.name) != each.default]

    def part(self, taker: type[T], **own: Any) -> T:
        """Return what takes some of these options, made of those it has by the same names.

        Args:
            own: what it takes besides, or instead.
        """
        return taker(**{**self.shared(taker), **own})

    def shared(self, taker: Any) -> dict[str, Any]:
        """Return the options that something takes by the same names."""
        names = [each.name for each in fields(taker)]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @classmethod
    def flag(cls, name: str) -> str:
        """Return an option as whoever changes it from its default writes it."""
        return ("--no-" if getattr(cls, name, None) is True else "--") + name.replace("_", "-")


@dataclass(frozen=True)
class Users:
    """Which values of one option make use of each of the others.

    Attributes:
        option: the one.
        values: all of its values.
        of: the values that make use of an option; all of them where it is not named.
    """

    option: str
    values: tuple[str, ...]
    of: Mapping[str, tuple[str, ...]]

    def use(self, value: str, name: str) -> bool:
        """Whether a value makes use of an option."""
        return value in self.of.get(name, self.values)

    def problems(self, options: Options) -> Iterator[str]:
        """Yield a problem for every option that is given and not made use of."""
        value = getattr(options, self.option)
        for name in options.given():
            users = self.of.get(name, self.values)
            if value not in users:
                yield (
                    f"{options.flag(name)} does not go with {options.flag(self.option)} {value}; "
                    f"it is for {', '.join(users)}."
                )


def users(option: str, values: tuple[str, ...], *rows: tuple[tuple[str, ...], str]) -> Users:
    """Return the table of rows that each name some values and, in one string, their options."""
    return Users(option, values, {name: some for some, names in rows for name in names.split()})


def options_of(options: type | Options) -> list[dataclasses.Field[Any]]:
    """Return the fields that are options of a command."""
    return [each for each in fields(options) if not declared(each).hidden]  # type: ignore[arg-type]


def declared(each: dataclasses.Field[Any]) -> Declared:
    """Return what is declared of an option."""
    found: Declared = each.metadata.get("option", Declared(""))
    return found


def check_within(flag: str, value: Any, within: str) -> None:
    """Raise UserError for a number, or one of several, outside a range; None may be anything."""
    interval, _, reason = within.partition(": ")
    for number in value if isinstance(value, tuple) else (value,):
        if number is None:
            continue
        if not math.isfinite(number):
            raise UserError(f"{flag} must be a finite number, not {number}.")
        if interval == "> 0":
            if number <= 0:
                raise UserError(f"{flag} must be above 0, not {number}.")
        elif interval == ">= 0":
            if number < 0:
                raise UserError(f"{flag} must not be negative, not {number}.")
        elif not _is_inside(number, interval):
            low, high = interval[1:-1].split(", ")
            symmetric = interval[0] + interval[-1] in ("()", "[]")
            where = f"between {low} and {high}" if symmetric else f"in {interval}"
            raise UserError(f"{flag} {number} must lie {where}{reason and f': {reason}'}.")


def _is_inside(number: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(", "))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def _declaring(cls: type, name: str) -> Any:
    """Return the class whose option a class overrides.

    Raises:
        TypeError: where there is none: an option must be declared somewhere.
    """
    for base in cls.__mro__[1:]:
        if name in getattr(base, "__dataclass_fields__", {}):
            return base
    raise TypeError(f"{cls.__name__}.{name} overrides an option that no group declares")
