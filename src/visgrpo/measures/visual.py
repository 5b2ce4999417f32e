"""Vision-language models on held-out questions: greedy and sampled answers, and likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from visgrpo.data.batches import Batch, batch_columns
from visgrpo.data.visual import VisualDataset
from visgrpo.data.visual_prompts import VisualInputs
from visgrpo.measures.counting import answer_measures, counting_measures
from visgrpo.measures.held_out import Precision
from visgrpo.measures.text import completion_means, completion_sums
from visgrpo.methods.generate import Sampling, generate
from visgrpo.methods.token_groups import TokenRollouts
from visgrpo.models.language import LanguageModel
from visgrpo.objectives.token_distribution import TokenDistribution
from visgrpo.rewards.answers import whole_number

PROMPTS_AT_ONCE = 64
ANSWERS_AT_ONCE = 16  # with gradient-free passes over prompt and answer together
_OF_SAMPLES = ("accuracy", "unparsed", "format")  # measures that sampled answers have too


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
    """

    rollouts: TokenRollouts
    dataset: VisualDataset
    inputs: VisualInputs
    direct: bool
    processes: Precision

    def measures(self, model: LanguageModel) -> dict[str, float]:
        """Return the numbers of `look`."""
        return self.look(model).measures

    @torch.no_grad()
    def look(self, model: LanguageModel) -> SeenAnswers:
        """Answer every question; each process answers its share.

        Returns:
            Measures of `answer_measures`, or of `counting_measures` where all true answers are
            whole numbers, of the greedy answers; ``sampled_accuracy`` and so on of the sampled
            ones, whose mean reward, length and KL (in nats) stand beside them. Rows without a true
            answer count in the latter alone.
        """
        greedy, sampled, sums = [], [], []
        sampling = self.rollouts.sampling
        total = len(self.dataset)
        for batch in batches_of_share(self.dataset, self.inputs, self.processes, PROMPTS_AT_ONCE):
            with self.processes.autocast():
                greedy.append(greedy_tokens(model, batch, sampling))
                groups = self.rollouts.draw(model, batch, 0, PROMPTS_AT_ONCE, total=total)
            sampled.append(_wide(groups.tokens_NGT, sampling))
            sums.append(completion_sums(groups, self.rollouts.rewards))
        names = list(sums[0])
        sums_MS = gather_rows(
            [torch.stack([each[name].double() for name in names], dim=1) for each in sums],
            self.processes,
            total,
        )
        found = dict(zip(names, sums_MS.sum(dim=0).tolist(), strict=True))
        texts_M = self._texts(gather_rows(greedy, self.processes, total))
        texts_MG = self._texts(gather_rows(sampled, self.processes, total))
        measures = {
            **self._of_answers([texts[0] for texts in texts_M], texts_MG),
            **completion_means(found, self.rollouts.rewards),
        }
        return SeenAnswers(measures, [texts[0] for texts in texts_M])

    def _texts(self, tokens_MGT: Tensor) -> list[list[str]]:
        return [self.rollouts.decode(group) for group in tokens_MGT.tolist()]

    def _of_answers(
        self, greedy_M: Sequence[str], sampled_MG: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        known = [row for row, answer in enumerate(self.dataset.answers) if answer]
        if not known:
            return {}
        answers = [self.dataset.answers[row] for row in known]
        counting = all(whole_number(answer) is not None for answer in answers)
        measure = counting_measures if counting else answer_measures
        each = [(text, self.dataset.answers[row]) for row in known for text in sampled_MG[row]]
        sampled = measure(*map(list, zip(*each, strict=True)), direct=self.direct)
        greedy = measure([greedy_M[row] for row in known], answers, direct=self.direct)
        return {**greedy, **{f"sampled_{name}": sampled[name] for name in _OF_SAMPLES}}


@torch.no_grad()
def answer_likelihood(
    model: LanguageModel, dataset: VisualDataset, inputs: VisualInputs, processes: Precision
) -> dict[str, float]:
    """Return ``nll``, in nats per token, of the answers that are to be imitated."""
    parts = []
    for batch in batches_of_share(dataset, inputs, processes, ANSWERS_AT_ONCE):
        assert batch.answers_NT is not None
        mask_NT = batch.answers_NT >= 0
        answers_N1T = batch.answers_NT.clamp(min=0).unsqueeze(1)
        with processes.autocast():
            log_probs_N1T = model.score(
                batch.inputs, batch.labels_N, answers_N1T, pictures=batch.pictures
            )
        nll_N = -log_probs_N1T.squeeze(1).masked_fill(~mask_NT, 0.0).double().sum(dim=1)
        parts.append(torch.stack([nll_N, mask_NT.sum(dim=1).double()], dim=1))
    nll, tokens = gather_rows(parts, processes, len(dataset)).sum(dim=0).tolist()
    return {"nll": nll / tokens}


def greedy_tokens(model: LanguageModel, batch: Batch, sampling: Sampling) -> Tensor:
    """Return the likeliest completion of each prompt, token by token, (N, 1, max_new_tokens)."""
    likeliest = TokenDistribution(top_k=1, forbidden=sampling.distribution.forbidden)
    even_N1T = torch.full((len(batch), 1, sampling.max_new_tokens), 0.5, dtype=torch.float64)
    greedy = replace(sampling, distribution=likeliest)
    drawn = generate(model, batch.inputs, batch.labels_N, even_N1T, greedy, batch.pictures)
    return _wide(drawn.tokens_NGT, sampling)


def batches_of_share(
    dataset: VisualDataset, inputs: VisualInputs, shards: Precision, size: int
) -> Iterator[Batch]:
    """Yield this process's rows; the last is repeated where the shares would not be equal."""
    share = -(-len(dataset) // shards.world_size)
    first = shards.rank * share
    rows = [min(row, len(dataset) - 1) for row in range(first, first + share)]
    columns = batch_columns(dataset)
    for start in range(0, share, size):
        chosen = rows[start : start + size]
        made = inputs.collate([inputs(row) for row in chosen])
        assert made.labels_N is not None
        indices_N = torch.tensor(chosen)
        yield Batch(
            indices_N,
            made.inputs,
            made.labels_N.long(),
            {name: [dataset.columns[name][row] for row in chosen] for name in columns},
            indices_N,
            made.pictures,
            made.answers_NT,
        ).to(shards.device)


def gather_rows(parts: Sequence[Tensor], shards: Precision, total: int) -> Tensor:
    """Return the rows of all processes' parts in the data set's order, on the CPU."""
    return shards.gather(torch.cat(list(parts)).to(shards.device)).cpu()[:total]


def _wide(tokens_NGT: Tensor, sampling: Sampling) -> Tensor:
    """Pad completions to the longest that may be, so that all processes' have one shape."""
    return pad(tokens_NGT, (0, sampling.max_new_tokens - tokens_NGT.shape[-1]), value=sampling.pad)
