"""What a job is, and where each one is found. Light to import: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from visgrpo.tasks.run import Job, Session


@dataclass(frozen=True)
class Kind:
    """What saved models of one kind are called, and what is done with them.

    Attributes:
        words: what it is, as messages say it.
        evaluation: the `Evaluation` of `visgrpo evaluate`, perhaps as "module:class".
        prediction: the `Prediction` of `visgrpo predict`, in the same way; or None.
        no_answers: why it has no prediction, and what to do instead.
        labels: whether it answers with names of classes.
        data: what evaluations must be given with --data; None where built-in data will do.
        alike: whether the start of an evaluation must be of the same kind.
        takes: options of `evaluate` and `predict` that go with some kinds only, and with this one.
    """

    words: str
    evaluation: str | type
    prediction: str | type | None = None
    no_answers: str = "answers nothing"
    labels: bool = False
    data: str | None = None
    alike: bool = False
    takes: tuple[str, ...] = ()


class Task:
    """One job: what `visgrpo NAME` does, and what is asked of the models that it makes.

    A task says what is its own. Everything around it is the house's: `run.train` opens, trains,
    resumes, measures and saves; sweep, report and compare read what a run leaves behind.

    Attributes:
        name: the command, and the "recipe" of its runs.
        about: the line of `visgrpo --help`.
        options: the dataclass of its options, a `Loop`.
        kinds: of the models that it saves, by what their visgrpo.json says under "task".
        shown: measures that a sweep's table shows by default.
        baseline: options that a supervised run beside it takes instead of its own; None where a
            task has no such baseline.
        shifts_in_table: whether shifted test sets have rows of their own in the table that a run
            ends with: where there are few, and more than accuracy counts.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    options: ClassVar[Any]
    kinds: ClassVar[Mapping[str, Kind]] = {}
    shown: ClassVar[tuple[str, ...]] = ("accuracy",)
    baseline: ClassVar[Mapping[str, Any] | None] = None
    shifts_in_table: ClassVar[bool] = False

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


@dataclass(frozen=True)
class Place:
    """Where a task and its options are, each as "module:attribute": loaded when they are used.

    The other attributes are those of a `Task`.
    """

    about: str
    options_at: str
    task_at: str
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    @property
    def options(self) -> Any:
        return resolve_name(self.options_at)


_IMAGES = ("image_column", "seed", "skip_bad_images", "top_k", "train_slice")
_LABELLED = (*_IMAGES, "batch_size", "decide", "fit_biases", "label_column")
_OF_MASKS = ("classes_file", "ignore_index", "image_size", "mask_column", "output")
_MASKED = (*_IMAGES, *_OF_MASKS, "fit_biases")
_QUESTIONS = (
    *("image_column", "question_column", "answer_column", "seed", "skip_bad_images", "task"),
    *("box_format", "coordinates"),
)

TASKS: dict[str, Place | Task] = {
    "clip": Place(
        "fine-tune a CLIP classifier with rewards",
        "visgrpo.tasks.clip.options:ClipConfig",
        "visgrpo.tasks.clip.train:ClipTask",
        {
            "clip": Kind(
                "a CLIP or SigLIP model",
                "visgrpo.tasks.clip.use:Evaluation",
                "visgrpo.tasks.clip.use:Prediction",
                labels=True,
                takes=(*_LABELLED, "alpha", "classes", "templates", "votes"),
            )
        },
    ),
    "representation": Place(
        "fine-tune a backbone for classification, by GRPO-RM",
        "visgrpo.tasks.backbone.options:RepresentationConfig",
        "visgrpo.tasks.backbone.representation:RepresentationTask",
        {
            "classification": Kind(
                "a backbone with a classification head",
                "visgrpo.tasks.backbone.use:Evaluation",
                "visgrpo.tasks.clip.use:Prediction",
                labels=True,
                takes=(*_LABELLED, "probe", "shifts"),
            ),
            "label-sets": Kind(
                "a backbone that answers with sets of labels",
                "visgrpo.tasks.backbone.label_sets:SetEvaluation",
                "visgrpo.tasks.backbone.label_sets:SetPrediction",
                labels=True,
                alike=True,
                takes=(*_IMAGES, "batch_size", "label_column", "top_k"),
            ),
        },
    ),
    "segmentation": Place(
        "fine-tune a backbone for a class at every pixel, by GRPO-RM",
        "visgrpo.tasks.backbone.options:SegmentationConfig",
        "visgrpo.tasks.backbone.segmentation:SegmentationTask",
        {
            "segmentation": Kind(
                "a backbone with a segmentation head",
                "visgrpo.tasks.backbone.use:MaskEvaluation",
                "visgrpo.tasks.backbone.use:MaskPrediction",
                labels=True,
                alike=True,
                takes=_MASKED,
            )
        },
    ),
    "pretrain clip": Place(
        "pre-train a small CLIP from random weights",
        "visgrpo.tasks.options:PretrainClipConfig",
        "visgrpo.tasks.pretrain:PretrainClipTask",
    ),
    "pretrain backbone": Place(
        "pre-train a small vision encoder from random weights",
        "visgrpo.tasks.options:PretrainBackboneConfig",
        "visgrpo.tasks.pretrain:PretrainBackboneTask",
        {
            "backbone": Kind(
                "a backbone without a head",
                "visgrpo.tasks.backbone.use:Evaluation",
                no_answers=(
                    "answers nothing: train one with visgrpo representation or visgrpo segmentation"
                ),
                takes=(*_IMAGES, "batch_size", "label_column", "pool", "probe", "shifts"),
            )
        },
    ),
    "language": Place(
        "train a small language model: SFT, reward model, GRPO and PPO",
        "visgrpo.tasks.language.options:LanguageConfig",
        "visgrpo.tasks.language.train:LanguageTask",
        {
            "language": Kind(
                "a language model",
                "visgrpo.tasks.language.use:TextEvaluation",
                no_answers="sees no images: visgrpo generate MODEL PROMPT completes text with it",
                data="a text, such as topics or a .txt file,",
                alike=True,
                takes=("context", "text_column"),
            ),
            "reward": Kind(
                "a reward model",
                "visgrpo.tasks.language.use:PairEvaluation",
                no_answers=(
                    "sees no images: visgrpo evaluate measures it, and visgrpo generate takes "
                    "language models"
                ),
                data="a table of preference pairs, such as RUN/pairs/pairs.jsonl,",
                alike=True,
                takes=("seed",),
            ),
        },
    ),
    "vlm": Place(
        "train a vision-language model: SFT, then GRPO on what its answers earn",
        "visgrpo.tasks.vlm.options:VlmConfig",
        "visgrpo.tasks.vlm.train:VlmTask",
        {
            "vision-language": Kind(
                "a vision-language model",
                "visgrpo.tasks.vlm.use:Evaluation",
                "visgrpo.tasks.vlm.use:Prediction",
                data="questions about images, such as shapes or a .jsonl file,",
                alike=True,
                takes=(
                    *_QUESTIONS,
                    "ask",
                    "max_new_tokens",
                    "max_pixels",
                    "min_pixels",
                    "samples",
                    "style",
                    "styles",
                ),
            )
        },
    ),
}


def kinds() -> dict[str, Kind]:
    """Return the kinds of saved models that some task knows, by name."""
    return {name: kind for task in TASKS.values() for name, kind in task.kinds.items()}


def loaded(place: Any) -> Any:
    """Return what stands at "module:attribute"; anything else as it is."""
    return resolve_name(place) if isinstance(place, str) else place


def register(task: Task) -> None:
    """Make a task known by its name: as a command, and to sweep, evaluate and predict."""
    TASKS[task.name] = task


def train(options: Any) -> dict[str, Any]:
    """Run the task that the options are of; return its summary, also in OUTPUT/summary.json.

    Raises:
        UserError: for settings, data, models or rewards that cannot work.
        Interrupted: when asked to stop; the run can be resumed.
    """
    name = next(name for name, task in TASKS.items() if type(options) is task.options)
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
