"""How good answers between tags are: exact, how far off, how often there is none to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from visgrpo.errors import UserError
from visgrpo.measures.classification import MAX_CONFUSION_CLASSES, wilson_interval
from visgrpo.rewards.answers import answer_of, has_format, meaning, whole_number


def answer_measures(
    texts: Sequence[str], answers: Sequence[str], *, direct: bool = False
) -> dict[str, float]:
    """Measure the answers that M completions give, by `rewards.answers.answer_of`.

    Args:
        texts: the completions.
        answers: the true answers.
        direct: the prompts asked for the answer alone, without reasoning.

    Returns:
        * `examples`: M;
        * `accuracy`: share of answers that are the truth, whole numbers compared as numbers;
        * `accuracy_low`, `accuracy_high`: its 95 % score interval (Wilson 1927);
        * `unparsed`: share of completions without an answer;
        * `majority`: the accuracy of always giving the commonest true answer;
        * `format`: share of completions that are of the form asked for and nothing else.

    Raises:
        UserError: there are no completions, not one truth for each, or an empty one.
    """
    _check(texts, answers)
    given = [answer_of(text) for text in texts]
    truths = [meaning(answer) for answer in answers]
    total = len(texts)
    right = sum(
        answer is not None and meaning(answer) == truth
        for answer, truth in zip(given, truths, strict=True)
    )
    low, high = wilson_interval(right, total)
    return {
        "examples": total,
        "accuracy": right / total,
        "accuracy_low": low,
        "accuracy_high": high,
        "unparsed": given.count(None) / total,
        "majority": max(Counter(truths).values()) / total,
        "format": sum(has_format(text, direct) for text in texts) / total,
    }


def counting_measures(
    texts: Sequence[str], answers: Sequence[str], *, direct: bool = False
) -> dict[str, float]:
    """`answer_measures` where every true answer is a whole number.

    `unparsed` is then the share of completions whose answer is no whole number, and there is
    `mean_absolute_error`, the mean of |answer - truth| over the others; it is left out where no
    completion has a number.

    Raises:
        UserError: as `answer_measures`, or a true answer that is no whole number.
    """
    measures = answer_measures(texts, answers, direct=direct)
    truths = _counts(answers)
    pairs = [(n, truth) for n, truth in zip(map(_count_in, texts), truths, strict=True)]
    errors = [abs(number - truth) for number, truth in pairs if number is not None]
    measures["unparsed"] = (len(texts) - len(errors)) / len(texts)
    if errors:
        measures["mean_absolute_error"] = sum(errors) / len(errors)
    return measures


def confusion(texts: Sequence[str], answers: Sequence[str]) -> dict[str, Any] | None:
    """Count which number was answered for each true count.

    Returns:
        `counts`, the true counts from 0 to the largest, and `rows`, one for each of them: how often
        each of `counts` was answered, then another number, then none. None where the largest true
        count is above 200: the table would be too large to list.

    Raises:
        UserError: as `counting_measures`, or a true answer below 0.
    """
    _check(texts, answers)
    truths = _counts(answers)
    if min(truths) < 0:
        raise UserError(f"A true count is {min(truths)}: counts start at 0.")
    size = max(truths) + 1
    if size > MAX_CONFUSION_CLASSES + 1:
        return None
    rows = [[0] * (size + 2) for _ in range(size)]
    for text, truth in zip(texts, truths, strict=True):
        number = _count_in(text)
        if number is None:
            rows[truth][size + 1] += 1
        else:
            rows[truth][number if 0 <= number < size else size] += 1
    return {"counts": list(range(size)), "rows": rows}


def _count_in(text: str) -> int | None:
    answer = answer_of(text)
    return None if answer is None else whole_number(answer)


def _counts(answers: Sequence[str]) -> list[int]:
    counts = []
    for place, answer in enumerate(answers):
        number = whole_number(answer)
        if number is None:
            raise UserError(
                f'The true answer of example {place} is "{answer}": counting needs whole numbers.'
            )
        counts.append(number)
    return counts


def _check(texts: Sequence[str], answers: Sequence[str]) -> None:
    if len(texts) != len(answers):
        raise UserError(f"{len(texts)} completions for {len(answers)} true answers.")
    if not texts:
        raise UserError("Nothing to evaluate: there are no completions.")
    for place, answer in enumerate(answers):
        if not answer.strip():
            raise UserError(f"Example {place} has no true answer: leave it out.")
