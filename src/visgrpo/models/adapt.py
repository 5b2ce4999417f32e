"""What trains: a tower, both, the projections, the last blocks, or low-rank adapters on them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from visgrpo.errors import UserError
from visgrpo.models.clip import ClipClassifier

Train = Literal["image", "text", "full", "projections"]

_TOWERS = {"image": ("vision_model",), "text": ("text_model",)}
_PROJECTIONS = {"image": ("visual_projection",), "text": ("text_projection",)}
_LINEAR = r"(?:q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


@dataclass(frozen=True)
class Adaptation:
    """Which weights train, and how.

    Attributes:
        train: ``image``, ``text`` or ``full`` (both), each a tower with its projection, or
            ``projections`` alone.
        last_blocks: train only that many last blocks of the image tower, with what follows them,
            in full; with LoRA, the blocks alone in full and adapters on the blocks before.
        lora: low-rank adapters (peft) on the linear layers of the chosen towers.
    """

    train: Train = "image"
    last_blocks: int = 0
    lora: bool = False
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0


def adapt(classifier: ClipClassifier, choice: Adaptation) -> None:
    """Freeze everything but what was chosen; add adapters where asked for. In place.

    Raises:
        UserError: for a choice that this model cannot follow.
    """
    backbone = classifier.backbone
    blocks = len(backbone.vision_model.encoder.layers)
    if not 0 <= choice.last_blocks <= blocks:
        raise UserError(f"--last-blocks {choice.last_blocks}: the image tower has {blocks} blocks.")
    if choice.train == "projections" and not hasattr(backbone, "visual_projection"):
        raise UserError(
            f"--train projections: {backbone.config.model_type} has no projection layers; "
            "choose image, text or full."
        )
    if choice.last_blocks and choice.train not in ("image", "full"):
        raise UserError(
            f"--last-blocks are the image tower's: they do not go with --train {choice.train}."
        )
    if choice.lora and choice.train == "projections":
        raise UserError("--lora adapts towers: choose --train image, text or full.")
    backbone.requires_grad_(False)
    if choice.lora:
        classifier.encoder = _with_adapters(backbone, choice, blocks)
    else:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(_trains_in_full(name, choice, blocks))
    # The adapter wrapper froze the scale too: it is decided here, last.
    backbone.logit_scale.requires_grad_(classifier.scale_mode != "frozen")
    classifier.note_what_trains()


def image_tower_is_frozen(classifier: ClipClassifier) -> bool:
    """Whether pooled image features stay the same for the whole run."""
    return not any(p.requires_grad for p in classifier.backbone.vision_model.parameters())


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name, in the model's own order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def wrap_in_adapters(
    model: nn.Module,
    targets: Sequence[str],
    in_full: Sequence[str] = (),
    *,
    rank: int,
    alpha: float,
    dropout: float,
) -> Any:
    """Return a peft model with adapters on the named linear layers, which start as no change.

    Args:
        in_full: names of modules that train in full beside the adapters.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(targets),
        modules_to_save=list(in_full) or None,
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that will be removed
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, settings)


def _sides(choice: Adaptation) -> tuple[str, ...]:
    return ("image", "text") if choice.train in ("full", "projections") else (choice.train,)


def _trains_in_full(name: str, choice: Adaptation, blocks: int) -> bool:
    sides = _sides(choice)
    if any(name.startswith(_PROJECTIONS[side]) for side in sides):
        return True
    if choice.train == "projections":
        return False
    if name.startswith("vision_model") and choice.last_blocks and "image" in sides:
        first = blocks - choice.last_blocks
        after_blocks = ("vision_model.post_layernorm", "vision_model.head")
        layer = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
        return name.startswith(after_blocks) or (layer is not None and int(layer[1]) >= first)
    return any(name.startswith(_TOWERS[side]) for side in sides)


def _with_adapters(backbone: nn.Module, choice: Adaptation, blocks: int) -> Any:
    first_full = blocks - choice.last_blocks
    towers = [tower for side in _sides(choice) for tower in _TOWERS[side]]
    targets = [
        name
        for name, module in backbone.named_modules()
        # Exactly Linear: nn.MultiheadAttention reads its out_proj's weight past any adapter.
        if type(module) is nn.Linear
        and re.search(rf"\.{_LINEAR}$", name)
        and any(name.startswith(tower) for tower in towers)
        and _block_of_image_tower(name) < first_full
    ]
    in_full = [f"vision_model.encoder.layers.{i}" for i in range(first_full, blocks)]
    return wrap_in_adapters(
        backbone,
        targets,
        in_full,
        rank=choice.lora_rank,
        alpha=choice.lora_alpha,
        dropout=choice.lora_dropout,
    )


def _block_of_image_tower(name: str) -> int:
    found = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1
