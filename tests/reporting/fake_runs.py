"""Run directories by hand, as every kind of job leaves them: no training, few plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

MakeRun = Callable[..., Path]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def measures(
    rng: np.random.Generator, accuracy: float, kl: float, classes: tuple[str, ...]
) -> dict:
    """Evaluation of a classifier with about this accuracy on 100 images of each class."""
    count = len(classes)
    confusion = np.zeros((count, count), dtype=int)
    for k in range(count):
        right = rng.binomial(100, np.clip(accuracy + rng.normal(0, 0.08), 0.02, 0.98))
        likely = rng.dirichlet(np.full(count - 1, 0.5))
        confusion[k] = np.insert(rng.multinomial(100 - right, likely), k, right)
    return {
        "examples": int(confusion.sum()),
        "accuracy": float(confusion.trace() / confusion.sum()),
        "accuracy_interval": [accuracy - 0.024, accuracy + 0.024],
        "ece": 0.21 - 0.2 * accuracy,
        "kl": kl,
        "entropy": 1.5 * (1 - accuracy) + 0.1,
        "nll": 1.9 * (1 - accuracy) + 0.2,
        "per_class_accuracy": dict(
            zip(classes, (confusion.diagonal() / 100).tolist(), strict=True)
        ),
        "confusion": confusion.tolist(),
    }


def metric_lines(rng: np.random.Generator, steps: int, final: float) -> list[dict[str, Any]]:
    """A training line per step, and evaluation lines at the start and ten times after it."""
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        done = step / max(steps, 1)
        accuracy = final - (final - 0.55) * np.exp(-4 * done)
        if step % max(steps // 10, 1) == 0:
            evaluation = {"accuracy": accuracy, "ece": 0.1 * (1 - done) + 0.02, "kl": 0.3 * done}
            lines.append({"step": step, "epoch": 3 * done, "seconds": 0.5 * step})
            lines[-1] |= {f"eval/{key}": float(value) for key, value in evaluation.items()}
        if step == 0:
            continue
        noise = rng.normal(size=6)
        training = {
            "reward": accuracy + 0.05 * noise[0],
            "reward_std": 0.25 * (1 - 0.6 * done) + 0.01 * noise[1],
            "frac_reward_zero_std": np.clip(0.3 + 0.4 * done + 0.05 * noise[2], 0, 1),
            "kl": 0.3 * done + 0.02 * abs(noise[3]),
            "entropy": 1.2 - 0.8 * done + 0.04 * noise[4],
            "loss": -0.02 + 0.015 * noise[5],
            "accuracy": accuracy + 0.06 * noise[1],
            "clip_ratio/region_mean": 0.05 * done,
            "grad_norm": 1.2 + 0.4 * abs(noise[2]),
            "learning_rate": 1e-5 * (1 - done),
            "step_time": 0.5,
            "rewards/correct/mean": accuracy + 0.05 * noise[0],
        }
        progress = {"step": step, "epoch": 3 * done, "seconds": 0.5 * step}
        lines.append(progress | {key: float(value) for key, value in training.items()})
    return lines


def sample_line(
    rng: np.random.Generator, step: int, index: int, done: float, classes: tuple[str, ...]
) -> dict[str, Any]:
    """A group of 8 sampled labels, 0/1 rewards and their z-scored advantages."""
    label = index % len(classes)
    logits = np.random.default_rng((7, index)).normal(size=len(classes)) * 1.3
    logits[label] += 3 * done
    probabilities = np.exp(logits) / np.exp(logits).sum()
    outputs = rng.choice(len(classes), size=8, p=probabilities)
    rewards = (outputs == label).astype(float)
    spread = rewards.std()
    advantages = (rewards - rewards.mean()) / spread if spread else np.zeros(8)
    return {
        "step": step,
        "index": index,
        "image": f"samples/{step:06d}-{index}.png",
        "label": classes[label],
        "outputs": [classes[k] for k in outputs],
        "rewards": rewards.tolist(),
        "advantages": advantages.tolist(),
        "probabilities": probabilities[outputs].tolist(),
    }


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def write_picture(path: Path, index: int) -> None:
    """A 32-pixel picture of a disc on a gradient, so that a page of them looks like photos."""
    rng = np.random.default_rng((11, index))
    y, x = np.mgrid[0:32, 0:32] / 32
    sky, disc = rng.uniform(60, 220, size=(2, 3))
    pixels = sky * (0.5 + 0.5 * y[..., None]) + rng.normal(0, 8, size=(32, 32, 3))
    pixels[(x - rng.uniform(0.3, 0.7)) ** 2 + (y - 0.5) ** 2 < 0.07] = disc
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    method: str = "grpo",
    steps: int = 200,
    final: float = 0.82,
    classes: tuple[str, ...] = CLASSES,
    finished: bool = True,
    samples: bool = True,
    keys: tuple[str, ...] | None = None,
    config: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> Path:
    """Write a whole run directory.

    ``config`` and ``summary`` override single keys; ``keys`` are the only metrics to log (None:
    all of them), since each has a plot on the page and plots take time.
    """
    rng = np.random.default_rng((seed, steps))
    (folder / "samples").mkdir(parents=True)
    options = {
        "recipe": "clip",
        "method": method,
        "model": "openai/clip-vit-base-patch32",
        "data": "digits",
        "group_size": 8,
        "kl_weight": 0.04,
        "optimizer": {"learning_rate": 1e-5, "schedule": "linear"},
        "augment": ["flip", "crop"],
        "seed": seed,
        "output": str(folder),
        "versions": {"visgrpo": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(options | (config or {}), sort_keys=False))
    lines = metric_lines(rng, steps, final)
    write_lines(folder / "metrics.jsonl", of_keys(lines, keys))
    if samples:
        logged = [
            sample_line(rng, step, index, step / max(steps, 1), classes)
            for step in sorted({1, steps // 2, steps})
            for index in range(10)
        ]
        write_lines(folder / "samples.jsonl", logged)
        for line in logged:
            write_picture(folder / line["image"], line["index"])
    if finished:
        report = {
            "recipe": "clip",
            "method": method,
            "steps": steps,
            "seconds": 0.5 * steps,
            "examples_per_second": 61.3,
            "peak_memory_bytes": 1_873_000_000,
            "before": measures(rng, 0.55, 0.0, classes),
            "after": measures(rng, final, 0.3, classes),
            "retention": {"food photos": {"before": 0.71, "after": 0.69}},
            "data": {"name": "digits", "train": 1297, "test": 1000},
            "best_step": steps,
        }
        (folder / "summary.json").write_text(json.dumps(report | (summary or {}), indent=1))
    return folder


def of_keys(lines: list[dict[str, Any]], keys: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """Lines with these metrics alone; None keeps all of them."""
    kept = {"step", "epoch", "seconds", *(keys or ())}
    return lines if keys is None else [{k: x for k, x in n.items() if k in kept} for n in lines]


def evaluation(line: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("eval/"): v for key, v in line.items() if key.startswith("eval/")}


# ---- language ------------------------------------------------------------------------------------

LINES = (
    "ROMEO:\nBut soft, what light through\nyonder window breaks?",
    "JULIET:\nO the the the the the the the the",
    "ROMEO:\n  It is the east,\n  and <b>Juliet</b> is the sun",
)


def language_lines(seed: int, best: float, steps: int = 40, tokens: int = 512) -> list[dict]:
    """Evaluations every 4 steps, in which the gold reward falls once √KL is above ``best``."""
    rng = np.random.default_rng((13, seed))
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        distance = 5 * step / steps
        proxy = 0.6 * distance - 0.03 * distance**2 + 0.03 * rng.normal()
        if step % 4 == 0:
            gold = 0.5 * distance - 0.25 * distance**2 / best + 0.03 * rng.normal()
            evaluation = {
                "reward": proxy,
                "gold_reward": gold,
                "kl": distance**2 * (1 + 0.05 * rng.normal()),
                "kl_per_token": distance**2 / 32,
                "entropy": 2.4 - 0.3 * distance,
                "length": 30.0 + distance,
                "ended": 0.25 + 0.1 * distance,
            }
            lines.append({"step": step, "seconds": 0.2 * step})
            lines[-1] |= {f"eval/{key}": float(value) for key, value in evaluation.items()}
        if step == 0:
            continue
        training = {
            "reward": proxy + 0.1 * rng.normal(),
            "reward_std": 0.4,
            "kl": distance**2 / 32,
            "entropy": 2.4 - 0.3 * distance,
            "loss": 0.01 * rng.normal(),
            "completions/mean_length": 30.0 + distance,
            "tokens_per_second": 5000.0,
            "sampled_tokens": tokens * step,
        }
        lines.append({"step": step, "seconds": 0.2 * step})
        lines[-1] |= {key: float(value) for key, value in training.items()}
    return lines


def completions(steps: tuple[int, ...] = (1, 40)) -> list[dict[str, Any]]:
    """Groups of three completions of two prompts; at the end two of them are the same."""
    return [
        {
            "step": step,
            "index": index,
            "prompt": f"Act {index + 1}\n\n  Scene 1",
            "outputs": [LINES[0], LINES[1], LINES[1] if step > 1 else LINES[2]],
            "rewards": [0.25, 1.5, 1.5 if step > 1 else -1.0],
            "advantages": [-1.4, 0.7, 0.7],
            "gold": [0.8, -0.5, -0.5],
            "ended": [True, False, False],
        }
        for step in steps
        for index in range(2)
    ]


def language_run(
    make_run: MakeRun,
    name: str = "grpo",
    *,
    seed: int = 0,
    best: float = 3.0,
    keys: tuple[str, ...] | None = None,
    **options: Any,
) -> Path:
    """A run of `language` by GRPO (or ``method=…``) with a reward model and a gold judge.

    ``keys`` are the only metrics to log (None: all of them), as for `make_run`.
    """
    lines = language_lines(seed, best, tokens=options.pop("tokens", 512))
    first, *_, last = (line for line in lines if "eval/kl" in line)
    before, after = evaluation(first), evaluation(last)
    method = options.pop("method", "grpo")
    mebibyte = 2**20
    summary = {
        "recipe": "language",
        "before": before,
        "after": after | {"prompts": 64},
        "sampled_tokens": int(lines[-1]["sampled_tokens"]),
        "memory": {
            "policy_bytes": 4 * mebibyte,
            "critic_bytes": 4 * mebibyte if method == "ppo" else 0,
            "reference_bytes": 4 * mebibyte,
            "reward_model_bytes": 4 * mebibyte,
            "optimizer_bytes": 8 * mebibyte,
        },
        "data": {"name": "topics"},
        "model": "nano",
        "retention": {},
    }
    config = {"recipe": "language", "stage": method} | options.pop("config", {})
    path = make_run(
        name,
        seed=seed,
        method=method,
        steps=40,
        samples=False,
        config=config,
        summary=summary | options.pop("summary", {}),
        **options,
    )
    write_lines(path / "metrics.jsonl", of_keys(lines, keys))
    write_lines(path / "samples.jsonl", completions())
    return path


# ---- questions about images ----------------------------------------------------------------------

QUESTION = "How many <b>red</b> items are there in the image?"


def answered(accuracy: float, half: float, **others: float) -> dict[str, Any]:
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


def vlm_lines(stage: str, seed: int, steps: int = 40) -> list[dict[str, Any]]:
    """Evaluations every 10 steps, and a training line for each step."""
    rng = np.random.default_rng((17, seed))
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        share = 0.5 + 0.3 * step / steps
        if step % 10 == 0:
            found = (
                answered(share, 0.04, nll=1 - share) if stage == "sft" else answered(share, 0.04)
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


def answers(steps: tuple[int, ...] = (1, 40)) -> list[dict[str, Any]]:
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
        "before": answered(0.5, 0.043),
        "after": answered(0.8125, 0.0335),
        "shifts": {"out": {"before": answered(0.25, 0.0375), "after": answered(0.5, 0.043)}},
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
    write_lines(path / "metrics.jsonl", of_keys(vlm_lines(stage, seed), keys))
    if stage != "sft":
        write_lines(path / "samples.jsonl", answers())
        for index in range(2):
            draw_scene(path / "samples" / f"{index}.png", index + 2)
    return path


# ---- judged by epochs ----------------------------------------------------------------------------

PALETTE = {"ground": "#2d2d2d", "cat": "#c81e1e", "dog": "#1e1ec8", "owl": "#1ec81e"}


def curve(path: Path, key: str, values: Sequence[float], steps_per_epoch: int = 4) -> Path:
    """Replace a run's metrics by one evaluation an epoch, from epoch 0."""
    lines = [
        {"step": steps_per_epoch * epoch, "epoch": float(epoch), f"eval/{key}": value}
        for epoch, value in enumerate(values)
    ]
    write_lines(path / "metrics.jsonl", lines)
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
    after |= {"per_class_pixels": {"ground": 900, "cat": 100, "dog": 3000, "owl": 0}}
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
    write_lines(path / "segments.jsonl", lines)
    (path / "palette.json").write_text(json.dumps(PALETTE))
