"""Learning while people judge: rounds of `visgrpo clip` on what there is, in their own process."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any

from visgrpo.arguments import options_as_flags, parse
from visgrpo.collecting.collector import LearningState
from visgrpo.collecting.design import TABLES, Ask
from visgrpo.collecting.options import CollectConfig
from visgrpo.data.folders import holds_photos
from visgrpo.data.read import read
from visgrpo.data.split import TEST_FRACTION
from visgrpo.errors import UserError, printable
from visgrpo.feedback.source.matching import image_keys
from visgrpo.files import writing
from visgrpo.tasks.clip.options import ClipConfig
from visgrpo.terminal import say

# The program as a process that ends with this one.
VISGRPO = (
    sys.executable,
    "-c",
    f"from {__name__} import end_with_parent; end_with_parent(); "
    "from visgrpo.cli import main; main()",
)
_PATIENCE = 5.0  # seconds for training that is told to end
_REWARDS: Mapping[Ask, str] = {"click": "clicks", "rank": "preferences", "grade": "grades"}
_MOST_IN_A_BATCH = 16  # the first round may have two dozen images
_EPOCHS, _LEAST_STEPS = 5, 50  # of which five epochs would be too few steps to learn anything


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
        with writing(log):
            file = log.open("wb")
        with file, self._start(words, file) as process:
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
                stdin=subprocess.PIPE,  # by whose end it notes that this process is no more
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
            say(f"Learning failed: {printable(ending)}")
        finally:
            failed, learned = ("failed", rounds, printable(ending)), ("idle", rounds + 1)
            self._state = LearningState(*(failed if ending else learned))


def _free_run(folder: Path) -> Path:
    """Return the path of the next run, 0001 at first; those of earlier sessions stay."""
    try:
        folder.mkdir(exist_ok=True)
        taken = [int(entry.stem) for entry in folder.iterdir() if entry.stem.isdecimal()]
    except OSError as error:
        raise LearningFailed(f"{folder} cannot be used: {error.strerror}.") from error
    return folder / f"{max(taken, default=0) + 1:04d}"


class Training:
    """The command lines of the rounds, which begin at the same model and learn from all judgements.

    Args:
        settings: what every round trains with, of `clip_config`.
        templates: the prompts of the model that collecting began with.
        judged_images: returns the names of the images that were judged so far.
    """

    def __init__(
        self,
        config: CollectConfig,
        settings: ClipConfig,
        templates: Sequence[str],
        judged_images: Callable[[], Sequence[str]],
    ) -> None:
        self._config, self._settings, self._templates = config, settings, templates
        self._judged_images = judged_images

    def words(self) -> list[str]:
        """Return the command line of the next round, but for --output.

        Raises:
            UserError: for data or a --learn-config that cannot be used any more.
        """
        judged = self._judged_images()
        if holds_photos(Path(self._config.data).expanduser()):
            images = photos_for_training(len(judged), self._settings.validation_fraction)
        else:
            images = len(self._training_names.intersection(judged))
        options = clip_words(self._config, self._templates, images)
        return [*VISGRPO, "clip", *options]

    @cached_property
    def _training_names(self) -> frozenset[str]:
        """What the images that rounds train on may be called, judged or not."""
        config, settings = self._config, self._settings
        train = read(
            config.data,
            columns={"image": config.image_column, "label": config.label_column},
            train_slice=settings.train_slice,
            validation_fraction=settings.validation_fraction,
            seed=settings.seed,
        ).train
        keys = image_keys(train.columns, len(train), config.id_column)
        return frozenset(chain.from_iterable(keys))


def clip_words(config: CollectConfig, templates: Sequence[str], images: int) -> list[str]:
    """Return the options of visgrpo clip that learns from the store, but for --output.

    Args:
        images: judged ones that are for training.

    Raises:
        UserError: for a --learn-config that cannot be used.
    """
    feedback = f"sqlite:///{Path(config.store).resolve()}?table={TABLES[config.ask]}"
    words = ["--model", config.model, "--data", config.data, "--feedback", feedback]
    words += ["--templates", *templates]
    _, _, rows = config.split.partition("[")
    if rows:
        words += [f"--train-slice={rows.removesuffix(']')}"]
    for option in ("image_column", "label_column", "id_column"):
        if getattr(config, option) is not None:
            words += ["--" + option.replace("_", "-"), getattr(config, option)]
    given = set(config.learn_options())
    if "epochs" in given:
        given.add("steps")  # it would take precedence
    if "lora" in given:
        given.add("train")  # the word of today
    ours = {name: value for name, value in _defaults(config, images).items() if name not in given}
    words += options_as_flags(ours, ClipConfig, "--learn")
    if config.learn_config is not None:
        words += ["--config", config.learn_config]
    return words


def _defaults(config: CollectConfig, images: int) -> dict[str, Any]:
    """Return what --learn-config may say otherwise."""
    batch_size = max(1, min(_MOST_IN_A_BATCH, images))
    settings: dict[str, Any] = {
        "reward": [_REWARDS[config.ask]],
        "estimator": "exact",
        "train": ["lora"],
        "batch_size": batch_size,
        "steps": max(_LEAST_STEPS, math.ceil(_EPOCHS * images / batch_size)),
        "select": "accuracy",  # hardly one of two dozen judged images is for validation
        "keep": "last",
        "skip_bad_images": True,  # as when collecting
        "report": False,
        "seed": config.seed,
        "device": config.device,
    }
    if config.ask == "click":
        # Labels are shuffled for each person: no label is favoured by where it stands, and one
        # person's look at an image could not tell how much positions matter.
        settings["position_bias"] = "none"
    return settings


def clip_config(config: CollectConfig) -> ClipConfig:
    """Return the options of a round, checked.

    Raises:
        UserError: they cannot be understood, or do not go together.
    """
    words = clip_words(config, config.templates or ("{}",), _MOST_IN_A_BATCH)
    try:
        found = parse(ClipConfig, "clip", words)
        found.check()
    except UserError as error:
        origin = "--learn" if config.learn_config is None else "--learn-config"
        named = str(error).startswith("--config ")  # what is wrong in the file already says where
        told = f"--learn-{str(error)[2:]}" if named else f"{origin}: {error}"
        raise UserError(told) from None
    return found


def photos_for_training(judged: int, validation_fraction: float) -> int:
    """Return how many of so many judged photos training has at least, once a test and a validation
    split were set apart."""
    left = judged
    for fraction in (TEST_FRACTION, validation_fraction):
        left -= max(1, round(fraction * left))
    return left


def end_with_parent() -> None:
    """End this process in order when the one that began it is no more, killed or not.

    That one holds the other end of the standard input, and writes nothing.
    """

    def follow() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE)
        os._exit(1)

    Thread(target=follow, name="follower", daemon=True).start()
