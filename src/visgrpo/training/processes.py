"""One process or several: who writes, how their tensors meet, and how one is asked to stop."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from visgrpo.errors import Deserted, UserError, nearest
from visgrpo.signals import HANGUP, silence, standing_terminals

if TYPE_CHECKING:
    from accelerate import Accelerator


T = TypeVar("T")
_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
TRACKERS = ("tensorboard", "trackio", "mlflow", "wandb")


class Processes:
    """A thin face of accelerate's Accelerator, as the trainer and the policies need it."""

    def __init__(
        self,
        device: str = "auto",
        precision: str = "fp32",
        *,
        computes_in: str | None = None,
        report_to: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        """Set one process, or each of several, up.

        Args:
            precision: that was asked for, which a CPU refuses: it is no faster there.
            computes_in: the precision, where weights decide it.
        """
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        check_device(device, precision)
        check_trackers(report_to)
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        if not cpu:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # repeatable products
        computed = _PRECISION[computes_in or precision]
        known = AcceleratorState._shared_state
        if known and AcceleratorState().mixed_precision != computed:
            AcceleratorState._reset_state()  # of a run before in this process
        self.accelerator: Accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=computed,
            log_with=list(report_to) or None,
            project_dir=folder,
        )

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world_size(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return tensor
        return self.accelerator.gather(tensor.contiguous())

    def gather_any(self, value: T) -> list[T]:
        """Return one plain value of every process, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered

    def autocast(self) -> AbstractContextManager[None]:
        """The precision that training computes in, for whatever is compared with it."""
        return self.accelerator.autocast()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in at least one process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        return bool(self.accelerator.reduce(value, reduction="sum").item() > 0)

    @contextmanager
    def together(self, run: Path) -> Iterator[None]:
        """Say in a word that another process has ended, where a socket would say what it saw.

        Raises:
            Deserted: inside the block, another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
            if self.world_size == 1 or not lost:
                raise
            raise Deserted(run) from None

    def start_trackers(self, config: Mapping[str, Any]) -> None:
        """Open the trackers asked for; trainer metrics go to them as well.

        Raises:
            UserError: for a tracker that lacks a package of its own.
        """
        plain = {
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in config.items()
        }
        # They would make up a name for the run.
        named = {"name": str(self.accelerator.project_dir)}
        try:
            self.accelerator.init_trackers("visgrpo", plain, {"trackio": named, "wandb": named})
        except ImportError as error:
            trackers = " ".join(map(str, self.accelerator.log_with))
            raise UserError(f"--report-to {trackers} cannot be loaded: {error}.") from error

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def finish_trackers(self) -> None:
        """Close the trackers; the processes go on."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


def is_said_elsewhere(message: str) -> bool:
    """Whether the first of several processes says the same: a mistake of the user is said once."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    first = os.environ.get("RANK", "0") == "0"
    if not torch.distributed.is_initialized():
        return not first  # words and options are the same everywhere
    store = torch.distributed.distributed_c10d._get_default_store()
    try:
        if first:
            store.set(f"said: {message}", "")
        else:
            store.wait([f"said: {message}"], timedelta(seconds=3))
    except torch.distributed.DistStoreError:  # nobody has said it
        return False
    except torch.distributed.DistNetworkError:  # the first has ended, not for this process
        return not first
    return not first


def check_device(device: str, precision: str) -> None:
    """Raise UserError for a device that is not there, or a precision it cannot use."""
    known = ("auto", "cpu", "cuda")
    if device not in known:
        raise UserError(f'--device "{device}": choose one of {", ".join(known)}.')
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError(
            "--device cuda: no GPU is visible to torch here; use --device cpu, or --device auto."
        )
    if precision != "fp32" and (device == "cpu" or not has_gpu):
        raise UserError(
            f"--precision {precision} needs a GPU: on a CPU it is slower than fp32; leave it out."
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for an unknown tracker, or one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f'--report-to "{name}" is not known. {nearest(name, TRACKERS)}')
        if importlib.util.find_spec(name) is None:
            raise UserError(f'--report-to {name}: it is not installed; run "pip install {name}".')


class StopRequest:
    """Whether somebody has asked the run to stop after the step that is under way."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals inside the block, and leave them to others after it."""

        def ask_to_stop(number: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            if number not in (signal.SIGINT, signal.SIGTERM):  # the terminal has gone
                silence(terminals)

        terminals = standing_terminals()
        handled = {signal.SIGINT, signal.SIGTERM}
        if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:  # as under nohup
            handled.add(HANGUP)
        try:
            before = {number: signal.signal(number, ask_to_stop) for number in handled}
        except ValueError:  # not in the main thread: the caller keeps the signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
