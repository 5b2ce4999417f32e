"""A real server of the page in a thread, and a client that can say what no browser would."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

from visgrpo.collecting.collector import Answers, Collector, Design
from visgrpo.collecting.server import Guard, create_app, listen, server_of
from visgrpo.collecting.store import Store

CLASSES = ("cat", "dog", "cow", "owl", "<b>bold</b>", "fox")
SCRIPT = "<img src=x onerror=\"document.title='executed'\">"


def names_of(images: Sequence[Image.Image]) -> list[str]:
    return [f"{row}.png" for row in range(len(images))]


def plain_images(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (48, 32), (20 * row % 256, 90, 120)) for row in range(count)]


def first_is_best(
    rows: int, model: str = "start", best: int = 0, classes: int = len(CLASSES)
) -> Answers:
    """A model that gives one class three fifths of its probability."""
    probability_MK = np.full((rows, classes), 0.4 / (classes - 1))
    probability_MK[:, best] = 0.6
    return Answers(model, probability_MK)


@dataclass
class Served:
    """A server that runs, and what is behind it."""

    address: str
    port: int
    store: Path
    collector: Collector


@contextmanager
def serving(
    path: Path,
    images: Sequence[Image.Image],
    design: Design | None = None,
    *,
    classes: Sequence[str] = CLASSES,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
) -> Iterator[Served]:
    """Serve a store for the time of a with statement, by default on a free port."""
    names = names_of(images)
    with Store(path, names) as store, closing(listen("127.0.0.1", port)) as listener:
        answers = first_is_best(len(images), classes=len(classes))
        collector = Collector(store, names, images, classes, answers, design or Design())
        port = listener.getsockname()[1]
        server = server_of(create_app(collector, Guard(host, port, token)))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{port}/", port, path, collector)
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """A browser without its manners: every header can be replaced, or left out with None."""

    def __init__(self, served: Served, person: str | None = "Ann") -> None:
        self._port = served.port
        self.cookies: dict[str, str] = {}
        if person is not None:
            assert self.post("/api/person", {"name": person}).status == 200

    def get(self, path: str, headers: Mapping[str, str | None] | None = None) -> Reply:
        return self._send("GET", path, None, headers or {})

    def post(
        self, path: str, body: Any = None, headers: Mapping[str, str | None] | None = None
    ) -> Reply:
        own = {
            "Content-Type": "application/json",
            "Origin": f"http://127.0.0.1:{self._port}",
        }
        return self._send("POST", path, json.dumps(body or {}), {**own, **(headers or {})})

    def _send(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str | None]
    ) -> Reply:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        every = {"Cookie": cookie or None, **headers}
        given = {name: value for name, value in every.items() if value is not None}
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)) as connection:
            connection.request(method, path, body, given)
            response = connection.getresponse()
            for line in response.headers.get_all("Set-Cookie", []):
                name, _, value = line.partition(";")[0].partition("=")
                self.cookies[name] = value
            return Reply(response.status, dict(response.headers), response.read())


if __name__ == "__main__":  # a process that can be killed: STORE PORT
    with serving(Path(sys.argv[1]), plain_images(4), port=int(sys.argv[2])) as running:
        print(running.address, flush=True)
        sys.stdin.read()
