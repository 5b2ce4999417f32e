"""Serve the page on which people judge a model's answers: `visgrpo feedback collect`."""

from __future__ import annotations

import socket
import webbrowser
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from visgrpo.collecting.collector import Answers, Collector, Design
from visgrpo.collecting.learning import BackgroundLearner, ClipProcess, Training, clip_config
from visgrpo.collecting.options import CollectConfig
from visgrpo.collecting.server import Guard, create_app, listen, server_of
from visgrpo.collecting.store import Store
from visgrpo.data.folders import holds_photos, read_photos
from visgrpo.data.table import Table
from visgrpo.errors import UserError, printable
from visgrpo.feedback.images import answering_kind, answers_of, stored_images, unlabelled
from visgrpo.feedback.source.matching import image_keys, key_columns
from visgrpo.locks import FolderLock
from visgrpo.models.clip import DEFAULT_TEMPLATES, class_prompts
from visgrpo.models.parts import model_folder, read_info
from visgrpo.signals import like_ctrl_c
from visgrpo.tasks.task import kinds
from visgrpo.terminal import say, show
from visgrpo.training.processes import Processes

_DEFAULT_GROUP = 4


def collect(config: CollectConfig) -> None:
    """Serve the page until Ctrl-C; everything that was judged is in the store by then.

    Raises:
        UserError: for a model, images, a store or an address that cannot be used.
    """
    config.check()
    config = replace(config, model=model_folder(config.model))
    settings = None if config.learn is None else clip_config(config)
    with ExitStack() as resources:
        resources.enter_context(like_ctrl_c())
        # What fails at once comes before what takes long.
        listener = resources.enter_context(closing(listen(config.host, config.port)))
        model = AnsweringModel(config, Processes(config.device))
        names, order_seed = model.names, np.random.default_rng(config.seed)
        order = [names[row] for row in order_seed.permutation(len(names))]
        store = resources.enter_context(Store(Path(config.store), order))
        collector = _collector(config, store, model)
        if config.learn is not None and settings is not None:
            mend = "leave --learn out here, or take another --store"
            resources.enter_context(FolderLock(runs_of(store.path), mend))
            judged = partial(store.judged_images, config.ask)
            train = ClipProcess(Training(config, settings, model.templates, judged).words)
            resources.callback(train.stop)
            add_learner(config.learn, store.path, collector, model.answers, train)
        _serve(config, collector, listener)
        _say_ending(config, collector)


def add_learner(
    every: int,
    store: Path,
    collector: Collector,
    answers: Callable[[str], Answers],
    train: Callable[[Path], None],
) -> BackgroundLearner:
    """Have a collector learn after `every` judgements; the runs lie beside the store.

    Args:
        answers: what the model in a folder says of the images.
        train: trains into the run that it is given; raises UserError where it fails.
    """
    runs = runs_of(store)
    learner = BackgroundLearner(every, runs, train, lambda folder: collector.swap(answers(folder)))
    collector.learner = learner
    return learner


def runs_of(store: Path) -> Path:
    """Return the folder of what is learned from a store."""
    return store.with_name(f"{store.name}-learned")


def _collector(config: CollectConfig, store: Store, model: AnsweringModel) -> Collector:
    dataset = model.dataset
    size = config.group_size or min(_DEFAULT_GROUP, len(model.classes))
    collector = Collector(
        store,
        model.names,
        dataset.images,
        model.classes,
        model.answers(config.model),
        Design(
            *(config.ask, size, config.exploration, config.temperature, config.seed),
            question=config.question,
        ),
    )
    collector.skipped += dataset.skipped
    for reason in dataset.skipped:
        say(f"skipped: {printable(reason)}")
    return collector


def _serve(config: CollectConfig, collector: Collector, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    address = _address(config, port)
    show(f"Judge at {address}  (Ctrl-C ends)")
    if config.open:
        webbrowser.open(address)
    server = server_of(create_app(collector, Guard(config.host, port, config.token)))
    with suppress(KeyboardInterrupt):  # how this command ends
        server.run(sockets=[listener])


def _address(config: CollectConfig, port: int) -> str:
    everywhere = config.host in ("0.0.0.0", "::", "")
    host = socket.gethostname() if everywhere else config.host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={config.token}" if config.token else "")


def _say_ending(config: CollectConfig, collector: Collector) -> None:
    progress = collector.progress("")
    show(
        f"{progress.judgements} judgements on {progress.judged_images} of {progress.images} images "
        f"are in {config.store}."
    )
    if verdict := collector.verdict():
        show(str(verdict))


class AnsweringModel:
    """Models of one kind, one after the other, answering about the same images.

    Attributes:
        dataset: the images; their labels mean nothing here.
        names: what the log calls them.
        classes: the labels that can be offered.
        templates: the prompts of a CLIP model.

    Raises:
        UserError: for a model or images that cannot be used.
    """

    def __init__(self, config: CollectConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        kind = _kind(config)
        info = read_info(config.model)
        self.classes = config.classes or tuple(info.get("classes", ()))
        self.templates = config.templates or tuple(info.get("templates", DEFAULT_TEMPLATES))
        stored = _images(config, self.classes)
        named = replace(stored, columns={"name": _names(config, stored)})
        self.dataset = named.without_bad_rows()
        self.names = list(self.dataset.columns["name"])
        self.classes = self.classes or self.dataset.classes
        if config.learn is not None:
            _check_learnable(self.classes, self.dataset)
        if kind == "clip":
            class_prompts(self.classes, self.templates)

    def answers(self, model: str) -> Answers:
        """Return what a model says of every image; `model` is also its name in the store.

        Raises:
            UserError: when it cannot be loaded.
        """
        _, probability_MK = answers_of(
            model,
            self.dataset,
            self.classes,
            self.templates,
            self._processes,
            batch_size=self._config.batch_size,
        )
        return Answers(model, probability_MK)


def _kind(config: CollectConfig) -> str:
    kind = answering_kind(config.model, "offered")
    if kind == "classification":
        for option, given in (
            ("classes", bool(config.classes)),
            ("templates", config.templates is not None),
            ("learn", config.learn is not None),
        ):
            if given:
                raise UserError(
                    f'--{option} is for CLIP: "{config.model}" is '
                    f"{kinds()['classification'].words}."
                )
    return kind


def _check_learnable(classes: tuple[str, ...], dataset: Table) -> None:
    """Refuse labels that training, which has the data's classes, would not know."""
    foreign = [label for label in classes if label not in dataset.classes]
    if foreign:
        raise UserError(
            f'--learn trains on the classes of {dataset.name}, which has no "{foreign[0]}": name '
            "its own with --classes, or leave out --learn."
        )


def _images(config: CollectConfig, classes: tuple[str, ...]) -> Table:
    folder = Path(config.data).expanduser()
    if not holds_photos(folder):
        return stored_images(config)
    if config.split != "train":
        raise UserError(
            f"--split is of data that is stored in splits: {folder} is a folder of photos."
        )
    if not classes:
        raise UserError(
            f'"{config.model}" names no classes, and photos have none: give them with --classes.'
        )
    names, images = read_photos(folder)
    return unlabelled(folder.resolve().name, classes, names, images)


def _names(config: CollectConfig, dataset: Table) -> list[str]:
    """Return what the log calls each image: the first of its keys that no other image has."""
    if not key_columns(dataset.columns, config.id_column):
        raise UserError(
            f"{dataset.name}: no column names the images, so a log of them could not be matched: "
            "name one with --id-column."
        )
    keys = image_keys(dataset.columns, len(dataset), config.id_column)
    images = Counter(key for its_keys in keys for key in its_keys)
    names = []
    for row, its_keys in enumerate(keys):
        own = [key for key in its_keys if images[key] == 1]
        if not own:
            raise UserError(
                f"{dataset.name}: row {row} shares its name with another row, or has none, and a "
                "log could not tell which is meant: name another column with --id-column."
            )
        names.append(own[0])
    return names
