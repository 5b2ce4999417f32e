"""Save a tuned backbone so that plain transformers loads it, its head beside it; load both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from visgrpo.errors import UserError
from visgrpo.models.backbone import Backbone
from visgrpo.models.backbone_loading import BackboneParts, load_backbone
from visgrpo.models.loading import INFO_FILE
from visgrpo.models.quiet import without_progress_bars
from visgrpo.models.representation import RepresentationClassifier, Segmenter
from visgrpo.models.saving import merged, write_info

HEAD_FILE = "head.safetensors"


def save_representation(
    model: RepresentationClassifier | Segmenter,
    parts: BackboneParts,
    folder: Path,
    card: str,
    info: Mapping[str, Any],
) -> None:
    """Write backbone, head, image processor, class names and model card into one folder.

    Adapters are merged, so that ``AutoModel.from_pretrained(folder)`` is the tuned backbone.
    """
    backbone = model.backbone
    encoder = merged(backbone.encoder) if backbone.has_adapter else backbone.plain
    _save_encoder(encoder, parts, folder, card, {**_own_info(model), **info})
    head = {name: t.detach().contiguous().cpu() for name, t in model.head.state_dict().items()}
    save_file(head, folder / HEAD_FILE)


def save_backbone(parts: BackboneParts, folder: Path, card: str, info: Mapping[str, Any]) -> None:
    """Write a backbone without a head, with its image processor and model card."""
    _save_encoder(parts.model, parts, folder, card, info)


def load_representation(
    folder: str | Path,
) -> tuple[RepresentationClassifier | Segmenter, BackboneParts]:
    """Load what `save_representation` wrote, in evaluation mode.

    Raises:
        UserError: for a folder without a head, and one whose parts do not belong together.
    """
    parts = load_backbone(str(folder))
    model = _with_new_head(parts)
    _load_head(model, Path(folder) / HEAD_FILE)
    return model.eval(), parts


def _save_encoder(
    encoder: Any, parts: BackboneParts, folder: Path, card: str, info: Mapping[str, Any]
) -> None:
    with without_progress_bars():
        encoder.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    write_info(folder, info)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _own_info(model: RepresentationClassifier | Segmenter) -> dict[str, Any]:
    info = {"classes": list(model.classes), "hidden": model.hidden}
    if isinstance(model, Segmenter):
        return {"task": "segmentation", **info}
    return {"task": "classification", **info, "pool": model.pool}


def _with_new_head(parts: BackboneParts) -> RepresentationClassifier | Segmenter:
    info = parts.info
    needed = {
        "classification": ("classes", "hidden", "pool"),
        "segmentation": ("classes", "hidden"),
    }
    task = str(info.get("task"))
    lacking = [key for key in needed.get(task, ("task",)) if key not in info]
    if lacking:
        raise UserError(
            f'"{parts.name}" has no head: {INFO_FILE} does not say its {lacking[0]}. Give the '
            "model folder of a representation or segmentation run."
        )
    with torch.random.fork_rng():  # these weights are replaced
        backbone = Backbone(parts.model)
        if task == "segmentation":
            return Segmenter(backbone, info["classes"], hidden=info["hidden"])
        return RepresentationClassifier(
            backbone, info["classes"], pool=info["pool"], hidden=info["hidden"]
        )


def _load_head(model: RepresentationClassifier | Segmenter, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'Cannot read the head "{path}": {reason} Save the model again.') from error
    expected = {name: tuple(t.shape) for name, t in model.head.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        name = min(key for key in {*expected, *found} if expected.get(key) != found.get(key))
        raise UserError(
            f'The head "{path}" does not belong to this model: {name} has shape '
            f"{found.get(name)}, {INFO_FILE} and the backbone ask for {expected.get(name)}."
        )
    model.head.load_state_dict(tensors)
