"""Serve the page on which people judge a model's answers: `visgrpo feedback collect`."""

from __future__ import annotations

import signal
import socket
import sys
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visgrpo.collecting.collector import Answers, Collector, Design
from visgrpo.collecting.guard import Guard
from visgrpo.collecting.learning import BackgroundLearner, ClipProcess
from visgrpo.collecting.model import AnsweringModel
from visgrpo.collecting.options import CollectConfig
from visgrpo.collecting.server import create_app, listen, server_of
from visgrpo.collecting.store import Store
from visgrpo.collecting.training import Training, clip_config
from visgrpo.errors import printable
from visgrpo.models.loading import model_folder
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
        resources.enter_context(_signals_like_ctrl_c())
        # What fails at once comes before what takes long.
        listener = resources.enter_context(closing(listen(config.host, config.port)))
        model = AnsweringModel(config, Processes(config.device))
        names, order_seed = model.names, np.random.default_rng(config.seed)
        order = [names[row] for row in order_seed.permutation(len(names))]
        store = resources.enter_context(Store(Path(config.store), order))
        collector = _collector(config, store, model)
        if config.learn is not None and settings is not None:
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
    runs = store.with_name(f"{store.name}-learned")
    learner = BackgroundLearner(every, runs, train, lambda folder: collector.swap(answers(folder)))
    collector.learner = learner
    return learner


def _collector(config: CollectConfig, store: Store, model: AnsweringModel) -> Collector:
    dataset = model.dataset
    size = config.group_size or min(_DEFAULT_GROUP, len(model.classes))
    collector = Collector(
        store,
        model.names,
        dataset.images,
        model.classes,
        model.answers(config.model),
        Design(config.ask, size, config.exploration, config.temperature, config.seed),
    )
    collector.skipped += dataset.skipped
    for reason in dataset.skipped:
        print(f"skipped: {printable(reason)}", file=sys.stderr, flush=True)
    return collector


def _serve(config: CollectConfig, collector: Collector, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    address = _address(config, port)
    print(f"Judge at {address}  (Ctrl-C ends)", flush=True)
    if config.open:
        webbrowser.open(address)
    server = server_of(create_app(collector, Guard(config.host, port, config.token)))
    with suppress(KeyboardInterrupt):  # how this command ends
        server.run(sockets=[listener])


@contextmanager
def _signals_like_ctrl_c() -> Iterator[None]:
    """Have a terminate signal and a closed terminal end the command in order, as Ctrl-C does.

    Otherwise training in the background would go on alone.
    """

    def terminate(number: int, frame: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    wanted: dict[signal.Signals, Callable[[int, Any], Any]] = {
        signal.SIGTERM: signal.default_int_handler
    }
    if hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = terminate
    replaced = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:  # those that nohup or a caller took are theirs
        signal.signal(number, wanted[number])
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _address(config: CollectConfig, port: int) -> str:
    everywhere = config.host in ("0.0.0.0", "::", "")
    host = socket.gethostname() if everywhere else config.host
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?token={config.token}" if config.token else "")


def _say_ending(config: CollectConfig, collector: Collector) -> None:
    progress = collector.progress("")
    print(
        f"{progress.judgements} judgements on {progress.judged_images} of {progress.images} images "
        f"are in {config.store}."
    )
