"""--push-to-hub against a stand-in of the Hub on this machine; nothing leaves it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from running import clip_words, refused

from visgrpo.cli import main

Capture = pytest.CaptureFixture[str]


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of the Hub: repositories that hold files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: list[bool] = []
        self.full = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Asked(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        hub, place = self.server, self.path.partition("?")[0]
        name = "/".join(place.split("/")[3:5])
        if self.headers["Authorization"] != "Bearer hf_right":
            self.answer(401, {"error": "Invalid username or password."})
        elif place == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization", "me"), asked["name"])))
            hub.private.append(asked.get("private", asked.get("visibility") == "private"))
            known = name in hub.repositories
            hub.repositories.setdefault(name, {})
            self.answer(409 if known else 200, {"url": f"{hub.address}/{name}"})
        elif place == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in place:
            paths = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": path, **plain} for path in paths]})
        elif hub.full:
            self.answer(403, {"error": "Your storage is full."})
        elif "/commit/" in place:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.repositories[name][line["value"]["path"]] = content
            self.answer(200, {"commitUrl": f"{hub.address}/{name}/commit/1", "commitOid": "1" * 40})
        else:
            self.answer(404, {"error": place})

    def answer(self, status: int, said: Any) -> None:
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if "error" in said:
            self.send_header("X-Error-Message", said["error"])
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    server.server_close()


def test_the_model_is_uploaded_as_it_was_saved(
    hub: Hub, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = clip_words(start, pictures, tmp_path / "run", "--push-to-hub", "me/tuned")
    main(words)
    files = hub.repositories["me/tuned"]
    saved = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
    assert files == saved
    assert {"model.safetensors", "config.json", "README.md"} <= files.keys()
    assert hub.private == [True, True]
    assert f"Hub: {hub.address}/me/tuned" in capsys.readouterr().err


def test_what_hinders_it_is_told_before_anything_trains(
    hub: Hub,
    start: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = clip_words(start, pictures, tmp_path / "run", "--push-to-hub")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = refused(capsys, [*words, "me/tuned"])
    assert '--push-to-hub "me/tuned": ' in line
    assert "401" in line
    assert 'log in with "hf auth login"' in line
    assert '--push-to-hub "a//b"' in refused(capsys, [*words, "a//b"])
    assert not (tmp_path / "run").exists()
    assert not hub.repositories


def test_a_model_that_the_hub_does_not_take_stays(
    hub: Hub, start: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    hub.full = True
    words = clip_words(start, pictures, tmp_path / "run", "--push-to-hub", "me/tuned")
    line = refused(capsys, words, notes=True)
    assert "Could not push to me/tuned: 403 Forbidden: Your storage is full" in line
    assert f'"hf upload me/tuned {tmp_path}/run/model" sends it.' in line
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert (tmp_path / "run" / "summary.json").exists()
