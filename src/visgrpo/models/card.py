"""The model card: what the model is, what it was measured at, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visgrpo.metrics import metric, ordered

_HEADS = ("representation", "segmentation")  # recipes whose models have a head of their own


def model_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a tuned model, from its run's summary."""
    before, after = summary["before"], summary["after"]
    data, recipe = summary["data"], summary["recipe"]
    both = ordered([key for key in after if key in before and metric(key).is_shown("card")])
    rows = [f"| {_title(key)} | {before[key]:.4f} | {after[key]:.4f} |" for key in both]
    lines = [
        "---",
        "library_name: transformers",
        f"tags: [visgrpo, {recipe.split()[-1]}, {summary['method']}]",
        "---",
        "",
        f"# {summary['model']} tuned on {data['name']} with {summary['method']}",
        "",
        f"Held-out test split of {data['name']}, {data['test']} images, {data['classes']} classes:",
        "",
        "| measure | start | tuned |",
        "|---|---|---|",
        *rows,
        *_retention(summary.get("retention") or {}),
        "",
        f"{summary['steps']} steps, weights of step {summary['kept_step']}.",
        *(_with_head() if recipe in _HEADS else _dual_encoder()),
    ]
    return "\n".join(lines) + "\n"


def language_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a language model, from its run's summary."""
    use = 'or `visgrpo generate path/to/this/folder "A beginning"`.'
    return _text_card(summary, "AutoModelForCausalLM", use)


def vlm_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a vision-language model, from its run's summary."""
    use = (
        'Image processor: `AutoImageProcessor.from_pretrained(folder, backend="pil")`. Or '
        '`visgrpo predict path/to/this/folder image.png --ask "How many are there?"`.'
    )
    return _text_card(summary, "AutoModelForImageTextToText", use)


def reward_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a reward model, from its run's summary."""
    use = "Reward = (score - reward_mean) / reward_std, both in `visgrpo.json`."
    return _text_card(summary, "AutoModelForSequenceClassification", use)


def _title(key: str) -> str:
    """Name a measure, with its unit where that is one of information."""
    row = metric(f"eval/{key}", "any")
    return f"{row.in_a_line} ({row.unit})" if row.unit.startswith("nats") else row.in_a_line


def _text_card(summary: Mapping[str, Any], auto_class: str, use: str) -> str:
    before, after, data = summary["before"], summary["after"], summary["data"]
    rows = [
        f"| {_title(key)} | {before[key]:.4f} | {after[key]:.4f} |"
        for key in after
        if key in before
    ]
    lines = [
        "---",
        "library_name: transformers",
        f"tags: [visgrpo, {summary['recipe']}, {summary['method']}]",
        "---",
        "",
        f"# {summary['model']} tuned on {data['name']} with {summary['method']}",
        "",
        f"Held out: {data['test']} {data['unit']}. Nats are natural logarithms.",
        "",
        "| measure | start | tuned |",
        "|---|---|---|",
        *rows,
        "",
        f"{summary['steps']} steps, weights of step {summary['kept_step']}.",
        "",
        "```python",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        f'model = {auto_class}.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
        "",
        use,
    ]
    return "\n".join(lines) + "\n"


def load_with_transformers() -> list[str]:
    """Return the lines that show how plain transformers loads the model."""
    return [
        "",
        "```python",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("path/to/this/folder")',
        "```",
    ]


def _dual_encoder() -> list[str]:
    return ["Class names and prompts are in `visgrpo.json`.", *load_with_transformers()]


def _with_head() -> list[str]:
    return [
        "Class names are in `visgrpo.json`, the head in `head.safetensors`. With the head:",
        "",
        "```python",
        "from visgrpo import load_representation",
        "",
        'model, parts = load_representation("path/to/this/folder")',
        "```",
        "",
        "or `visgrpo predict path/to/this/folder photo.jpg`. The backbone alone:",
        *load_with_transformers(),
    ]


def _retention(retention: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"| accuracy on {name}, not tuned on | {value['before']:.4f} | {value['after']:.4f} |"
        for name, value in retention.items()
    ]
