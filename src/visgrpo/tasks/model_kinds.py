"""What kind of model `evaluate` and `predict` were given, and which options go with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from visgrpo.errors import UserError
from visgrpo.models.backbone import FAMILIES
from visgrpo.models.load import nanogpt_checkpoint, start_of
from visgrpo.models.parts import check_model_name, in_one_line, is_adapter, pretrained, read_info
from visgrpo.models.vision_families import SEEING
from visgrpo.tasks.task import kinds
from visgrpo.tasks.use_configs import EvaluateConfig, PredictConfig

# How transformers' classes are called that write text, and those that score it.
_ARCHITECTURES: Mapping[str, str] = {
    "ForCausalLM": "language",
    "LMHeadModel": "language",
    "ForSequenceClassification": "reward",
}
_BACKBONES = ("classification", "segmentation", "backbone")
# Of backbones; that images' options do not go with text needs no words.
_BECAUSE: Mapping[str, str] = {
    "alpha": "a head begins at random, so weights between the start's and its own answer nothing",
    "batch_size": "masks are evaluated as many at a time as fit into fixed memory",
    "classes": "a head answers the classes that it was trained on",
    "pool": "its head was trained on features of its own pool",
    "templates": "it has no text tower",
}


def kind_of(name: str) -> str:
    """Return what a folder or Hub name holds, without loading weights.

    Models that are none of the others count as CLIP, whose loader names what it takes.

    Raises:
        UserError: when the model is not there.
    """
    if nanogpt_checkpoint(name) is not None:
        return "language"
    check_model_name(name)
    task = read_info(name).get("task")
    if task in kinds():
        return str(task)
    if is_adapter(name):
        kind = kind_of(start_of(name))
        return kind if kind in ("language", "vision-language") else "clip"
    with in_one_line(name):
        config = pretrained("AutoConfig", name)
    if config.model_type in FAMILIES:
        return "backbone"
    if config.model_type in SEEING:
        return "vision-language"
    for ending, kind in _ARCHITECTURES.items():
        if any(each.endswith(ending) for each in config.architectures or ()):
            return kind
    return "clip"


def refuse_other_options(config: EvaluateConfig | PredictConfig, kind: str) -> None:
    """Raise UserError for an option that was given and does not go with this kind of model."""
    all_kinds = kinds()
    for option in fields(config):
        takers = [name for name, each in all_kinds.items() if option.name in each.takes]
        if not takers or kind in takers or getattr(config, option.name) == option.default:
            continue
        flag = "--" + option.name.replace("_", "-")
        because = _BECAUSE.get(option.name, "") if kind in _BACKBONES else ""
        reason = f": {because}" if because else ""
        *most, last = (all_kinds[name].words for name in takers)
        wanted = f"{', '.join(most)} or {last}" if most else last
        raise UserError(
            f'{flag} does not go with "{config.model}", {all_kinds[kind].words}{reason}. '
            f"It is for {wanted}."
        )
