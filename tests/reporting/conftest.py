"""Run directories made from seeds: like real ones, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

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


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
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
    if keys is not None:
        kept = {"step", "epoch", "seconds", *keys}
        lines = [{k: v for k, v in line.items() if k in kept} for line in lines]
    write_lines(folder / "metrics.jsonl", lines)
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


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run under a temporary folder: ``make_run("name", …)``."""

    def make(name: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
