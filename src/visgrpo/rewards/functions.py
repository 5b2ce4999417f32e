"""The functions that users write as rewards: found, called, and their failures put in one line."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError, nearest
from visgrpo.rewards.labels import Scope
from visgrpo.rewards.tables import check_file, nearest_or


class RewardError(UserError):
    """The user's own reward raised; `details` is their traceback, to be printed after the line."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class UserFunction:
    """A user's function, called with some arguments by position and, by name, with what it accepts.

    Raises:
        UserError: Python cannot read the function's signature.
    """

    name: str
    function: Callable[..., Any]
    signature: inspect.Signature = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            signature = inspect.signature(self.function)
        except ValueError as error:
            raise UserError(
                f'Reward "{self.name}" has no readable signature: wrap it in a def.'
            ) from error
        object.__setattr__(self, "signature", signature)  # the dataclass is frozen

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """What it can be given, in order."""
        return list(self.signature.parameters.values())

    def check(self, available: Iterable[str], *, positions: int = 0) -> None:
        """Raise `UserError` if it needs an argument by name that nothing will supply.

        Args:
            available: the names that a call will offer.
            positions: how many arguments a call gives by position.
        """
        names = list(available)
        for parameter in self.parameters[positions:]:
            optional = parameter.default is not parameter.empty or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            if not optional and parameter.name not in names:
                raise UserError(
                    f'Reward "{self.name}" needs "{parameter.name}", which is not a column of the '
                    f"data. {nearest(parameter.name, names)}"
                )

    def __call__(self, *arguments: Any, offered: Mapping[str, Any]) -> Any:
        """Call it with `arguments` and those of `offered` that it names (all, if it has **kwargs).

        It gets copies: one that sorts, pops or writes in place disturbs nobody else.

        Raises:
            UserError: it needs something that is not offered, or it raised one itself.
            RewardError: it raised anything else.
        """
        self.check(offered, positions=len(arguments))
        try:
            accepted = self._accepted(len(arguments), offered)
            own = {name: _copied(value) for name, value in accepted.items()}
            result = self.function(*map(_copied, arguments), **own)
            return _awaited(result) if inspect.isawaitable(result) else result
        except UserError:
            raise
        except Exception as error:  # the boundary to foreign code: whatever it raises is theirs
            raise raised(f'Reward "{self.name}"', error) from error

    def _accepted(self, positions: int, offered: Mapping[str, Any]) -> dict[str, Any]:
        given = {parameter.name for parameter in self.parameters[:positions]}
        named = self.parameters[positions:]
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in named):
            return {name: value for name, value in offered.items() if name not in given}
        return {p.name: offered[p.name] for p in named if p.name in offered}


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The loop of all rewards that are awaited: what one opened in a call lasts to the next."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def _awaited(result: Awaitable[Any]) -> Any:
    async def whole() -> Any:
        return await result

    return asyncio.run_coroutine_threadsafe(whole(), _loop()).result()


def _copied(value: Any) -> Any:
    """Return a value that may be changed; rows that share one object get one each."""
    if isinstance(value, list):
        return [deepcopy(row) for row in value]
    return value.clone() if isinstance(value, Tensor) else deepcopy(value)


def user_function(
    spec: str | Callable[..., Any], built_in: Iterable[str]
) -> tuple[str, Callable[..., Any]]:
    """Name and function of a reward that is not built in: a callable, or where to import it.

    Raises:
        UserError: it is written like no function, or there is none at that place; with the nearest.
        RewardError: importing it raised.
    """
    if not isinstance(spec, str):
        return getattr(spec, "__name__", type(spec).__name__), spec
    target, _, function = spec.rpartition(":")
    # "cots:costs.csv" is a misspelt built-in: what follows its colon cannot name a function.
    if target and (function.isidentifier() or target.endswith(".py")):
        return function, load_function(spec)
    name = spec.partition(":")[0]
    raise UserError(
        f'Unknown reward "{name}". {nearest(name, built_in)} '
        'A function of your own is written "file.py:function".'
    )


def check_functions(specs: Iterable[str]) -> None:
    """Look for the functions in files among some rewards, before anything that takes time.

    A file is not run yet, unless it seems not to have the function.

    Raises:
        UserError, RewardError: as `load_function`.
    """
    for spec in specs:
        file, _, name = spec.rpartition(":")
        if file.endswith(".py") and name not in _words_of(Path(file).expanduser()):
            load_function(spec)


def _words_of(path: Path) -> set[str]:
    """Return the words of a file's code; of one that cannot be read, none."""
    try:
        return set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return set()


def load_function(spec: str) -> Callable[..., Any]:
    """Import "module:function" or "path/to/file.py:function".

    The file's folder (for a module, the working directory) is appended to `sys.path`, so that a
    reward can import its neighbours and cannot hide an installed package.

    Raises:
        UserError: no such file, module or function (with the nearest name), or not a function.
        RewardError: importing it raised; with the traceback.
    """
    target, _, name = spec.rpartition(":")
    path = Path(target).expanduser()
    is_file = path.suffix == ".py" or len(path.parts) > 1
    module = _load_file(path) if is_file else _load_module(target)
    if not hasattr(module, name):
        functions = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and key[0] != "_"
        ]
        tail = nearest_or(name, functions, "It defines no function.")
        raise UserError(f'"{target}" has no function "{name}". {tail}')
    function = getattr(module, name)
    if not callable(function):
        raise UserError(f'"{spec}" is not a function: it is of type {type(function).__name__}.')
    return function


def _load_file(path: Path) -> ModuleType:
    check_file(path, "Reward file")
    path = path.resolve()
    _append_to_path(path.parent)
    name = f"visgrpo_reward_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f'Reward file "{path}" is not a Python file: its name must end in .py.')
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the boundary to foreign code: whatever it raises is theirs
        raise raised(f'Reward file "{path}"', error) from error
    return module


def _load_module(name: str) -> ModuleType:
    _append_to_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise raised(f'Module "{name}"', error) from error
        parent, _, leaf = missing.rpartition(".")
        places = getattr(sys.modules[parent], "__path__", []) if parent else [str(Path.cwd())]
        found = [module.name for module in pkgutil.iter_modules(places)]
        tail = nearest_or(leaf, found, f'"{parent or Path.cwd()}" holds no Python module.')
        raise UserError(f'Module "{missing}" not found. {tail}') from error
    except Exception as error:  # the boundary to foreign code: whatever it raises is theirs
        raise raised(f'Module "{name}"', error) from error


def _append_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def raised(what: str, error: Exception) -> RewardError:
    """The error as one line, with the traceback from where the user's own code begins."""
    frames = error.__traceback__
    while frames is not None and (
        frames.tb_frame.f_code.co_filename in (__file__, importlib.__file__)
        or frames.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frames = frames.tb_next
    details = "".join(traceback.format_exception(type(error), error, frames))
    reason = " ".join(str(error).split())
    return RewardError(f"{what} raised {type(error).__name__}: {reason}", details)


ARGUMENTS = ("label", "probabilities", "classes")
"""Keyword arguments that every reward can take besides the data set's columns."""


@dataclass(frozen=True)
class CustomReward:
    """A user's function as a `LabelReward`.

    The function is given the outputs (N, G) as its first argument and, by name, only those of
    `label`, `probabilities`, `classes` and the columns that its signature accepts (all of them if
    it has **kwargs). Tensors stay on their device. It may return a tensor, an array or a nested
    list of shape (N, G). Set `function.scope = "batch"` if all outputs of an image earn the same,
    and "mask" if outputs are whole masks of class ids (N, G, H, W); labels are (N, H, W) then.

    Raises:
        UserError: the function cannot take the outputs, or its scope is unknown.
    """

    name: str
    function: Callable[..., Any]
    scope: Scope = field(init=False)
    _caller: UserFunction = field(init=False, repr=False)

    def __post_init__(self) -> None:
        caller = UserFunction(self.name, self.function)
        first = next(iter(caller.parameters), None)
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            raise UserError(
                f'Reward "{self.name}" must take the outputs (N, G) as its first argument.'
            )
        scope = getattr(self.function, "scope", "any")
        if scope not in get_args(Scope):
            words = ", ".join(f'"{one}"' for one in get_args(Scope))
            raise UserError(f'Reward "{self.name}": scope must be one of {words}, not {scope!r}.')
        object.__setattr__(self, "scope", scope)  # the dataclass is frozen
        object.__setattr__(self, "_caller", caller)

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise `UserError` if the function needs an argument that nothing will supply."""
        self._caller.check([*ARGUMENTS, *columns], positions=1)

    def __call__(
        self,
        outputs_NG: Tensor,
        /,
        *,
        label: Tensor,
        probabilities: Tensor,
        classes: Sequence[str],
        **columns: Any,
    ) -> Tensor:
        known = {"label": label, "probabilities": probabilities, "classes": classes, **columns}
        rewards_NG = self._tensor(self._caller(outputs_NG, offered=known), outputs_NG)
        if not rewards_NG.isfinite().all():
            row, column = (~rewards_NG.isfinite()).nonzero()[0].tolist()
            which = f"mask {column}"
            if self.scope != "mask":
                named = f'output "{classes[int(outputs_NG[row, column])]}"'
                which = f'{named} (true class "{classes[int(label[row])]}")'
            raise UserError(
                f'Reward "{self.name}" returned {rewards_NG[row, column].item()} in row {row} for '
                f"{which}: it must be finite."
            )
        return rewards_NG

    def _tensor(self, result: Any, outputs_NG: Tensor) -> Tensor:
        """The result as float32 (N, G) on the outputs' device."""
        if not isinstance(result, Tensor):
            try:
                array = np.asarray(result)
            except (ValueError, TypeError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f'Reward "{self.name}" must return numbers: {reason}') from error
            if array.dtype.kind not in "biuf":
                raise UserError(
                    f'Reward "{self.name}" must return numbers, not {type(result).__name__} of '
                    f"{array.dtype}."
                )
            with np.errstate(over="ignore"):  # too big for float32 is infinite: named by the caller
                result = torch.from_numpy(array.astype(np.float32))
        if result.is_complex():
            raise UserError(f'Reward "{self.name}" must return real numbers, not {result.dtype}.')
        if result.shape != outputs_NG.shape[:2]:
            raise UserError(
                f'Reward "{self.name}" returned shape {tuple(result.shape)}; '
                f"the outputs have shape {tuple(outputs_NG.shape)}: return one number for each, "
                f"{tuple(outputs_NG.shape[:2])}."
            )
        return result.detach().to(outputs_NG.device, torch.float32)
