"""How long `visgrpo language` trains, and with what, where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Budget(NamedTuple):
    """How long a stage trains, by default."""

    steps: int
    batch_size: int
    learning_rate: float


class Defaults(NamedTuple):
    """What a preset stands for, beside the sizes of its model."""

    context: int
    max_new_tokens: int
    pairs: int
    samples: int
    sft: Budget
    reward: Budget
    policy: Budget


PRESETS: Mapping[str, Defaults] = {
    "tiny": Defaults(
        context=64,
        max_new_tokens=24,
        pairs=400,
        samples=8,
        sft=Budget(150, 16, 3e-3),
        reward=Budget(40, 16, 1e-3),
        policy=Budget(15, 8, 1e-3),
    ),
    "nano": Defaults(
        context=96,
        max_new_tokens=64,
        pairs=3000,
        samples=32,
        sft=Budget(700, 24, 4e-3),
        reward=Budget(150, 32, 1e-3),
        policy=Budget(60, 8, 2e-4),
    ),
    "small": Defaults(
        context=256,
        max_new_tokens=128,
        pairs=8000,
        samples=64,
        sft=Budget(3000, 64, 1e-3),
        reward=Budget(400, 64, 2e-4),
        policy=Budget(300, 32, 1e-4),
    ),
}
# Of models that were not made here, such as those of the Hub.
FOREIGN = Defaults(
    context=0,
    max_new_tokens=256,
    pairs=2000,
    samples=16,
    sft=Budget(500, 16, 2e-5),
    reward=Budget(200, 16, 1e-5),
    policy=Budget(200, 8, 1e-6),
)
LORA_RATE = 20.0  # adapters learn at a multiple of the rate of whole models
