"""Run directories of vision-language runs, by hand: what SFT and GRPO log, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

MakeRun = Callable[..., Path]
QUESTION = "How many <b>red</b> items are there in the image?"


def measures(accuracy: float, half: float, **others: float) -> dict[str, Any]:
    """An evaluation on 512 questions; ``half`` is half the width of the interval."""
    return {
        "examples": 512,
        "accuracy": accuracy,
        "accuracy_low": accuracy - half,
        "accuracy_high": accuracy + half,
        "sampled_accuracy": accuracy - 0.05,
        "unparsed": 0.125 * (1 - accuracy),
        "mean_absolute_error": 2 * (1 - accuracy),
        "majority": 0.125,
        "format": 0.5 + 0.5 * accuracy,
        **others,
    }


def confusion(largest: int, accuracy: float) -> dict[str, Any]:
    """Counts of a model that is one off where it is wrong, and twice says nothing of use."""
    rows = np.zeros((largest + 1, largest + 3), dtype=int)
    for count in range(largest + 1):
        right = round(40 * accuracy)
        rows[count, count] = right
        rows[count, count - 1 if count else 1] += 38 - right
        rows[count, -2:] = 1
    return {"counts": list(range(largest + 1)), "rows": rows.tolist()}


def metric_lines(stage: str, seed: int, steps: int = 40) -> list[dict[str, Any]]:
    """Evaluations every 10 steps, and a training line for each step."""
    rng = np.random.default_rng((17, seed))
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        share = 0.5 + 0.3 * step / steps
        if step % 10 == 0:
            found = (
                measures(share, 0.04, nll=1 - share) if stage == "sft" else measures(share, 0.04)
            )
            lines.append({"step": step, "seconds": 0.2 * step})
            lines[-1] |= {f"eval/{key}": value for key, value in found.items()}
        if step == 0:
            continue
        training = {"nll": 1 - share} if stage == "sft" else {"reward": share, "reward_std": 0.3}
        progress = {"step": step, "seconds": 0.2 * step, "loss": 0.1 * float(rng.normal())}
        if stage != "sft":
            progress |= {"sampled_tokens": 256 * step, "rewards/exact/mean": share}
        lines.append(progress | training)
    return lines


def samples(steps: tuple[int, ...] = (1, 40)) -> list[dict[str, Any]]:
    """Groups of three completions to a question about each of two images."""
    return [
        {
            "step": step,
            "index": index,
            "image": f"samples/{index}.png",
            "label": str(index + 2),
            "prompt": QUESTION,
            "outputs": [
                "<think>1 0 1</think><answer>2</answer>",
                "<think>1 0\n1 1</think><answer>3</answer>",
                "<think>1 <script>alert(1)</script>",
            ],
            "rewards": [2.0, 1.9, 0.0],
            "advantages": [0.75, 0.65, -1.4],
            "ended": [True, True, False],
        }
        for step in steps
        for index in range(2)
    ]


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw_scene(path: Path, count: int) -> None:
    """So many red discs on grey, 112 pixels wide."""
    image = Image.new("RGB", (112, 112), "#c8ccd2")
    for place in range(count):
        x, y = 6 + 28 * (place % 4), 6 + 28 * (place // 4)
        ImageDraw.Draw(image).ellipse((x, y, x + 16, y + 16), fill="#c02020")
    image.save(path)


def vlm_run(
    make_run: MakeRun,
    name: str = "count",
    *,
    stage: str = "grpo",
    seed: int = 0,
    keys: tuple[str, ...] | None = None,
    **options: Any,
) -> Path:
    """A run of `vlm` by SFT or GRPO on questions of counts, with a test set out of distribution.

    ``keys`` are the only metrics to log (None: all of them), as for `make_run`.
    """
    summary = {
        "recipe": "vlm",
        "before": measures(0.5, 0.043),
        "after": measures(0.8125, 0.0335),
        "shifts": {"out": {"before": measures(0.25, 0.0375), "after": measures(0.5, 0.043)}},
        "confusion": {"in": confusion(10, 0.8), "out": confusion(12, 0.5)},
        "data": {"name": "shapes"},
        "model": "tiny",
        "retention": {},
    }
    path = make_run(
        name,
        seed=seed,
        method=stage,
        steps=40,
        samples=False,
        config={"recipe": "vlm", "stage": stage} | options.pop("config", {}),
        summary=summary | options.pop("summary", {}),
        **options,
    )
    lines = metric_lines(stage, seed)
    if keys is not None:
        lines = [{k: v for k, v in line.items() if k in ("step", *keys)} for line in lines]
    write_jsonl(path / "metrics.jsonl", lines)
    if stage != "sft":
        write_jsonl(path / "samples.jsonl", samples())
        for index in range(2):
            draw_scene(path / "samples" / f"{index}.png", index + 2)
    return path
