"""Join the vision tower of a Qwen2.5-VL and a Qwen2 language model to one model that sees."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from visgrpo.errors import UserError, nearest
from visgrpo.files import read_json
from visgrpo.models.load import load_language
from visgrpo.models.parts import Parts, in_one_line, load_images, model_folder, pretrained
from visgrpo.models.tokenizers import VISION_TOKENS, vision_token_ids, with_image_places
from visgrpo.models.vision_families import mrope_section
from visgrpo.models.vision_language import VisionProcessor
from visgrpo.models.whole import check_model_name

Merger = Literal["slice", "new"]

_KIND = "qwen2"
_LAST = "merger.mlp.2"  # the merger's last layer, the one whose width is the language model's


def join(
    vision: str,
    language: str,
    *,
    merger: Merger = "slice",
    max_pixels: int | None = None,
    seed: int = 0,
) -> Parts:
    """Put a vision tower before a language model; on text the joined model is the language model.

    Everything but the merger's last layer is taken over as it is: rotary base, biases, tied
    embeddings, end tokens and system prompt from the language model. Special tokens that its
    tokenizer lacks are added.

    Args:
        vision: a Qwen2.5-VL model, as folder or Hub name.
        language: a Qwen2 or Qwen2.5 causal language model, as ``load_language`` takes it.
        merger: ``slice`` keeps the first rows of the merger's last layer, as many as the language
            model is wide; ``new`` draws the layer anew.
        max_pixels: images with more are made smaller; by default as the tower's settings say.
        seed: of a new layer, and of embeddings that are added.

    Returns:
        The model in float32, not saved yet.

    Raises:
        UserError: when one of the two cannot be loaded, is of another kind, or they do not fit.
    """
    if merger not in get_args(Merger):
        raise UserError(f'--merger "{merger}" is not known. {nearest(merger, get_args(Merger))}')
    tower = read_tower(vision)
    parts = load_language(language)
    _check_fit(tower, parts, merger)
    note = _add_tokens(parts, seed)
    parts.tokenizer.chat_template = with_image_places(parts.tokenizer.chat_template)
    parts.tokenizer.split_special_tokens = False  # a rendered chat spells its special tokens
    model = _joined(tower, parts, merger, seed)
    processor = VisionProcessor.of(model.config, tower.images, parts.tokenizer)
    if max_pixels is not None:
        processor.limit(max_pixels)
    notes = (*parts.notes, note) if note else parts.notes
    name = f"{tower.name} + {parts.name}"
    return Parts(name, model, parts.tokenizer, notes=notes, processor=processor)


def _check_fit(tower: VisionTower, parts: Parts, merger: Merger) -> None:
    config = parts.model.config
    if config.model_type != _KIND:
        raise UserError(
            f'--language "{parts.name}" is a {config.model_type} model; a Qwen2.5-VL tower can be '
            f"joined with a {_KIND} only, such as Qwen/Qwen2.5-0.5B-Instruct."
        )
    last = tower.weights[f"{_LAST}.weight"]
    if merger == "slice" and len(last) < config.hidden_size:
        raise UserError(
            f'The merger\'s last layer of "{tower.name}" is {tuple(last.shape)} and cannot be '
            f'sliced to ({config.hidden_size}, {last.shape[1]}) for "{parts.name}": --merger new.'
        )


def _add_tokens(parts: Parts, seed: int) -> str:
    """Add the special tokens that are missing, in place, and return a sentence on it."""
    vocabulary = parts.tokenizer.get_vocab()
    missing = [token for token in VISION_TOKENS if token not in vocabulary]
    if not missing:
        return ""
    parts.tokenizer.add_tokens(missing, special_tokens=True)
    note = f'The tokenizer of "{parts.name}" got {", ".join(missing)}.'
    had = parts.model.get_input_embeddings().num_embeddings
    needed = 1 + max(vision_token_ids(parts.tokenizer).values())
    if needed <= had:
        return note
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts.model.resize_token_embeddings(needed, mean_resizing=False)
    return f"{note} The model got {needed - had} embedding(s) more."


def _joined(tower: VisionTower, parts: Parts, merger: Merger, seed: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    language = parts.model
    tied = language.config.tie_word_embeddings
    config = Qwen2_5_VLConfig(
        text_config=_text_settings(language.config),
        vision_config={**tower.config.to_dict(), "out_hidden_size": language.config.hidden_size},
        tie_word_embeddings=tied,
        **vision_token_ids(parts.tokenizer),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
        weights = tower.weights | _last_layer(tower, language.config, merger)
    model.model.visual.load_state_dict(weights)
    model.model.language_model.load_state_dict(language.model.state_dict())
    if not tied:
        model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config = copy.deepcopy(language.generation_config)
    return model


def _text_settings(config: Any) -> dict[str, Any]:
    """Return the language model's settings as those of a Qwen2.5-VL's text model."""
    head_dim = config.hidden_size // config.num_attention_heads
    rotary = {**config.rope_parameters, "mrope_section": mrope_section(head_dim)}
    settings = {**config.to_dict(), "rope_parameters": rotary}
    of_file = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")
    return {name: value for name, value in settings.items() if name not in of_file}


def _last_layer(tower: VisionTower, config: Any, merger: Merger) -> dict[str, Tensor]:
    weight, bias = (tower.weights[f"{_LAST}.{part}"] for part in ("weight", "bias"))
    if merger == "slice":
        made = weight[: config.hidden_size], bias[: config.hidden_size]
    else:
        new = torch.empty(config.hidden_size, weight.shape[1])
        nn.init.normal_(new, std=config.initializer_range)
        made = new, torch.zeros(config.hidden_size)
    return {f"{_LAST}.weight": made[0], f"{_LAST}.bias": made[1]}


_TOWER_KIND = "qwen2_5_vl"
_IN_TOWER = re.compile(r"(?:model\.)?visual\.(.+)")  # as the Hub names them, or a model in memory


@dataclass(frozen=True)
class VisionTower:
    """A vision tower as it is stored.

    Attributes:
        name: where it was read.
        config: transformers' configuration of the tower.
        weights: float32, by the names inside the tower; all of the configuration's shapes.
        images: the checkpoint's image processor.
    """

    name: str
    config: Any
    weights: dict[str, Tensor]
    images: Any


def read_tower(name: str) -> VisionTower:
    """Read the vision tower of a Qwen2.5-VL folder or Hub name; only its files are fetched.

    Raises:
        UserError: for another kind of model, and weights that are missing or of other shapes than
            the configuration says.
    """
    name = model_folder(name)
    check_model_name(name)
    with in_one_line(name):
        config = pretrained("AutoConfig", name)
        if config.model_type != _TOWER_KIND:
            raise UserError(
                f'--vision "{name}" is a {config.model_type} model; its tower cannot be joined. '
                f"Take a {_TOWER_KIND}, such as Qwen/Qwen2.5-VL-3B-Instruct."
            )
        images = load_images(name)
        weights = _read_weights(name)
    _check_shapes(name, config.vision_config, weights)
    return VisionTower(name, config.vision_config, weights, images)


def _read_weights(name: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    weights: dict[str, Tensor] = {}
    for file in _weight_files(name):
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  # no dictionary
                inside = _IN_TOWER.fullmatch(key)
                if inside:
                    weights[inside[1]] = stored.get_tensor(key).float()
    return weights


class Index(TypedDict):
    """Which file of a model in several has each weight."""

    weight_map: dict[str, str]


def _weight_files(name: str) -> list[str]:
    """Fetch the files that hold weights of the tower, and return where they are."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        return [str(cached_file(name, SAFE_WEIGHTS_NAME))]
    places = read_json(Path(index), Index, "Save the model again.")["weight_map"]
    files = {file for key, file in places.items() if _IN_TOWER.fullmatch(key)}
    return [str(cached_file(name, file)) for file in sorted(files)]


def _check_shapes(name: str, config: Any, weights: dict[str, Tensor]) -> None:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    with torch.device("meta"):
        tower = Qwen2_5_VisionTransformerPretrainedModel(config)
    expected = {key: tuple(weight.shape) for key, weight in tower.state_dict().items()}
    for key, shape in expected.items():
        if key not in weights:
            raise UserError(
                f'"{name}" lacks the weight visual.{key} of its vision tower: save the whole model '
                "again."
            )
        if tuple(weights[key].shape) != shape:
            raise UserError(
                f'"{name}" has visual.{key} of {tuple(weights[key].shape)}, but its config.json '
                f"says {shape}: they do not belong together."
            )
