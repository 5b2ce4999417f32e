"""Rewards that the user writes: any Python callable, checked where it meets the trainer."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError, nearest
from visgrpo.rewards.labels import Scope
from visgrpo.rewards.tables import check_file, nearest_or

ARGUMENTS = ("label", "probabilities", "classes")
"""Keyword arguments that every reward can take besides the data set's columns."""


class RewardError(UserError):
    """The user's own reward raised; `details` is their traceback, to be printed after the line."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class CustomReward:
    """A user's function as a `LabelReward`.

    The function is given the outputs (N, G) as its first argument and, by name, only those of
    `label`, `probabilities`, `classes` and the columns that its signature accepts (all of them if
    it has **kwargs). Tensors stay on their device. It may return a tensor, an array or a nested
    list of shape (N, G). Set `function.scope = "batch"` if all outputs of an image earn the same.

    Raises:
        UserError: the function cannot take the outputs, or its scope is unknown.
    """

    name: str
    function: Callable[..., Any]
    scope: Scope = field(init=False)
    _signature: inspect.Signature = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            signature = inspect.signature(self.function)
        except ValueError as error:
            raise UserError(
                f'Reward "{self.name}" has no readable signature: wrap it in a def.'
            ) from error
        first = next(iter(signature.parameters.values()), None)
        if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
            raise UserError(
                f'Reward "{self.name}" must take the outputs (N, G) as its first argument.'
            )
        scope = getattr(self.function, "scope", "any")
        if scope not in ("any", "batch"):
            raise UserError(f'Reward "{self.name}": scope must be "any" or "batch", not {scope!r}.')
        object.__setattr__(self, "scope", scope)  # the dataclass is frozen
        object.__setattr__(self, "_signature", signature)

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise `UserError` if the function needs an argument that nothing will supply."""
        available = [*ARGUMENTS, *columns]
        for parameter in list(self._signature.parameters.values())[1:]:
            optional = parameter.default is not parameter.empty or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            )
            if not optional and parameter.name not in available:
                raise UserError(
                    f'Reward "{self.name}" needs "{parameter.name}", which is not a column of the '
                    f"data. {nearest(parameter.name, available)}"
                )

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
        self.check_columns(columns)
        known = {"label": label, "probabilities": probabilities, "classes": classes, **columns}
        try:
            result = self.function(outputs_NG, **self._accepted(known))
        except UserError:
            raise
        except Exception as error:  # the boundary to foreign code: whatever it raises is theirs
            raise _raised(f'Reward "{self.name}"', error) from error
        rewards_NG = self._tensor(result, outputs_NG)
        if not rewards_NG.isfinite().all():
            row, column = (~rewards_NG.isfinite()).nonzero()[0].tolist()
            raise UserError(
                f'Reward "{self.name}" returned {rewards_NG[row, column].item()} in row {row} for '
                f'output "{classes[int(outputs_NG[row, column])]}" '
                f'(true class "{classes[int(label[row])]}"): it must be finite.'
            )
        return rewards_NG

    def _accepted(self, known: Mapping[str, Any]) -> dict[str, Any]:
        first, *others = self._signature.parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in others):
            return {name: value for name, value in known.items() if name != first.name}
        return {p.name: known[p.name] for p in others if p.name in known}

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
        if result.shape != outputs_NG.shape:
            raise UserError(
                f'Reward "{self.name}" returned shape {tuple(result.shape)}; '
                f"the outputs have shape {tuple(outputs_NG.shape)}: return one number for each."
            )
        return result.detach().to(outputs_NG.device, torch.float32)


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
        raise _raised(f'Reward file "{path}"', error) from error
    return module


def _load_module(name: str) -> ModuleType:
    _append_to_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise _raised(f'Module "{name}"', error) from error
        parent, _, leaf = missing.rpartition(".")
        places = getattr(sys.modules[parent], "__path__", []) if parent else [str(Path.cwd())]
        found = [module.name for module in pkgutil.iter_modules(places)]
        tail = nearest_or(leaf, found, f'"{parent or Path.cwd()}" holds no Python module.')
        raise UserError(f'Module "{missing}" not found. {tail}') from error
    except Exception as error:  # the boundary to foreign code: whatever it raises is theirs
        raise _raised(f'Module "{name}"', error) from error


def _append_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _raised(what: str, error: Exception) -> RewardError:
    """The error with the user's traceback: frames of this file and of the importer left out."""
    frames = error.__traceback__
    while frames is not None and (
        frames.tb_frame.f_code.co_filename in (__file__, importlib.__file__)
        or frames.tb_frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frames = frames.tb_next
    details = "".join(traceback.format_exception(type(error), error, frames))
    reason = " ".join(str(error).split())
    return RewardError(f"{what} raised {type(error).__name__}: {reason}", details)
