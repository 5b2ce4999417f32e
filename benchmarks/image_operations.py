"""The multiply-adds of a GRPO step of a small Qwen2.5-VL: as TRL does it, and as we do it.

Counted are the products of matrices: patches, linear layers, attention (only the pairs of tokens
that see each other) and logits. A backward pass costs twice its forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Sizes:
    """Multiply-adds of a forward pass.

    Attributes:
        image: of one image, from patches to features.
        token: of one token in the language model's linear layers.
        pair: of one token that looks at one token, in all layers.
        logits: of one token's logits.
    """

    image: int
    token: int
    pair: int
    logits: int


@dataclass(frozen=True)
class Step:
    """What is read and written for one prompt.

    Attributes:
        prompt: tokens of the prompt, those of its image among them.
        new: tokens of each of ``group`` completions.
        frozen: whether the vision tower does not train.
    """

    prompt: int
    new: int
    group: int
    frozen: bool = False


def sizes_of(model: Any, pixels: int) -> Sizes:
    """Count the parts of a Qwen2.5-VL for a square image of some pixels a side.

    Raises:
        ValueError: where windows of attention would be cut off at the image's edge.
    """
    text, tower = model.config.text_config, model.config.vision_config
    return Sizes(
        image=_of_image(model.model.visual, tower, pixels // tower.patch_size),
        token=_weights(model.model.language_model),
        pair=2 * text.hidden_size * text.num_hidden_layers,
        logits=text.hidden_size * text.vocab_size,
    )


def plain(sizes: Sizes, step: Step) -> int:
    """Count a prompt's step as TRL does it: every completion brings prompt and image along.

    The last token of a completion is not read in the rollout, and read in the update.
    """
    passes = 2 if step.frozen else 4
    read = step.prompt + step.new - 1
    rollout = read * sizes.token + _causal(read) * sizes.pair
    update = (read + 1) * sizes.token + _causal(read + 1) * sizes.pair
    logits = step.new * sizes.logits
    return step.group * (passes * sizes.image + rollout + 3 * update + 4 * logits)


def shared(sizes: Sizes, step: Step) -> int:
    """Count a prompt's step as we do it: prompt and image are read once for rollout and update.

    Features of a frozen tower are kept from the step before.
    """
    prompt = step.prompt * sizes.token + _causal(step.prompt) * sizes.pair
    image = 0 if step.frozen else sizes.image
    read = step.new - 1  # a completion's last token is never read
    pairs = read * step.prompt + _causal(read)
    completion = read * sizes.token + pairs * sizes.pair
    first, rest = sizes.logits, step.group * read * sizes.logits  # of the rollout
    update = step.group * step.new * sizes.logits
    return 3 * (image + prompt) + 4 * step.group * completion + first + rest + 3 * update


def _of_image(visual: Any, tower: Any, side: int) -> int:
    patches = side**2
    merged = tower.spatial_merge_size**2
    window = min(side, tower.window_size // tower.patch_size)
    if side % window:
        raise ValueError(f"{side} patches a side are not cut into windows of {window}.")
    embedded = patches * visual.patch_embed.proj.weight.numel()
    blocks = patches * _weights(visual.blocks)
    features = patches // merged * _weights(visual.merger)
    whole = len(tower.fullatt_block_indexes)
    pairs = whole * patches**2 + (tower.depth - whole) * patches * window**2
    return embedded + blocks + features + 2 * tower.hidden_size * pairs


def _weights(part: nn.Module) -> int:
    return sum(each.weight.numel() for each in part.modules() if isinstance(each, nn.Linear))


def _causal(tokens: int) -> int:
    """Pairs of tokens of which the second sees the first, itself included."""
    return tokens * (tokens + 1) // 2
