"""Rewards of texts: functions with TRL's signature, several at once, named and weighted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.functions import UserFunction, user_function
from visgrpo.rewards.sets import WeightedRewards

ARGUMENTS = ("prompts", "completions", "completion_ids")
"""Keyword arguments that every text reward can take besides the data set's columns."""

SHOWN = 60
"""Characters of a prompt or completion that an error message shows."""


Text = str | Sequence[Mapping[str, str]]
"""A string, or a conversation as a list of {"role", "content"} messages."""


class TextReward(Protocol):
    """What a completion earns; called by name, with one row for each completion.

    Args:
        prompts: strings, or lists of {"role", "content"} messages; each as often as it has
            completions.
        completions: strings, or to a prompt of messages [{"role": "assistant", "content": text}].
        completion_ids: the tokens of each completion.
        columns: the data set's other columns, repeated like the prompts.

    Returns:
        One number for each row; None for *all* completions of a prompt that the reward does not
        apply to.
    """

    def __call__(
        self,
        *,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        **columns: list[Any],
    ) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class TextRewards(WeightedRewards):
    """R rewards over the same completions, the counterpart of `RewardSet` for texts.

    A function is given only what its signature names, or everything if it has **kwargs.

    Raises:
        UserError: no reward, one name twice, not one weight for each, a weight not finite, or a
            function whose arguments have no names.
    """

    functions: tuple[TextReward, ...]
    _callers: tuple[UserFunction, ...] = field(init=False, repr=False, compare=False)
    examples: ClassVar[tuple[str, ...]] = ("gold", "model:FOLDER", "file.py:function")

    def __post_init__(self) -> None:
        super().__post_init__()
        callers = tuple(map(UserFunction, self.names, self.functions))
        for caller in callers:
            if any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in caller.parameters):
                raise UserError(
                    f'Reward "{caller.name}" is called by name, as f(prompts=…, completions=…): '
                    'take the "/" out of its signature.'
                )
        object.__setattr__(self, "_callers", callers)  # the dataclass is frozen

    def validate(self, columns: Iterable[str]) -> None:
        """Check before any model is loaded that the rewards fit the data.

        Raises:
            UserError: a column that has the name of an argument, or a function that needs a column
                which the data does not have.
        """
        names = list(columns)
        for name in names:
            if name in ARGUMENTS:
                raise UserError(
                    f'The data has a column "{name}", a name that rewards use for something else: '
                    "rename or drop the column."
                )
        for caller in self._callers:
            caller.check([*ARGUMENTS, *names])

    def __call__(
        self,
        prompts_N: Sequence[Any],
        completions_NG: Sequence[Sequence[str]],
        ids_NG: Sequence[Sequence[list[int]]],
        columns: Mapping[str, Sequence[Any]],
    ) -> Tensor:
        """Return every reward, unweighted, (N, G, R) float64; NaN where one does not apply.

        Args:
            prompts_N: strings or sequences of messages.
            completions_NG: G texts for each prompt.
            ids_NG: their tokens.
            columns: the data set's columns, N values each.

        Raises:
            UserError: a function raised or returned something other than N·G finite numbers, None
                for a part of a group, or None where every other function said None too.
        """
        G = len(completions_NG[0])
        rows = _rows(prompts_N, completions_NG, ids_NG, columns)
        with torch.no_grad():
            rewards_RB = torch.stack(
                [
                    _numbers(caller(offered=rows), f'Reward "{caller.name}"', rows)
                    for caller in self._callers
                ]
            )
        rewards_NGR = rewards_RB.view(len(self.names), -1, G).movedim(0, -1)
        self._check_groups(rewards_NGR, prompts_N)
        return rewards_NGR

    def _check_groups(self, rewards_NGR: Tensor, prompts_N: Sequence[Any]) -> None:
        missing_NGR = rewards_NGR.isnan()
        G = missing_NGR.shape[1]
        partly_NR = missing_NGR.any(dim=1) & ~missing_NGR.all(dim=1)
        if partly_NR.any():
            row, part = partly_NR.nonzero()[0].tolist()
            count = int(missing_NGR[row, :, part].sum())
            raise UserError(
                f'Reward "{self.names[part]}" returned None for {count} of the {G} completions of '
                f"prompt {_short(prompts_N[row])}: return None for all of a prompt's "
                "completions or for none."
            )
        unpaid_N = missing_NGR.all(dim=2).any(dim=1)
        if unpaid_N.any():
            prompt = _short(prompts_N[int(unpaid_N.nonzero()[0])])
            raise UserError(
                f"Every reward ({', '.join(self.names)}) returned None for prompt {prompt}: drop "
                "the prompt, or add a reward that applies to it."
            )


def completion_text(completion: Text) -> str:
    """Return a completion's text: itself, or the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def parse_text_rewards(
    specs: Sequence[str | Callable[..., Any]],
    weights: Sequence[float] | None,
    built_in: Mapping[str, Callable[[str], TextReward]],
) -> TextRewards:
    """Build rewards from what the user wrote.

    Args:
        specs: for each reward a built-in ("gold", "model:runs/bard/reward"), a function's place
            ("module:function", "file.py:function"), or a Python callable. A function's own name
            names it; of several built-in ones of one name, each is named by what was written.
        weights: one for each; None for all 1.
        built_in: by what stands before the colon, a function that makes the reward from what
            follows it ("" without a colon).

    Raises:
        UserError: an unknown name or file (with the nearest), or a mistake in `TextRewards`.
        RewardError: importing the user's function raised.
    """
    parsed = [_parse(spec, built_in) for spec in specs]
    names = [name for name, _ in parsed]
    named = [
        (str(spec), reward) if name in built_in and names.count(name) > 1 else (name, reward)
        for spec, (name, reward) in zip(specs, parsed, strict=True)
    ]
    return TextRewards.of(named, weights)


def _parse(
    spec: str | Callable[..., Any], built_in: Mapping[str, Callable[[str], TextReward]]
) -> tuple[str, TextReward]:
    if isinstance(spec, str):
        spec = spec.strip()
        name, _, argument = spec.partition(":")
        if name in built_in:
            return name, built_in[name](argument)
    return user_function(spec, built_in)


def _rows(
    prompts_N: Sequence[Any],
    completions_NG: Sequence[Sequence[str]],
    ids_NG: Sequence[Sequence[list[int]]],
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, list[Any]]:
    """Everything a function may ask for, in flat lists of N·G rows."""
    prompts = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts_N]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, texts_G in zip(prompts, completions_NG, strict=True)
        for text in texts_G
    ]
    G = len(completions_NG[0])
    repeated = {
        key: [value for value in values for _ in range(G)]
        for key, values in {"prompts": prompts, **columns}.items()
    }
    ids = [ids for ids_G in ids_NG for ids in ids_G]
    return {**repeated, "completions": completions, "completion_ids": ids}


def _numbers(result: Any, who: str, rows: Mapping[str, Sequence[Any]]) -> Tensor:
    """A function's result as (B,) float64, NaN for None."""
    if isinstance(result, Tensor | np.ndarray):
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise UserError(
            f"{who} must return a list with a number for each completion, not "
            f"{type(result).__name__}."
        )
    count = len(rows["completions"])
    if len(result) != count:
        raise UserError(
            f"{who} returned {len(result)} rewards for {count} completions: return one for each."
        )
    rewards_B = torch.full((count,), torch.nan, dtype=torch.float64)
    for row, value in enumerate(result):
        if value is None:
            continue
        if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
            value = value.item()
        if not isinstance(value, int | float):
            raise UserError(
                f"{who} must return numbers, not {type(value).__name__}: {_place(row, rows)}."
            )
        if not abs(value) <= torch.finfo(torch.float32).max:  # NaN is not below it either
            raise UserError(f"{who} returned {value}, not a finite number: {_place(row, rows)}.")
        rewards_B[row] = float(value)
    return rewards_B


def _place(row: int, rows: Mapping[str, Sequence[Any]]) -> str:
    completion, prompt = _short(rows["completions"][row]), _short(rows["prompts"][row])
    return f"row {row}, completion {completion} to prompt {prompt}"


def _short(value: Any) -> str:
    shown = repr(value if isinstance(value, str) else completion_text(value))
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
