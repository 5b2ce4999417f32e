"""How near gradients of masks that are drawn come to the exact one: `python drawn_masks.py`.

Four images of 32 × 32 pixels and 6 classes, a random policy that leans to the truth, Dice of each
image. The exact gradient is that of the score of the expected counts.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import PixelView
from visgrpo.methods.whole_masks import WholeMaskGRPO
from visgrpo.objectives import preset
from visgrpo.objectives.counts import Counts, CountScore
from visgrpo.rewards.sets import parse_rewards

N, SIDE, K = 4, 32, 6
CLASSES = tuple("abcdef")
DICE = CountScore(2, 1, 0)


def scores(probabilities_NHWK: Tensor, truth_NHW: Tensor) -> Tensor:
    images_R = torch.arange(N).repeat_interleave(SIDE * SIDE)
    counts = Counts.of(probabilities_NHWK.flatten(0, 2), truth_NHW.flatten(), images_R, N)
    return DICE.scores(counts)


def dice(masks: Tensor, *, label: Tensor, **_: Any) -> Tensor:
    each = [scores(F.one_hot(mask, K).double(), label) for mask in masks.unbind(1)]
    return torch.stack(each, dim=1)


dice.scope = "mask"  # type: ignore[attr-defined]


def main() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    truth_NHW = torch.stack([(rows // 8 + columns // 11 + n) % K for n in range(N)])
    noise = torch.randn(N, SIDE, SIDE, K, dtype=torch.float64)
    logits = (noise + 2 * F.one_hot(truth_NHW, K)).requires_grad_()
    (exact,) = torch.autograd.grad(scores(logits.softmax(-1), truth_NHW).mean(), logits)
    batch = Batch(torch.arange(N), torch.zeros(N), truth_NHW, {})
    view = PixelView(1, 255, lambda grid, size: grid, "pixel")
    for size in (8, 64, 512):
        method = WholeMaskGRPO(
            parse_rewards([dice], None, CLASSES),
            preset("grpo", scale="none"),
            CLASSES,
            view,
            group_size=size,
        )
        found = []
        for step in range(5):
            loss = method.loss(lambda _: logits, batch, None, step).loss
            (drawn,) = torch.autograd.grad(-loss, logits)
            found.append(F.cosine_similarity(drawn.flatten(), exact.flatten(), dim=0).item())
        print(f"{size} masks an image: cosine {fmean(found):.2f}")


if __name__ == "__main__":
    main()
