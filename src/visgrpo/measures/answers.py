"""Answers between tags: what they are worth, and a model that answers held-out questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from visgrpo.data.batches import Batch
from visgrpo.data.prompts import VisualInputs
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.classification import MAX_CONFUSION_CLASSES, wilson_interval
from visgrpo.measures.over import Team, over
from visgrpo.measures.texts import (
    best_of_n,
    completion_means,
    completion_sums,
    completion_sums_of,
    sizes_to,
)
from visgrpo.methods.generate import Sampling, generate
from visgrpo.methods.token_groups import TokenRollouts
from visgrpo.models.language import LanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.answers import answer_of, has_format, meaning, whole_number

PROMPTS_AT_ONCE = 64
ANSWERS_AT_ONCE = 16  # with gradient-free passes over prompt and answer together

Measure = Callable[..., dict[str, float]]
"""Makes measures of texts and true answers; `direct` says whether reasoning was asked for."""


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


def pass_at_k(texts_MS: Sequence[Sequence[str]], answers: Sequence[str]) -> dict[str, float]:
    """Return ``pass@k``, the chance that one of k sampled answers is right, for k from 2 to S.

    Of S samples of which c are right, 1 - C(S - c, k) / C(S, k): the unbiased estimate of Chen et
    al. 2021 (arXiv 2107.03374), which is `best_of_n` with a reward of 1 for what is right. k are
    the powers of two, and S.
    """
    right_MS = [
        [
            float(given is not None and meaning(given) == meaning(truth))
            for given in map(answer_of, texts)
        ]
        for texts, truth in zip(texts_MS, answers, strict=True)
    ]
    rows = best_of_n(torch.tensor(right_MS), None, sizes_to(len(texts_MS[0]))[1:])
    return {f"pass@{row['n']}": row["reward"] for row in rows}


def plain_measures(
    texts: Sequence[str], answers: Sequence[str], *, direct: bool = False
) -> dict[str, float]:
    """`counting_measures` where all true answers are whole numbers, else `answer_measures`."""
    counting = all(whole_number(answer) is not None for answer in answers)
    return (counting_measures if counting else answer_measures)(texts, answers, direct=direct)


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


# ---- held-out questions --------------------------------------------------------------------------


class SeenAnswers(NamedTuple):
    """What a model answered: measures, and the greedy completion of every row."""

    measures: dict[str, float]
    texts: list[str]


@dataclass(frozen=True)
class HeldOutAnswers:
    """Answers held-out questions greedily, and with the same random numbers each time.

    Attributes:
        rollouts: how completions are sampled and what they earn; it remembers nothing of the run.
        dataset: the questions; inputs makes their prompts and images.
        direct: whether the answer alone is asked for, without reasoning.
        measure: makes measures of greedy answers; sampled names those that drawn ones have too.
    """

    rollouts: TokenRollouts
    dataset: Table
    inputs: VisualInputs
    direct: bool
    processes: Team
    measure: Measure = plain_measures
    sampled: tuple[str, ...] = ("accuracy", "unparsed", "format")

    def measures(self, model: LanguageModel) -> dict[str, float]:
        """Return the numbers of `look`."""
        return self.look(model).measures

    @torch.no_grad()
    def look(self, model: LanguageModel) -> SeenAnswers:
        """Answer every question; each process answers its share.

        Returns:
            Measures of the greedy answers; ``sampled_accuracy`` and so on of the sampled ones,
            whose `pass_at_k`, mean reward, length and KL (in nats) stand beside them. Rows without
            a true answer count in the last three alone.
        """
        rollouts, total = self.rollouts, len(self.dataset)
        names = completion_sums_of(rollouts)

        def completions(batch: Batch) -> Tensor:
            with self.processes.autocast():
                greedy_N1T = greedy_tokens(model, batch, rollouts.sampling)
                groups = rollouts.draw(model, batch, 0, PROMPTS_AT_ONCE, total=total)
            sums = completion_sums(groups, rollouts.rewards)
            drawn_NGT = torch.cat([greedy_N1T, _wide(groups.tokens_NGT, rollouts.sampling)], dim=1)
            sums_NS = torch.stack([sums[name].double() for name in names], dim=1)
            # One tensor travels; tokens are whole numbers far below 2^53.
            return torch.cat([sums_NS, drawn_NGT.double().flatten(1)], dim=1)

        rows = over(
            completions, self.dataset, self.inputs, self.processes, batch_size=PROMPTS_AT_ONCE
        )
        sums_MS, tokens = rows[:, : len(names)].contiguous(), rows[:, len(names) :].long()
        found = dict(zip(names, sums_MS.sum(dim=0).tolist(), strict=True))
        tokens_MGT = tokens.unflatten(1, (-1, rollouts.sampling.max_new_tokens))
        texts_MG = self._texts(tokens_MGT)
        greedy_M = [texts[0] for texts in texts_MG]
        measures = {
            **self._of_answers(greedy_M, [texts[1:] for texts in texts_MG]),
            **completion_means(found, rollouts.rewards),
        }
        return SeenAnswers(measures, greedy_M)

    def _texts(self, tokens_MGT: Tensor) -> list[list[str]]:
        return [self.rollouts.decode(group) for group in tokens_MGT.tolist()]

    def _of_answers(
        self, greedy_M: Sequence[str], sampled_MG: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        known = [row for row, answer in enumerate(self.dataset.answers) if answer]
        if not known:
            return {}
        answers = [self.dataset.answers[row] for row in known]
        each = [(text, self.dataset.answers[row]) for row in known for text in sampled_MG[row]]
        sampled = self.measure(*map(list, zip(*each, strict=True)), direct=self.direct)
        greedy = self.measure([greedy_M[row] for row in known], answers, direct=self.direct)
        if "accuracy" in sampled:
            greedy |= pass_at_k([sampled_MG[row] for row in known], answers)
        both = {f"sampled_{name}": sampled[name] for name in self.sampled if name in sampled}
        return {**greedy, **both}


@torch.no_grad()
def answer_likelihood(
    model: LanguageModel, dataset: Table, inputs: VisualInputs, processes: Team
) -> dict[str, float]:
    """Return ``nll``, in nats per token, of the answers that are to be imitated."""

    def sums(batch: Batch) -> Tensor:
        assert batch.answers_NT is not None
        mask_NT = batch.answers_NT >= 0
        answers_N1T = batch.answers_NT.clamp(min=0).unsqueeze(1)
        with processes.autocast():
            log_probs_N1T = model.score(
                batch.prompts_NP, batch.lengths_N, answers_N1T, pictures=batch.pictures
            )
        nll_N = -log_probs_N1T.squeeze(1).masked_fill(~mask_NT, 0.0).double().sum(dim=1)
        return torch.stack([nll_N, mask_NT.sum(dim=1).double()], dim=1)

    sums_M2 = over(sums, dataset, inputs, processes, batch_size=ANSWERS_AT_ONCE)
    nll, tokens = sums_M2.sum(dim=0).tolist()
    return {"nll": nll / tokens}


def greedy_tokens(model: LanguageModel, batch: Batch, sampling: Sampling) -> Tensor:
    """Return the likeliest completion of each prompt, token by token, (N, 1, max_new_tokens)."""
    likeliest = TokenDistribution(top_k=1, forbidden=sampling.distribution.forbidden)
    even_N1T = torch.full((len(batch), 1, sampling.max_new_tokens), 0.5, dtype=torch.float64)
    greedy = replace(sampling, distribution=likeliest)
    drawn = generate(model, batch.prompts_NP, batch.lengths_N, even_N1T, greedy, batch.pictures)
    return _wide(drawn.tokens_NGT, sampling)


def _wide(tokens_NGT: Tensor, sampling: Sampling) -> Tensor:
    """Pad completions to the longest that may be, so that all processes' have one shape."""
    return pad(tokens_NGT, (0, sampling.max_new_tokens - tokens_NGT.shape[-1]), value=sampling.pad)
