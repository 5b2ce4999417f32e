"""The options of `visgrpo feedback collect`. Light to import."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visgrpo.arguments import options_as_flags, read_options
from visgrpo.errors import UserError
from visgrpo.feedback.options import LabelledByModel
from visgrpo.methods.options import Policy
from visgrpo.models.options import Adapt
from visgrpo.options import like, option, override
from visgrpo.tasks.clip.options import ClipConfig

MOST_LABELS = 9  # each has a key of its own
_LEAST_TOKEN = 8
# Options of visgrpo clip that follow from what is collected.
_SET_BY_COLLECT = (
    *("model", "data", "train_slice", "image_column", "label_column", "id_column", "templates"),
    *("feedback", "query", "output", "resume", "dry_run"),
)


@dataclass(frozen=True)
class CollectConfig(LabelledByModel):
    """Serve a page on which people judge the labels that a model offers for images.

    What they judge is stored with the probability of every label they were shown: the store is a
    log for --feedback as it stands.
    """

    example = "visgrpo feedback collect --model runs/start --data photos/ --store judged.db"
    common = "model data store ask group_size learn open host port"

    model: str = like(
        Adapt,
        "",
        "Run, folder or Hub name of the model that offers labels: CLIP, or a backbone with a "
        "classification head.",
        required="the model: visgrpo feedback collect --model … --data …",
    )
    data: str = override(
        "",
        "Images to judge: a folder of photos, or whatever visgrpo clip takes; labels are not "
        "looked at.",
        required="the images: visgrpo feedback collect --model … --data photos/",
    )
    store: str = option(
        "feedback.db",
        "SQLite file that judgements are kept in; made where there is none, else gone on with.",
        required="the file for judgements: --store feedback.db",
    )
    ask: Literal["click", "rank", "grade"] = option(
        "click",
        "Choose the label that fits best, name them from the best to the worst, or grade each.",
    )
    question: str = option(
        "", "What people are asked, in your own words, instead of the page's question."
    )
    group_size: int | None = like(
        Policy,
        None,
        "Labels for each image; by default 4, or all where there are fewer.",
    )
    exploration: float = option(
        0.1,
        "Share of chance among the labels, so that every one can be shown; 1 ignores the model.",
        within="(0, 1]: every label needs a chance to be shown",
    )
    temperature = like(
        Policy,
        help="Labels are drawn by softmax(logits / temperature); more shows what the model doubts.",
    )
    classes = override(
        (), "CLIP: class names; by default those that the model was trained with, or the data's."
    )
    split = override(
        "train",
        'Rows of data that is stored in splits, perhaps sliced: "train[:2000]". Judging test '
        "rows spoils them for measuring what was learned from the judgements.",
    )
    host: str = option(
        "127.0.0.1", "Address to listen on; any but this machine's own needs --token."
    )
    port: int = option(8765, "Port to listen on; 0 takes a free one.", within="[0, 65535]")
    token: str | None = option(None, "Secret that people from other machines open the page with.")
    open: bool = option(False, "Open the page in the browser.")
    learn: int | None = option(
        None,
        "CLIP: after so many new judgements, train LoRA adapters on all of them in the "
        "background and draw labels from the result.",
        within="> 0",
    )
    learn_config: str | None = option(
        None,
        "YAML file of options of visgrpo clip for that training, instead of those it has here.",
    )
    seed = override(0, "Of the labels that are drawn and of the order of the images.")

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.group_size is not None and self.group_size > MOST_LABELS:
            yield f"--group-size {self.group_size} is more than {MOST_LABELS}, the keys 1 to 9."
        yield from self._learning_rules()
        yield from self._token_rules()

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

    def _learning_rules(self) -> Iterator[str]:
        if self.learn is None:
            if self.learn_config is not None:
                yield "--learn-config is for the training of --learn: give that too."
            return
        self.learn_options()
        if self.split.partition("[")[0] != "train":
            yield f"--learn trains on the training rows: judge those, and not --split {self.split}."

    def _token_rules(self) -> Iterator[str]:
        if self.token is None:
            if not is_loopback(self.host):
                yield (
                    f"--host {self.host} lets other machines in: give a --token that people open "
                    "the page with, or stay on 127.0.0.1."
                )
        elif not re.fullmatch(rf"[\w.~-]{{{_LEAST_TOKEN},}}", self.token, re.ASCII):
            yield (
                f"--token takes {_LEAST_TOKEN} or more letters, digits, dots, hyphens, underscores "
                "and tildes, since it is part of an address."
            )


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
