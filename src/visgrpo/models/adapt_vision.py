"""What of a vision-language model trains: everything, named parts, patterns, low-rank adapters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from visgrpo.errors import UserError, nearest
from visgrpo.models.adapt import wrap_in_adapters
from visgrpo.models.adapt_language import linear_layers
from visgrpo.models.vision_families import family_of

ALL, LORA = "all", "lora"
_LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?")

Parameters = Sequence[nn.Parameter]


class TrainedPart(NamedTuple):
    """How much of one part of a model trains.

    Attributes:
        tensors: that train; parameters are the numbers in them.
        total: numbers in the whole part.
    """

    part: str
    tensors: int
    parameters: int
    total: int


def adapt_vision_language(
    model: Any, *, train: Sequence[str], rank: int, alpha: float
) -> tuple[Any, list[TrainedPart]]:
    """Freeze everything but what was chosen; return the model, or a peft model, and what trains.

    Args:
        model: of transformers, for conditional generation.
        train: names of parts, and patterns (`fnmatch`) of parameter names. "all"; "vision" (the
            tower and its merger), "merger", "merger-last" (its last linear layer); "language",
            "embeddings", "layers:0-4" (decoder layers, counted from 0), "head"; "lora", adapters on
            the language model's linear layers. Where input and output embeddings are one matrix,
            "embeddings" and "head" are both.
        rank: of the adapters. They start as no change, from torch's global generator: seed it.
        alpha: adapters are scaled by this over their rank.

    Returns:
        The model, and one row for each of its parts.

    Raises:
        UserError: for a name or pattern of nothing, layers that are not there, or no choice.
    """
    if not train:
        raise UserError("--train names nothing that trains: name parts, or all.")
    if LORA in train and ALL in train:
        raise UserError("--train all lora: adapters add nothing where everything trains.")
    chosen = {
        id(parameter) for name in train if name != LORA for parameter in _chosen_by(name, model)
    }
    parts = _parts_of(model)  # before adapters come between
    adapted = model
    if LORA in train:
        if rank < 1:
            raise UserError(f"--lora-rank {rank}: give 1 or more.")
        adapted = wrap_in_adapters(model, _targets(model), rank=rank, alpha=alpha, dropout=0.0)
        parts[LORA] = [p for p in adapted.parameters() if p.requires_grad]
        chosen.update(map(id, parts[LORA]))
    for parameter in adapted.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return adapted, [_row(part, parameters) for part, parameters in parts.items()]


def _chosen_by(name: str, model: Any) -> Parameters:
    layers = _LAYERS.fullmatch(name)
    if layers:
        return _layers(model, int(layers[1]), int(layers[2] or layers[1]))
    named = _NAMED.get(name)
    if named:
        return named(model)
    found = [p for key, p in model.named_parameters() if fnmatchcase(key, name)]
    if not found:
        known = [*_NAMED, LORA, "layers:0-4"]
        if "." in name:
            known += [key for key, _ in model.named_parameters()]
        raise UserError(f'--train "{name}" is no part of this model. {nearest(name, known)}')
    return found


def _layers(model: Any, first: int, last: int) -> Parameters:
    layers = family_of(model).trunk(model).layers
    if not first <= last < len(layers):
        raise UserError(
            f"--train layers:{first}-{last}: the language model has the layers 0-{len(layers) - 1}."
        )
    return [p for layer in layers[first : last + 1] for p in layer.parameters()]


def _vision(model: Any) -> Parameters:
    family = family_of(model)
    return _once([*family.tower(model).parameters(), *_bridge(model)])


def _bridge(model: Any) -> Parameters:
    return list(family_of(model).bridge(model).parameters())


def _last_of_bridge(model: Any) -> Parameters:
    linear = [m for m in family_of(model).bridge(model).modules() if isinstance(m, nn.Linear)]
    return list(linear[-1].parameters())


def _language(model: Any) -> Parameters:
    return _once([*family_of(model).trunk(model).parameters(), *_head(model)])


def _embeddings(model: Any) -> Parameters:
    return list(model.get_input_embeddings().parameters())


def _head(model: Any) -> Parameters:
    return list(model.get_output_embeddings().parameters())


_NAMED: Mapping[str, Callable[[Any], Parameters]] = {
    ALL: lambda model: list(model.parameters()),
    "vision": _vision,
    "merger": _bridge,
    "merger-last": _last_of_bridge,
    "language": _language,
    "embeddings": _embeddings,
    "head": _head,
}


def _parts_of(model: Any) -> dict[str, Parameters]:
    """Return every parameter under the first of its parts."""
    last = len(family_of(model).trunk(model).layers) - 1
    parts = {
        "merger": _bridge(model),
        "tower": _vision(model),
        "embeddings": _embeddings(model),
        f"layers:0-{last}": _layers(model, 0, last),
        "head": _head(model),
        "other": list(model.parameters()),
    }
    seen = set[int]()
    for part, parameters in parts.items():
        parts[part] = [p for p in parameters if id(p) not in seen]
        seen.update(map(id, parameters))
    return {part: parameters for part, parameters in parts.items() if parameters}


def _once(parameters: Iterable[nn.Parameter]) -> Parameters:
    return list({id(p): p for p in parameters}.values())


def _targets(model: Any) -> list[str]:
    trunk = family_of(model).trunk(model)
    inside = {id(module) for module in trunk.modules()}
    modules = dict(model.named_modules())
    return [name for name in linear_layers(model) if id(modules[name]) in inside]


def _row(part: str, parameters: Parameters) -> TrainedPart:
    trained = [p.numel() for p in parameters if p.requires_grad]
    return TrainedPart(part, len(trained), sum(trained), sum(p.numel() for p in parameters))
