"""Load a dual encoder, and what loading any model takes: safetensors only, in float32."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from visgrpo.data.preprocess import Preprocess
from visgrpo.errors import UserError
from visgrpo.models.quiet import without_progress_bars

INFO_FILE = "visgrpo.json"
_SUPPORTED = ("clip", "siglip")


@dataclass(frozen=True)
class ClipParts:
    """A dual encoder with everything that belongs to it."""

    name: str
    model: Any  # CLIPModel or SiglipModel
    tokenizer: Any
    processor: Any
    preprocess: Preprocess
    info: Mapping[str, Any] = field(default_factory=dict)  # what visgrpo saved beside it


def check_model_name(name: str) -> None:
    """Refuse a model that is sure to fail, without loading it.

    Raises:
        UserError: for a folder without a model, and one whose weights need pickle.
    """
    path = Path(name)
    if not path.exists():
        in_a_folder = "/" in name and path.parent.is_dir()  # else it may be OWNER/NAME on the Hub
        if in_a_folder or name.count("/") > 1 or name.startswith((".", "~")):
            raise UserError(f'Model folder "{name}" does not exist.')
        return
    if not path.is_dir():
        raise UserError(f'Model "{name}" is a file; give the folder that holds config.json.')
    if (path / "adapter_config.json").exists():
        if not (path / "adapter_model.safetensors").exists():
            raise UserError(f'Adapter "{name}" has no adapter_model.safetensors.')
        return
    if not (path / "config.json").exists():
        inside = path / "model"
        hint = f" Did you mean {inside}?" if (inside / "config.json").exists() else ""
        raise UserError(f'"{name}" holds no model: config.json is missing.{hint}')
    pickled = [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")]
    if pickled and not list(path.glob("*.safetensors")):
        raise UserError(
            f'"{name}" has its weights in {pickled[0].name}, which needs pickle and could run '
            "code: convert it to safetensors first (save_pretrained does)."
        )


def model_folder(name: str) -> str:
    """Return the model inside a run's folder; any other name as it is."""
    inside = Path(name) / "model"
    is_run = (inside / "config.json").exists() and not (Path(name) / "config.json").exists()
    return str(inside) if is_run else name


def load_clip(name: str) -> ClipParts:
    """Load a CLIP or SigLIP model by folder or Hub name; an adapter is merged into its base.

    Merging makes "adapter off" mean the start itself when a new adapter is put on top.

    Raises:
        UserError: when the model is not there, cannot be fetched, or is of another kind.
    """
    check_model_name(name)
    if (Path(name) / "adapter_config.json").exists():
        return _load_adapter(name)
    from transformers import AutoImageProcessor, AutoTokenizer

    with in_one_line(name):
        model = load_weights(name, _SUPPORTED)
        tokenizer = AutoTokenizer.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    return ClipParts(
        name, model, tokenizer, processor, Preprocess.from_processor(processor), read_info(name)
    )


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Say what transformers raises for a model that cannot be loaded in one line."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'Cannot load model "{name}": {reason} Check the name, the folder or the network.'
        ) from error


def load_weights(
    name: str, supported: Sequence[str], *, may_lack: re.Pattern[str] | None = None
) -> Any:
    """Load a transformers model in float32, without pickle and with every weight it needs.

    Args:
        supported: kinds (`model_type`) that are accepted.
        may_lack: matches the names of weights that are not needed; they are zero where missing.

    Raises:
        UserError: for another kind of model, and one that lacks weights.
    """
    from transformers import AutoConfig, AutoModel

    kind = AutoConfig.from_pretrained(name).model_type
    if kind not in supported:
        raise UserError(
            f'"{name}" is a {kind} model; this job needs one of: {", ".join(supported)}.'
        )
    model, lacking = load_pretrained(AutoModel, name, may_lack=may_lack)
    with torch.no_grad():
        for key in lacking:
            model.get_parameter(key).zero_()  # not random: the same model in every run
    return model


def load_pretrained(
    auto: Any, name: str, *, may_lack: re.Pattern[str] | None = None
) -> tuple[Any, list[str]]:
    """Load a model of one of transformers' Auto classes in float32, without pickle.

    Args:
        auto: AutoModel, AutoModelForCausalLM and so on.
        may_lack: matches the names of weights that may be missing.

    Returns:
        The model, and the names of the weights that are missing, which are random.

    Raises:
        UserError: where others are missing.
    """
    with without_progress_bars():
        model, report = auto.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    lacking = sorted(report["missing_keys"])
    needed = [key for key in lacking if not (may_lack and may_lack.match(key))]
    if needed:
        raise UserError(
            f'"{name}" lacks {len(needed)} weight(s), such as {needed[0]}: they would be random. '
            "Save the whole model again."
        )
    return model, lacking


def read_info(name: str) -> Mapping[str, Any]:
    """Return what visgrpo saved beside a model (classes, templates), empty for other models."""
    path = Path(name) / INFO_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _load_adapter(name: str) -> ClipParts:
    from peft import PeftModel

    config = json.loads((Path(name) / "adapter_config.json").read_text())
    base = load_clip(config["base_model_name_or_path"])
    merged = PeftModel.from_pretrained(base.model, name).merge_and_unload()
    # An adapter trained on top of this one belongs to the merged model, not to the first base.
    merged.name_or_path = merged.config._name_or_path = name
    return ClipParts(
        name, merged, base.tokenizer, base.processor, base.preprocess, read_info(name) or base.info
    )
