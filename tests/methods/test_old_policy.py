"""An old policy run through the model that trains must leave no trace in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import load_clip
from visgrpo.models.trains import adapt, trainable_parameters


@pytest.mark.parametrize(
    "choice",
    [
        ["image"],
        ["text"],
        ["full"],
        ["projections"],
        ["full", "lora"],
        ["image", "lora", "last:1"],
    ],
)
def test_after_a_stale_rollout_everything_that_trains_gets_its_gradient(
    tiny_clip_folder: Path, choice: list[str]
) -> None:
    """The trainer puts detached old weights in place of the parameters for a moment.

    A classifier that read off them whether its text side trains would keep the old text features
    and train against them ever after.
    """
    parts = load_clip(str(tiny_clip_folder))
    policy = ClipClassifier(parts.model, parts.tokenizer, ["cat", "dog", "owl"], ["a {}"])
    adapt(policy, choice)
    policy.train()
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    parameters = trainable_parameters(policy)
    # LoRA starts at 0, where half of its gradient vanishes: move everything a little.
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.01)
    policy.forget_text()
    old = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    with torch.no_grad():
        stale = torch.func.functional_call(policy, old, (pixels,))
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(1.5)
    logits = policy(pixels)
    logits.log_softmax(-1)[:, 0].sum().backward()

    assert not torch.equal(logits, stale)
    assert torch.equal(torch.func.functional_call(policy, old, (pixels,)), stale)
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert without == []
