"""What a GRPO-RM step costs beside a cross-entropy step, and how it grows with the class set.

    python benchmarks/representation_step.py [--quick] [--json PATH] [--threads 2]

A step is forward, loss, backward and Adam on a batch that lies ready: the same for both, which take
turns in one process. Ratios are GRPO-RM time / cross-entropy time, both from the same round. Peak
memory is that of a fresh process that makes three steps of one kind, above what it held before
them; "logits" is what one tensor of the batch's logits takes.

Steps make no metrics, as between two lines of the log. "losses alone" are forward and backward from
logits of masks that lie ready as upsampling leaves them, and torch's own cross_entropy beside ours;
"logged" is with metrics. "features cached" is another question: images per second of training a
head alone, from features computed once / with every image encoded again.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from common import (
    Row,
    alternate,
    machine,
    parser,
    peak_memory_bytes,
    print_table,
    versions,
    write_json,
)
from torch import nn

from visgrpo.data.batches import Batch
from visgrpo.methods.class_set import ClassSetGRPO, ClassSetSupervised, ImageView, PixelView, View
from visgrpo.methods.labels import LabelGRPO
from visgrpo.models.backbone import Backbone, RepresentationClassifier, Segmenter
from visgrpo.models.small import SmallBackbone, build_small_backbone
from visgrpo.models.trains import adapt
from visgrpo.objectives import Objective
from visgrpo.rewards.sets import parse_rewards
from visgrpo.training.optimizer import build_optimizer
from visgrpo.training.trainer import Method

IGNORED = 255
MethodName = Literal["grpo-rm", "cross-entropy"]
SMALL_VIT = SmallBackbone(image_size=32, patch_size=8, width=128, layers=4, heads=4)
VIT_S = SmallBackbone(image_size=224, patch_size=14, width=384, layers=12, heads=6)
METHODS: tuple[MethodName, ...] = ("cross-entropy", "grpo-rm")


@dataclass(frozen=True)
class Case:
    """One model, batch and class set.

    Attributes:
        input: pixels through the whole backbone, or features to the head alone.
        pixels: height and width of masks; None for classification.
    """

    name: str
    classes: int
    batch_size: int
    input: Literal["pixels", "features"] = "features"
    sizes: SmallBackbone = SMALL_VIT
    pixels: tuple[int, int] | None = None
    decide_at: Literal["patch", "pixel"] = "patch"
    steps: int = 5  # of one round

    @property
    def logits_bytes(self) -> int:
        """What one float32 tensor of the logits takes that the loss is made from."""
        places = 1
        if self.pixels:
            height, width = self.pixels
            cell = 1 if self.decide_at == "pixel" else 8
            places = (height // cell) * (width // cell)
        return 4 * self.batch_size * places * self.classes


WHOLE = (
    Case("whole small ViT, 10 classes", 10, 256, "pixels", steps=2),
    Case("whole small ViT, 100 classes", 100, 256, "pixels", steps=2),
    Case("… and 21 at patches", 21, 16, "pixels", pixels=(192, 128), steps=1),
    Case("… and 150 at patches", 150, 16, "pixels", pixels=(192, 128), steps=1),
)
HEADS = tuple(
    Case(f"head, {K:,} classes", K, 256, steps=20 if K < 1000 else 2)
    for K in (2, 10, 100, 1_000, 5_000, 21_000)
)
MASKS = (
    Case("decoder at patches, 21 classes", 21, 32, pixels=(192, 128)),
    Case("decoder at patches, 150 classes", 150, 32, pixels=(192, 128)),
    Case("decoder at pixels, 21 classes", 21, 8, pixels=(192, 128), decide_at="pixel", steps=1),
    Case("decoder at pixels, 150 classes", 150, 8, pixels=(192, 128), decide_at="pixel", steps=1),
)


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}; torch {versions()['torch']}, transformers {versions()['transformers']}\n")
    rows = [_compared(case, 3 if options.quick else 15) for case in (*WHOLE, *HEADS, *MASKS)]
    print_table(rows)
    losses = [_losses(classes, 5 if options.quick else 21) for classes in (21, 150)]
    print("\n**Losses alone**\n")
    print_table(losses)
    rounds = 2 if options.quick else 7
    cached = [
        _cached("head of the small ViT, 32 px", SMALL_VIT, 256, rounds),
        _cached("head of a ViT-S/14, 224 px", VIT_S, 16, rounds),
    ]
    print("\n**Features cached**\n")
    print_table(cached)
    if options.json:
        write_json(options.json, [*rows, *losses, *cached])


def _compared(case: Case, rounds: int) -> Row:
    steps = {name: _stepper(case, name) for name in METHODS}
    timings = alternate({name: _times(step, case.steps) for name, step in steps.items()}, rounds)
    ratio, spread = timings.ratio("grpo-rm", "cross-entropy")
    memory = {name: _memory_of(case, name) for name in METHODS}
    return {
        "name": case.name,
        "batch": case.batch_size,
        "cross-entropy ms": 1000 * timings.median("cross-entropy") / case.steps,
        "GRPO-RM ms": 1000 * timings.median("grpo-rm") / case.steps,
        "ratio": ratio,
        "spread": spread,
        "logits MB": case.logits_bytes / 1e6,
        "cross-entropy peak MB": memory["cross-entropy"] / 1e6,
        "GRPO-RM peak MB": memory["grpo-rm"] / 1e6,
    }


def _losses(classes: int, rounds: int) -> Row:
    """Forward and backward of 8 × 96 × 64 labelled pixels: torch's cross_entropy is 1."""
    view = PixelView(1, IGNORED, lambda logits, size: logits, "pixel")
    case = Case("", classes, 8)
    generator = torch.Generator().manual_seed(0)
    logits_NKHW = torch.randn(8, classes, 96, 64, generator=generator).requires_grad_()
    labels_NHW = torch.randint(classes, (8, 96, 64), generator=generator)

    def torchs() -> None:
        logits_NKHW.grad = None
        F.cross_entropy(logits_NKHW, labels_NHW).backward()

    def ours(method: Any, logged: bool) -> Callable[[], None]:
        def loss() -> None:
            logits_NKHW.grad = None
            inputs = logits_NKHW.permute(0, 2, 3, 1)
            batch = Batch(torch.arange(8), inputs, labels_NHW, {}, logged=logged)
            method.loss(lambda inputs: inputs, batch, None, 0).loss.backward()

        return loss

    named = {
        name + ", logged" * logged: ours(_method(case, name, view), logged)
        for name in METHODS
        for logged in (False, True)
    }
    timings = alternate({"torch": torchs, **named}, rounds)
    row: Row = {
        "name": f"pixels, {classes} classes",
        "torch ms": 1000 * timings.median("torch"),
    }
    for name in named:
        row[f"{name} / torch"], row[f"spread of {name}"] = timings.ratio(name, "torch")
    return row


def _cached(name: str, sizes: SmallBackbone, encoded_at_once: int, rounds: int) -> Row:
    """Images per second of a head on features that are ready, and on images encoded every time."""
    encoded = _stepper(Case("", 10, encoded_at_once, "pixels", sizes), "grpo-rm", frozen=True)
    ready = _stepper(Case("", 10, 256, "features", sizes), "grpo-rm")
    timings = alternate({"encoded": _times(encoded, 1), "ready": _times(ready, 50)}, rounds)
    scale = 50 * 256 / encoded_at_once  # images of a round of "ready" per image of "encoded"
    ratio, spread = timings.ratio("encoded", "ready")
    return {
        "name": name,
        "encoding images/s": encoded_at_once / timings.median("encoded"),
        "cached images/s": 50 * 256 / timings.median("ready"),
        "ratio": scale * ratio,
        "spread": scale * spread,
    }


def _stepper(case: Case, method_name: MethodName, frozen: bool = False) -> Callable[[], None]:
    """Return a function that makes one training step."""
    model, batch, view = _task(case, frozen)
    method = _method(case, method_name, view)
    optimizer, *_ = build_optimizer(model, 1e-3, 0.0, lambda name: 1.0)
    counter: Iterator[int] = iter(range(10**9))

    def step() -> None:
        result: Any = method.loss(model, batch, None, next(counter))
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _task(case: Case, frozen: bool) -> tuple[nn.Module, Batch, View]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    backbone = Backbone(build_small_backbone(case.sizes, 0).model)
    classes = [f"kind {k}" for k in range(case.classes)]
    model: RepresentationClassifier | Segmenter
    view: View = ImageView()
    n_inputs = case.batch_size
    if case.pixels is None:
        model = RepresentationClassifier(backbone, classes)
        labels = torch.randint(case.classes, (n_inputs,), generator=generator)
        shape: tuple[int, ...] = (n_inputs, backbone.width)
    else:
        model = Segmenter(backbone, classes)
        labels = torch.randint(case.classes, (n_inputs, *case.pixels), generator=generator)
        cells = [side // backbone.stride for side in case.pixels]
        shape = (n_inputs, *cells, backbone.width)
        view = PixelView(backbone.stride, IGNORED, model.upsample, case.decide_at)
    if case.input == "pixels":
        side = case.sizes.image_size
        shape = (n_inputs, 3, *(case.pixels or (side, side)))
    model.inputs_are_features = case.input == "features"
    adapt(model, ["full" if case.input == "pixels" and not frozen else "frozen"])
    inputs = torch.randn(shape, generator=generator)
    return model.train(), Batch(torch.arange(n_inputs), inputs, labels, {}, logged=False), view


def _method(case: Case, name: MethodName, view: View) -> Method:
    if name == "cross-entropy":
        return ClassSetSupervised(view)
    classes = tuple(f"kind {k}" for k in range(case.classes))
    rewards = parse_rewards(("hard", "uniformity"), None, classes)
    return ClassSetGRPO(LabelGRPO(rewards, Objective(), classes, estimator="uniform"), view)


def _times(step: Callable[[], None], count: int) -> Callable[[], None]:
    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def _memory_of(case: Case, method: MethodName) -> int:
    """Return the peak memory of a fresh process above what it held before its first step."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_memory, case, method, torch.get_num_threads()).result()


def _measure_memory(case: Case, method: MethodName, threads: int) -> int:
    torch.set_num_threads(threads)
    step = _stepper(case, method)
    before = peak_memory_bytes()
    for _ in range(3):
        step()
    return peak_memory_bytes() - before


if __name__ == "__main__":
    sys.exit(main())
