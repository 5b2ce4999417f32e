"""What a job is, and where each one is found. Light to import: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from visgrpo.tasks.run import Job
    from visgrpo.tasks.session import Session


class Task:
    """One job: what `visgrpo NAME` does, and what is asked of the models that it makes.

    A task says what is its own. Everything around it is the house's: `run.train` opens, trains,
    resumes, measures and saves; sweep, report and compare read what a run leaves behind.

    Attributes:
        name: the command, and the "recipe" of its runs.
        about: the line of `visgrpo --help`.
        options: the dataclass of its options, a `LoopConfig`.
        kinds: what the visgrpo.json of its models says under "task", each in words for messages.
        shown: measures that a sweep's table shows by default.
        baseline: options that a supervised run beside it takes instead of its own; None where a
            task has no such baseline.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    options: ClassVar[Any]
    kinds: ClassVar[Mapping[str, str]] = {}
    shown: ClassVar[tuple[str, ...]] = ("accuracy",)
    baseline: ClassVar[Mapping[str, Any] | None] = None

    def run_name(self, options: Any) -> str:
        """Return what a run is called where the user does not name it."""
        return self.name.replace(" ", "-")

    def set_up(self, options: Any, session: Session) -> Job:
        """Read the data, load or build the model, and say how it learns and is measured.

        Whatever cannot work is refused here, cheap checks first: nothing is on the disk by then.

        Raises:
            UserError: for settings, data, models or rewards that cannot work.
        """
        raise NotImplementedError

    def train(self, options: Any) -> dict[str, Any]:
        """Run the whole job and return its summary, which is also in OUTPUT/summary.json.

        Raises:
            UserError: for settings, data, models or rewards that cannot work.
            Interrupted: when asked to stop; the run can be resumed.
        """
        from visgrpo.tasks.run import train

        return train(self, options)

    def load(self, name: str, options: Any, processes: Any) -> Any:
        """Load a saved model for `evaluate` and `predict`."""
        raise NotImplementedError

    def held_out(self, options: Any, processes: Any) -> Any:
        """Read the rows that `evaluate` measures on."""
        raise NotImplementedError

    def measure(self, model: Any, rows: Any, options: Any, processes: Any) -> Mapping[str, Any]:
        """Return the measures of a loaded model on rows."""
        raise NotImplementedError

    def answer(self, model: Any, image: Any, options: Any) -> dict[str, Any]:
        """Return what a loaded model says of an image."""
        raise NotImplementedError


@dataclass(frozen=True)
class Place:
    """Where a task and its options are, each as "module:attribute": loaded when they are used.

    The other attributes are those of a `Task`.
    """

    about: str
    options_at: str
    task_at: str
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> Any:
        return resolve_name(self.options_at)


TASKS: dict[str, Place | Task] = {
    "language": Place(
        "train a small language model: SFT, reward model, GRPO and PPO",
        "visgrpo.tasks.language_config:LanguageConfig",
        "visgrpo.tasks.language:LanguageTask",
        {"language": "a language model", "reward": "a reward model"},
    ),
    "vlm": Place(
        "train a vision-language model: SFT, then GRPO on what its answers earn",
        "visgrpo.tasks.vlm_config:VlmConfig",
        "visgrpo.tasks.vlm:VlmTask",
        {"vision-language": "a vision-language model"},
    ),
}


def register(task: Task) -> None:
    """Make a task known by its name: as a command, and to sweep, evaluate and predict."""
    TASKS[task.name] = task


def train(name: str, options: Any) -> dict[str, Any]:
    """Run a task and return its summary."""
    return task_named(name).train(options)


def task_named(name: str) -> Task:
    """Return a task.

    Raises:
        KeyError: for a name that none has.
    """
    found = TASKS[name]
    if isinstance(found, Place):
        task: Task = resolve_name(found.task_at)()
        return task
    return found
