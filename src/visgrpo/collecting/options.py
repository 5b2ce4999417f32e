"""The options of `visgrpo feedback collect`. Light to import."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visgrpo.arguments import options_as_flags, read_options
from visgrpo.collecting.guard import is_loopback
from visgrpo.errors import UserError
from visgrpo.tasks.checks import named, not_negative, positive
from visgrpo.tasks.configs import ClipConfig, Config

MOST_LABELS = 9  # each has a key of its own
_LEAST_TOKEN = 8
# Options of visgrpo clip that follow from what is collected.
_SET_BY_COLLECT = (
    *("model", "data", "train_slice", "image_column", "label_column", "id_column", "templates"),
    *("feedback", "query", "output", "resume"),
)


@dataclass(frozen=True)
class CollectConfig(Config):
    """Serve a page on which people judge the labels that a model offers for images.

    What they judge is stored with the probability of every label they were shown: the store is a
    log for --feedback as it stands.
    """

    model: str = ""
    """Run, folder or Hub name of the model that offers labels: CLIP, or a backbone with a
    classification head."""
    data: str = ""
    """Images to judge: a folder of photos, or whatever visgrpo clip takes; labels are not looked
    at."""
    store: str = "feedback.db"
    """SQLite file that judgements are kept in; made where there is none, else gone on with."""
    ask: Literal["click", "rank", "grade"] = "click"
    """Choose the label that fits best, name them from the best to the worst, or grade each."""
    group_size: int | None = None
    """Labels for each image; by default 4, or all where there are fewer."""
    exploration: float = 0.1
    """Share of chance among the labels, so that every one can be shown; 1 ignores the model."""
    temperature: float = 1.0
    """Labels are drawn by softmax(logits / temperature); more shows what the model doubts."""
    classes: tuple[str, ...] = ()
    """CLIP: class names; by default those that the model was trained with, or the data's."""
    templates: tuple[str, ...] | None = None
    """CLIP: prompts; by default those that the model was trained with."""
    split: str = "train"
    """Rows of data that is stored in splits, perhaps sliced: "train[:2000]". Judging test rows
    spoils them for measuring what was learned from the judgements."""
    image_column: str | None = None
    """Column of the images, where its name is not a usual one."""
    label_column: str | None = None
    """Column of the labels, where its name is not a usual one."""
    id_column: str | None = None
    """Column by which the log names images; by default id, image_id, path, file or the like."""
    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs --token."""
    port: int = 8765
    """Port to listen on; 0 takes a free one."""
    token: str | None = None
    """Secret that people from other machines open the page with."""
    open: bool = False
    """Open the page in the browser."""
    learn: int | None = None
    """CLIP: after so many new judgements, train LoRA adapters on all of them in the background and
    draw labels from the result."""
    learn_config: str | None = None
    """YAML file of options of visgrpo clip for that training, instead of those it has here."""
    seed: int = 0
    """Of the labels that are drawn and of the order of the images."""
    batch_size: int = 256
    """Images at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def check(self) -> None:
        named(self.model, "the model: visgrpo feedback collect --model … --data …")
        named(self.data, "the images: visgrpo feedback collect --model … --data photos/")
        named(self.store, "the file for judgements: --store feedback.db")
        positive(self, "temperature", "batch_size")
        positive(self, "learn", "group_size", optional=True)
        not_negative(self, "seed")
        if not 0 < self.exploration <= 1:
            raise UserError(
                f"--exploration {self.exploration} must lie in (0, 1]: every label needs a chance "
                "to be shown."
            )
        if self.group_size is not None and self.group_size > MOST_LABELS:
            raise UserError(
                f"--group-size {self.group_size} is more than {MOST_LABELS}, the keys 1 to 9."
            )
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port} must lie between 0 and 65535.")
        self._check_learning()
        self._check_token()

    def learn_options(self) -> dict[str, Any]:
        """Return the options in --learn-config, by their names in `ClipConfig`.

        Raises:
            UserError: for a file that cannot be read, and options that are not to be in it.
        """
        if self.learn_config is None:
            return {}
        origin, file = f"--learn-config {self.learn_config}", Path(self.learn_config)
        if not file.is_file():
            raise UserError(f"{origin}: there is no such file.")
        options = read_options(file)
        options_as_flags(options, ClipConfig, origin)
        options = {name.replace("-", "_"): value for name, value in options.items()}
        for name in _SET_BY_COLLECT:
            if name in options:
                raise UserError(
                    f'{origin}: leave out "{name}", which follows from what is collected.'
                )
        return options

    def _check_learning(self) -> None:
        if self.learn is None:
            if self.learn_config is not None:
                raise UserError("--learn-config is for the training of --learn: give that too.")
            return
        self.learn_options()
        if self.split.partition("[")[0] != "train":
            raise UserError(
                f"--learn trains on the training rows: judge those, and not --split {self.split}."
            )

    def _check_token(self) -> None:
        if self.token is None:
            if not is_loopback(self.host):
                raise UserError(
                    f"--host {self.host} lets other machines in: give a --token that people open "
                    "the page with, or stay on 127.0.0.1."
                )
        elif not re.fullmatch(rf"[\w.~-]{{{_LEAST_TOKEN},}}", self.token, re.ASCII):
            raise UserError(
                f"--token takes {_LEAST_TOKEN} or more letters, digits, dots, hyphens, underscores "
                "and tildes, since it is part of an address."
            )
