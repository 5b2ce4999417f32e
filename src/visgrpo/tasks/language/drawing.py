"""Stages of `visgrpo language` that draw and train nothing: preference pairs, best of n."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import BatchLoader, sequential
from visgrpo.data.prompts import pair_lengths, write_pairs
from visgrpo.data.roles import pair_table
from visgrpo.errors import UserError
from visgrpo.measures.texts import best_of_n as best_of_samples
from visgrpo.measures.texts import sizes_to
from visgrpo.methods.token_groups import TokenGroups
from visgrpo.models.language import LanguageModel, context_of
from visgrpo.models.parts import Parts
from visgrpo.models.trains import keep_weights
from visgrpo.objectives import weighted_sum
from visgrpo.progress import Bar, tracked
from visgrpo.reporting import print_measures, write_report
from visgrpo.rewards.judge import can_be_compared, prefer_first
from visgrpo.rewards.texts import TextRewards
from visgrpo.tasks.language.data import (
    PromptJob,
    load_prompt_job,
    load_start,
    reward_bytes_of,
    rewards_of,
)
from visgrpo.tasks.language.options import LanguageConfig, resolved
from visgrpo.tasks.run import Session, begin, open_session
from visgrpo.tasks.tokens import memory_of, per_second, rollouts_of
from visgrpo.terminal import show
from visgrpo.training.metrics import peak_memory_bytes

PAIRS_FILE = "pairs.jsonl"
MOST_ROUNDS = 10  # of drawing as many pairs as are asked for, before it is given up
PROMPTS_AT_ONCE = 8


def make_preferences(config: LanguageConfig, default_output: str) -> dict[str, Any]:
    """Draw pairs of completions, let the judge choose, write OUTPUT/pairs.jsonl; return a summary.

    Raises:
        UserError: without text to judge by, and where too few of the pairs that are drawn can be
            learned from.
    """
    with open_session(config, default_output) as session:
        return _make_preferences(config, session)


def _make_preferences(config: LanguageConfig, session: Session) -> dict[str, Any]:
    if session.processes.world_size > 1:
        raise UserError("--method preferences runs in one process.")
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    job = load_prompt_job(full, parts, session)
    if job.judge is None:
        raise UserError(
            "--method preferences needs --data with text: the judge learns from it what good text "
            "looks like."
        )
    began = time.perf_counter()
    rows, left_out = _pairs(full, parts, job, session)
    begin(session, config, "language")
    write_pairs(session.run.path / PAIRS_FILE, rows)
    golds = torch.tensor([[row["gold_chosen"], row["gold_rejected"]] for row in rows])
    summary: dict[str, Any] = {
        "recipe": "language",
        "method": "preferences",
        "model": str(config.model),
        "data": {"name": config.data, "prompts": len(job.splits.train)},
        "pairs": len(rows),
        "pairs_left_out": left_out,
        "seconds": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_memory_bytes(session.processes.device),
        "judge_accuracy": float((golds[:, 0] > golds[:, 1]).float().mean()),
        "gold_reward": float(golds.mean()),
    }
    session.run.write_summary(summary)
    show(
        f"{len(rows)} pairs, mean gold score {summary['gold_reward']:.3f}; with noise "
        f"{config.noise:g} the better one was chosen in {100 * summary['judge_accuracy']:.1f} %"
    )
    if left_out:
        session.say(
            f"note: {left_out} more pairs were left out: their text, encoded again, is longer than "
            f"the {context_of(parts.model)} tokens that the model sees at once."
        )
    session.say(f"Pairs: {session.run.path / PAIRS_FILE}")
    return summary


def _pairs(
    config: LanguageConfig, parts: Parts, job: PromptJob, session: Session
) -> tuple[list[dict[str, Any]], int]:
    """Return as many pairs as are asked for, and how many were left out because they are long."""
    assert config.pairs is not None
    judge = job.judge
    assert judge is not None
    model = LanguageModel(parts.model).requires_grad_(False)
    keep_weights(model, config.weights)
    model = model.to(session.processes.device).eval()
    judging = TextRewards.of([("gold", judge)], None)
    prompts = job.splits.train.prompts
    rollouts = rollouts_of(config, parts, judging, prompts, config.seed, group_size=2)
    assert config.batch_size is not None
    size = min(8 * config.batch_size, len(job.splits.train))
    loader = BatchLoader(job.splits.train, job.inputs["train"], batch_size=size, seed=config.seed)
    steps = math.ceil(MOST_ROUNDS * config.pairs / size)
    rows: list[dict[str, Any]] = []
    left_out = 0
    with Bar("preference pairs", config.pairs) as bar:
        for step, batch in enumerate(loader.batches(0, steps)):
            batch = batch.to(session.processes.device)
            with session.processes.autocast():
                groups = rollouts.draw(model, batch, step, chunk=size)
            drawn = list(_chosen(groups, config, step))
            fitting = _fitting(drawn, parts)
            left_out += len(drawn) - len(fitting)
            rows += fitting
            bar.to(len(rows))
            if len(rows) >= config.pairs:
                return rows[: config.pairs], left_out
    too_long = f", but {left_out} more are too long when encoded again" if left_out else ""
    raise UserError(
        f"Only {len(rows)} of {steps * size} pairs of completions differ in text and score"
        f"{too_long}: take a higher --temperature, {'shorter' if left_out else 'longer'} "
        "completions, or fewer --pairs."
    )


def _fitting(rows: Sequence[dict[str, Any]], parts: Parts) -> list[dict[str, Any]]:
    """Return the rows that a reward model can read.

    Text need not be encoded as the tokens that it was decoded from: a stray byte decodes to a
    character of three.
    """
    pairs = pair_table(
        "pairs",
        prompts=tuple(row["prompt"] for row in rows),
        chosen=tuple(row["chosen"] for row in rows),
        rejected=tuple(row["rejected"] for row in rows),
        columns={name: [row[name] for row in rows] for name in ("chosen_ended", "rejected_ended")},
    )
    lengths_M2 = pair_lengths(pairs, parts.tokenizer)
    fits_M = lengths_M2.amax(dim=-1) <= context_of(parts.model)
    return [row for row, fits in zip(rows, fits_M.tolist(), strict=True) if fits]


def _chosen(groups: TokenGroups, config: LanguageConfig, step: int) -> Iterator[dict[str, Any]]:
    """Let the judge choose, with noise; equal completions are no pair."""
    first_N, second_N = groups.rewards_NGR[..., 0].cpu().unbind(1)
    texts = [completions for _, completions in groups.texts]
    firsts, seconds = [pair[0] for pair in texts], [pair[1] for pair in texts]
    usable_N = can_be_compared(firsts, seconds, first_N, second_N)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    uniform_N = torch.rand(len(texts), generator=generator, dtype=torch.float64)
    first_wins_N = prefer_first(first_N, second_N, uniform_N, noise_scale=config.noise)
    for row, (prompt, completions) in enumerate(groups.texts):
        if not usable_N[row]:
            continue
        chosen, rejected = (0, 1) if first_wins_N[row] else (1, 0)
        golds = (float(first_N[row]), float(second_N[row]))
        ended = groups.ended_NG[row].tolist()
        yield {
            "prompt": prompt,
            "chosen": completions[chosen],
            "rejected": completions[rejected],
            "chosen_ended": ended[chosen],
            "rejected_ended": ended[rejected],
            "gold_chosen": golds[chosen],
            "gold_rejected": golds[rejected],
        }


def best_of_n(config: LanguageConfig, default_output: str) -> dict[str, Any]:
    """Draw samples of every test prompt, take the best of n by the reward; return the summary.

    Nothing trains: it shows what a reward is worth, and what any method pays its tokens for.
    """
    with open_session(config, default_output) as session:
        return _best_of_n(config, session)


def _best_of_n(config: LanguageConfig, session: Session) -> dict[str, Any]:
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    job = load_prompt_job(full, parts, session)
    rewards = rewards_of(full, parts, job, session)
    model = LanguageModel(parts.model).requires_grad_(False)
    keep_weights(model, config.weights)
    model = model.to(session.processes.device).eval()
    assert full.samples is not None
    rollouts = rollouts_of(
        full,
        parts,
        rewards,
        job.splits.test.prompts,
        config.seed,
        judge=job.judge,
        group_size=full.samples,
    )
    began = time.perf_counter()
    proxies: list[Tensor] = []
    golds: list[Tensor] = []
    drawn = sequential(job.splits.test, job.inputs["test"], PROMPTS_AT_ONCE)
    batches = tracked(drawn, "best of n", math.ceil(len(job.splits.test) / PROMPTS_AT_ONCE))
    for step, batch in enumerate(batches):
        with session.processes.autocast():
            on_device = batch.to(session.processes.device)
            groups = rollouts.draw(model, on_device, step, chunk=PROMPTS_AT_ONCE)
        known_NGR = groups.rewards_NGR.nan_to_num(nan=0.0)
        proxies.append(weighted_sum(known_NGR, rewards.weights_R).cpu())
        if groups.gold_NG is not None:
            golds.append(groups.gold_NG.cpu())
    sizes = sizes_to(full.samples)
    rows = best_of_samples(torch.cat(proxies), torch.cat(golds) if golds else None, sizes)
    seconds = time.perf_counter() - began
    summary = {
        "recipe": "language",
        "method": "best-of-n",
        "model": str(config.model),
        "data": job.summary(config.data),
        "samples": sizes[-1],
        "steps": 0,
        "seconds": round(seconds, 3),
        "sampled_tokens": rollouts.memory.sampled_tokens,
        "tokens_per_second": per_second(rollouts.memory.sampled_tokens, seconds),
        "peak_memory_bytes": peak_memory_bytes(session.processes.device),
        "memory": memory_of(model, reward_bytes=reward_bytes_of(rewards)),
        "best_of_n": rows,
        "before": _measures(rows[0]),
        "after": _measures(rows[-1]),
    }
    begin(session, config, "language")
    if session.processes.is_main:
        session.run.log_metrics({"step": 0, "epoch": 0.0, "seconds": 0.0, **_as_evaluation(rows)})
        session.run.write_summary(summary)
        if config.report:
            write_report(session.run.path)
        title = f"{config.data}, {len(job.splits.test)} held-out prompts"
        print_measures(title, {f"best of {row['n']}": _measures(row) for row in rows})
    return summary


def _measures(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "n"}


def _as_evaluation(rows: list[dict[str, float]]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in _measures(rows[-1]).items()}
