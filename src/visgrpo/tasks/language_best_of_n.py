"""Choosing instead of learning: the best of n samples, `visgrpo language --stage best-of-n`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from visgrpo.data.batches import sequential
from visgrpo.measures.language import best_of_n as best_of_samples
from visgrpo.methods.kl_control import FixedKL
from visgrpo.methods.token_groups import TokenMemory, TokenRollouts
from visgrpo.models.language import LanguageModel
from visgrpo.objectives import weighted_sum
from visgrpo.reporting import write_report
from visgrpo.tasks.ending import print_measures
from visgrpo.tasks.language_config import LanguageConfig, resolved
from visgrpo.tasks.language_policy import reward_bytes_of, rewards_of
from visgrpo.tasks.language_setup import (
    SPLITS,
    data_of,
    decoder_of,
    load_prompt_job,
    load_start,
    memory_of,
    run_name,
    sampling_of,
)
from visgrpo.tasks.session import begin, open_session
from visgrpo.training.metrics import peak_memory_bytes

PROMPTS_AT_ONCE = 8


def best_of_n(config: LanguageConfig) -> dict[str, Any]:
    """Draw samples of every test prompt, take the best of n by the reward; return the summary.

    Nothing trains: it shows what a reward is worth, and what any method pays its tokens for.
    """
    session = open_session(config, run_name(config))
    parts = load_start(config, session)
    full = resolved(config, parts.info)
    job = load_prompt_job(full, parts, session)
    rewards = rewards_of(full, parts, job, session)
    model = LanguageModel(parts.model).requires_grad_(False).to(session.processes.device).eval()
    assert full.samples is not None
    memory = TokenMemory(FixedKL(0.0))
    rollouts = TokenRollouts(
        rewards=rewards,
        sampling=sampling_of(full, parts),
        group_size=full.samples,
        prompts=job.splits.test.prompts,
        decode=decoder_of(parts),
        memory=memory,
        judge=job.judge,
        seed=config.seed,
    )
    began = time.perf_counter()
    proxies: list[Tensor] = []
    golds: list[Tensor] = []
    for step, batch in enumerate(sequential(job.splits.test, job.inputs["test"], PROMPTS_AT_ONCE)):
        with session.processes.autocast():
            on_device = batch.to(session.processes.device)
            groups = rollouts.draw(model, on_device, step, chunk=PROMPTS_AT_ONCE)
        known_NGR = groups.rewards_NGR.nan_to_num(nan=0.0)
        proxies.append(weighted_sum(known_NGR, rewards.weights_R).cpu())
        if groups.gold_NG is not None:
            golds.append(groups.gold_NG.cpu())
    sizes = sorted({*(2**power for power in range(full.samples.bit_length())), full.samples})
    rows = best_of_samples(torch.cat(proxies), torch.cat(golds) if golds else None, sizes)
    seconds = time.perf_counter() - began
    summary = {
        "recipe": "language",
        "method": "best-of-n",
        "model": str(config.init),
        "data": data_of(
            config.data, {name: job.inputs[name].inputs_M for name in SPLITS}, "prompts"
        ),
        "samples": sizes[-1],
        "steps": 0,
        "seconds": round(seconds, 3),
        "sampled_tokens": memory.sampled_tokens,
        "tokens_per_second": round(memory.sampled_tokens / max(seconds, 1e-9), 1),
        "peak_memory_bytes": peak_memory_bytes(session.processes.device),
        "memory": memory_of(model, reward_bytes=reward_bytes_of(rewards)),
        "best_of_n": rows,
        "before": _measures(rows[0]),
        "after": _measures(rows[-1]),
    }
    begin(session, "language")
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
