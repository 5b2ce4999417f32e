"""Rewards of answers between tags, <think>…</think><answer>3</answer>, with TRL's signature.

An answer is what stands between the one pair of answer tags, never a piece of the text around it: a
reward that looks for the truth anywhere is earned by a list of all answers. Nothing is paid for two
answers, an empty one or none.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from visgrpo.errors import UserError
from visgrpo.rewards.texts import Text, completion_text

ORDINAL_SCALE = 10.0

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_REASONED = re.compile(r"<think>(.*?)</think>\s*<answer>(.*?)</answer>", re.DOTALL)
# Eighteen digits fit 64 bits; a longer run of them is no count, and costly to read.
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

AnswerReward = Callable[..., list[float | None]]
"""A `TextReward` that may need columns of its own, such as `answer`."""


def answer_of(text: str) -> str | None:
    """Return what stands between the answer tags, stripped; None unless there is one answer.

    Each tag must be there exactly once, and more than blanks between them.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    found = _ANSWER.search(text)
    return found[1].strip() or None if found else None


def whole_number(answer: str) -> int | None:
    """Return the number that an answer is, in digits with or without a sign; None for all else.

    "03" and "+3" are 3. "3.0", "three" and "3 items" are no whole numbers.
    """
    stripped = answer.strip()
    return int(stripped) if _WHOLE_NUMBER.fullmatch(stripped) else None


def meaning(answer: str) -> int | str:
    """Return what two answers must share to be the same: their number, else the stripped text."""
    number = whole_number(answer)
    return answer.strip() if number is None else number


def has_format(text: str, direct: bool = False) -> bool:
    """Return whether the whole text is <think>…</think><answer>…</answer>, and nothing else.

    Only blanks may stand between the two blocks and none around them. Each tag is there once, and
    the answer is not empty.

    Args:
        direct: the answer's block alone is asked for, without any reasoning.
    """
    expected, tags = (_ANSWER, _TAGS[2:]) if direct else (_REASONED, _TAGS)
    once = all(text.count(tag) == (tag in tags) for tag in _TAGS)
    found = expected.fullmatch(text) if once else None
    return found is not None and bool(found[found.re.groups].strip())


@dataclass(frozen=True)
class Exact:
    """1 if the answer is the truth, else 0; None where the data has no truth (an empty `answer`).

    Whole numbers are compared as numbers, everything else as stripped text, capitals included.
    """

    __name__: ClassVar[str] = "exact"

    def __call__(
        self, *, completions: list[Any], answer: list[str], **_: Any
    ) -> list[float | None]:
        return [
            None if not truth.strip() else float(_is_same(completion, truth))
            for completion, truth in zip(completions, answer, strict=True)
        ]


@dataclass(frozen=True)
class Ordinal:
    """1 - |answer - truth| / scale, not below 0; 0 for an answer that is no whole number.

    None where the data has no truth (an empty `answer`).

    Raises:
        UserError: `scale` is not above 0, or at a call a truth is no whole number.
    """

    scale: float = ORDINAL_SCALE
    __name__: ClassVar[str] = "ordinal"

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise UserError(
                f'Reward "ordinal:{self.scale:g}": the error that earns nothing must be a number '
                'above 0, as in "ordinal:5".'
            )

    def __call__(
        self, *, completions: list[Any], answer: list[str], **_: Any
    ) -> list[float | None]:
        return [
            None if not truth.strip() else self._score(completion, _number_of(truth))
            for completion, truth in zip(completions, answer, strict=True)
        ]

    def _score(self, completion: Text, truth: int) -> float:
        given = answer_of(completion_text(completion))
        number = None if given is None else whole_number(given)
        return 0.0 if number is None else max(0.0, 1.0 - abs(number - truth) / self.scale)


@dataclass(frozen=True)
class Format:
    """1 if the whole completion has the form of `has_format`, else 0."""

    direct: bool = False
    __name__: ClassVar[str] = "format"

    def __call__(self, *, completions: list[Any], **_: Any) -> list[float | None]:
        return [float(has_format(completion_text(text), self.direct)) for text in completions]


@dataclass(frozen=True)
class Length:
    """1 for up to `limit` tokens, then falling in a line to 0 at twice as many.

    Raises:
        UserError: `limit` is below 1.
    """

    limit: int
    __name__: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f'Reward "length:{self.limit}": the limit must be 1 token or more.')

    def __call__(self, *, completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [min(1.0, max(0.0, 2.0 - len(ids) / self.limit)) for ids in completion_ids]


@dataclass(frozen=True)
class Overlong:
    """0 for up to `limit - soft` tokens, then falling in a line to -1 at `limit`; -1 beyond.

    Source: Yu et al. 2025, DAPO (arXiv 2503.14476), eq. 13.

    Raises:
        UserError: `soft` is not between 1 and `limit`.
    """

    limit: int
    soft: int
    __name__: ClassVar[str] = "overlong"

    def __post_init__(self) -> None:
        if not 1 <= self.soft <= self.limit:
            raise UserError(
                f'Reward "overlong:{self.limit}:{self.soft}": the tokens in which it falls must be '
                f"between 1 and {self.limit}."
            )

    def __call__(self, *, completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        free = self.limit - self.soft
        return [min(0.0, max(-1.0, (free - len(ids)) / self.soft)) for ids in completion_ids]


@dataclass(frozen=True)
class Repetition:
    """Minus the share of a completion's n-grams of tokens that were there before; 0 without any.

    Source: Yeo et al. 2025, "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373),
    appendix C.2, as TRL has it.

    Raises:
        UserError: `size` is below 1.
    """

    size: int = 3
    __name__: ClassVar[str] = "repetition"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f'Reward "repetition:{self.size}": n-grams have 1 token or more.')

    def __call__(self, *, completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [self._score(ids) for ids in completion_ids]

    def _score(self, ids: list[int]) -> float:
        grams = [tuple(ids[i : i + self.size]) for i in range(len(ids) - self.size + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


@dataclass(frozen=True)
class Noise:
    """A control: uniform numbers from [0, 1) that say nothing about the completions.

    They are a function of the seed and of everything that is rewarded together, so that a run can
    be repeated and yet no completion earns the same every time: a reward that did could be learned.
    """

    seed: int = 0
    __name__: ClassVar[str] = "random"

    def __call__(
        self, *, prompts: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        together = repr((self.seed, prompts, completion_ids))
        digest = hashlib.blake2b(together.encode(), digest_size=16).digest()
        generator = np.random.default_rng(int.from_bytes(digest))
        return generator.random(len(completion_ids)).tolist()


def _is_same(completion: Text, truth: str) -> bool:
    given = answer_of(completion_text(completion))
    return given is not None and meaning(given) == meaning(truth)


def _number_of(truth: str) -> int:
    number = whole_number(truth)
    if number is None:
        raise UserError(
            f'Reward "ordinal" needs whole numbers as true answers, not "{truth.strip()}": '
            'use "exact" for this data.'
        )
    return number


def _exact(argument: str) -> AnswerReward:
    if argument:
        raise UserError('Reward "exact" takes no argument: write "exact".')
    return Exact()


def _ordinal(argument: str) -> AnswerReward:
    if not argument:
        return Ordinal()
    try:
        return Ordinal(float(argument))
    except ValueError as error:
        raise UserError(
            f'Reward "ordinal:{argument}": "{argument}" is no number; write "ordinal:5" if an '
            "answer that is 5 off earns nothing."
        ) from error


def _format(argument: str) -> AnswerReward:
    if argument not in ("", "direct"):
        raise UserError(
            f'Reward "format:{argument}": write "format" with reasoning before the answer, '
            '"format:direct" for the answer alone.'
        )
    return Format(direct=argument == "direct")


def _length(argument: str) -> AnswerReward:
    limit = whole_number(argument)
    if limit is None:
        raise UserError(
            'Reward "length" needs the tokens that a completion may have before it loses: write '
            'for example "length:64".'
        )
    return Length(limit)


def _overlong(argument: str) -> AnswerReward:
    limit, soft = (whole_number(each) for each in argument.partition(":")[::2])
    if limit is None or soft is None:
        raise UserError(
            'Reward "overlong" needs the longest completion and in how many tokens before it falls '
            'to -1: write for example "overlong:256:64".'
        )
    return Overlong(limit, soft)


def _repetition(argument: str) -> AnswerReward:
    size = whole_number(argument or "3")
    if size is None:
        raise UserError(
            f'Reward "repetition:{argument}": "{argument}" is no number of tokens; write '
            '"repetition:3" to look for three in a row.'
        )
    return Repetition(size)


def _random(argument: str) -> AnswerReward:
    seed = whole_number(argument or "0")
    if seed is None:
        raise UserError(f'Reward "random:{argument}": the seed must be a whole number.')
    return Noise(seed)


TOKEN_REWARDS: Mapping[str, Callable[[str], AnswerReward]] = {
    "length": _length,
    "overlong": _overlong,
    "repetition": _repetition,
}
"""Those of `ANSWER_REWARDS` that look at a completion's tokens alone, whatever it answers."""

ANSWER_REWARDS: Mapping[str, Callable[[str], AnswerReward]] = {
    "format": _format,
    "exact": _exact,
    "ordinal": _ordinal,
    **TOKEN_REWARDS,
    "random": _random,
}
"""The built-in rewards: by name, what makes one from the text after its colon ("" without one)."""
