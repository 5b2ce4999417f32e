"""A judge of text that can be known to be right: how much a completion looks like the corpus.

    score = spelling · lines · repetition                                  each part in [0, 1]

    spelling    letters in words of the corpus's vocabulary / max(letters, `ENOUGH_LETTERS`)
    lines       mean over checks of the lines: length, and a capital where the corpus has one
    repetition  distinct word trigrams / word trigrams ("distinct-3", arXiv 1510.03055)

A product, because no part makes up for another: letters at random on perfect lines are worth
nothing, and so is one true word a hundred times. Nothing is claimed about grammar or sense: words
of the corpus in any order are spelled as well as the corpus. The judge is for scripts that put
spaces between words. Its use is to be the *true* reward where a learned one, the proxy, is
optimised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.errors import UserError
from visgrpo.rewards.texts import Text, completion_text

ENOUGH_LETTERS = 20
"""A completion with fewer letters cannot be perfect, or stopping at once would be the best text."""

CAPITALS_FROM = 0.8
"""Lines must start with a capital where at least this share of the corpus's lines does."""

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
TRIGRAM = 3


@dataclass(frozen=True)
class GoldJudge:
    """What the judge has learned of a corpus; `from_documents` makes it.

    Attributes:
        vocabulary: its words, in lower case.
        shortest, longest: 5th and 95th percentile of the lengths of its lines, in characters.
        capitals: whether its lines start with a capital.
    """

    vocabulary: frozenset[str]
    shortest: float
    longest: float
    capitals: bool

    @classmethod
    def from_documents(cls, documents: Iterable[str]) -> GoldJudge:
        """Learn the vocabulary and the lines of a corpus; blank lines do not count.

        Raises:
            UserError: no word in any document.
        """
        vocabulary, lengths, capitals = set[str](), list[int](), 0
        for document in documents:
            vocabulary.update(word.lower() for word in WORD.findall(document))
            for line in filter(str.strip, document.split("\n")):
                lengths.append(len(line))
                capitals += _starts_with_capital(line)
        if not vocabulary:
            raise UserError("The gold judge found no words in the text: give it a text with words.")
        shortest, longest = np.quantile(lengths, [0.05, 0.95]).tolist()
        return cls(
            frozenset(vocabulary), shortest, longest, capitals / len(lengths) >= CAPITALS_FROM
        )

    def __call__(self, *, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        """The scores, one for each completion; see `TextReward`."""
        return [self.score(*row) for row in zip(prompts, completions, strict=True)]

    def score(self, prompt: Text, completion: Text) -> float:
        """The product of `parts`, in [0, 1]; 0 for an empty completion."""
        return math.prod(self.parts(prompt, completion).values())

    def parts(self, prompt: Text, completion: Text) -> dict[str, float]:
        """What a completion earns for "spelling", "lines" and "repetition".

        Its beginning may go on with the prompt's last word and line, its end may be cut off. So a
        word counts if it ends inside the completion and something follows it, with those of its
        letters that are the completion's own; and the last line cannot be too short.
        """
        text = completion_text(completion)
        # An answer to a conversation goes on with nothing: it starts a line of its own.
        head = prompt.rpartition("\n")[2] if isinstance(prompt, str) else ""
        words = list(_finished_words(head, text))
        return {
            "spelling": self._spelling(words),
            "lines": self._lines(head, text),
            "repetition": _distinct([word for word, _ in words]),
        }

    def _spelling(self, words: Sequence[tuple[str, int]]) -> float:
        known = sum(letters for word, letters in words if word in self.vocabulary)
        return known / max(ENOUGH_LETTERS, sum(letters for _, letters in words))

    def _lines(self, head: str, text: str) -> float:
        """The mean check: every line's length, and the start of those that begin in `text`."""
        lines = (head + text).split("\n")
        checks: list[float] = []
        for position, line in enumerate(lines):
            if not line.strip():
                continue
            checks.append(self._length(len(line), finished=position < len(lines) - 1))
            if self.capitals and (position > 0 or not head):
                checks.append(float(_starts_with_capital(line)))
        return sum(checks) / len(checks) if checks else 0.0

    def _length(self, length: int, *, finished: bool) -> float:
        """1 between the corpus's percentiles, outside of them the ratio to the nearer one."""
        if length > self.longest:
            return self.longest / length
        return min(1.0, length / self.shortest) if finished else 1.0


def _finished_words(head: str, text: str) -> Iterator[tuple[str, int]]:
    """Words in lower case that end in `text` and before its end, with their letters in `text`."""
    whole, start = head + text, len(head)
    end = len(whole.rstrip("'’"))  # "can'" may be on its way to "can't"
    for match in WORD.finditer(whole):
        if start < match.end() < end:
            yield match[0].lower(), match.end() - max(start, match.start())


def _distinct(words: Sequence[str]) -> float:
    """Distinct over all trigrams; fewer words than three are one n-gram, which nothing repeats."""
    count = max(1, len(words) - TRIGRAM + 1)
    return len({tuple(words[place : place + TRIGRAM]) for place in range(count)}) / count


def _starts_with_capital(line: str) -> bool:
    """Whether the first letter of the line is a capital, after quotes, digits and indentation."""
    return next(filter(str.isalpha, line), "").isupper()


def preference_probability(gold_a_M: Tensor, gold_b_M: Tensor, *, noise_scale: float) -> Tensor:
    """The probability that a is chosen over b, by Bradley and Terry (1952).

        P(a ≻ b) = σ((gold_a - gold_b) / noise_scale)

    Args:
        gold_a_M, gold_b_M: scores of the two outputs of M pairs.
        noise_scale: the difference in score at which 27 % of the choices are wrong; at 0 the better
            output is always chosen, and of two equal ones either.

    Returns:
        (M,) float64.

    Raises:
        UserError: the noise is negative or not finite.
    """
    if not 0 <= noise_scale < math.inf:
        raise UserError(
            f"The noise of the preferences is {noise_scale:g}: give a finite number from 0."
        )
    lead_M = gold_a_M.double() - gold_b_M.double()
    if noise_scale == 0:
        return (lead_M.sign() + 1) / 2
    return torch.sigmoid(lead_M / noise_scale)


def prefer_first(
    gold_a_M: Tensor, gold_b_M: Tensor, uniform_M: Tensor, *, noise_scale: float
) -> Tensor:
    """Choose between the outputs of M pairs: whether a is chosen, (M,) bool.

    Args:
        gold_a_M, gold_b_M, noise_scale: see `preference_probability`.
        uniform_M: numbers drawn from U[0, 1), one for each pair; all that is random here.

    Raises:
        UserError: the noise is negative or not finite.
    """
    return uniform_M < preference_probability(gold_a_M, gold_b_M, noise_scale=noise_scale)


def can_be_compared(
    texts_a: Sequence[str], texts_b: Sequence[str], gold_a_M: Tensor, gold_b_M: Tensor
) -> Tensor:
    """Whether two outputs make a pair: different texts with different scores, (M,) bool.

    A choice between equal scores is a coin's, with any noise, and teaches nothing.
    """
    differ_M = torch.tensor([a != b for a, b in zip(texts_a, texts_b, strict=True)])
    return differ_M.to(gold_a_M.device) & (gold_a_M != gold_b_M)
