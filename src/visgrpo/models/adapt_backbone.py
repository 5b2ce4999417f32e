"""What of a backbone trains: nothing, its last blocks, low-rank adapters, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from visgrpo.errors import UserError
from visgrpo.models.adapt import wrap_in_adapters
from visgrpo.models.backbone import Backbone
from visgrpo.models.representation import RepresentationClassifier, Segmenter

TrainBackbone = Literal["frozen", "last-blocks", "lora", "full"]


@dataclass(frozen=True)
class BackboneAdaptation:
    """Which weights of a backbone train, and how. The head always trains.

    Attributes:
        train: ``frozen``; ``last-blocks``, with whatever follows them; ``lora``, low-rank adapters
            (peft) on every linear layer of the blocks; or ``full``.
        last_blocks: how many, for ``last-blocks``; a block of a ConvNet is a stage.
    """

    train: TrainBackbone = "frozen"
    last_blocks: int = 1
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0


def adapt_backbone(model: RepresentationClassifier | Segmenter, choice: BackboneAdaptation) -> None:
    """Freeze everything of the backbone but what was chosen; add adapters. In place.

    Adapters start from torch's global generator: seed it before.

    Raises:
        UserError: for a choice that this backbone cannot follow.
    """
    backbone = model.backbone
    backbone.requires_grad_(False)
    if choice.train == "lora":
        _add_adapters(backbone, choice)
    elif choice.train != "frozen":
        first = "" if choice.train == "full" else _first_block(backbone, choice.last_blocks)
        started = False
        for name, parameter in backbone.plain.named_parameters():
            # Parameters come in the order of the forward pass: what follows the blocks trains too.
            started = started or name.startswith(first)
            parameter.requires_grad_(started)
        _freeze_what_takes_no_part(model)
    backbone.note_what_trains()


def backbone_is_frozen(model: RepresentationClassifier | Segmenter) -> bool:
    """Whether the backbone's features stay the same for the whole run."""
    return not any(parameter.requires_grad for parameter in model.backbone.parameters())


def _blocks(backbone: Backbone) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a transformer's blocks, or a ConvNet's stages."""
    return next(
        (name, module)
        for name, module in backbone.plain.named_modules()
        if isinstance(module, nn.ModuleList)
    )


def _first_block(backbone: Backbone, last_blocks: int) -> str:
    name, blocks = _blocks(backbone)
    if not 1 <= last_blocks <= len(blocks):
        raise UserError(
            f"--last-blocks {last_blocks}: this {backbone.plain.config.model_type} has "
            f"{len(blocks)} blocks, of which 1 to {len(blocks)} can train."
        )
    return f"{name}.{len(blocks) - last_blocks}."


def _add_adapters(backbone: Backbone, choice: BackboneAdaptation) -> None:
    prefix, blocks = _blocks(backbone)
    targets = [
        f"{prefix}.{name}" for name, module in blocks.named_modules() if type(module) is nn.Linear
    ]
    if not targets:
        raise UserError(
            f"--train lora: a {backbone.plain.config.model_type} has no linear layers for "
            "adapters; choose last-blocks or full."
        )
    backbone.encoder = wrap_in_adapters(
        backbone.plain,
        targets,
        rank=choice.lora_rank,
        alpha=choice.lora_alpha,
        dropout=choice.lora_dropout,
    )


def _freeze_what_takes_no_part(model: RepresentationClassifier | Segmenter) -> None:
    """Freeze weights that the answer does not depend on, such as a mask token or an unused pooler.

    They would be saved as if tuned, and several processes would wait for their gradients. Which
    they are depends on family and pool, so one image is asked.
    """
    weights = [p for p in model.backbone.parameters() if p.requires_grad]
    side = 2 * model.backbone.stride
    training = model.training
    model.eval()
    with torch.enable_grad():
        answer: Tensor = model(weights[0].new_zeros(1, 3, side, side))
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            answer.sum(), weights, allow_unused=True
        )
    model.train(training)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)
