"""Run directories of language runs, by hand: what GRPO and PPO log, without any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MakeRun = Callable[..., Path]
LINES = (
    "ROMEO:\nBut soft, what light through\nyonder window breaks?",
    "JULIET:\nO the the the the the the the the",
    "ROMEO:\n  It is the east,\n  and <b>Juliet</b> is the sun",
)


def metric_lines(seed: int, best: float, steps: int = 40, tokens: int = 512) -> list[dict]:
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


def samples(steps: tuple[int, ...] = (1, 40)) -> list[dict[str, Any]]:
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


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


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
    lines = metric_lines(seed, best, tokens=options.pop("tokens", 512))
    first, *_, last = (line for line in lines if "eval/kl" in line)
    before, after = (
        {key.removeprefix("eval/"): v for key, v in line.items() if key.startswith("eval/")}
        for line in (first, last)
    )
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
    if keys is not None:
        lines = [{k: v for k, v in line.items() if k in ("step", *keys)} for line in lines]
    write_jsonl(path / "metrics.jsonl", lines)
    write_jsonl(path / "samples.jsonl", samples())
    return path
