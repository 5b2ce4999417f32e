"""Generation: G completions of each of N prompts, with the log-probs that they were drawn with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from visgrpo.data.pictures import Pictures
from visgrpo.models.language import LanguageModel
from visgrpo.models.prompt_reading import ReadPrompts
from visgrpo.objectives.advantages import draw
from visgrpo.objectives.divergences import entropy
from visgrpo.objectives.token_distribution import TokenDistribution


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        max_new_tokens: the longest completion; one that has not ended by then is cut off.
        stop: ids of tokens that end a completion; they belong to it.
        pad: id that stands after the end.
    """

    distribution: TokenDistribution
    max_new_tokens: int
    stop: tuple[int, ...]
    pad: int


@dataclass(frozen=True)
class Completions:
    """N groups of G completions of up to T tokens, all padded to the longest.

    Attributes:
        tokens_NGT: ids; the padding id after the end.
        mask_NGT: True at the completion's own tokens, the one that ends it included.
        log_probs_NGT: of the distribution that each token was drawn from; 0 after the end.
        ended_NG: False where the length limit cut the completion off.
        values_NGT: of the state before each token, by a critic that reads the policy's states; 0
            after the end; None without one.
        entropies_NGT: of the whole softmax that each token comes from; None unless asked for.
        read: the prompts, with gradient, where that was asked for.
    """

    tokens_NGT: Tensor
    mask_NGT: Tensor
    log_probs_NGT: Tensor
    ended_NG: Tensor
    values_NGT: Tensor | None = None
    entropies_NGT: Tensor | None = None
    read: ReadPrompts | None = None

    def ids(self) -> list[list[list[int]]]:
        """Return each completion's own tokens as plain lists, N × G."""
        return ids_of(self.tokens_NGT, self.mask_NGT)


def ids_of(tokens_NGT: Tensor, mask_NGT: Tensor) -> list[list[list[int]]]:
    """Return each completion's own tokens as plain lists, N × G."""
    lengths_NG = mask_NGT.sum(dim=-1).tolist()
    return [
        [ids[:length] for ids, length in zip(group, lengths, strict=True)]
        for group, lengths in zip(tokens_NGT.tolist(), lengths_NG, strict=True)
    ]


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts_NP: Tensor,
    lengths_N: Tensor,
    uniforms_NGT: Tensor,
    sampling: Sampling,
    pictures: Pictures | None = None,
    *,
    keep_read: bool = False,
    entropies: bool = False,
) -> Completions:
    """Draw completions; the same uniforms, prompts and weights give the same ones.

    Each prompt is read once and its cache shared by its completions. Once half of the rows have
    ended, the others go on alone.

    Args:
        prompts_NP: ids, padded on the left.
        lengths_N: real tokens of each prompt.
        uniforms_NGT: U(0, 1) numbers that decide the draws, one for each token that may come.
        pictures: the prompts' images, for a model that sees.
        keep_read: whether the prompts are read with gradient, for an update by the same weights.
        entropies: whether tokens come with the entropy of the softmax that they were drawn from.
    """
    n_prompts, group_size, room = uniforms_NGT.shape
    device, rows = prompts_NP.device, n_prompts * group_size
    tokens_TB = torch.zeros(room, rows, dtype=torch.long, device=device)
    mask_TB = torch.zeros(room, rows, dtype=torch.bool, device=device)
    log_probs_TB = torch.zeros(room, rows, device=device)
    ended_B = torch.ones(rows, dtype=torch.bool, device=device)
    critic = model.critic if model.critic is not None and model.critic.trunk is None else None
    values_TB = torch.zeros_like(log_probs_TB) if critic is not None else None
    entropies_TB = torch.zeros_like(log_probs_TB) if entropies else None
    stop = torch.tensor(sampling.stop, dtype=torch.long, device=device)
    with _in_eval_mode(model), torch.set_grad_enabled(keep_read):
        decoder = model.begin(prompts_NP, lengths_N, group_size, room, pictures)
    # Faster than no_grad by a tenth for a small model. What leaves it was made above, as training
    # must be able to take it.
    with _in_eval_mode(model), torch.inference_mode():
        active: Tensor | slice = slice(None)  # rows of B that the decoder goes on with
        uniforms_AT = uniforms_NGT.flatten(0, 1).to(device)
        going_A = ended_B
        for step in range(room):
            log_probs_AV = sampling.distribution.log_probs(decoder.logits_BV).float()
            drawn_A1 = draw(log_probs_AV, uniforms_AT[:, step : step + 1])
            drawn_A = drawn_A1.squeeze(1)
            tokens_TB[step, active] = drawn_A
            log_probs_TB[step, active] = log_probs_AV.gather(1, drawn_A1).squeeze(1)
            mask_TB[step, active] = going_A
            if critic is not None and values_TB is not None:
                values_TB[step, active] = critic.of_states(decoder.states_BD)
            if entropies_TB is not None:
                whole_AV = sampling.distribution.whole().log_probs(decoder.logits_BV)
                entropies_TB[step, active] = entropy(whole_AV).float()
            going_A = going_A & ~torch.isin(drawn_A, stop)
            left = int(going_A.sum())
            if left == 0 or step + 1 == room:
                break
            if left <= len(going_A) // 2:
                kept = going_A.nonzero().squeeze(1)
                decoder.keep(kept)
                active = kept if isinstance(active, slice) else active[kept]
                drawn_A, going_A, uniforms_AT = drawn_A[kept], going_A[kept], uniforms_AT[kept]
            decoder.feed(drawn_A)
        ended_B[active] = ~going_A
    longest, grouped = step + 1, (n_prompts, group_size)
    mask_BT = mask_TB[:longest].T.contiguous()

    def within(each_TB: Tensor, after: float) -> Tensor:
        return each_TB[:longest].T.masked_fill(~mask_BT, after).unflatten(0, grouped)

    return Completions(
        within(tokens_TB, sampling.pad),
        mask_BT.unflatten(0, grouped),
        within(log_probs_TB, 0.0),
        ended_B.unflatten(0, grouped),
        None if values_TB is None else within(values_TB, 0.0),
        None if entropies_TB is None else within(entropies_TB, 0.0),
        decoder.read if keep_read else None,
    )


@contextmanager
def _in_eval_mode(model: LanguageModel) -> Iterator[None]:
    """Draw from the model as it answers, with nothing that is for training alone."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
