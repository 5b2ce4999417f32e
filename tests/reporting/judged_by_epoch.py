"""Run directories of the recipes that are judged by epochs, by hand: no training, few plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PALETTE = {"ground": "#2d2d2d", "cat": "#c81e1e", "dog": "#1e1ec8", "owl": "#1ec81e"}
MakeRun = Callable[..., Path]


def curve(path: Path, key: str, values: Sequence[float], steps_per_epoch: int = 4) -> Path:
    """Replace a run's metrics by one evaluation an epoch, from epoch 0."""
    lines = [
        {"step": steps_per_epoch * epoch, "epoch": float(epoch), f"eval/{key}": value}
        for epoch, value in enumerate(values)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def representation_run(make_run: MakeRun, name: str = "run", **options: Any) -> Path:
    """A run of `representation`: measures of the head and of the features, and shifted data."""
    before = {
        "examples": 400,
        "accuracy": 0.25,
        "nll": 1.5,
        "knn": {"1": 0.5, "5": 0.55, "20": 0.525},
        "softmax_regression": 0.6,
        "alignment": 0.8,
        "uniformity": -1.5,
    }
    after = before | {"accuracy": 0.75, "nll": 0.75, "knn": {"1": 0.7, "5": 0.72, "20": 0.71}}
    after |= {"softmax_regression": 0.74, "alignment": 0.4, "uniformity": -2.5}
    shifts = {
        "blur": {"before": {"accuracy": 0.2}, "after": {"accuracy": 0.5}},
        "jpeg": {"before": {"accuracy": 0.24}, "after": {"accuracy": 0.7}},
    }
    summary = {"recipe": "representation", "before": before, "after": after, "shifts": shifts}
    options = {"samples": False, "steps": 4, "method": "grpo-rm", **options}
    config = {"recipe": "representation"} | options.pop("config", {})
    path = make_run(name, config=config, summary=summary | options.pop("summary", {}), **options)
    return curve(path, "accuracy", [0.25, 0.5, 0.75])


def segmentation_run(make_run: MakeRun, name: str = "run", rows: int = 3, **options: Any) -> Path:
    """A run of `segmentation` with pictures of masks, where "owl" is in no mask."""
    before = {
        "miou": 0.1,
        "pixel_accuracy": 0.75,
        "mean_class_accuracy": 0.3,
        "per_class_iou": {"ground": 0.7, "cat": 0.0, "dog": 0.05, "owl": None},
        "pixels": 4000,
    }
    after = before | {"miou": 0.5, "pixel_accuracy": 0.875, "mean_class_accuracy": 0.6}
    after |= {"per_class_iou": {"ground": 0.9, "cat": 0.4, "dog": 0.2, "owl": None}}
    summary = {"recipe": "segmentation", "before": before, "after": after}
    options = {"samples": False, "steps": 4, "method": "grpo-rm", **options}
    path = make_run(name, config={"recipe": "segmentation"}, summary=summary, **options)
    write_masks(path, rows)
    return curve(path, "miou", [0.1, 0.3, 0.5])


def write_masks(path: Path, rows: int) -> None:
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE.values()])
    lines = []
    for index in range(rows):
        rng = np.random.default_rng((5, index))
        files = {"image": f"samples/test-{index}.png"}
        Image.fromarray(rng.integers(0, 255, (40, 24, 3), np.uint8)).save(path / files["image"])
        for kind in ("truth", "before", "after"):
            files[kind] = f"samples/test-{index}-{kind}.png"
            ids = rng.integers(0, 3, (40, 24))
            Image.fromarray(colours[ids].astype(np.uint8)).save(path / files[kind])
        lines.append({"index": index, **files, "iou": {"before": 0.125, "after": 0.5}})
    (path / "segments.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "palette.json").write_text(json.dumps(PALETTE))
