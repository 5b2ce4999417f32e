"""What a run is going to do, for --dry-run: data, what trains, one example as the model gets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from visgrpo.data.batches import Batch, BatchLoader
from visgrpo.terminal import show
from visgrpo.training.options import Loop

if TYPE_CHECKING:
    from visgrpo.tasks.run import Job
    from visgrpo.tasks.task import Task


def print_plan(task: Task, job: Job, options: Loop, run: Path, loader: BatchLoader) -> None:
    """Print everything that is known before step 0. Nothing is written."""
    training, unit = job.training, job.data.get("unit", "images")
    sizes = (f"{job.data[name]} {name}" for name in ("train", "validation", "test"))
    rows = {
        "command": f"{task.name}, {job.chosen_method}",
        "data": f"{job.data['name']}: {', '.join(sizes)} {unit}",
        "model": str(job.start),
        "what trains": "; ".join(_trained(job.model)),
        "steps": f"{training.steps} of {training.batch_size} {job.inputs_are}, "
        f"{loader.steps_per_epoch} in an epoch",
        "learning rate": f"{training.learning_rate:g}, {training.schedule}",
        "evaluations": f"every {training.eval_every} steps, best by {job.selection}",
        "would be in": str(run),
    }
    show("A dry run: nothing was trained.")
    for name, value in rows.items():
        show(f"  {name:<{max(map(len, rows))}}  {value}")
    batch = next(iter(loader.batches(0, 1)))
    show("One example as the model gets it:")
    for line in _example(job, batch):
        show(f"  {line}")


def _trained(model: nn.Module) -> Iterator[str]:
    """The parameters that train of each part, and of all."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = re.split(r"\.\d+\.", name)[0].rpartition(".")[0] or name
            parts[part] = parts.get(part, 0) + parameter.numel()
    whole = sum(parameter.numel() for parameter in model.parameters())
    yield f"{sum(parts.values()):,} of {whole:,} parameters"
    for part in sorted(parts, key=lambda name: -parts[name])[:4]:
        yield f"{part} {parts[part]:,}"


def _example(job: Job, batch: Batch) -> Iterator[str]:
    """What is known of the first row of a batch: texts with their special tokens, and shapes."""
    row, table = int(batch.indices_N[0]), job.rows
    yield f"row: {table.where(row)}"
    if job.tokenizer is None or batch.inputs.is_floating_point():
        yield f"{_shape(batch.inputs[0])}"
    else:
        lengths = batch.lengths_N[0].reshape(-1).tolist() if len(batch.lengths_N) else [None]
        for ids, length in zip(batch.inputs[0].reshape(len(lengths), -1), lengths, strict=True):
            kept = ids.tolist()[: length or None]
            yield f"{len(kept)} tokens: {written(job.tokenizer, kept)}"
    if batch.pictures is not None:
        yield f"{batch.pictures.counts_N[0]} image(s)"
    if batch.answers_NT is not None:
        answer = [i for i in batch.answers_NT[0].tolist() if i >= 0]
        yield f"to be answered: {written(job.tokenizer, answer)}"
    if "labels" in table.values:
        yield f"label: {table.classes[int(table.labels[row])]}"


def written(tokenizer: Any, ids: list[int]) -> str:
    """Return tokens as text on one line, special ones too; of many equal ones their number."""
    tokens = re.sub(r"(<[^<>\s]+>)\1{2,}", _counted, tokenizer.decode(ids))
    return repr(tokens)


def _counted(found: re.Match[str]) -> str:
    return f"{found[1]} × {len(found[0]) // len(found[1])} "


def _shape(values: Any) -> str:
    shape = " × ".join(map(str, values.shape))
    low, high = values.float().min().item(), values.float().max().item()
    return f"{shape} numbers ({values.dtype}), from {low:.3g} to {high:.3g}"
