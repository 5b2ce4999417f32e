"""What trains: one selector of weights, and what its words mean for each kind of model.

A word is a name of the kind's table, ``last:N`` (the last N blocks, and what follows them),
``layers:A-B`` (blocks counted from 0), a pattern of parameter names (`fnmatch`), or ``lora``:
low-rank adapters (peft) on linear layers. What no word names is frozen.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visgrpo.errors import UserError, nearest
from visgrpo.models.backbone import RepresentationClassifier, Segmenter
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.options import Lora, Weights
from visgrpo.models.vision_families import SEEING, family_of

ALL, LORA = "all", "lora"
_LAST = re.compile(r"last:(-?\d+)")
_LAYERS = re.compile(r"layers:(\d+)(?:-(\d+))?")

Names = Mapping[str, Callable[[Any], Iterable[nn.Parameter]]]


USUAL = Lora()


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


def adapt(model: Any, train: Sequence[str], choice: Lora = USUAL) -> Any:
    """Freeze everything but what was chosen; add adapters where asked for. In place.

    Adapters start as no change, from torch's global generator: seed it before.

    Args:
        model: a classifier or segmenter of ours, or a language or vision-language model of
            transformers.
        train: words. Of a **CLIP**: ``image``, ``text`` or ``full``, each a tower with its
            projection, or ``projections`` alone; ``last:N`` leaves only the image tower's last
            blocks, and with ``lora`` the towers named get adapters instead, the last blocks apart.
            Of a **backbone**, whose head always trains: ``frozen``, ``full``, ``last:N``; ``lora``
            on every linear layer of its blocks. Of a **language model**: ``all``, ``embeddings``,
            ``head`` (both where they are one matrix), ``layers:A-B``; ``lora`` on every linear
            layer but the head. Of a **vision-language model** besides: ``vision`` (the tower and
            its merger), ``merger``, ``merger-last`` (its last linear layer), ``language``; ``lora``
            on the language model alone.

    Returns:
        The model, in a peft model's wrapper if it is of transformers and has adapters now.

    Raises:
        UserError: for a word that names nothing of this model, or a choice it cannot follow.
    """
    if isinstance(model, ClipClassifier):
        _adapt_clip(model, train, choice)
    elif isinstance(model, RepresentationClassifier | Segmenter):
        _adapt_backbone(model, train, choice)
    else:
        model = _adapt_text(model, train, choice)
    return model


def keep_weights(model: nn.Module, weights: Weights) -> None:
    """Keep matrices in bfloat16, those that are frozen or all. In place, before an optimiser.

    They are the weights of linear layers and convolutions, which autocast to bf16 would round
    wherever it takes them, and of embeddings, which give out float32 as before: numbers are those
    of bf16 with float32 weights, where embeddings were stored in bfloat16. Vectors stay as they
    are. Whatever runs the model runs it under autocast.
    """
    if weights == "float32":
        return
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_in_float32)
    for weight in matrices(model):
        if weights == "all-bfloat16" or not weight.requires_grad:
            weight.data = weight.data.bfloat16()


def matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield what `keep_weights` may keep in bfloat16."""
    from transformers.pytorch_utils import Conv1D

    kinds = nn.Linear, nn.Embedding, Conv1D, nn.modules.conv._ConvNd
    layers: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    for layer in layers:
        yield layer.weight


def _in_float32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name, in the model's own order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def encoder_is_frozen(model: ClipClassifier | RepresentationClassifier | Segmenter) -> bool:
    """Whether pooled image features stay the same for the whole run."""
    is_clip = isinstance(model, ClipClassifier)
    encoder: Any = model.backbone.vision_model if is_clip else model.backbone
    return not any(parameter.requires_grad for parameter in encoder.parameters())


def linear_layers(model: Any, inside: nn.Module | None = None) -> list[str]:
    """Return the names of a model's linear layers, without its output head.

    Args:
        inside: only those inside this module of it.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    within = {id(module) for module in (inside or model).modules()}
    return [
        name
        for name, module in model.named_modules()
        # Exactly Linear: nn.MultiheadAttention reads its out_proj's weight past any adapter.
        if type(module) in (nn.Linear, Conv1D) and module is not head and id(module) in within
    ]


def wrap_in_adapters(
    model: nn.Module, targets: Sequence[str], choice: Lora, in_full: Sequence[str] = ()
) -> Any:
    """Return a peft model with adapters on the named linear layers, which start as no change.

    Args:
        in_full: names of modules that train in full beside the adapters.

    Raises:
        UserError: for a rank below 1, and for a name or pattern of no such layer.
    """
    from peft import LoraConfig, get_peft_model

    if choice.lora_rank < 1:
        raise UserError(f"--lora-rank {choice.lora_rank}: give 1 or more.")
    settings = LoraConfig(
        r=choice.lora_rank,
        lora_alpha=choice.lora_alpha,  # type: ignore[arg-type]
        use_rslora=choice.lora_kind == "rslora",
        use_dora=choice.lora_kind == "dora",
        target_modules=_targets(targets, choice.lora_targets),
        modules_to_save=list(in_full) or None,
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that will be removed, and sees by itself how GPT-2's
        # Conv1D holds its weights.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        return get_peft_model(model, settings)


def _targets(layers: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the layers that names or patterns mean; all without any."""
    if not wanted:
        return list(layers)
    chosen = set[str]()
    for word in wanted:
        found = [name for name in layers if fnmatchcase(name, word) or name.endswith(f".{word}")]
        if not found:
            names = dict.fromkeys(name.rpartition(".")[2] for name in layers)
            raise UserError(
                f'--lora-targets "{word}" is no linear layer that could get an adapter. '
                f"{nearest(word, list(names))}"
            )
        chosen.update(found)
    return [name for name in layers if name in chosen]


def trained_parts(model: Any) -> list[TrainedPart]:
    """Return how much trains of each part of a vision-language model, in its adapters or not."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    family = family_of(plain)
    layers = family.trunk(plain).layers
    parts: dict[str, Iterable[nn.Parameter]] = {
        LORA: [p for name, p in model.named_parameters() if ".lora_" in name],
        "merger": family.bridge(plain).parameters(),
        "tower": _SEEING["vision"](plain),
        "embeddings": _TEXT["embeddings"](plain),
        f"layers:0-{len(layers) - 1}": layers.parameters(),
        "head": _TEXT["head"](plain),
        "other": model.parameters(),
    }
    rows, seen = [], set[int]()
    for part, parameters in parts.items():
        own = {id(p): p for p in parameters if id(p) not in seen}
        seen |= own.keys()
        trained = [p.numel() for p in own.values() if p.requires_grad]
        total = sum(p.numel() for p in own.values())
        rows += [TrainedPart(part, len(trained), sum(trained), total)] if own else []
    return [*rows[1:], rows[0]] if rows[0].part == LORA else rows


def _last_blocks(train: Sequence[str]) -> int | None:
    found = [int(match[1]) for match in map(_LAST.fullmatch, train) if match]
    return found[-1] if found else None


def _chosen(model: Any, words: Iterable[str], names: Names, blocks: nn.ModuleList) -> set[int]:
    """Return the ids of the parameters that words name, but for ``lora`` and ``last:N``."""
    chosen = set[int]()
    for word in words:
        if word == LORA or _LAST.fullmatch(word):
            continue
        layers = _LAYERS.fullmatch(word)
        if layers:
            first, last = int(layers[1]), int(layers[2] or layers[1])
            if not first <= last < len(blocks):
                raise UserError(
                    f"--train layers:{first}-{last}: the language model has the layers "
                    f"0-{len(blocks) - 1}."
                )
            found = [p for block in blocks[first : last + 1] for p in block.parameters()]
        elif word in names:
            found = list(names[word](model))
        else:
            found = [p for key, p in model.named_parameters() if fnmatchcase(key, word)]
            if not found:
                known = [*names, LORA, "layers:0-4"]
                if "." in word:
                    known += [key for key, _ in model.named_parameters()]
                raise UserError(
                    f'--train "{word}" is no part of this model. {nearest(word, known)}'
                )
        chosen.update(map(id, found))
    return chosen


def _before(module: nn.Module, block: nn.Module) -> set[int]:
    """Return the ids of a module's parameters that its forward pass meets before a block."""
    first = id(next(block.parameters()))
    ids = [id(p) for p in module.parameters()]  # they come in the order of the forward pass
    return set(ids[: ids.index(first)])


def _only(module: nn.Module, chosen: set[int]) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def _projection(model: Any, name: str) -> list[nn.Parameter]:
    return list(getattr(model, name).parameters()) if hasattr(model, name) else []  # SigLIP: none


def _wrapped(model: Any, targets: Sequence[str], choice: Lora, chosen: set[int]) -> Any:
    """Return a peft model of which the adapters train, and besides what was chosen."""
    adapted = wrap_in_adapters(model, targets, choice)
    _only(adapted, chosen | {id(p) for p in adapted.parameters() if p.requires_grad})
    return adapted


_PROJECTIONS = ("visual_projection", "text_projection")
_CLIP: Names = {
    "image": lambda m: [*m.vision_model.parameters(), *_projection(m, _PROJECTIONS[0])],
    "text": lambda m: [*m.text_model.parameters(), *_projection(m, _PROJECTIONS[1])],
    "full": lambda m: [*_CLIP["image"](m), *_CLIP["text"](m)],
    "projections": lambda m: [p for name in _PROJECTIONS for p in _projection(m, name)],
}


def _adapt_clip(classifier: ClipClassifier, train: Sequence[str], choice: Lora) -> None:
    backbone = classifier.backbone
    tower, blocks = backbone.vision_model, backbone.vision_model.encoder.layers
    last = _last_blocks(train) or 0
    if not 0 <= last <= len(blocks):
        raise UserError(f"--last-blocks {last}: the image tower has {len(blocks)} blocks.")
    if "projections" in train:
        if not hasattr(backbone, _PROJECTIONS[0]):
            raise UserError(
                f"--train projections: {backbone.config.model_type} has no projection layers; "
                "choose image, text or full."
            )
        if LORA in train:
            raise UserError("--train lora adapts towers: choose image, text or full beside it.")
    chosen = _chosen(backbone, train, _CLIP, blocks)
    if last and id(next(tower.parameters())) not in chosen:
        raise UserError(
            f"--last-blocks are the image tower's: they do not go with --train {train[0]}."
        )
    first = len(blocks) - last
    if LORA in train:
        apart = {id(module) for block in blocks[first:] for module in block.modules()}
        modules = dict(backbone.named_modules())
        targets = [
            name
            for name in linear_layers(backbone)
            if name not in (*_PROJECTIONS, "text_model.head")  # SigLIP's projection
            and id(modules[name].weight) in chosen
            and id(modules[name]) not in apart
        ]
        in_full = [f"vision_model.encoder.layers.{i}" for i in range(first, len(blocks))]
        classifier.encoder = wrap_in_adapters(backbone, targets, choice, in_full)
    else:
        _only(backbone, chosen - _before(tower, blocks[first]) if last else chosen)
    # The adapter wrapper froze the scale too: it is decided here, last.
    backbone.logit_scale.requires_grad_(classifier.scale_mode != "frozen")
    classifier.note_what_trains()


_BACKBONE: Names = {"frozen": lambda _: (), "full": lambda model: model.parameters()}


def _adapt_backbone(
    model: RepresentationClassifier | Segmenter, train: Sequence[str], choice: Lora
) -> None:
    backbone, plain = model.backbone, model.backbone.plain
    kind = plain.config.model_type
    # A transformer's blocks, or a ConvNet's stages.
    blocks = next(module for module in plain.modules() if isinstance(module, nn.ModuleList))
    last = _last_blocks(train)
    if last is not None and not 1 <= last <= len(blocks):
        raise UserError(
            f"--last-blocks {last}: this {kind} has {len(blocks)} blocks, of which 1 to "
            f"{len(blocks)} can train."
        )
    chosen = _chosen(plain, train, _BACKBONE, blocks)
    if last is not None:
        before = _before(plain, blocks[len(blocks) - last])
        chosen |= {id(parameter) for parameter in plain.parameters()} - before
    _only(plain, chosen)
    if chosen:
        _freeze_what_takes_no_part(model)
    if LORA in train:
        targets = linear_layers(plain, blocks)
        if not targets:
            raise UserError(
                f"--train lora: a {kind} has no linear layers for adapters; choose last-blocks or "
                "full."
            )
        chosen = {id(p) for p in plain.parameters() if p.requires_grad}
        backbone.encoder = _wrapped(plain, targets, choice, chosen)
    backbone.note_what_trains()


def _freeze_what_takes_no_part(model: RepresentationClassifier | Segmenter) -> None:
    """Freeze weights that the answer does not depend on, such as a mask token or an unused pooler.

    They would be saved as if tuned, and several processes would wait for their gradients. Which
    they are depends on family and pool, so one image is asked.
    """
    weights = [p for p in model.backbone.parameters() if p.requires_grad]
    side = model.backbone.probe_side
    training = model.training
    model.eval()
    with torch.enable_grad():
        answer = model(weights[0].new_zeros(1, 3, side, side))
        gradients = torch.autograd.grad(answer.sum(), weights, allow_unused=True)
    model.train(training)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)


_TEXT: Names = {
    ALL: lambda model: model.parameters(),
    "embeddings": lambda model: model.get_input_embeddings().parameters(),
    "head": lambda model: model.get_output_embeddings().parameters(),
}


def _last_of_merger(model: Any) -> Iterable[nn.Parameter]:
    merger = family_of(model).bridge(model)
    return [m for m in merger.modules() if isinstance(m, nn.Linear)][-1].parameters()


_SEEING: Names = {
    ALL: _TEXT[ALL],
    "vision": lambda m: [*family_of(m).tower(m).parameters(), *family_of(m).bridge(m).parameters()],
    "merger": lambda m: family_of(m).bridge(m).parameters(),
    "merger-last": _last_of_merger,
    "language": lambda m: [*family_of(m).trunk(m).parameters(), *_TEXT["head"](m)],
    "embeddings": _TEXT["embeddings"],
    "head": _TEXT["head"],
}


def _adapt_text(model: Any, train: Sequence[str], choice: Lora) -> Any:
    if not train:
        raise UserError("--train names nothing that trains: name parts, or all.")
    if LORA in train and ALL in train:
        raise UserError("--train all lora: adapters add nothing where everything trains.")
    kind = model.config.model_type
    sees = kind in SEEING
    trunk = family_of(model).trunk(model) if sees else model.base_model
    blocks = next(module for module in trunk.modules() if isinstance(module, nn.ModuleList))
    chosen = _chosen(model, train, _SEEING if sees else _TEXT, blocks)
    last = _last_blocks(train)
    if last is not None:
        if not 1 <= last <= len(blocks):
            raise UserError(f"--train last:{last}: the language model has {len(blocks)} layers.")
        chosen |= {id(p) for p in trunk.parameters()} - _before(trunk, blocks[len(blocks) - last])
    if LORA in train:
        targets = linear_layers(model, trunk)
        if not targets:
            raise UserError(
                f"--train lora: a {kind} has no linear layers for adapters; train it in full."
            )
        return _wrapped(model, targets, choice, chosen)
    _only(model, chosen)
    return model
