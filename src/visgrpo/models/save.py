"""Save a model so that plain transformers (and peft) loads it, with a card of its numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from visgrpo.files import sync, sync_folder, writing
from visgrpo.metrics import metric, ordered
from visgrpo.models.backbone import RepresentationClassifier, Segmenter
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.load import HEAD_FILE
from visgrpo.models.parts import INFO_FILE, Parts, without_progress_bars
from visgrpo.models.reward_model import RewardModel, with_own_padding
from visgrpo.models.vision_families import SEEING


def save(
    model: Any, parts: Parts, folder: Path, card: str = "", info: Mapping[str, Any] = {}
) -> None:
    """Write a model with all that belongs to it into one folder.

    That is the model with adapters merged into a copy, so that transformers' own
    ``from_pretrained(folder)`` gives the tuned model; generation settings that stop at the end
    token; tokenizer, image processor, a head over classes, what visgrpo knows, and a card. A reward
    model's tokenizer pads as plain transformers needs it to give the same scores.

    Args:
        model: one of ours, or the transformers or peft model itself.
        parts: what was loaded with its start.
        info: of the run; of a reward model ``reward_mean`` and ``reward_std`` are in it.

    Raises:
        UserError: it cannot be written, with the space that its weights need.
    """
    plain = merged(_encoder(model))
    with _on_the_disk(folder, plain.state_dict().values()):
        with without_progress_bars():
            plain.save_pretrained(folder)
        if plain.can_generate():
            generation_settings(plain, parts.tokenizer).save_pretrained(folder)
        scores = isinstance(model, RewardModel)
        tokenizer = with_own_padding(parts.tokenizer) if scores else parts.tokenizer
        for part in (tokenizer, parts.processor):
            if part is not None:
                part.save_pretrained(folder)
        if isinstance(model, RepresentationClassifier | Segmenter):
            head = {name: t.contiguous().cpu() for name, t in model.head.state_dict().items()}
            save_file(head, folder / HEAD_FILE)
        write_info(folder, {**_own_info(model), **info})
        (folder / "README.md").write_text(card, encoding="utf-8")


def save_adapter(model: Any, folder: Path, **info: Any) -> None:
    """Write the adapter alone, to be put on the start with ``PeftModel.from_pretrained``.

    What visgrpo knows goes beside it: a classifier is evaluated with the prompts it was tuned on.

    Args:
        info: what else it knows.
    """
    encoder = _encoder(model)
    adapter = (weight for name, weight in encoder.named_parameters() if "lora_" in name)
    with _on_the_disk(folder, adapter):
        encoder.save_pretrained(str(folder), save_embedding_layers=False)
        write_info(folder, {**_own_info(model), **info})


@contextmanager
def _on_the_disk(folder: Path, weights: Iterable[Tensor]) -> Iterator[None]:
    """Say what hinders libraries from writing into a folder, which is on the disk at the end."""
    with writing(folder, sum(weight.nbytes for weight in weights)):
        yield
        sync(folder)
        sync_folder(folder.parent)


def merged(encoder: Any) -> Any:
    """Return a transformers model in float32, of a peft model with the adapters merged in.

    It is a copy where it has to be another one: in bfloat16 what an adapter adds would be lost.
    """
    has_adapter = hasattr(encoder, "peft_config")
    if not has_adapter and all(p.dtype != torch.bfloat16 for p in encoder.parameters()):
        return encoder
    whole = copy.deepcopy(encoder).float()
    return whole.merge_and_unload() if has_adapter else whole


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write what visgrpo knows of a model beside it."""
    text = json.dumps(info, indent=1, ensure_ascii=False)
    (folder / INFO_FILE).write_text(text, encoding="utf-8")


def generation_settings(model: Any, tokenizer: Any) -> Any:
    """Return a model's generation settings, with the tokenizer's end and padding where unset."""
    settings = copy.deepcopy(model.generation_config)
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _encoder(model: Any) -> Any:
    """Return the transformers model of one of ours, in its adapters if it has them."""
    if isinstance(model, RepresentationClassifier | Segmenter):
        return model.backbone.encoder
    if isinstance(model, ClipClassifier):
        return model.encoder
    return model.scorer if isinstance(model, RewardModel) else model


def _own_info(model: Any) -> dict[str, Any]:
    """Return what the kind of a model says of it."""
    if isinstance(model, ClipClassifier):
        return {"classes": list(model.classes), "templates": list(model.templates)}
    if isinstance(model, Segmenter):
        classes = list(model.classes)
        return {"task": "segmentation", "classes": classes, "hidden": model.hidden}
    if isinstance(model, RepresentationClassifier):
        own = {"classes": list(model.classes), "hidden": model.hidden, "pool": model.pool}
        return {"task": "classification", **own}
    if isinstance(model, RewardModel):
        return {"task": "reward"}
    if model.can_generate():
        return {"task": "vision-language" if model.config.model_type in SEEING else "language"}
    return {}


_HEADS = ("representation", "segmentation")  # recipes whose models have a head of their own
_FOLDER = '"path/to/this/folder"'
# Of models that read text, by the class of transformers that loads them: how else to use them.
_TEXT_USES = {
    "AutoModelForCausalLM": 'or `visgrpo generate path/to/this/folder "A beginning"`.',
    "AutoModelForImageTextToText": "Image processor: "
    '`AutoImageProcessor.from_pretrained(folder, backend="pil")`. Or `visgrpo predict '
    'path/to/this/folder image.png --ask "How many are there?"`.',
    "AutoModelForSequenceClassification": "Reward = (score - reward_mean) / reward_std, both in "
    "`visgrpo.json`.",
}


def label_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a tuned model that labels images, from its run's summary."""
    data, recipe = summary["data"], summary["recipe"]
    test = f"{data['test']} images, {data['classes']} classes"
    before, after = summary["before"], summary["after"]
    both = ordered([key for key in after if key in before and metric(key).is_shown("card")])
    rows = [(_title(key), before[key], after[key]) for key in both]
    for name, value in (summary.get("retention") or {}).items():
        rows.append((f"accuracy on {name}, not tuned on", value["before"], value["after"]))
    ending = ["Class names and prompts are in `visgrpo.json`.", *load_with_transformers()]
    return _tuned_card(
        summary,
        recipe.split()[-1],
        f"Held-out test split of {data['name']}, {test}:",
        rows,
        _with_head() if recipe in _HEADS else ending,
    )


def text_card(summary: Mapping[str, Any], auto: str) -> str:
    """Return the README.md of a model that reads text, from its run's summary.

    Args:
        auto: the class of transformers that loads it.
    """
    data, before, after = summary["data"], summary["before"], summary["after"]
    return _tuned_card(
        summary,
        summary["recipe"],
        f"Held out: {data['test']} {data['unit']}. Nats are natural logarithms.",
        [(_title(key), before[key], after[key]) for key in after if key in before],
        [*load_with_transformers(model=auto, tokenizer="AutoTokenizer"), "", _TEXT_USES[auto]],
    )


def start_card(title: str, tags: str, body: Iterable[str], *, pipeline: str = "") -> str:
    """Return the README.md of a model to start from; what its job says of it comes below."""
    kind = [f"pipeline_tag: {pipeline}"] if pipeline else []
    front = ["---", "library_name: transformers", *kind, f"tags: [visgrpo, {tags}]", "---"]
    return "\n".join([*front, "", f"# {title}", "", *body]) + "\n"


def load_with_transformers(**autos: str) -> list[str]:
    """Return the lines that show how plain transformers loads a model and what goes with it.

    Args:
        autos: the class of transformers for each name; by default of the model alone.
    """
    autos = autos or {"model": "AutoModel"}
    loading = {
        name: f'{_FOLDER}, backend="pil"' if auto == "AutoImageProcessor" else _FOLDER
        for name, auto in autos.items()
    }
    return [
        "",
        "```python",
        f"from transformers import {', '.join(sorted(autos.values()))}",
        "",
        *[f"{name} = {auto}.from_pretrained({loading[name]})" for name, auto in autos.items()],
        "```",
    ]


def _tuned_card(
    summary: Mapping[str, Any],
    tag: str,
    measured_on: str,
    rows: Iterable[tuple[str, float, float]],
    ending: Iterable[str],
) -> str:
    body = [
        measured_on,
        "",
        "| measure | start | tuned |",
        "|---|---|---|",
        *[f"| {name} | {start:.4f} | {tuned:.4f} |" for name, start, tuned in rows],
        "",
        f"{summary['steps']} steps, weights of step {summary['kept_step']}.",
        *ending,
    ]
    title = f"{summary['model']} tuned on {summary['data']['name']} with {summary['method']}"
    return start_card(title, f"{tag}, {summary['method']}", body)


def _with_head() -> list[str]:
    return [
        "Class names are in `visgrpo.json`, the head in `head.safetensors`. With the head:",
        "",
        "```python",
        "from visgrpo import load_representation",
        "",
        f"model, parts = load_representation({_FOLDER})",
        "```",
        "",
        "or `visgrpo predict path/to/this/folder photo.jpg`. The backbone alone:",
        *load_with_transformers(),
    ]


def _title(key: str) -> str:
    """Name a measure, with its unit where that is one of information."""
    row = metric(f"eval/{key}", "any")
    return f"{row.in_a_line} ({row.unit})" if row.unit.startswith("nats") else row.in_a_line
