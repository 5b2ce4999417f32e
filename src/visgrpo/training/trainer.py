"""The one trainer: batches in, rollouts, inner passes, updates, checkpoints, metrics.

It knows neither models nor outputs. A *method* turns a batch into groups and into a loss; an
*evaluation* turns the model into numbers; the trainer does the rest, the same way for every job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from visgrpo.data.batches import Batch, BatchLoader
from visgrpo.errors import Interrupted, UserError
from visgrpo.methods.method import Memory, Method
from visgrpo.progress import Bar
from visgrpo.terminal import say
from visgrpo.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    prune,
    remove,
    save_checkpoint,
    step_folders,
)
from visgrpo.training.metrics import MetricMeans, Silence
from visgrpo.training.optimizer import RateOf, build_optimizer, set_learning_rate
from visgrpo.training.options import TrainingOptions
from visgrpo.training.processes import Processes, StopRequest
from visgrpo.training.run_directory import RunDirectory

KEPT_CHECKPOINTS = 2  # one to go on from, and one before it in case that one is damaged
SAMPLED_GROUPS = 4


@dataclass(frozen=True)
class TrainResult:
    """How a run went. ``seconds`` counts training steps alone, not evaluation.

    ``validation`` is what the weights that the run ends with reached in the metric that selects.
    """

    steps: int
    seconds: float
    examples: int
    best_step: int
    validation: float


class Trainer:
    """Optimise what trains in ``model`` with ``method`` on the batches of ``loader``.

    Args:
        evaluate: returns metrics on validation data, without their ``eval/`` prefix.
        selection: the validation metric that decides which step is the best; higher is better,
            or with a minus before its name, lower.
        image_of: saves the picture of a data set row and returns its path within the run; None
            where inputs are no pictures.
        rate_of: the share of the learning rate at which a parameter, by its name, trains.
        draws_sequences: whether outputs must be generated before the training pass; a policy over
            classes has all of its outputs' probabilities in that pass itself.
        memory: what the method remembers from step to step.
        inputs_are: what an input is called in messages.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        loader: BatchLoader,
        options: TrainingOptions,
        *,
        processes: Processes,
        run: RunDirectory,
        evaluate: Callable[[], Mapping[str, float]],
        selection: str = "accuracy",
        title: str = "training",
        image_of: Callable[[int], str] | None = None,
        rate_of: RateOf = lambda name: 1.0,
        draws_sequences: bool = False,
        memory: Memory | None = None,
        inputs_are: str = "images",
    ) -> None:
        options.check_batches(processes.world_size)
        self._processes, self._run, self._options = processes, run, options
        self._method, self._loader = method, loader
        self._evaluate, self._selection = evaluate, selection.removeprefix("-")
        self._sign = -1.0 if selection.startswith("-") else 1.0
        self._draws_sequences, self._memory = draws_sequences, memory
        self._inputs_are = inputs_are
        self._title, self._image_of = title, image_of
        optimizer, self._parameters, self._masters = build_optimizer(
            model, options.learning_rate, options.weight_decay, rate_of
        )
        self._names = list(self._parameters)
        self._plain_model = model
        lasting = model.state_dict().keys()
        buffers = {name: b for name, b in model.named_buffers() if name in lasting}
        self._changing: dict[str, Tensor] = {**self._parameters, **buffers}  # by training
        self._model = processes.accelerator.prepare_model(model)
        self._optimizer = processes.accelerator.prepare_optimizer(optimizer)
        self._old: dict[str, Tensor] = {}
        self._means = MetricMeans()
        # "since": the step that first reached the value.
        self._best: dict[str, float] = {"step": 0, "value": float("-inf"), "since": 0}
        self._reached = float("-inf")  # in the evaluation before, with its sign
        self._step, self._seconds = 0, 0.0
        # Within a step: the means before it, and whether it has changed the weights yet.
        self._means_before: MetricMeans | None = None
        self._memory_before: dict[str, float] = {}
        self._updated = False
        self._silence = Silence(options.silent_steps)
        self._stop = StopRequest()

    def train(self, checkpoint: Checkpoint | None = None) -> TrainResult:
        """Train to the last step, from the start or from a checkpoint.

        Raises:
            Interrupted: after Ctrl-C or a terminate signal, once a checkpoint is written.
            UserError: for a loss that is not finite, and whatever bad data raises; the last
                finished step is saved first.
        """
        if checkpoint is not None:
            self._restore(checkpoint)
        options = self._options
        self._run.ensure({"method": self._title, **asdict(options)})
        display = Bar(
            self._title,
            options.steps,
            start=self._step,
            training=True,
            shown=self._processes.is_main,
        )
        with display, self._stop.listening():
            if self._step == 0:
                display.log(0, self._evaluate_and_log())
            batches = self._loader.batches(self._step, options.steps)
            batches = iter(()) if self._is_out_of_patience() else batches
            try:
                began = time.perf_counter()  # waiting for data is part of a step's time
                for batch in batches:
                    self._one_step(batch, began, display)
                    began = time.perf_counter()
                    if self._is_out_of_patience():
                        self._say(
                            f"note: {options.patience} evaluations in a row were no better than "
                            f"that of step {self._best['since']}: stopped after step {self._step}."
                        )
                        self._save()
                        break
                    if self._processes.any(self._stop.asked):
                        self._save()
                        raise Interrupted(self._step, self._run.path)
            except UserError:
                self._save_what_is_whole()
                raise
        if options.keep == "best":
            self._load_best()
        examples = self._step * options.batch_size
        reached = self._best["value"] if options.keep == "best" else self._reached
        return TrainResult(
            self._step, self._seconds, examples, int(self._best["step"]), self._sign * reached
        )

    def _one_step(self, batch: Batch, began: float, display: Bar) -> None:
        options, step = self._options, self._step
        self._means_before, self._updated = self._means.copy(), False
        self._memory_before = self._memory.state() if self._memory else {}
        batch = replace(batch.to(self._processes.device), logged=options.logs_after(step + 1))
        # Dropout and the like depend on the step alone, so that a resumed run repeats them.
        torch.manual_seed((options.seed * 1_000_003 + step) * 1009 + self._processes.rank)
        learning_rate = options.learning_rate_at(step)
        set_learning_rate(self._optimizer, learning_rate)
        groups = self._rollout(batch, step)
        for _ in range(options.inner_passes):
            for rows in self._minibatches(len(batch)):
                groups = self._update(batch, groups, rows)
        self._step += 1
        self._means_before = None
        step_time = time.perf_counter() - began
        self._seconds += step_time
        self._means.add({"learning_rate": learning_rate, "step_time": step_time})
        display.to(self._step)
        self._housekeeping(batch, groups, display)

    def _rollout(self, batch: Batch, step: int) -> Any:
        """Groups from the old policy; None where the first training pass provides them."""
        options = self._options
        if options.one_forward_is_enough and not self._draws_sequences:
            return None
        chunk = len(batch) // (options.minibatches * options.accumulation)
        if options.refresh_every > 1 and (step % options.refresh_every == 0 or not self._old):
            self._old = {name: t.detach().clone() for name, t in self._changing.items()}
        with torch.no_grad(), self._processes.autocast(), self._old_weights():
            return self._method.rollout(self._plain_model, batch, step, chunk=chunk)

    @contextmanager
    def _old_weights(self) -> Iterator[None]:
        """The policy as it was at the last refresh; as it is, where that is every step."""
        self._swap(self._old)
        try:
            yield
        finally:
            self._swap(self._old)

    def _swap(self, others: dict[str, Tensor]) -> None:
        """Exchange the model's tensors with others, without copying one."""
        for name in others:
            self._changing[name].data, others[name] = others[name], self._changing[name].data

    def _minibatches(self, size: int) -> Iterator[Tensor | None]:
        """Rows of each minibatch; None for the whole batch as it is.

        They are consecutive blocks of this process's share, the same in every pass: the loader has
        shuffled the batch and dealt each block out to the processes.
        """
        count = self._options.minibatches
        if count == 1:
            yield None
        else:
            yield from torch.arange(size).chunk(count)

    def _update(self, batch: Batch, groups: Any, rows: Tensor | None) -> Any:
        """One optimiser update on some rows; returns the groups that were used."""
        accelerator, parts = self._processes.accelerator, self._options.accumulation
        chosen = torch.arange(len(batch)) if rows is None else rows
        pieces = chosen.chunk(parts)
        for number, piece in enumerate(pieces):
            whole = len(piece) == len(batch)
            small = batch if whole else batch.select(piece)
            its_groups = groups if whole or groups is None else groups.select(piece)
            last = number == len(pieces) - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                with accelerator.autocast():
                    result = self._method.loss(self._model, small, its_groups, self._step)
                self._check_finite("loss", result.loss, small)
                self._check_learns(result.loss, small)
                accelerator.backward(result.loss / len(pieces))
            self._means.add({"loss": result.loss.detach(), **result.metrics}, result.weights)
            if whole:
                groups = result.groups
        self._masters.take_gradients()
        if self._options.max_grad_norm:
            norm = accelerator.clip_grad_norm_(
                self._masters.moved.values(), self._options.max_grad_norm
            )
            if accelerator.scaler is None:
                self._check_finite("gradient's norm", norm, batch)
            if torch.isfinite(norm):  # else fp16's scaler leaves this update out
                self._means.add({"grad_norm": norm})
        self._updated = True
        self._optimizer.step()
        self._masters.give_weights()
        self._optimizer.zero_grad()
        return groups

    def _check_finite(self, what: str, value: Tensor, batch: Batch) -> None:
        if torch.isfinite(value):
            return
        shown = ", ".join(map(str, batch.indices_N[:8].tolist()))
        raise UserError(
            f"The {what} is {value.item()} at step {self._step + 1}, on training "
            f"{self._inputs_are} {shown}{', …' if len(batch) > 8 else ''}. Likely causes: a "
            "learning rate that is too high, fp16 overflow (try bf16), or a broken "
            f"{self._inputs_are.removesuffix('s')} or weight. The last checkpoint is kept."
        )

    def _check_learns(self, loss: Tensor, batch: Batch) -> None:
        if loss.requires_grad:
            return
        shown = ", ".join(map(str, batch.indices_N[:8].tolist()))
        raise UserError(
            f"Nothing that trains has a part in the loss of the {self._inputs_are} {shown}, as "
            "where a vision tower alone trains and a prompt has no image: leave them out, or "
            "train more."
        )

    def _housekeeping(self, batch: Batch, groups: Any, display: Bar) -> None:
        """Log, evaluate, save: whatever is due after this step."""
        options = self._options
        last = self._step == options.steps
        seen: dict[str, float] = {}
        if options.logs_after(self._step):
            means = self._means.take(self._processes.gather_any)
            means.update(self._memory.metrics() if self._memory else {})
            self._log(means)
            # A surrogate that is its own old policy's is 0, which says nothing.
            quiet = {"loss"} if groups is not None and abs(means["loss"]) < 0.0005 else set()
            seen.update({name: value for name, value in means.items() if name not in quiet})
            for remark in self._silence.unpaid(self._means.of_nothing, self._step):
                self._say(remark)
            unmoved = self._silence.mind(means, options.steps_since_log(self._step), self._step)
            if unmoved:
                self._say(unmoved)
            if groups is not None:
                self._log_samples(batch, groups)
        if last or (options.eval_every and self._step % options.eval_every == 0):
            seen.update(self._evaluate_and_log())
        if seen:
            display.log(self._step, seen)
        if last or (options.save_every and self._step % options.save_every == 0):
            self._save()

    def _is_out_of_patience(self) -> bool:
        """Whether so many evaluations as are asked for have brought nothing better."""
        patience = (self._options.eval_every or 0) * self._options.patience
        return 0 < patience <= self._step - self._best["since"]

    def _say(self, line: str) -> None:
        if self._processes.is_main:
            say(line)

    def _evaluate_and_log(self) -> dict[str, float]:
        self._model.eval()
        values = {f"eval/{name}": value for name, value in self._evaluate().items()}
        self._model.train()
        value = self._reached = self._sign * values[f"eval/{self._selection}"]
        if value >= self._best["value"]:  # of equals the later: it has learned more
            since = self._step if value > self._best["value"] else self._best["since"]
            self._best = {"step": self._step, "value": value, "since": since}
            self._save_best()
        self._log(values)
        return values

    def _log(self, values: Mapping[str, float]) -> None:
        entry = {
            "step": self._step,
            "epoch": round(self._step / self._loader.steps_per_epoch, 4),
            "seconds": round(self._seconds, 3),
            **values,
        }
        self._run.log_metrics(entry)
        self._processes.accelerator.log(dict(values), step=self._step)

    def _log_samples(self, batch: Batch, groups: Any) -> None:
        if not self._run.writes:
            return
        files = self._loader.dataset.columns.get("file")
        for row, sample in enumerate(self._method.samples(groups, SAMPLED_GROUPS)):
            index = int(batch.indices_N[row])
            picture = {} if self._image_of is None else {"image": self._image_of(index)}
            picture |= {"file": str(files[index])} if files is not None else {}
            self._run.log_sample({"step": self._step, "index": index, **picture, **sample})

    def _save(self) -> None:
        """Write step-…; every process calls it, one writes."""
        self._processes.wait()
        if self._run.writes:
            scaler = self._processes.accelerator.scaler
            remembered = self._memory.weights if self._memory else {}
            tensors: dict[str, Mapping[str, Tensor]] = {
                "model": self._changing,
                "optimizer": optimizer_tensors(self._optimizer, self._names),
                "old_policy": self._old,
                **({"masters": self._masters.own} if self._masters.own else {}),
                **({"memory": remembered} if remembered else {}),
            }
            state = {
                "step": self._step,
                "seconds": self._seconds,
                "best": self._best if self._best["value"] > float("-inf") else None,
                "reached": self._reached if self._reached > float("-inf") else None,
                "means": self._means.state(),
                "memory": self._memory.state() if self._memory else None,
                "silent_steps": self._silence.steps,
                "lines": self._run.lines,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            self._run.sync()
            save_checkpoint(self._run.checkpoints / f"step-{self._step:06d}", tensors, state)
            prune(self._run.checkpoints, KEPT_CHECKPOINTS)
        self._processes.wait()

    def _save_what_is_whole(self) -> None:
        """After bad data: keep the last finished step, if the weights still are that step's."""
        if self._processes.world_size > 1:
            return  # the others wait elsewhere and would not come to a common save
        if self._means_before is not None:
            if self._updated:
                return
            self._means = self._means_before
            if self._memory:
                self._memory.restore(self._memory_before)
        finite = all(bool(p.isfinite().all()) for p in self._parameters.values())
        saved = (self._run.checkpoints / f"step-{self._step:06d}").exists()
        if self._step and finite and not saved:
            self._save()

    def _save_best(self) -> None:
        if self._run.writes:
            path = self._run.checkpoints / "best"
            save_checkpoint(path, {"model": self._changing}, {"step": self._step})

    def _load_best(self) -> None:
        self._processes.wait()
        self._put(load_checkpoint(self._run.checkpoints / "best").tensors["model"])

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self._put(checkpoint.tensors["model"])
        load_optimizer_tensors(self._optimizer, self._names, checkpoint.tensors["optimizer"])
        for name, master in self._masters.own.items():
            master.data.copy_(checkpoint.tensors["masters"][name])
        device = self._processes.device
        self._old = {n: t.to(device) for n, t in checkpoint.tensors["old_policy"].items()}
        self._step, self._seconds = int(state["step"]), float(state["seconds"])
        best = state["best"] or self._best
        self._best = {"since": best["step"], **best}  # which runs of before did not keep
        self._reached = state["reached"] if state["reached"] is not None else self._reached
        self._means.restore(state["means"])
        self._silence.steps = int(state["silent_steps"])
        if self._memory:
            self._memory.restore(state["memory"])
            for name, weight in self._memory.weights.items():
                weight.data.copy_(checkpoint.tensors["memory"][name])
        scaler = self._processes.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        self._run.rewind(self._step, state.get("lines", {}))
        if self._run.writes:  # a kill may have left one more, and damaged ones are of no use
            for newer in takewhile(checkpoint.path.__ne__, step_folders(self._run.checkpoints)):
                remove(newer)
            prune(self._run.checkpoints, KEPT_CHECKPOINTS)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._changing.items():
            tensor.copy_(tensors[name])
        # Whatever the model derived from its weights is stale now.
        self._plain_model.train()
