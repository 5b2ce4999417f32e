"""How long `visgrpo vlm` trains, and with what, where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from visgrpo.tasks.language_defaults import Budget


class Defaults(NamedTuple):
    """What a preset stands for, beside the sizes of its model."""

    max_new_tokens: int
    sft: Budget
    policy: Budget


PRESETS: Mapping[str, Defaults] = {
    "tiny": Defaults(max_new_tokens=64, sft=Budget(1300, 16, 4e-3), policy=Budget(100, 16, 5e-5)),
    "small": Defaults(max_new_tokens=96, sft=Budget(1500, 32, 5e-4), policy=Budget(200, 16, 1e-5)),
}
# Of models that were not made here, such as those of the Hub.
FOREIGN = Defaults(max_new_tokens=256, sft=Budget(500, 16, 2e-5), policy=Budget(200, 8, 1e-6))
