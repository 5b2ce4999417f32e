"""What a GRPO step costs beside a supervised step, for a ViT-B/32-shaped and a small CLIP.

    python benchmarks/label_step.py [--quick] [--shape vit-b/32|small] [--json PATH] [--threads 2]

Every variant is the real trainer on the real loader. All take turns in one process, a burst of
steps each. Ratios are GRPO time / supervised time, both from the same round; the supervised step
has no reference at all. Peak memory is that of a fresh process that trains one variant alone.

"features cached" is another question: with the image tower frozen, images per second from the
second epoch on with features computed once / with every image encoded again.
"""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from common import (
    Row,
    Timings,
    alternate,
    machine,
    parser,
    peak_memory_bytes,
    print_table,
    versions,
    write_json,
)
from PIL import Image

from visgrpo.data.batches import Batch, BatchLoader, CachedInputs
from visgrpo.data.inputs import pixel_inputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_table
from visgrpo.data.table import Table
from visgrpo.measures.over import outputs_of
from visgrpo.methods.labels import LabelGRPO
from visgrpo.methods.supervised import Supervised
from visgrpo.models.clip import ClipClassifier
from visgrpo.models.reference import CachedReference, Reference, live_reference
from visgrpo.models.small import SmallClip, build_small_clip, build_tokenizer
from visgrpo.models.trains import LORA, adapt
from visgrpo.objectives import preset
from visgrpo.rewards.sets import parse_rewards
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import RunDirectory
from visgrpo.training.trainer import Method, Trainer

CLASSES = tuple(f"kind {k}" for k in range(100))
TEMPLATES = ("a photo of a {}.",)
FEATURES_BATCH = 64  # the recipe's default


@dataclass(frozen=True)
class Shape:
    """A model and how long it is measured.

    Attributes:
        burst: steps of a variant before it is the next one's turn.
        epoch: batches of the data set.
        groups: how many of the STEPS are measured.
        features: whether cached features are.
        memory_steps: 2 at least: the optimiser's state is there from the second on.
    """

    name: str
    batch_size: int
    burst: int
    rounds: int
    epoch: int = 4
    groups: int = 3
    features: bool = True
    memory_steps: int = 3


FULL = (Shape("vit-b/32", 8, 1, 7), Shape("small", 64, 4, 11))
QUICK = (
    Shape("vit-b/32", 4, 1, 2, epoch=2, groups=1, features=False, memory_steps=2),
    Shape("small", 8, 1, 2, epoch=2, memory_steps=2),
)


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    method: Literal["supervised", "sampled", "exact"]
    reference: Literal["none", "cached", "live"] = "none"
    augmented: bool = False
    lora: bool = False
    frozen_tower: bool = False
    cached_features: bool = False

    @property
    def name(self) -> str:
        parts = (
            "lora" * self.lora,
            self.method,
            self.reference * (self.reference != "none"),
            "augmented" * self.augmented,
        )
        return " ".join(filter(None, parts))


# The first of each list is what the others are compared with.
STEPS: tuple[tuple[Variant, ...], ...] = (
    (
        Variant("supervised"),
        Variant("sampled", "cached"),
        Variant("exact", "cached"),
        Variant("sampled", "live"),
        Variant("exact", "live"),
    ),
    (Variant("supervised", augmented=True), Variant("sampled", "live", augmented=True)),
    (
        Variant("supervised", lora=True),
        Variant("sampled", "cached", lora=True),
        Variant("sampled", "live", lora=True),
    ),
)
ENCODED_AGAIN = Variant("sampled", "cached", frozen_tower=True)
FEATURES_CACHED = replace(ENCODED_AGAIN, cached_features=True)


class Bursts(BatchLoader):
    """A loader that pauses after some steps: ``Trainer.train`` then goes on when called again."""

    burst = 1

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        return super().batches(start_step, min(stop_step, start_step + self.burst))


def build_classifier(shape: Shape, like: Variant) -> tuple[ClipClassifier, Preprocess]:
    """Return a CLIP with random weights, adapted as the variant asks."""
    if shape.name == "small":
        parts = build_small_clip(SmallClip(), CLASSES, seed=0)
        model, tokenizer, preprocess = parts.model, parts.tokenizer, parts.preprocess
    else:
        model, tokenizer, preprocess = _vit_b_32()
    classifier = ClipClassifier(model, tokenizer, CLASSES, TEMPLATES)
    train = "projections" if like.frozen_tower else "image"
    adapt(classifier, [train, LORA] if like.lora else [train])
    return classifier, preprocess


def build_trainer(
    classifier: ClipClassifier, preprocess: Preprocess, shape: Shape, variant: Variant
) -> Callable[[], object]:
    """Return a function that trains one burst; nothing is logged, evaluated or saved."""
    processes = Processes()
    classifier.to(processes.device)
    data = _noise_images(shape)
    inputs = pixel_inputs(data, preprocess, ("crop", "flip", "color") * variant.augmented)
    if variant.cached_features:
        inputs = CachedInputs(outputs_of(classifier.features, data, inputs, processes))
    loader = Bursts(data, inputs, batch_size=shape.batch_size, seed=0)
    loader.burst = loader.steps_per_epoch if variant.frozen_tower else shape.burst
    trainer = Trainer(
        classifier,
        _method(classifier, len(data), variant, processes),
        loader,
        TrainingOptions(
            steps=1_000_000, batch_size=shape.batch_size, learning_rate=1e-6, keep="last"
        ),
        processes=processes,
        run=RunDirectory(Path("unused"), writes=False),
        evaluate=lambda: {"accuracy": 0.0},
    )

    def train_one_burst() -> None:
        classifier.inputs_are_features = variant.cached_features
        with contextlib.redirect_stderr(io.StringIO()):  # the progress display
            trainer.train()

    return train_one_burst


def time_steps(shape: Shape, variants: Sequence[Variant]) -> Timings:
    """Let the variants take turns on one model; each has its own optimiser."""
    gc.collect()  # the models of the group before
    classifier, preprocess = build_classifier(shape, variants[0])
    bursts = {v.name: build_trainer(classifier, preprocess, shape, v) for v in variants}
    return alternate(bursts, shape.rounds)


def peak_memory(shape: Shape, variant: Variant, threads: int) -> int:
    """Return the peak of this process, which is a fresh one, in bytes."""
    torch.set_num_threads(threads)
    train = build_trainer(*build_classifier(shape, variant), replace(shape, burst=1), variant)
    for _ in range(shape.memory_steps):
        train()
    return peak_memory_bytes()


def peak_memories(shape: Shape, variants: Sequence[Variant], threads: int) -> list[int]:
    """Return the peak of each variant, from a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.clip.modeling_clip", "peft", "accelerate"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(peak_memory, shape, variant, threads) for variant in variants]
        return [job.result() for job in jobs]


def step_rows(shape: Shape, variants: Sequence[Variant], threads: int) -> list[Row]:
    """Return a row for each variant but the first, compared with it."""
    base, *others = variants
    memories = dict(zip(variants, peak_memories(shape, variants, threads), strict=True))
    timings = time_steps(shape, variants)
    rows = []
    for variant in others:
        ratio, spread = timings.ratio(variant.name, base.name)
        goal = 1.05 if variant.reference == "cached" else 1.40
        rows.append(
            {
                "name": f"{shape.name} {variant.name}",
                "ratio": ratio,
                "spread": spread,
                "memory_ratio": memories[variant] / memories[base],
                "goal": f"≤ {goal:.2f}",
                "milliseconds": 1000 * timings.median(variant.name) / shape.burst,
                "base_milliseconds": 1000 * timings.median(base.name) / shape.burst,
            }
        )
    return rows


def features_row(shape: Shape, threads: int) -> Row:
    """Return the row of cached features against encoding every image again; time per step."""
    shape = replace(shape, batch_size=FEATURES_BATCH, epoch=shape.epoch // 2)
    memories = peak_memories(shape, [FEATURES_CACHED, ENCODED_AGAIN], threads)
    gc.collect()
    classifier, preprocess = build_classifier(shape, ENCODED_AGAIN)
    bursts = {
        "cached": build_trainer(classifier, preprocess, shape, FEATURES_CACHED),
        "again": build_trainer(classifier, preprocess, shape, ENCODED_AGAIN),
    }
    timings = alternate(bursts, max(2, shape.rounds // 3))
    ratio, spread = timings.ratio("again", "cached")
    return {
        "name": f"{shape.name} features cached",
        "ratio": ratio,
        "spread": spread,
        "memory_ratio": memories[0] / memories[1],
        "goal": "≥ 50",
        "milliseconds": 1000 * timings.median("cached") / shape.epoch,
        "base_milliseconds": 1000 * timings.median("again") / shape.epoch,
    }


def measure(shape: Shape, threads: int) -> Iterator[Row]:
    """Yield every row of a shape as soon as it is there."""
    for variants in STEPS[: shape.groups]:
        yield from step_rows(shape, variants, threads)
    if shape.features:
        yield features_row(shape, threads)


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--shape", choices=["vit-b/32", "small"], help="only this one")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    rows: list[Row] = []
    for shape in QUICK if chosen.quick else FULL:
        if chosen.shape in (None, shape.name):
            for found in measure(shape, chosen.threads):
                print(f"{found['name']}: {found['ratio']:.3f}", file=sys.stderr, flush=True)
                rows.append(found)
    print(machine())
    print(", ".join(f"{name} {number}" for name, number in versions().items()))
    print_table(rows)
    if chosen.json:
        write_json(chosen.json, rows)


def _vit_b_32() -> tuple[torch.nn.Module, object, Preprocess]:
    """The sizes of openai/clip-vit-base-patch32, which are CLIPConfig's defaults."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tokenizer = build_tokenizer(CLASSES, 1000)
    config = CLIPConfig(text_config={"eos_token_id": tokenizer.eos_token_id})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
    return model, tokenizer, Preprocess.from_processor(CLIPImageProcessorPil())


def _noise_images(shape: Shape) -> Table:
    rng = np.random.default_rng(0)
    rows = shape.epoch * shape.batch_size
    side = 32 if shape.name == "small" else 256
    pixels = rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, len(CLASSES), rows)
    return image_table("noise", CLASSES, labels, [Image.fromarray(p) for p in pixels], {})


def _method(
    classifier: ClipClassifier, rows: int, variant: Variant, processes: Processes
) -> Method:
    rewards = parse_rewards(("hard",), None, CLASSES)
    if variant.method == "supervised":
        return Supervised(rewards, CLASSES)
    return LabelGRPO(
        rewards=rewards,
        objective=preset("grpo"),
        classes=CLASSES,
        shards=processes,
        estimator=variant.method,
        group_size=8,
        beta=0.02,
        entropy_weight=0.01,
        reference=_reference(classifier, rows, variant, processes),
    )


def _reference(
    classifier: ClipClassifier, rows: int, variant: Variant, processes: Processes
) -> Reference:
    if variant.reference == "live":
        return live_reference(classifier)
    generator = torch.Generator().manual_seed(0)
    logits_MK = torch.randn(rows, len(CLASSES), generator=generator)
    return CachedReference(logits_MK.to(processes.device))


if __name__ == "__main__":
    main()
