"""Learning in the background while people judge: `visgrpo clip` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import IO

from visgrpo.collecting.collector import LearningState
from visgrpo.errors import UserError, printable

_PATIENCE = 5.0  # seconds for training that is told to end


class LearningFailed(UserError):
    """A round of learning ended without a model."""


class LearningStopped(UserError):
    """A round of learning was ended with the command."""


class ClipProcess:
    """Trains by a command line, one at a time.

    Args:
        words: returns what is run, but for --output.
    """

    def __init__(self, words: Callable[[], Sequence[str]]) -> None:
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = Lock()  # no process starts once it was told to stop

    def __call__(self, output: Path) -> None:
        """Train into the run `output`; what the process prints goes to a log beside it.

        Raises:
            LearningFailed: it did not end well; says its last line.
            LearningStopped: it was ended by `stop`.
        """
        log = output.with_name(f"{output.name}.log")
        words = [*self._words(), "--output", str(output)]
        with log.open("wb") as file:
            process = self._start(words, file)
            code = process.wait()
        if self._stopped:
            raise LearningStopped(f"Training was ended; what it said is in {log}.")
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()] or ["It said nothing."]
            raise LearningFailed(f"{said[-1]} (exit code {code}; all of it is in {log})")

    def stop(self) -> None:
        """End the training that is under way, if any, and begin no other."""
        with self._lock:
            self._stopped, process = True, self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # it may be saving what nobody needs
            process.kill()
            process.wait()

    def _start(self, words: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise LearningStopped("Training did not begin.")
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the page, which then ends this
            )
            return self._process


class BackgroundLearner:
    """Learns after every so many new judgements, in a thread; a round that fails is said.

    Args:
        every: new judgements that begin a round; those that come during one count for the next.
        folder: where the rounds' runs go: 0001, 0002, …
        learn: trains into the run it is given; raises UserError where it fails.
        swap: takes the folder of the new model; raises UserError where that cannot be used.
    """

    def __init__(
        self,
        every: int,
        folder: Path,
        learn: Callable[[Path], None],
        swap: Callable[[str], None],
    ) -> None:
        self._every, self._folder, self._learn, self._swap = every, folder, learn, swap
        self._state = LearningState()
        self._learned_from = 0
        self._lock = Lock()
        self._thread: Thread | None = None

    @property
    def state(self) -> LearningState:
        """What it is doing."""
        return self._state

    def judged(self, judgements: int) -> None:
        """Begin a round if there is enough to learn from, and none is under way."""
        with self._lock:
            enough = judgements - self._learned_from >= self._every
            if not enough or self._state.state == "learning":
                return
            self._learned_from = judgements
            self._state = LearningState("learning", self._state.rounds)
            self._thread = Thread(target=self._round, name="learner", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the round that is under way, if any."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _round(self) -> None:
        rounds, ending = self._state.rounds, "it stopped unexpectedly: see the terminal"
        try:
            output = _free_run(self._folder)
            self._learn(output)
            self._swap(str(output / "model"))
            ending = ""
        except LearningStopped as stop:  # there is nobody left to tell
            ending = str(stop)
        except UserError as error:
            ending = str(error)
            print(f"Learning failed: {printable(ending)}", file=sys.stderr, flush=True)
        finally:
            now = LearningState("failed", rounds, ending) if ending else _learned(rounds)
            self._state = now


def _learned(rounds: int) -> LearningState:
    return LearningState("idle", rounds + 1)


def _free_run(folder: Path) -> Path:
    """Return the path of the next run, 0001 at first; those of earlier sessions stay."""
    try:
        folder.mkdir(exist_ok=True)
        taken = [int(entry.stem) for entry in folder.iterdir() if entry.stem.isdecimal()]
    except OSError as error:
        raise LearningFailed(f"{folder} cannot be used: {error.strerror}.") from error
    return folder / f"{max(taken, default=0) + 1:04d}"
