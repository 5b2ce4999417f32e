"""The model card: what the model is, what it was measured at, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MEASURES = {"accuracy": "accuracy", "ece": "ECE", "nll": "NLL (nats)", "kl": "KL to start (nats)"}


def model_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a tuned model, from its run's summary."""
    before, after = summary["before"], summary["after"]
    data = summary["data"]
    rows = [
        f"| {title} | {before[key]:.4f} | {after[key]:.4f} |"
        for key, title in _MEASURES.items()
        if key in before and key in after
    ]
    lines = [
        "---",
        "library_name: transformers",
        "tags: [visgrpo, clip, grpo]",
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
        f"{summary['steps']} steps, weights of step {summary['best_step']}.",
        "Class names and prompts are in `visgrpo.json`.",
        "",
        "```python",
        "from transformers import AutoModel",
        "",
        'model = AutoModel.from_pretrained("path/to/this/folder")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _retention(retention: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"| accuracy on {name}, not tuned on | {value['before']:.4f} | {value['after']:.4f} |"
        for name, value in retention.items()
    ]
