"""What a GRPO step keeps in memory: by weights, adapters and checkpointing, here and in TRL.

    python benchmarks/memory.py [--quick] [--fits] [--json PATH] [--threads 1]

A Qwen2 of random weights draws groups of completions and learns from them, twice, in a fresh
process for every line. "peak" is the most resident memory of the two steps above what the process
had with its libraries alone; "by formula" is what docs/scale.md says of it.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from common import Row, machine, parser, peak_memory_bytes, print_table, versions, write_json
from text_cells import TextCell
from token_sides import PROMPTS, Task, Trl, Visgrpo

from visgrpo.models.language import LanguageModel
from visgrpo.models.options import Lora, Weights
from visgrpo.models.small import build_language
from visgrpo.models.trains import adapt, keep_weights
from visgrpo.training.optimizer import build_optimizer

LAYERS, WIDTH, HEADS = 8, 512, 8
PROMPT, NEW, GROUP = 64, 16, 4
STEPS = 2  # the optimiser's state is there from the second on
TRL_WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Variant:
    """One line of the table; goes to another process by pickle."""

    side: Literal["visgrpo", "TRL"]
    train: Literal["all", "lora"]
    weights: Weights
    checkpointing: bool

    @property
    def name(self) -> str:
        checkpointing = ", checkpointing" if self.checkpointing else ""
        return f"{self.side}, {self.train}, {self.weights}{checkpointing}"


class Ours(Visgrpo):
    """Our step, with what a run does of weights and activations."""

    def __init__(self, task: Task, variant: Variant) -> None:
        alone = [task.model]  # the task's own would be a second one

        def policy(_: None) -> LanguageModel:
            model = LanguageModel(adapt(alone.pop(), [variant.train], Lora()))
            keep_weights(model, variant.weights)
            model.recompute = variant.checkpointing
            return model

        super().__init__(replace(task, model=None, policy=policy))
        found = build_optimizer(self.model, 1e-6, 0.0, lambda name: 1.0)
        self.optimizer, _, self.masters = found
        self._cast = variant.weights != "float32"

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._cast):
            self.rollout()
            loss = self.method.loss(self.model, self.batch, self.groups, self._step).loss
        self.groups = None
        loss.backward()
        self.masters.take_gradients()
        self.optimizer.step()
        self.masters.give_weights()
        self.optimizer.zero_grad()


class Theirs(Trl):
    """TRL's step, with the settings of its users."""

    def __init__(self, task: Task, variant: Variant) -> None:
        from peft import LoraConfig

        task.model.to(TRL_WEIGHTS[variant.weights])
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        super().__init__(
            task,
            lora if variant.train == "lora" else None,
            bf16=variant.weights == "bfloat16",
        )

    def step(self) -> None:
        self.rollout()
        self.update()


class Sizes(NamedTuple):
    """Numbers of a model: its blocks, the width of states, of the MLP and of all keys of a token.

    Attributes:
        matrices: numbers in matrices that train, and in those that do not.
        vectors: bytes of vectors, with what trains them.
    """

    layers: int
    width: int
    inner: int
    keys: int
    matrices: tuple[int, int]
    vectors: int = 0


def by_formula(
    sizes: Sizes, weights: Weights, computes_in: str, prompts: int, completions: int, again: bool
) -> float:
    """Return the bytes that docs/scale.md says of a step on tokens of prompts and completions."""
    layers, width, inner, keys, (trained, frozen), vectors = sizes
    fixed = frozen * (4 if weights == "float32" else 2) + trained * 16 + vectors
    block, number = 36 * width + 8 * keys + 16 * inner, 4
    if computes_in == "bf16":
        block, number = 26 * width + 4 * keys + 8 * inner, 2
        if trained >= frozen:
            block += 12 * width
    made = layers * (prompts + completions) * block
    if again:
        made = layers * ((prompts + completions) * 4 * width + prompts * 2 * keys * number)
        made += max(prompts, completions) * block
    return fixed + max(made, 2 * trained if weights == "all-bfloat16" else 0)


def formula_of(variant: Variant, task: Task) -> float:
    """Return the bytes of one of our lines by the formula."""
    model, config = adapt(task.model, [variant.train], Lora()), task.model.config
    each = list(model.parameters())
    trained, frozen = (
        sum(p.numel() for p in each if p.ndim > 1 and p.requires_grad == trains)
        for trains in (True, False)
    )
    vectors = sum(p.numel() for p in each if p.ndim == 1) * (4 if variant.train == "lora" else 16)
    keys = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    sizes = Sizes(
        LAYERS, config.hidden_size, config.intermediate_size, keys, (trained, frozen), vectors
    )
    computes_in = "fp32" if variant.weights == "float32" else "bf16"
    prompts, completions = PROMPTS * PROMPT, PROMPTS * GROUP * (NEW - 1)
    again = variant.checkpointing
    return by_formula(sizes, variant.weights, computes_in, prompts, completions, again)


def fits() -> list[Row]:
    """Return the GB of published models by the formula: one prompt of 256 tokens, 8 × 256 drawn."""
    # Blocks, width, MLP, keys, vocabulary and how many matrices have its height, of config.json.
    published = {
        "Qwen2.5-0.5B": (24, 896, 4864, 128, 151936, 1),
        "Qwen2.5-1.5B": (28, 1536, 8960, 256, 151936, 1),
        "Qwen2.5-3B": (36, 2048, 11008, 256, 151936, 1),
        "Qwen2.5-7B": (28, 3584, 18944, 512, 152064, 2),
    }
    rows: list[Row] = []
    for name, (layers, width, inner, keys, vocabulary, times) in published.items():
        block = 2 * width * width + 2 * width * keys + 3 * width * inner
        whole = layers * block + times * vocabulary * width
        adapters = layers * 8 * (9 * width + 2 * keys + 3 * inner)
        lora, full = (
            Sizes(layers, width, inner, keys, matrices)
            for matrices in ((adapters, whole), (whole, whole))  # with a reference
        )
        tokens = 256, 8 * 256
        rows.append(
            {
                "name": name,
                "numbers": f"{whole / 1e9:.2f} · 10⁹",
                "lora, float32": by_formula(lora, "float32", "fp32", *tokens, False) / 1e9,
                "lora, bfloat16": by_formula(lora, "bfloat16", "bf16", *tokens, False) / 1e9,
                "and checkpointing": by_formula(lora, "bfloat16", "bf16", *tokens, True) / 1e9,
                "all, bfloat16, checkpointing": (
                    by_formula(full, "bfloat16", "bf16", *tokens, True) + 2 * whole
                )
                / 1e9,
            }
        )
    return rows


def measure(variant: Variant, threads: int) -> Row:
    """Return a line; in a process of its own."""
    torch.set_num_threads(threads)
    kind = Ours if variant.side == "visgrpo" else Theirs
    kind(_task(layers=1, width=64), variant).step()  # libraries take what they take once
    formula = formula_of(variant, _task()) if variant.side == "visgrpo" else None
    _forget()
    base = _resident()
    side = kind(_task(), variant)
    _forget()
    for _ in range(STEPS):
        side.step()
    peak = peak_memory_bytes() - base
    row: Row = {"name": variant.name, "peak MB": peak / 1e6}
    return {**row, "by formula MB": formula and formula / 1e6, "share": formula and peak / formula}


def _task(layers: int = LAYERS, width: int = WIDTH) -> Task:
    task = TextCell("qwen2", PROMPT, NEW).task()
    sizes = {"layers": layers, "width": width, "heads": HEADS, "context": PROMPT + NEW}
    model = build_language(task.tokenizer, architecture="qwen2", seed=0, **sizes)
    return replace(task, model=model, group=GROUP)


def _forget() -> None:
    """Give memory that is free back, and let the peak start anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def variants(quick: bool) -> list[Variant]:
    """Return the lines."""
    again = (False, True)
    ours = [("all", "float32"), ("all", "all-bfloat16"), ("lora", "float32"), ("lora", "bfloat16")]
    theirs = list(product(("all", "lora"), TRL_WEIGHTS))
    if quick:
        return [Variant("visgrpo", "lora", "float32", each) for each in again]
    # TRL's checkpointing is switched on by its training loop, which is not run here.
    return [
        *(Variant("visgrpo", *pair, each) for pair in ours for each in again),  # type: ignore[arg-type]
        *(Variant("TRL", *pair, False) for pair in theirs),  # type: ignore[arg-type]
    ]


def main() -> None:
    """Measure, print and write."""
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--fits", action="store_true", help="published models, by formula alone")
    options.set_defaults(threads=1)
    chosen = options.parse_args()
    if chosen.fits:
        print_table(fits())
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**17)  # what is free is given back at once
    rows: list[Row] = []
    for variant in variants(chosen.quick):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, variant, chosen.threads).result())
        print(rows[-1], file=sys.stderr, flush=True)
    print(machine())
    print(", ".join(f"{name} {number}" for name, number in versions("trl").items()))
    print()
    print_table(rows)
    if chosen.json:
        write_json(chosen.json, rows)


if __name__ == "__main__":
    main()
