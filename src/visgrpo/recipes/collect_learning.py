"""Learning in the background while people judge: `visgrpo clip` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock, Thread

from visgrpo.collecting.collector import LearningState
from visgrpo.errors import UserError
from visgrpo.recipes.collect_config import CollectConfig

_LOG_FOR: Mapping[str, tuple[str, str]] = {  # the reward and the store's table, by the question
    "click": ("clicks", "impressions"),
    "rank": ("preferences", "preferences"),
    "grade": ("grades", "grades"),
}


# There may be two dozen judged images, and hardly one among those for validation.
_FOR_FEW_JUDGEMENTS = (
    *("--estimator", "exact", "--batch-size", "16"),
    *("--select", "accuracy", "--keep", "last"),
)


class LearningFailed(UserError):
    """A round of learning ended without a model."""


class ClipProcess:
    """Trains by a command line, one at a time.

    Args:
        words: what is run, but for --output.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, output: Path) -> None:
        """Train into the run `output`; what the process prints goes to a log beside it.

        Raises:
            LearningFailed: it did not end well; says its last line.
        """
        log = output.with_name(f"{output.name}.log")
        with log.open("wb") as file:
            words = [*self._words, "--output", str(output)]
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )
            code = self._process.wait()
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()] or ["It said nothing."]
            raise LearningFailed(f"{said[-1]} (exit code {code}; all of it is in {log})")

    def stop(self) -> None:
        """End the training that is under way, if any."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def clip_words(config: CollectConfig, templates: Sequence[str]) -> list[str]:
    """Return the command line that learns from the store, but for --output.

    Every round begins at the model that collecting began with, and learns from all judgements.
    """
    reward, table = _LOG_FOR[config.ask]
    feedback = f"sqlite:///{Path(config.store).resolve()}?table={table}"
    words = ["--model", config.model, "--data", config.data, "--feedback", feedback]
    words += ["--reward", reward, "--lora", "--no-report", "--seed", str(config.seed)]
    words += ["--device", config.device, "--templates", *templates]
    if config.ask == "click":
        # Labels are shuffled for each person: no label is favoured by where it stands, and one
        # person's look at an image could not tell how much positions matter.
        words += ["--position-bias", "none"]
    for option in ("image_column", "label_column", "id_column"):
        if getattr(config, option) is not None:
            words += ["--" + option.replace("_", "-"), getattr(config, option)]
    if config.learn_config is not None:
        words += ["--config", config.learn_config]
    else:
        words += _FOR_FEW_JUDGEMENTS
    return [sys.executable, "-m", "visgrpo", "clip", *words]


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
        except UserError as error:
            ending = str(error)
            print(f"Learning failed: {error}", file=sys.stderr, flush=True)
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
