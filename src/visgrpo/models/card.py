"""The model card: what the model is, what it was measured at, how to load it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from visgrpo.metrics import metric, ordered

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
